"""Which slides gave tiles: worst first, few rows, one sentence over all."""

from __future__ import annotations

from collections import Counter

from eosin.report.acceptance import SHOWN, acceptance_section
from eosin.tiles.acceptance import Acceptance


def text_of(acceptance: Acceptance) -> str:
    return "".join(acceptance_section(acceptance).body)


def test_the_worst_come_first_and_never_said() -> None:
    counts = Counter(
        {
            ("good", 0.5, "taken"): 90,
            ("good", 0.5, "hsv"): 10,
            ("good", 1.0, "taken"): 5,
            ("good", 1.0, "hsv"): 15,
            ("<pen>", 0.5, "hsv"): 16,
            ("bare", 0.5, "place"): 3,
            ("gone", 0.5, "read"): 2,
        }
    )
    page = text_of(Acceptance(40, counts))
    order = ["<td>bare", "<td>gone", "<td>&lt;pen&gt;", "25 %", "90 %"]
    places = [page.index(word) for word in order]
    assert places == sorted(places)
    assert "95 tiles from 1 slide, 70% of those read; 3 slides never gave one. Counted from step 40 on." in page
    assert page.count("none read") == 2
    assert "The first" not in page


def test_a_large_cohort_is_cut() -> None:
    counts = Counter({(f"s{number:03}", 0.5, "taken"): 1 + number for number in range(100)})
    page = text_of(Acceptance(0, counts))
    assert page.count("<tr>") == SHOWN + 1
    assert f"The first {SHOWN} of 100 rows" in page
    assert "s099" in page  # of equal shares the most tried
    assert acceptance_section(Acceptance()).missing == "the run has not counted any tiles yet."
