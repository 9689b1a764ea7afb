"""report.html of a study: what was compared under which conditions, the table, differences, curves, correlations.

Reads study.json and the curves of the run folders beside it, at any time; computes no metric of its own.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eosin import figures
from eosin.errors import DataError, EosinError
from eosin.files import PathLike, write_text
from eosin.report import study_tables as tables
from eosin.report.curves import series
from eosin.report.page import Html, Section, element, number, render_page
from eosin.report.study_charts import Curve, Dots, Point, curve_chart, dot_chart, named_arm, scatter_chart
from eosin.report.study_tables import MEASURES, fixed, metric_title, metrics_of
from eosin.runs import RunFolder

Row = dict[str, Any]
SHOWN_POINTS = 200  # of a curve
_VERSIONS = ("eosin", "torch", "python")

# Logged name -> (title, how to read it), beside those of MEASURES.
LOGGED = {
    **MEASURES,
    "knn": ("k-NN while training", "balanced accuracy of 20 nearest neighbours"),
    "teacher_entropy": ("Teacher entropy", "of its prototype probabilities, in nats"),
    "prototypes_used": ("Prototypes used", "share that is the strongest one for at least one watched tile"),
    "loss": ("Loss", "comparable only between arms that minimise the same terms"),
    "loss/dino_global": ("DINO, global crops", "cross-entropy of the two large crops against each other"),
    "loss/dino_local": ("DINO, local crops", "cross-entropy of small crops against the teacher's view of the tile"),
    "loss/ibot": ("iBOT", "cross-entropy of hidden patch tokens against the teacher's"),
    "loss/uniformity": ("Uniformity term", "of the objective, unweighted; what it is differs between arms"),
}


def write_study_report(study: PathLike, out: PathLike | None = None, *, command: str = "") -> Path:
    """Write the page of the study in the folder `study` (report.html in it without `out`); returns its path.

    One file that needs no other file and no network. `command`: what made it. Raises DataError where there is no
    study, OutputError where the page cannot be written.
    """
    root = Path(study)
    told = _read(root)
    arms = [arm["arm"] for arm in told["arms"]]
    legend = element("p", [named_arm(at, arm) for at, arm in enumerate(arms)], class_="legend")
    sections = [
        tables.conditions_section(told, arms),
        tables.table_section(told, arms),
        _dots_section(told, arms),
        tables.differences_section(told, arms),
        _curves_section(root, told, arms, legend),
        _scatter_section(told, arms, legend),
        tables.runs_section(told, arms),
        tables.reproduce_section(told, command),
    ]
    name = str(told["study"]["name"])
    page = render_page(f"{name} · eosin study", _header(told, name, arms), sections, {})
    target = Path(out) if out is not None else root / "report.html"
    write_text(target, page)
    return target


def _read(root: Path) -> dict[str, Any]:
    path = root / "study.json"
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        if not {"study", "arms", "runs", "reference"} <= set(told):
            raise ValueError("a part is missing")
    except OSError as error:
        raise DataError(f"no study in {root}; give the folder that `eosin study -o` wrote") from error
    except ValueError as error:
        raise DataError(f"{path} is not a study: {error}") from error
    return {"versions": {}, "summary": [], "differences": [], "correlations": [], "baselines": [], "tasks": [], **told}


def _header(told: dict[str, Any], name: str, arms: Sequence[str]) -> Html:
    runs = told["runs"]
    counts = {status: sum(run["status"] == status for run in runs) for status in ("done", "failed", "waiting")}
    words = f"{counts['done']} of {len(runs)} runs finished"
    words += f", {counts['failed']} failed" if counts["failed"] else ""
    words += f", {counts['waiting']} not run yet" if counts["waiting"] else ""
    done = [run for run in runs if run["status"] == "done"]
    where = sorted({f"{run.get('device')}, {run.get('precision')}" for run in done})
    steps = sorted({run["steps"] for run in done if isinstance(run.get("steps"), int)})
    facts = [
        ("Arms", number(len(arms))),
        ("Seeds", ", ".join(map(str, told["study"]["seeds"]))),
        ("Steps a run", " or ".join(number(step, 9) for step in steps)),
        ("Base recipe", Path(str(told["study"]["base"])).name),
        ("Compared with", told["reference"]),
        ("Device, precision", "; ".join(where)),
        ("Versions", ", ".join(f"{key} {value}" for key, value in told["versions"].items() if key in _VERSIONS)),
    ]
    entries = [
        element("div", element("dt", key), element("dd", value), class_="wide" if len(value) > 48 else None)
        for key, value in facts
        if value
    ]
    description = str(told["study"].get("description") or "")
    return element(
        "header",
        element("h1", name),
        element("p", description) if description else "",
        element("p", f"{words} · page written {time.strftime('%Y-%m-%d %H:%M %Z')}", class_="status"),
        element("dl", entries, class_="facts"),
    )


def _dots_section(told: dict[str, Any], arms: Sequence[str]) -> Section:
    charts = []
    for metric in metrics_of(told):
        levels = [(str(row["model"]), float(row["mean"])) for row in told["baselines"] if row["metric"] == metric]
        rows = {row["arm"]: row for row in told["summary"] if row["metric"] == metric}
        dots = [
            Dots(at, _runs_of(told, arm, metric), *(rows[arm][key] for key in ("mean", "ci_low", "ci_high")))
            for at, arm in enumerate(arms)
        ]
        title = metric_title(metric)
        drawing = dot_chart(dots, arms, levels, f"{title} of every run, by arm")
        charts.append(_chart(title, drawing, MEASURES.get(metric, ("", "balanced accuracy"))[1]))
    how = "A mark is a run, the tick is the mean of the arm, the bar its 95 % t-interval over seeds (as in the table)."
    return Section("dots", "Every run", how, [element("div", charts, class_="charts")] if charts else [], "see above.")


def _runs_of(told: dict[str, Any], arm: str, metric: str) -> list[tuple[float, str]]:
    runs = [run for run in told["runs"] if run["arm"] == arm and run["metrics"].get(metric) is not None]
    return [(float(run["metrics"][metric]), f"{arm}, seed {run['seed']}: {run['metrics'][metric]:.4g}") for run in runs]


def _chart(title: str, drawing: Html, caption: str, value: str = "") -> Html:
    head = element("header", element("b", title), element("span", value, class_="number") if value else "")
    return element("figure", head, drawing, element("figcaption", caption) if caption else "", class_="chart")


def _curves_section(root: Path, told: dict[str, Any], arms: Sequence[str], legend: Html) -> Section:
    logged = {run["place"]: _logged(root, run) for run in told["runs"]}
    names = list(dict.fromkeys(name for curves in logged.values() for name in curves))
    charts = []
    for start, (known, caption) in LOGGED.items():
        for name in (name for name in names if name == start or (start != "loss" and name.startswith(f"{start}/"))):
            title = f"{known}: {name.partition('/')[2]}" if name != start else known
            curves = [
                curve for at, arm in enumerate(arms) if (curve := _curve(told, logged, at, arm, name)) is not None
            ]
            charts.append(_chart(title, curve_chart(curves, f"{title} against the step, by arm"), caption))
    how = (
        "Line: mean over seeds. Band: lowest to highest seed. As each run logged them while it trained, on tiles of "
        "its own slides and scales; the table's values are measured on the same tiles for all arms and can differ."
    )
    body = [legend, element("div", charts, class_="charts")] if charts else []
    return Section("curves", "Curves", how, body, "no run has logged a step yet.")


def _logged(root: Path, run: Row) -> dict[str, tuple[list[float], list[float]]]:
    """Curves of one run; none where its file is absent or damaged."""
    try:
        return series(RunFolder(root / "runs" / run["place"]).read_metrics())
    except (EosinError, UnicodeDecodeError):
        return {}


def _curve(
    told: dict[str, Any], logged: dict[str, dict[str, tuple[list[float], list[float]]]], at: int, arm: str, name: str
) -> Curve | None:
    """Mean and range over the finished runs of an arm; over all of them where none has finished."""
    runs = [run for run in told["runs"] if run["arm"] == arm]
    runs = [run for run in runs if run["status"] == "done"] or runs
    points: dict[float, list[float]] = {}
    for run in runs:
        for step, value in zip(*logged[run["place"]].get(name, ([], [])), strict=True):
            points.setdefault(step, []).append(value)
    if not points:
        return None
    steps = np.array(sorted(points))
    mean, lowest, highest = (np.array([of(points[step]) for step in steps]) for of in (np.mean, np.min, np.max))
    x, line, _, _ = figures.thin(steps, mean, SHOWN_POINTS)
    low, high = figures.thin(steps, lowest, SHOWN_POINTS)[2], figures.thin(steps, highest, SHOWN_POINTS)[3]
    return Curve(at, x.tolist(), line.tolist(), low.tolist(), high.tolist())


def _scatter_section(told: dict[str, Any], arms: Sequence[str], legend: Html) -> Section:
    charts = []
    for pair in told["correlations"]:
        done = [run for run in told["runs"] if run["status"] == "done"]
        points = [
            Point(arms.index(run["arm"]), float(x), float(y), f"{run['arm']}, seed {run['seed']}: {x:.4g}, {y:.4g}")
            for run in done
            if (x := run["metrics"].get(pair["x"])) is not None and (y := run["metrics"].get(pair["y"])) is not None
        ]
        if not points:
            continue
        x_name, y_name = metric_title(pair["x"]), metric_title(pair["y"])
        rho = "rho –" if pair["rho"] is None else f"rho {fixed(pair['rho'], sign=True)}"
        drawing = scatter_chart(points, x_name, "accuracy", f"{y_name} against {x_name}, {rho}, {pair['n']} runs")
        charts.append(_chart(f"{x_name} – {y_name}", drawing, "", f"{rho}, n {pair['n']}"))
    how = (
        "Does a measure that needs no labels tell the better probe? A mark is a run; Spearman's rho over all n runs. "
        "Runs of one arm are alike, so n overstates what is known and no p-value is given."
    )
    body = [legend, element("div", charts, class_="charts")] if charts else []
    return Section(
        "scatter", "Label-free measures and probes", how, body, "the study has no probes or no finished runs."
    )
