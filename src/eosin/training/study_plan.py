"""What a study will do, all of it checked before the first run: its runs with their recipes, tiles and probes.

Writes nothing and trains nothing (study.py does).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from eosin.errors import DataError, EosinError
from eosin.evaluation import Protocol, Task, find_protocols, open_task
from eosin.evaluation.kinds import kind_of
from eosin.features.extract import find_device
from eosin.provenance import hash_of
from eosin.tiles import TilePlan
from eosin.training.monitor import watched_tiles
from eosin.training.probes import probes_of
from eosin.training.recipe import Recipe, load_recipe
from eosin.training.study_file import Arm, Study, as_settings, load_study
from eosin.training.train import tile_plan

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Words:
    """The words of `eosin train` that say what a study learns from and where."""

    cohort: Sequence[str] = ()
    tiles: Sequence[str] = ()
    mpp: float | None = None
    where: str | None = None
    device: str | None = None

    def plan(self, recipe: Recipe) -> TilePlan:
        """The tile plan of a run."""
        return tile_plan(recipe, self.cohort, self.tiles, self.mpp, self.where)


class TilesTold(NamedTuple):
    """What is kept of a run's tile plan: its hash, and a line a source. Whole plans would hold a cohort each."""

    hash: str
    data: list[str]


@dataclass(frozen=True)
class PlannedRun:
    """One run: its arm and seed, and the recipe and tiles that follow from them."""

    arm: Arm
    seed: int
    settings: list[str]
    recipe: Recipe
    tiles: TilesTold

    @property
    def place(self) -> str:
        """ARM/seed_N."""
        return f"{self.arm.folder}/seed_{self.seed}"

    @property
    def name(self) -> str:
        """In words."""
        return f"{self.arm.name}, seed {self.seed}"


@dataclass
class StudyPlan:
    """A study with its data: nothing is left that could be known to fail."""

    study: Study
    words: Words
    changes: list[str]
    runs: list[PlannedRun]
    specs: list[str]
    tasks: list[Task]
    protocols: list[Protocol]
    _judged: str
    _watched: Pixels | None = field(default=None, repr=False)

    @property
    def arms(self) -> list[str]:
        """Names of the arms."""
        return [arm.name for arm in self.study.all_arms()]

    @property
    def units(self) -> dict[str, str]:
        """Probe ("protocol/task") -> what its cases are grouped by."""
        return {f"{protocol.id}/{task.name}": task.group_name for protocol in self.protocols for task in self.tasks}

    @property
    def reference(self) -> PlannedRun:
        """First run of the arm that the others are compared with."""
        return self.first_of(self.study.reference)

    def first_of(self, arm: str) -> PlannedRun:
        """The run of an arm with the first seed."""
        return next(run for run in self.runs if run.arm.name == arm)

    def key(self, run: PlannedRun) -> str:
        """Hash of everything that decides the row of a run: what it learns, and how it is judged."""
        watched = [self.reference.tiles.hash, self.reference.recipe.run.monitor_tiles]
        return hash_of([run.recipe.hash, run.tiles.hash, watched, self._judged])

    def watched(self) -> Pixels:
        """uint8 [N, S, S, 3]: the tiles that label-free metrics of all runs are measured on."""
        if self._watched is None:
            recipe = self.reference.recipe
            self._watched = watched_tiles(self.words.plan(recipe), recipe).pixels
        return self._watched


def plan_study(file: str, words: Words, changes: Sequence[str] = (), probes: Sequence[str] = ()) -> StudyPlan:
    """Everything that a study would do. Raises what its runs would raise before their first step, naming the arm.

    changes: such as "run.batch=64", for every run; probes: NAME=PATH, beside the file's.
    """
    study = load_study(file)
    specs = [*study.probes, *probes]
    tasks = [open_task(spec) for spec in specs]
    protocols = find_protocols(study.protocol)
    _check_probes(tasks, protocols)
    find_device(words.device)
    runs = []
    plans: dict[str, TilesTold] = {}
    for arm in study.all_arms():
        for seed in study.seeds:
            settings = study.settings(arm, seed, changes)
            try:
                recipe, _ = load_recipe(study.base, settings)
                probes_of(tasks, recipe.run.probe_protocol, recipe.run.probe_steps)
                runs.append(PlannedRun(arm, seed, settings, recipe, _tiles_of(recipe, words, plans)))
            except EosinError as error:
                raise type(error)(f"study {study.name}, arm {arm.name}: {error}") from error
    contents = [(task.name, task.content_hash(), task.label_hash()) for task in tasks]
    judged = hash_of([study.pooling, [protocol.hash for protocol in protocols], contents])
    return StudyPlan(study, words, list(changes), runs, specs, tasks, protocols, judged)


def _check_probes(tasks: Sequence[Task], protocols: Sequence[Protocol]) -> None:
    names = [task.name for task in tasks]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise DataError(f"two probes are called {repeated[0]}; give each its own name")
    for task in tasks:
        if task.images is None:
            raise DataError(f"probe {task.name}: {task.source} holds features; a study needs images")
        for protocol in protocols:
            try:
                own = protocol.of(task.kind)
            except DataError as error:
                raise DataError(f"probe {task.name}: {error} (`protocol` of the study)") from error
            kind_of(task).check(task, own)


def _tiles_of(recipe: Recipe, words: Words, plans: dict[str, TilesTold]) -> TilesTold:
    """The tile plan of a run, after its check; runs that do not differ in their tiles share one."""
    key = hash_of([recipe.tiles.model_dump(mode="json"), recipe.run.seed])
    if key not in plans:
        plan = words.plan(recipe)
        plan.check()
        plans[key] = TilesTold(plan.hash, [source.told for source in plan.sources])
    return plans[key]


def describe_study(plan: StudyPlan) -> str:
    """What a study would do, one fact a line: its arms, their runs, and the tiles that these would see."""
    study = plan.study
    probes = [f"{task.name} ({len(task)} images, {len(task.classes)} classes)" for task in plan.tasks]
    size = f"{len(plan.arms)} arms x {len(study.seeds)} seeds = {len(plan.runs)}"
    lines = [
        f"study      {study.name}{': ' if study.description else ''}{study.description}",
        f"base       {study.base}",
        f"runs       {size}, compared with arm {study.reference}",
        f"probes     {', '.join(probes) or 'none'}",
    ]
    for arm in study.all_arms():
        run = plan.first_of(arm.name)
        steps, batch, distinct = run.recipe.run.steps, run.recipe.run.batch, run.recipe.tiles.distinct_tiles
        few = f", {distinct:,} of them distinct" if distinct and distinct < steps * batch else ""
        lines.append(f"arm        {arm.name}: {steps} steps of {batch} = {steps * batch:,} tiles{few}")
        lines.append(f"             from {'; '.join(run.tiles.data)} at {run.recipe.tiles.scales_text} µm/px")
        lines += [f"             {change}" for change in as_settings(arm.changes)]
        lines += [f"             {run.place}" for run in plan.runs if run.arm.name == arm.name]
    return "\n".join(lines)
