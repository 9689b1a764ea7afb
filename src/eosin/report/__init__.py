"""report: self-contained HTML pages. Shows what other rooms wrote; computes no metric of its own."""

from eosin.report.run_page import write_run_report
from eosin.report.study_page import write_study_report

__all__ = ["write_run_report", "write_study_report"]
