"""report.html of one training run: what was trained, how it went, what the encoder sees. Reads a run at
any time.

Orders the sections; each is made in its own file, from what run_record.py reads. What is not there yet leaves its
section out with one sentence. Trains and evaluates nothing.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eosin.errors import DataError
from eosin.files import PathLike, write_text
from eosin.report import pictures, tables
from eosin.report.acceptance import acceptance_section
from eosin.report.alarms import alarms_section
from eosin.report.attention import attention_section
from eosin.report.curves import curves_section, levels_of
from eosin.report.page import Html, Section, duration, element, number, render_page
from eosin.report.run_record import Record, read_record
from eosin.runs import RunFolder

# Names of the encoders everywhere on the page.
TRAINED, RANDOM, COLOUR = "trained", "random-init", "colour-only"


def write_run_report(
    run: RunFolder | PathLike,
    out: PathLike,
    *,
    encoder: Any = None,
    random_encoder: Any = None,
    results: Sequence[dict[str, Any]] = (),
    comparisons: Sequence[dict[str, Any]] = (),
    cohort: Any = None,
    captions: dict[str, str] | None = None,
    command: str = "",
) -> Path:
    """Write one HTML file that needs no other file and no network; returns its path.

    `encoder`, `random_encoder`: eosin.features.Encoder or alike (`.embed`, `.patch_tokens` of uint8 [B,
    H, W, 3]), the trained one and its random twin. `results`, `comparisons`: records of results.json
    ({task, metric, mean, ci_low, ci_high, n, chance, model, …}) and comparisons.json ({task, metric,
    model or a, against or b, difference = a − b, ci_low, ci_high, p}). `cohort`: eosin.slides.Cohort.
    `command`: what made the run. `captions`: a sentence for a section (alarms, curves, tiles, views, attention,
    patches, neighbours, probe, slides, acceptance, recipe) or for a task by its name. Raises DataError where `run` is
    no folder, OutputError where `out` cannot be written.
    """
    run = run if isinstance(run, RunFolder) else RunFolder(run)
    if not any(path.exists() for path in (run.recipe, run.identity, run.metrics)):
        raise DataError(f"no run folder {run.root}; give the folder that `eosin train -o` wrote")
    captions = captions or {}
    record = read_record(run)
    encoders = {name: one for name, one in ((TRAINED, encoder), (RANDOM, random_encoder)) if one is not None}
    names = {str(one.model_hash): name for name, one in encoders.items() if getattr(one, "model_hash", "")}
    results, comparisons = named(results, names), named(comparisons, names)
    sections = [
        alarms_section(record.alarms),
        curves_section(record.metrics, levels_of(record.recipe)),
        tables.probe_section(results, comparisons, captions),
        *_picture_sections(record, encoders),
    ]
    if cohort is None:
        sections.append(Section("slides", "Slides", missing="no cohort was given."))
    else:
        sections.append(tables.slides_section(cohort))
    sections.append(acceptance_section(record.acceptance))
    command = command or str(record.identity.get("command") or "")
    sections.append(tables.recipe_section(record.recipe, record.marks, command))
    for section in sections:
        section.missing = record.problems.get(section.key, section.missing)
    name = str(record.recipe.get("name") or run.root.name)
    page = render_page(f"{name} · eosin", _header(record, name, encoder, cohort), sections, captions)
    write_text(out, page)
    return Path(out)


def named(rows: Sequence[dict[str, Any]], names: Mapping[str, str]) -> list[dict[str, Any]]:
    """Records with the models called as on this page: by hash where `names` has it, and `colour` is
    colour-only.

    Comparisons come out with `a` and `b`, whichever way they were written.
    """

    def name(row: dict[str, Any], key: str) -> Any:
        plain = COLOUR if row[key] == "colour" else row[key]
        return names.get(str(row.get(f"{key}_hash")), plain)

    found = []
    for row in rows:
        row = dict(row)
        for key, short in (("model", "a"), ("against", "b")):
            if key in row:
                row[key] = name(row, key)
                row.setdefault(short, row[key])
        found.append(row)
    return found


def _picture_sections(record: Record, encoders: dict[str, Any]) -> list[Section]:
    """Tiles, views, patch tokens and neighbours, or the reason why they are not there."""
    titles = {
        "tiles": "Tiles",
        "views": "Views",
        "attention": "Attention",
        "patches": "Patch tokens",
        "neighbours": "Nearest neighbours",
    }
    if record.sample is None:
        return [Section(key, title, missing=record.problems["sample"]) for key, title in titles.items()]
    sample = record.sample
    made = [pictures.tiles_section(sample), pictures.views_section(sample), attention_section(record.run, sample)]
    if encoders:
        return [
            *made,
            pictures.patches_section(sample, encoders),
            pictures.neighbours_section(sample, encoders),
        ]
    reason = "no encoder was given; `eosin export` makes one of this run."
    return made + [Section(key, titles[key], missing=reason) for key in ("patches", "neighbours")]


def _header(record: Record, name: str, encoder: Any, cohort: Any) -> Html:
    """Title, state, and the facts by which this run is known."""
    identity, last = record.identity, _last_values(record.metrics)
    versions = identity.get("versions")
    versions = versions if isinstance(versions, dict) else {}
    facts: list[tuple[str, str]] = [
        ("Encoder", _encoder_words(record.recipe, encoder)),
        ("Encoder parameters", _parameters(encoder)),
        ("Slides", _slides_words(cohort, record)),
        ("Tiles seen", number(last["tiles"]) if "tiles" in last else ""),
        ("Training time", duration(seconds) if (seconds := training_seconds(record.metrics)) else ""),
        ("Tiles per second", number(last["img_s"], 3) if "img_s" in last else ""),
    ]
    codes: list[tuple[str, str]] = [
        ("Recipe hash", str(identity.get("recipe_hash") or "")),
        ("Cohort hash", _joined(identity.get("cohort_hash"))),
        ("Plan hash", str(identity.get("plan_hash") or "")),
        ("Model hash", str(getattr(encoder, "model_hash", "") or "")),
        ("Seed", str(identity["seed"]) if "seed" in identity else ""),
        ("Versions", ", ".join(f"{key} {value}" for key, value in versions.items())),
    ]
    entries: list[Html] = [_fact(key, value) for key, value in facts if value]
    entries += [_fact(key, value, "code") for key, value in codes if value]
    description = str(record.recipe.get("description") or "")
    return element(
        "header",
        element("h1", name),
        element("p", description) if description else "",
        element("p", _status(record, last), class_="status"),
        element("dl", entries, class_="facts"),
    )


def _fact(key: str, value: str, class_: str | None = None) -> Html:
    return element(
        "div",
        element("dt", key),
        element("dd", value, class_=class_),
        class_="wide" if len(value) > 48 else None,
    )


def _last_values(metrics: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The last finite number logged under each name."""
    last: dict[str, float] = {}
    for row in metrics:
        for key, value in row.items():
            if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf"):
                last[key] = value
    return last


def training_seconds(metrics: Sequence[dict[str, Any]]) -> float:
    """Seconds spent on steps: as logged, or summed from tiles and tiles per second; 0 if unknown."""
    total, before = 0.0, 0.0
    for row in metrics:
        if isinstance(row.get("seconds"), int | float):
            return float(_last_values(metrics)["seconds"])
        tiles, rate = row.get("tiles"), row.get("img_s")
        if isinstance(tiles, int | float) and isinstance(rate, int | float) and rate > 0:
            total += max(tiles - before, 0.0) / rate
            before = tiles
    return total


def _joined(value: Any) -> str:
    return " ".join(str(one) for one in value) if isinstance(value, list) else str(value or "")


def _status(record: Record, last: dict[str, float]) -> str:
    """How far the run is, in one line."""
    if "step" not in last:
        return "Nothing has been logged yet."
    total = record.identity.get("steps") or _at(record.recipe, "run", "steps")
    timed = "steps" not in record.identity and _at(record.recipe, "run", "minutes") is not None
    saved = record.run.steps()
    words = f"Step {number(int(last['step']))}"
    if isinstance(total, int):
        words += f" of {'at most ' if timed else ''}{number(total)}"
        words += ", finished" if max([*saved, last["step"]]) >= total else ""
    words += f" · last checkpoint at step {number(saved[-1])}" if saved else " · no checkpoint yet"
    if count := len(record.alarms):
        words += f" · {number(count)} alarm{'s' * (count != 1)}"
    if record.unreadable:
        words += f" · {number(record.unreadable)} tiles could not be read (ledger.jsonl)"
    return f"{words} · page written {time.strftime('%Y-%m-%d %H:%M %Z')}"


def _encoder_words(recipe: dict[str, Any], encoder: Any) -> str:
    config = recipe.get("encoder")
    if not isinstance(config, dict):
        return str(getattr(encoder, "name", "") or "")
    parts = [f"{key} {config[key]}" for key in ("width", "depth", "heads", "patch", "registers") if config.get(key)]
    start = recipe.get("start")
    return "ViT, " + ", ".join(parts) + (f"; start: {start}" if start else "")


def _parameters(encoder: Any) -> str:
    if not callable(getattr(encoder, "parameters", None)):
        return ""
    count = sum(int(one.numel()) for one in encoder.parameters())
    return f"{count / 1e6:,.1f} million" if count else ""


def _slides_words(cohort: Any, record: Record) -> str:
    if cohort is not None:
        return number(len(cohort.usable))
    return f"{len(set(record.sample.slide))} in the sample" if record.sample is not None else ""


def _at(values: dict[str, Any], *path: str) -> Any:
    """A nested value, or None where the path ends."""
    node: Any = values
    for part in path:
        node = node.get(part) if isinstance(node, dict) else None
    return node
