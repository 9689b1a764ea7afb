"""Alarms on the page, as the run wrote them."""

from __future__ import annotations

from eosin.report.alarms import alarms_section


def test_each_kind_is_a_row_and_none_is_said() -> None:
    rows = [
        {"step": 400, "alarm": "collapse", "action": "warn", "text": "RankMe 5"},
        {"step": 800, "alarm": "non_finite", "action": "stop", "text": "not finite"},
        {"step": 1200, "alarm": "collapse", "action": "warn", "text": "RankMe <3>"},
        {"alarm": "of a later version"},
    ]
    body = "".join(alarms_section(rows).body).replace("\u00a0", " ")
    assert body.count("<tr>") == 4
    assert "400 – 1,200" in body
    assert "warned 2 ×" in body
    assert "RankMe &lt;3&gt;" in body
    assert "RankMe 5" not in body
    assert body.index("collapse") < body.index("loss not finite") < body.index('class="bad">stopped')
    assert alarms_section([]).missing == "none was raised."
