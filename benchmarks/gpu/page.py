"""The proof as one HTML page that needs no other file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eosin import figures
from eosin.files import write_text
from eosin.report.curves import curves_section
from eosin.report.page import Child, Html, Section, duration, element, number, render_page, table
from eosin.report.run_page import COLOUR, named
from eosin.report.tables import probe_section

Record = Mapping[str, Any]
SHOWN = ("loss", "loss/ibot", "rankme", "odcorr", "uniformity", "teacher_entropy", "img_s", "data_wait", "mfu")
"""Curves of the learning part that are drawn."""


def write_page(record: Record, path: Path) -> None:
    """Write what `record` (gpu_proof.json) holds so far to `path`."""
    left_out = {row["part"]: row["why"] for row in record["left_out"]}
    makers = {
        "steps": steps_section,
        "reading": reading_section,
        "learning": learning_section,
        "distributed": distributed_section,
    }
    sections: list[Section] = []
    for part, maker in makers.items():
        if part in record:
            sections += maker(record[part])
        else:
            why = left_out.get(part, "the proof had not come to it when this page was written.")
            sections.append(Section(part, part.capitalize(), missing=why))
    write_text(path, render_page("GPU proof · eosin", _header(record), sections, {}))


def _header(record: Record) -> Html:
    facts = record.get("facts", {})
    device = facts.get("gpu") or ("processor only, toy sizes" if facts.get("tiny") else "processor only")
    names = {
        "gpu": "GPU",
        "memory_gb": "GPU memory, GB",
        "driver": "Driver",
        "cuda": "CUDA",
        "cudnn": "cuDNN",
        "nccl": "NCCL",
        "torch": "PyTorch",
        "python": "Python",
        "cpu_cores": "Processor cores",
        "peak_tflops": "Data-sheet peak, bf16 TFLOP/s",
        "product_tflops": "One large bf16 product, TFLOP/s",
        "eosin": "eosin",
        "commit": "Commit",
    }
    known = [
        element("div", element("dt", words), element("dd", _plain(facts[key])))
        for key, words in names.items()
        if facts.get(key) is not None
    ]
    state = "complete" if record["complete"] else "not complete"
    status = f"{facts.get('time', '')} · {duration(record['seconds'])} · {state}"
    return element(
        "header",
        element("h1", f"GPU proof on {device}"),
        element("p", status, class_="status"),
        element("dl", known, class_="facts"),
        element("pre", element("code", record["command"])),
    )


def _plain(value: object) -> str:
    return number(value) if isinstance(value, float) else str(value)


_FAILED = element("span", "failed", class_="bad")


def _failed(part: Record) -> list[Html]:
    return [element("p", part["error"], class_="bad")] if part.get("error") else []


def _failure(what: str, row: Record) -> Html:
    return element("p", f"{what}: {row['error']}", class_="bad small")


def steps_section(part: Record) -> list[Section]:
    """Speed and memory of whole steps."""
    head = ["model", "variant", "batch", "img/s", "MFU", "step, ms", "views, ms", "views' share", "host draws, ms"]
    head += ["memory, GB", "first step, s", "loss"]
    lines: list[list[Child]] = []
    failures: list[Html] = []
    for row in part["rows"]:
        if row.get("error"):
            lines.append([row["model"], row["variant"], number(row.get("batch")), _FAILED, *[""] * (len(head) - 4)])
            failures.append(_failure(f"{row['model']}, {row['variant']}", row))
            continue
        lines.append(
            [
                row["model"],
                row["variant"],
                number(row["batch"]),
                number(row["img_s"]),
                _percent(row["mfu"]),
                number(row["step_ms"]),
                number(row["views_ms"], 3),
                _percent(row["views_share"]),
                number(row["draws_ms"], 3),
                number(row.get("memory_gb"), 3),
                number(row["first_step_s"], 3),
                number(row["loss_after_warm_up"]),
            ]
        )
    how = (
        "Whole training steps on random tiles that lie ready in host memory: views are made, the step is done, the "
        "teacher follows. Medians over windows of about a second. MFU counts the floating-point operations that are "
        "executed (after drop path) over the data sheet's dense bf16 peak. Step and views are times on the GPU; draws "
        "are made on the host meanwhile. Memory is the most that PyTorch had allocated. The loss is that of the same "
        "early step in each variant, and should agree."
    )
    body = [table(head, lines, numeric=range(2, len(head))), *failures]
    told = {row["model"]: row for row in part["rows"] if "parameters" in row}
    body += [
        element(
            "p",
            f"{row['model']}: {row['encoder']}, recipe {row['recipe']}, {row['precision']}, "
            f"{number(row['parameters'] / 1e6, 3)} M parameters with heads of {number(row['prototypes'])} prototypes, "
            f"{number(row['gflops_a_tile'])} GFLOP a tile, memory estimated at {number(row['estimated_gb'], 3)} GB",
            class_="small soft",
        )
        for row in told.values()
    ]
    return [Section("steps", "Steps", how, body)]


def reading_section(part: Record) -> list[Section]:
    """Tiles a second from disk."""
    lines: list[list[Child]] = []
    failures: list[Html] = []
    for row in part["rows"]:
        rest: list[Child] = [number(row.get("tiles_s")), number(row.get("first_batch_s"), 3)]
        if row.get("error"):
            rest = [_FAILED, ""]
            failures.append(_failure(f"{row['source']}, {row['processes']} processes", row))
        lines.append([row["source"], number(row["processes"]), number(row["size_px"]), *rest])
    how = (
        "How fast the stream of tiles comes by itself, without training: reading must be faster than the steps above, "
        "or the GPU waits. How much it waited in training is in the part on learning."
    )
    head = ["source", "reading processes", "tile, px", "tiles/s", "first batch after, s"]
    return [Section("reading", "Reading", how, [table(head, lines, (1, 2, 3, 4), compact=True), *failures])]


def learning_section(part: Record) -> list[Section]:
    """The run and its probe."""
    start = "random weights" if part.get("start") == "random" else str(part.get("start"))
    body = _failed(part)
    if "steps" in part:
        words = f"{number(part['steps'])} steps of {number(part['batch'])} tiles in {part['precision']}"
        words += f", {duration(part['training_s'])} with start and monitoring"
        if "img_s" in part:
            words += f"; {number(part['img_s'])} img/s, waiting for tiles {_percent(part.get('data_wait'))} of the time"
        if part.get("mfu"):
            words += f", MFU {_percent(part['mfu'])}"
        body.append(element("p", words))
    if part.get("stopped"):
        body.append(element("p", f"Training {part['stopped']}; the probe judges what had been saved.", class_="note"))
    rows = [{k: v for k, v in row.items() if k in ("step", *SHOWN)} for row in part.get("metrics", [])]
    body += curves_section(rows).body
    how = (
        f"ViT-S/14 with 4 registers, started from {start}, learns without labels from the training tiles of colon "
        "tissue in the data."
    )
    names = {
        key: {"trained": "trained", "start": "its own start"}[name] for key, name in part.get("models", {}).items()
    }
    results = named(part.get("results", []), names)
    probe = probe_section(results, named(part.get("comparisons", []), names), {})
    probe.how = (
        f"Logistic regression on the frozen CLS token of the trained encoder, of its own start ({start}), and on six "
        f"numbers of colour ({COLOUR}), on the same folds, with 95 % intervals. Training was worth something where the "
        "interval of trained minus its own start lies above zero."
    )
    probe.missing = part.get("error", probe.missing)
    return [Section("learning", "Learning", how, body), probe]


def distributed_section(part: Record) -> list[Section]:
    """Losses of the spread runs beside those of the plain one."""
    lines: list[list[Child]] = []
    charts, failures = [], _failed(part)
    for row in part["runs"]:
        if row.get("error"):
            lines.append([row["precision"], row["way"], "", "", "", _FAILED])
            failures.append(_failure(f"{row['way']}, {row['precision']}", row))
            continue
        steps, losses = [int(step) for step in row["losses"]], list(row["losses"].values())
        verdict = element("span", "equal", class_="good") if row["equal"] else element("span", "apart", class_="bad")
        ends = [f"{loss:.4f}" for loss in (losses[0], losses[-1])]
        lines.append([row["precision"], row["way"], *ends, f"{row['furthest']:.1e}", verdict])
        if row["way"] == "plain":
            charts.append(_chart(f"plain, {row['precision']}", steps, losses))
    how = (
        f"The same steps, plain and in a {part['backend'].upper()} world of one started by torchrun: through "
        "DistributedDataParallel, through FSDP2, and resumed from the plain run's checkpoint. Losses may differ by "
        f"rounding only, at most {_bounds(part['runs'])} of the plain run's."
    )
    head = ["precision", "way", "first loss", "last loss", "furthest apart", ""]
    body = [table(head, lines, (2, 3, 4), compact=True), *failures, element("div", charts, class_="charts")]
    return [Section("distributed", "Distributed", how, body)]


def _bounds(rows: Sequence[Record]) -> str:
    found = {row["precision"]: row["tolerance"] for row in rows if "tolerance" in row}
    return " and ".join(f"{bound:g} in {precision}" for precision, bound in found.items()) or "nothing"


def _chart(title: str, steps: Sequence[int], losses: Sequence[float]) -> Html:
    chart = figures.line_chart(steps, losses, f"distributed {title}")
    drawing = element("div", Html(chart), role="img", aria_label=f"loss of {title}, from {losses[0]} to {losses[-1]}")
    head = element("header", element("b", title), element("span", number(losses[-1]), class_="number"))
    return element("figure", head, drawing, class_="chart")


def _percent(value: object) -> str:
    return f"{value:.1%}" if isinstance(value, float) else "–"
