"""A study: runs that differ in what its arms change, each with every seed, judged alike, in one folder.

    DIR/runs/ARM/seed_N/      a normal run folder each; DIR/models/… their exports, DIR/results/… their probes
    DIR/study.json            arms, runs, means with intervals, differences, correlations
    DIR/table.csv             a row a run

RankMe, ODCorr and uniformity of all runs are measured on the same tiles, those of the arm that the others are compared
with: a run that may see ten tiles, or one magnification, would otherwise be measured on just those. Runs go one after
another in this process. Statistics are in study_table.py, the page in report/study_page.py.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from eosin.errors import EosinError, Interrupted, OutputError, RecipeError, ResumeError
from eosin.evaluation import evaluate
from eosin.features import embed_images, label_free, load_model
from eosin.features.extract import find_device
from eosin.files import PathLike, check_writable, write_json, write_text
from eosin.progress import progress_bar, say
from eosin.provenance import versions
from eosin.runs import RunFolder
from eosin.training.export import export_run
from eosin.training.prepare import reading_processes
from eosin.training.study_plan import PlannedRun, StudyPlan, Words, plan_study
from eosin.training.study_table import (
    LABEL_FREE,
    Judged,
    case_differences,
    main_rows,
    rank_correlations,
    read_judged,
    seed_differences,
    summaries,
    table_csv,
)
from eosin.training.train import train

Row = dict[str, Any]


def run_study(
    file: str,
    out: PathLike,
    *,
    cohort: Sequence[str] = (),
    tiles: Sequence[str] = (),
    mpp: float | None = None,
    where: str | None = None,
    set: Sequence[str] = (),
    probe: Sequence[str] = (),
    device: str | None = None,
) -> dict[str, Any]:
    """Run a study (a shipped name or a YAML file) into the folder `out`; returns the content of study.json.

    cohort, tiles, mpp, where, device: as in `train`. set: changes of every run, above the file's and below the arms'.
    probe: `NAME=PATH`, beside the file's. Finished runs are left alone, a killed one goes on. A run that stops itself
    becomes a row with its error, and the study goes on. Raises EosinError, one line, for all that can be known before.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RecipeError("a study trains its runs one after another in one process; start it without torchrun")
    plan = plan_study(file, Words(cohort, tiles, mpp, where, device), set, probe)
    root = check_writable(out)
    rows = _known_rows(root, plan)
    with progress_bar(plan.study.name, len(plan.runs), "runs") as bar:
        for number, run in enumerate(plan.runs):
            if rows[number]["status"] != "done":
                say(f"{plan.study.name}: run {number + 1} of {len(plan.runs)}, {run.name}")
                rows[number] = _tried(plan, run, root)
                write_json(root / "study.json", {**_conditions(plan), "runs": rows})
            bar.advance()
    told = {**_conditions(plan), "runs": rows, **_conclusions(plan, rows, root)}
    write_json(root / "study.json", told)
    write_text(root / "table.csv", table_csv(rows, {run.arm.name: run.arm.changes for run in plan.runs}))
    return told


def _known_rows(root: Path, plan: StudyPlan) -> list[Row]:
    """A row a run: as study.json has it where the run is done and nothing that decides it has changed, else waiting.

    Raises ResumeError where the folder belongs to another study, or a run folder to another recipe.
    """
    known = _written_rows(root / "study.json", plan.study.name)
    rows = []
    for run in plan.runs:
        folder = RunFolder(root / "runs" / run.place)
        if folder.steps() and _recipe_hash(folder) != run.recipe.hash:
            raise ResumeError(
                f"{folder.root} holds a run of another recipe: settings of the study have changed; give another -o"
            )
        row = known.get((run.arm.name, run.seed), {})
        there = folder.steps() and (root / "models" / run.place).is_dir()
        judged = not plan.specs or _predictions(root, run.place).is_file()
        rows.append(row if row.get("key") == plan.key(run) and there and judged else _row(plan, run))
    return rows


def _written_rows(path: Path, name: str) -> dict[tuple[str, int], Row]:
    """Rows of finished runs by arm and seed; none without the file."""
    if not path.is_file():
        return {}
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        rows = {(row["arm"], row["seed"]): row for row in told["runs"] if row["status"] == "done"}
        owner = told["study"]["name"]
    except (ValueError, KeyError, TypeError) as error:
        raise ResumeError(f"{path} is damaged; move it away, the runs beside it are kept") from error
    if owner != name:
        raise ResumeError(f"{path.parent} belongs to the study {owner}, not to {name}; give another -o")
    return rows


def _predictions(root: Path, place: str) -> Path:
    return root / "results" / place / "predictions.parquet"


def _recipe_hash(folder: RunFolder) -> str:
    try:
        return str(json.loads(folder.identity.read_text(encoding="utf-8"))["recipe_hash"])
    except (OSError, ValueError, KeyError) as error:
        raise ResumeError(f"{folder.identity} is missing or damaged; move {folder.root} away") from error


def _row(plan: StudyPlan, run: PlannedRun) -> Row:
    """The row of a run that waits."""
    return {
        "arm": run.arm.name,
        "seed": run.seed,
        "status": "waiting",
        "error": None,
        "key": plan.key(run),
        "place": run.place,
        "recipe_hash": run.recipe.hash,
        "plan_hash": run.tiles.hash,
        "metrics": {},
    }


def _tried(plan: StudyPlan, run: PlannedRun, root: Path) -> Row:
    """The row of a run after training and judging it; one with the error where the run stopped itself."""
    try:
        return {**_row(plan, run), **_trained(plan, run, root), "status": "done"}
    except (Interrupted, ResumeError, OutputError):
        raise  # stopped by a person, a folder in the way, a full disk: not the run's doing, and the next would meet it
    except EosinError as error:
        say(f"{plan.study.name}: {run.name} failed: {error}")
        return {**_row(plan, run), "status": "failed", "error": str(error)}


def _trained(plan: StudyPlan, run: PlannedRun, root: Path) -> dict[str, Any]:
    """Train a run or go on with it, export it, measure it on the common tiles, probe it."""
    words = plan.words
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()  # code compiled for earlier runs counts towards a limit, past which nothing is compiled
    folder = train(
        plan.study.base,
        root / "runs" / run.place,
        cohort=words.cohort,
        tiles=words.tiles,
        mpp=words.mpp,
        where=words.where,
        set=run.settings,
        probe=plan.specs,
        device=words.device,
    )
    identity = json.loads(folder.identity.read_text(encoding="utf-8"))
    model = export_run(folder.root, root / "models" / run.place, pooling=plan.study.pooling)
    encoder = load_model(model, pooling="cls").to(find_device(words.device))
    z = embed_images(encoder, list(plan.watched()))
    metrics = {name: float(getattr(label_free, name)(z)) for name in LABEL_FREE}
    if plan.specs:
        results = root / "results" / run.place
        readers = reading_processes(run.recipe)
        found = evaluate(
            str(model), plan.specs, plan.study.protocol, results, device=words.device, workers=readers, fresh=True
        )
        metrics |= {name: row["mean"] for name, row in main_rows(found).items()}
        shutil.rmtree(results / "cache", ignore_errors=True)  # features of every run would fill the disk
    told = {name: identity.get(name) for name in ("steps", "device", "precision")}
    return {**told, "model_hash": encoder.model_hash, "metrics": metrics}


def _conditions(plan: StudyPlan) -> dict[str, Any]:
    """The part of study.json that is known before the first run."""
    arms = []
    for arm in plan.study.all_arms():
        run = plan.first_of(arm.name)
        steps, batch = run.recipe.run.steps, run.recipe.run.batch
        arms.append(
            {
                "arm": arm.name,
                "changes": arm.changes,
                "steps": steps,
                "batch": batch,
                "tiles": steps * batch,
                "distinct_tiles": run.recipe.tiles.distinct_tiles,
                "data": run.tiles.data,
                "scales": run.recipe.tiles.scales_text,
            }
        )
    return {
        "study": plan.study.model_dump(mode="json", by_alias=True),
        "changes": plan.changes,
        "reference": plan.study.reference,
        "arms": arms,
        "watched_tiles": plan.reference.recipe.run.monitor_tiles,
        "tasks": [
            {"task": t.name, "n": len(t), "classes": list(t.classes), "unit": t.group_name, "split": t.reported_split}
            for t in plan.tasks
        ],
        "versions": versions(),
    }


def _conclusions(plan: StudyPlan, rows: list[Row], root: Path) -> dict[str, Any]:
    """The part of study.json that the runs together say."""

    def judged(row: Row) -> dict[str, Judged]:
        return read_judged(_predictions(root, str(row["place"])).parent)

    reference = plan.study.reference
    cases = case_differences(rows, plan.arms, reference, judged, plan.units) if plan.specs else []
    return {
        "summary": summaries(rows, plan.arms),
        "differences": [*seed_differences(rows, plan.arms, reference), *cases],
        "correlations": rank_correlations(rows, plan.units),
        "baselines": _baselines(plan, rows, root) if plan.specs else [],
    }


def _baselines(plan: StudyPlan, rows: list[Row], root: Path) -> list[dict[str, Any]]:
    """The untrained network of the first finished run, and six colour numbers, on the same probes."""
    done = next((row for row in rows if row["status"] == "done"), None)
    if done is None:
        return []
    results = root / "results" / "baselines"
    (results / "results.json").unlink(missing_ok=True)  # which run is the first may change; outcomes are kept
    found = evaluate(
        str(root / "models" / str(done["place"])),
        plan.specs,
        plan.study.protocol,
        results,
        against=["colour"],
        random_init=True,
        device=plan.words.device,
        workers=reading_processes(plan.reference.recipe),
    )
    shutil.rmtree(results / "cache" / "features", ignore_errors=True)
    kept = ("mean", "ci_low", "ci_high", "n", "n_patients", "resampled", "chance")
    return [
        {
            "model": told,
            "metric": name,
            **{key: row[key] for key in kept},
        }
        for told, own in (("random start", False), ("colour only", True))
        for name, row in main_rows(row for row in found if (row["model"] == "colour") == own).items()
    ]
