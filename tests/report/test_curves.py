"""Curves hold what was logged, whatever the names, gaps and torn rows."""

from __future__ import annotations

from eosin.report.curves import curves_section, series


def test_series_keep_finite_numbers_only() -> None:
    rows = [
        {"step": 1, "loss": 2.0, "note": "x", "done": True, "tiles": 8},
        {"step": 2, "loss": float("nan"), "knn": None},
        {"loss": 7.0},
        {"step": 3, "loss": 1.0, "knn/colon": 0.5},
    ]
    assert series(rows) == {"loss": ([1.0, 3.0], [2.0, 1.0]), "knn/colon": ([3.0], [0.5])}


def test_every_logged_name_gets_one_chart_under_its_heading() -> None:
    names = ["loss", "loss/ibot", "loss/uniformity", "uniformity", "knn", "knn/colon", "lr", "something_new"]
    rows = [{"step": step, **dict.fromkeys(names, float(step))} for step in (0, 10)]
    body = "".join(curves_section(rows, width=192).body)
    for name in names:
        slug = name.replace("/", "-").replace("_", "-")
        assert body.count(f'id="curve-{slug}"') == 1
    assert "k-NN probe: colon" in body
    assert body.index("<h3>Loss") < body.index('"curve-loss-uniformity"') < body.index("<h3>What the embeddings")
    assert body.index("<h3>What the embeddings") < body.index('"curve-uniformity"') < body.index("<h3>Schedule")
    assert body.index("<h3>Other") < body.index('"curve-something-new"')


def test_rankme_is_shown_against_the_embedding_width() -> None:
    rows = [{"step": 0, "rankme": 20.0}, {"step": 1, "rankme": 30.0}]
    assert "D = 192 (dashed)" in "".join(curves_section(rows, width=192).body)
    assert "dashed" not in "".join(curves_section(rows).body)


def test_nothing_logged_leaves_the_section_out() -> None:
    section = curves_section([])
    assert section.body == []
    assert section.missing
