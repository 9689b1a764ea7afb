"""The tables of a study page: conditions, means with intervals, differences, every run, how to make it again.

Shows study.json; computes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from eosin.evaluation.statistics import is_shown
from eosin.report.page import Child, Html, Section, element, joined, number, table
from eosin.report.study_charts import named_arm

Row = dict[str, Any]

# Metric -> (title, how to read it).
MEASURES = {
    "rankme": ("RankMe", "directions in use; falling towards 1 means collapse"),
    "odcorr": ("ODCorr", "correlation between features, 0 is independent"),
    "uniformity": ("Uniformity", "lower is more evenly spread over the sphere; 0 means collapse"),
}


def metric_title(name: str) -> str:
    """A metric as people read it: `logreg/cells` is the probe on cells by the protocol logreg."""
    if name in MEASURES:
        return MEASURES[name][0]
    protocol, _, task = name.partition("/")
    return f"{task}, {'k-NN' if protocol == 'knn' else protocol}" if task else name


def metrics_of(told: dict[str, Any]) -> list[str]:
    """Metrics of the study's finished runs."""
    return list(dict.fromkeys(row["metric"] for row in told["summary"]))


def conditions_section(told: dict[str, Any], arms: Sequence[str]) -> Section:
    rows: list[list[Child]] = []
    for at, arm in enumerate(told["arms"]):
        changes = [element("div", f"{key}: {_plain(value)}", class_="code") for key, value in arm["changes"].items()]
        distinct = arm.get("distinct_tiles")
        seen = number(arm["tiles"], 12)
        if distinct and distinct < arm["tiles"]:
            seen += f", {number(distinct, 12)} distinct"
        data = f"{'; '.join(arm['data'])} at {arm['scales']} µm/px"
        name = named_arm(at, arm["arm"])
        rows.append(
            [name, changes or "as the base", f"{number(arm['steps'], 9)} × {number(arm['batch'], 9)}", seen, data]
        )
    head = ["arm", "what it changes", "steps × batch", "tiles seen", "drawn from"]
    body = [table(head, rows, numeric=(2,))]
    if told["tasks"]:
        body.append(table(["probe", "images", "classes", "judged on", "cases are"], [_task(t) for t in told["tasks"]]))
    how = (
        "What the runs of an arm have in common. Runs of one seed start from the same random weights, where an arm "
        f"does not change them. RankMe, ODCorr and uniformity of every run are measured at its end on the same "
        f"{number(told.get('watched_tiles'))} tiles, drawn from what the arm {told['reference']!r} may see."
    )
    return Section("conditions", "Conditions", how, body)


def _task(task: Row) -> list[Child]:
    split = f"its {task['split']} part" if task.get("split") else "all, by cross-validation"
    return [task["task"], number(task["n"], 9), ", ".join(task["classes"]), split, f"{task['unit']}s"]


def table_section(told: dict[str, Any], arms: Sequence[str]) -> Section:
    metrics = metrics_of(told)
    found = {(row["arm"], row["metric"]): row for row in told["summary"]}
    rows: list[list[Child]] = []
    for at, arm in enumerate(arms):
        count = sum(run["arm"] == arm and run["status"] == "done" for run in told["runs"])
        rows.append([named_arm(at, arm), number(count), *(_cell(found[arm, name]) for name in metrics)])
    for model in dict.fromkeys(row["model"] for row in told["baselines"]):
        own = {row["metric"]: row for row in told["baselines"] if row["model"] == model}
        rows.append([element("span", model, class_="soft"), "", *(_baseline(own.get(name)) for name in metrics)])
    chance = {row["metric"]: row["chance"] for row in told["baselines"]}
    if chance:
        rows.append([element("span", "chance", class_="soft"), "", *(fixed(chance.get(m), blank="") for m in metrics)])
    head = ["arm", "runs", *(metric_title(name) for name in metrics)]
    how = (
        "Mean ± standard deviation over seeds, below it the 95 % t-interval of the mean over seeds: it says what other "
        "seeds would give on the same data and the same test cases, and with three seeds it is wide. Probes: the main "
        "score of the task (balanced accuracy where there are classes) on frozen features. Random start (the untrained "
        "network) and colour only (six numbers of the tile) "
        "are single models; their brackets are 95 % bootstrap intervals over test cases."
    )
    body = [table(head, rows, numeric=range(1, len(head)))] if metrics else []
    return Section("table", "Table", how, body, "no run has finished yet.")


def _cell(row: Row) -> Html | str:
    if not row["n"]:
        return "–"
    if row["sd"] is None:
        return joined(fixed(row["mean"]), element("br"), element("span", "one seed", class_="soft small"))
    mean, spread, low, high = (fixed(row[key], like=row["mean"]) for key in ("mean", "sd", "ci_low", "ci_high"))
    return joined(f"{mean} ± {spread}", element("br"), element("span", f"[{low}, {high}]", class_="soft small"))


def _baseline(row: Row | None) -> Html | str:
    if row is None:
        return ""
    ends = f"[{fixed(row['ci_low'])}, {fixed(row['ci_high'])}]"
    return joined(fixed(row["mean"]), element("br"), element("span", ends, class_="soft small"))


def differences_section(told: dict[str, Any], arms: Sequence[str]) -> Section:
    """A table a metric: each arm minus the reference, with both intervals."""
    pairs: dict[str, dict[str, dict[str, Row]]] = {}
    for row in told["differences"]:
        kind = "seeds" if row["over"] == "seeds" else "cases"
        pairs.setdefault(row["metric"], {}).setdefault(row["arm"], {})[kind] = row
    body = []
    for metric, by_arm in pairs.items():
        rows = [_difference(named_arm(arms.index(arm), arm), both) for arm, both in by_arm.items()]
        judged = any("cases" in both for both in by_arm.values())
        head = [f"minus {told['reference']}", "difference", "95 % over seeds", ""]
        head[3:3] = ["95 % over test cases", "p, cases"] if judged else []
        cells = [row if judged else [*row[:3], row[5]] for row in rows]
        numeric = range(1, len(head) - 1)
        body.append(table(head, cells, numeric=numeric, caption=metric_title(metric), compact=True))
    how = (
        f"Each arm minus the arm {told['reference']!r}. Over seeds: t-interval of the differences between runs of one "
        "seed. Over test cases: paired bootstrap of the same cases, correctness averaged over seeds, runs held fixed. "
        "A difference is called higher or lower only where every interval given leaves out zero. Nothing is corrected "
        "for the number of comparisons."
    )
    return Section("differences", "Differences", how, body, "fewer than two arms have finished runs.")


def _difference(name: Html, both: dict[str, Row]) -> list[Child]:
    seeds, cases = both.get("seeds", {}), both.get("cases", {})
    value = cases.get("difference", seeds.get("difference"))
    return [
        name,
        fixed(value, sign=True),
        f"{_ends(seeds)} ({seeds['n']} seeds)" if seeds else "–",
        f"{_ends(cases)} ({number(cases['n'], 9)} {cases['over']}s)" if cases else "",
        _p(cases.get("p")),
        _verdict([one for one in (seeds, cases) if one]),
    ]


def _ends(row: Row) -> str:
    if row.get("ci_low") is None or row.get("ci_high") is None:
        return "–"
    return " to ".join(fixed(row[key], sign=True, like=row["difference"]) for key in ("ci_low", "ci_high"))


def _verdict(rows: Sequence[Row]) -> Html:
    ends = [(row["ci_low"], row["ci_high"]) for row in rows]
    known = [(low, high) for low, high in ends if low is not None and high is not None]
    shown = len(known) == len(rows) and all(is_shown(*e, row.get("p")) for e, row in zip(known, rows, strict=True))
    if known and shown and all(low > 0 for low, _ in known):
        return element("b", "higher")
    if known and shown and all(high < 0 for _, high in known):
        return element("b", "lower")
    return element("span", "no difference shown", class_="soft")


def _p(value: float | None) -> str:
    return "" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def runs_section(told: dict[str, Any], arms: Sequence[str]) -> Section:
    metrics = metrics_of(told)
    rows: list[list[Child]] = []
    for run in told["runs"]:
        values = [fixed(run["metrics"].get(name)) for name in metrics]
        state: Child = run["status"]
        if run["status"] == "failed":
            state = element("span", f"failed: {run['error']}", class_="bad")
        rows.append([named_arm(arms.index(run["arm"]), run["arm"]), str(run["seed"]), state, *values])
    head = ["arm", "seed", "state", *(metric_title(name) for name in metrics)]
    how = "The same rows as in table.csv; each run is a run folder of its own below runs/."
    return Section("runs", "All runs", how, [table(head, rows, numeric=(1, *range(3, len(head))))] if rows else [])


def reproduce_section(told: dict[str, Any], command: str) -> Section:
    body = [element("pre", element("code", command))] if command else []
    given = {key: value for key, value in told["study"].items() if value not in (None, {}, [])}
    body.append(element("pre", element("code", yaml.safe_dump(given, sort_keys=False, width=100))))
    if changes := told.get("changes"):
        body.append(element("p", "Changed on the command line: ", element("span", ", ".join(changes), class_="code")))
    how = "The command and the study as it was run; recipe.yaml of a run folder holds every setting of that run."
    return Section("reproduce", "How to reproduce", how, body)


def fixed(value: object, sign: bool = False, blank: str = "–", like: float | None = None) -> str:
    """Three decimals below 10, fewer above; as many as `like` would have, where given."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        return blank
    size = abs(value if like is None else like)
    digits = 3 if size < 10 else 2 if size < 100 else 1
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    return text.replace("-", "−")


def _plain(value: object) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).strip().removesuffix("...").strip()
