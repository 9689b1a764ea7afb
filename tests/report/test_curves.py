"""Curves hold what was logged, whatever the names, gaps and torn rows."""

from __future__ import annotations

import pytest

from eosin.report.curves import curves_section, levels_of, series


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
    body = "".join(curves_section(rows).body)
    for name in names:
        slug = name.replace("/", "-").replace("_", "-")
        assert body.count(f'id="curve-{slug}"') == 1
    assert "k-NN probe: colon" in body
    assert body.index("<h3>Loss") < body.index('"curve-loss-uniformity"') < body.index("<h3>What the embeddings")
    assert body.index("<h3>What the embeddings") < body.index('"curve-uniformity"') < body.index("<h3>Schedule")
    assert body.index("<h3>Other") < body.index('"curve-something-new"')


def test_rankme_is_shown_against_the_most_that_it_can_be() -> None:
    rows = [{"step": 0, "rankme": 20.0}, {"step": 1, "rankme": 30.0}]
    recipe = {"encoder": {"width": 192}, "run": {"monitor_tiles": 512}}
    assert levels_of(recipe)["rankme"].value == 192
    assert "dashed: the embedding width 192" in "".join(curves_section(rows, levels_of(recipe)).body)
    few = levels_of({**recipe, "run": {"monitor_tiles": 64}})["rankme"]
    assert few == (64, "the 64 watched tiles, fewer than the width 192")
    assert "dashed" not in "".join(curves_section(rows).body)
    assert levels_of({"encoder": None, "run": {"monitor_tiles": 64}}) == {}


def test_teacher_entropy_is_shown_against_no_preference() -> None:
    goal = {"dino_prototypes": 2048, "ibot_prototypes": 16, "shared_head": False}
    levels = levels_of({"objective": goal})
    assert levels["teacher_entropy"].value == pytest.approx(7.6246, abs=1e-4)
    assert levels["teacher_entropy/ibot"].value == pytest.approx(2.7726, abs=1e-4)
    assert levels_of({"objective": {**goal, "shared_head": True}})["teacher_entropy/ibot"].value > 7.6
    rows = [{"step": 0, "teacher_entropy": 5.0, "teacher_entropy/ibot": 2.0, "prototypes_used/ibot": 0.5}]
    body = "".join(curves_section(rows, levels).body)
    assert "Teacher entropy: iBOT" in body
    assert "Prototypes used: iBOT" in body
    assert "dashed: ln 16, no preference" in body


def test_a_learning_rate_that_all_layers_share_is_shown_once() -> None:
    rows = [{"step": n, "lr": 1.0 / (n + 1), "encoder_lr": 1.0 / (n + 1), "last_layer_lr": float(n)} for n in range(3)]
    body = "".join(curves_section(rows).body)
    assert 'id="curve-encoder-lr"' not in body
    assert 'id="curve-last-layer-lr"' in body


def test_nothing_logged_leaves_the_section_out() -> None:
    section = curves_section([])
    assert section.body == []
    assert section.missing


def test_intervals_are_bands_of_their_curves() -> None:
    names = ["knn", "knn_low", "knn_high", "strict-200/a", "strict-200_low/a", "strict-200_high/a", "logreg_low"]
    rows = [{"step": step, **dict.fromkeys(names, step / 10)} for step in (0, 2)]
    rows[1] |= {"knn_low": 0.11, "knn_high": 0.27}
    body = "".join(curves_section(rows).body)
    for slug in ("knn", "strict-200-a"):
        assert body.count(f'id="curve-{slug}"') == 1
    assert body.count('id="band-knn"') == 1
    assert "curve-knn-low" not in body
    assert "95 % interval, last 0.11 to 0.27" in body
    assert "Linear probe or decoder: 200, a" in body
    assert 'id="curve-logreg-low"' in body  # an end without its curve is shown as it is
    gaps = [{"step": 0, "knn": 0.5}, {"step": 1, "knn": 0.5, "knn_low": 0.4, "knn_high": 0.6}]
    assert "band-knn" not in "".join(curves_section(gaps).body)
