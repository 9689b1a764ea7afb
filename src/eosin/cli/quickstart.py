"""`eosin quickstart`: the whole way, from slides to a report, in a few minutes on two cores.

Each stage is the verb of its own name, so the folder it leaves can be gone on with by hand, and a second call resumes.
"""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from eosin.runs import RunFolder
    from eosin.slides import Cohort

SYNTHETIC = "synthetic-tissue"
SYNTHETIC_CAPTION = "Synthetic probe: six procedural tissue classes with known labels, not a measure on real slides."


def quickstart(
    slides: Annotated[
        list[str] | None,
        typer.Option("--slides", help="Slide files or folders; procedural H&E slides without. Repeat."),
    ] = None,
    mpp_csv: Annotated[
        Path | None, typer.Option("--mpp-csv", help="CSV slide,mpp: µm/px of slides that do not say it.")
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option("--task", help="NAME=PATH of your own labelled tiles to probe with. Repeat."),
    ] = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write; again = resume.")] = Path("quickstart"),
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="Change a recipe value: run.minutes=10. Repeat.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start anew in the same folder.")] = False,
) -> None:
    """Make slides (or take yours), index, train a small encoder, probe it, open report.html."""
    from eosin.progress import say

    started = time.perf_counter()
    _check(out, task or [], changes or [])
    cohort = _cohort(out, slides, mpp_csv, fresh)
    run = _train(out, cohort, changes or [], fresh)
    results, comparisons = _judge(out, task or [], run)
    command = _command(slides, mpp_csv, task, changes, out)
    page = _report(out, run, cohort, results, comparisons, command)
    say(f"{(time.perf_counter() - started) / 60:.1f} minutes. Open {page}")
    typer.echo(page)


def _check(out: Path, tasks: list[str], changes: list[str]) -> None:
    """Refuse what would be refused only after minutes: the recipe, the tasks, the folder."""
    from eosin.evaluation.tasks import open_task
    from eosin.files import check_writable
    from eosin.training import load_recipe

    load_recipe("quickstart", changes)
    for spec in tasks:
        open_task(spec)
    check_writable(out)


def _cohort(out: Path, slides: list[str] | None, mpp_csv: Path | None, fresh: bool) -> Cohort:
    """Slides and their cohort file; the synthetic ones where none are given."""
    from eosin.progress import say
    from eosin.slides import Cohort

    if not slides:
        from eosin.slides.synthetic import write_slides

        say("1/4 drawing procedural H&E slides")
        slides = [str(path) for path in write_slides(out / "slides")]
    else:
        say("1/4 reading your slides")
    return Cohort.index(slides, out / "cohort.parquet", mpp_csv=mpp_csv, fresh=fresh)


def _train(out: Path, cohort: Cohort, changes: list[str], fresh: bool) -> RunFolder:
    from eosin.progress import say
    from eosin.training import train

    say("2/4 training")
    return train("quickstart", out / "run", cohort=[str(cohort.path)], set=changes, fresh=fresh)


def _judge(out: Path, tasks: list[str], run: RunFolder) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Export the model and probe it beside random weights and colour alone; rows and paired differences."""
    import json

    from eosin.evaluation import evaluate
    from eosin.evaluation.results import ResultsFolder
    from eosin.progress import say
    from eosin.slides.synthetic import write_probe
    from eosin.training import export_run

    say("3/4 exporting and probing")
    export_run(run.root, out / "model")
    probe = write_probe(out / "probe")
    specs = [*tasks, f"{SYNTHETIC}={probe / 'labels.csv'}"]
    rows = evaluate(str(out / "model"), specs, "knn,logreg", out / "results", baselines=True, fresh=True)
    export_run(run.root, out / "model", scores=[row for row in rows if row["model"].endswith("model")])
    return rows, json.loads(ResultsFolder(out / "results").comparisons.read_text())


def _report(
    out: Path,
    run: RunFolder,
    cohort: Cohort,
    results: list[dict[str, Any]],
    comparisons: list[dict[str, Any]],
    command: str,
) -> Path:
    from eosin.features import load_model
    from eosin.progress import say
    from eosin.report import write_run_report

    say("4/4 writing the report")
    model = str(out / "model")
    return write_run_report(
        run,
        out / "report.html",
        encoder=load_model(model),
        random_encoder=load_model(model, random_init=True),
        results=results,
        comparisons=comparisons,
        cohort=cohort,
        captions={SYNTHETIC: SYNTHETIC_CAPTION},
        command=command,
    )


def _command(
    slides: list[str] | None, mpp_csv: Path | None, task: list[str] | None, changes: list[str] | None, out: Path
) -> str:
    """The words that made this folder, as a shell takes them."""
    words = ["eosin", "quickstart"]
    for option, values in (("--slides", slides), ("--task", task), ("--set", changes)):
        words += [word for value in values or [] for word in (option, value)]
    words += ["--mpp-csv", str(mpp_csv)] if mpp_csv else []
    return shlex.join([*words, "-o", str(out)])
