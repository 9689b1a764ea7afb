"""The curriculum as a run: what it reads from the cohorts, and how the loop of pre-training takes its steps.

RUN/slides.jsonl holds a line for each slide that was learned from: step, slide, what the network said of it before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eosin.distributed import World
from eosin.errors import CohortError
from eosin.models import ViT
from eosin.models.pyramid_encode import encode_slide
from eosin.optim import Schedules
from eosin.optim.schedules import step_count
from eosin.progress import progress_bar, say
from eosin.provenance import hash_of
from eosin.randomness import Words
from eosin.runs import append_line, read_lines, rewrite_lines
from eosin.slides import Cohort
from eosin.tiles import TileBatch
from eosin.training.curriculum.lora import load_base
from eosin.training.curriculum.networks import CurriculumNetworks
from eosin.training.curriculum.partial import PartialFile
from eosin.training.curriculum.rates import curriculum_optimizer, curriculum_schedules
from eosin.training.curriculum.recipe import CurriculumRecipe
from eosin.training.curriculum.scores import task_scores
from eosin.training.curriculum.slides import CurriculumSlides, SlideOrder
from eosin.training.curriculum.standardise import measure_tile_vectors
from eosin.training.curriculum.start import start_stage1
from eosin.training.curriculum.step import Learning, curriculum_step
from eosin.training.curriculum.targets import SlideLabels, read_tasks
from eosin.training.method import Method, Stopping
from eosin.training.networks import Networks
from eosin.training.parallel import Parallel, check_split
from eosin.training.prepare import Run
from eosin.training.recipe import Recipe
from eosin.training.whole_slide import KeptVectors

SLIDES_FILE = "slides.jsonl"


class Curriculum(Method):
    """Slides, labels and their order, then step after step."""

    def __init__(self, recipe: CurriculumRecipe, learned: Sequence[Cohort], held_out: Sequence[Cohort] = ()) -> None:
        """learned: cohorts to learn from; held_out: those whose patients nothing is learned from. Raises DataError and
        CohortError, one line: no such column, one class, no label, no slide with tissue.
        """
        self.recipe = recipe
        self.slides = CurriculumSlides([*learned, *held_out], recipe.pyramid)
        count = sum(len(cohort) for cohort in learned)
        self.learned = np.arange(len(self.slides)) < count
        self.labels = SlideLabels()
        self.order: SlideOrder | None = None
        self.watched: list[int] = []
        if recipe.step2.passes:
            self._read_labels(learned[0], count)
        self.small = CurriculumSlides(learned, recipe.pyramid) if held_out else self.slides

    def _read_labels(self, first: Cohort, count: int) -> None:
        recipe = self.recipe
        self.labels = read_tasks(first.path, self.slides.table, recipe.tasks, self.learned)
        known = self.labels.known.any(axis=1)
        numbers = self.slides.with_tiles(np.flatnonzero(known & self.learned))
        if not self.labels.known[numbers].any(axis=0).all():
            task = self.labels.tasks[int(np.flatnonzero(~self.labels.known[numbers].any(axis=0))[0])]
            raise CohortError(f"task {task.name}: none of its slides has a tile to learn from")
        two = recipe.step2
        self.order = SlideOrder(numbers, self.labels, two.slides, two.passes, two.sampling, recipe.run.seed)
        held = [int(n) for n in np.flatnonzero(known & ~self.learned) if len(self.slides.grid(int(n)))]
        # Cohort files are often sorted by class or site, so the first ones would be a poor choice.
        order = Words(recipe.run.seed, "watched slides").permutations(len(held))[: recipe.labels.watch_slides]
        self.watched = sorted(held[int(place)] for place in order)

    @property
    def told(self) -> list[str]:
        """A line a task, of the slides that are learned from."""
        return self.labels.take(np.flatnonzero(self.learned)).told

    def check(self, recipe: Recipe, processes: int) -> None:
        """See Method."""
        check_split(recipe, processes)

    def identity(self, recipe: Recipe) -> dict[str, Any]:
        """See Method."""
        patients = sorted({self.slides.patients[row] for row in np.flatnonzero(self.learned)})
        if not self.labels.tasks:
            return {"tasks": [], "patients": patients}
        held = sorted({self.slides.patients[row] for row in np.flatnonzero(~self.learned)})
        return {
            "labels_hash": hash_of([self.labels.hash, self.slides.names, held]),
            "patients": patients,
            "tasks": [task.name for task in self.labels.tasks],
            "slide_tasks": [task.to_dict() for task in self.labels.tasks],
            "centre": {name: list(pair) for name, pair in self.labels.centre.items()},
            "held_out": held,
        }

    def steps(self, recipe: Recipe) -> int:
        """See Method."""
        return recipe.run.steps + (self.order.steps if self.order else 0)

    def networks(self, recipe: Recipe) -> Networks:
        """See Method."""
        assert isinstance(recipe, CurriculumRecipe)
        return CurriculumNetworks(recipe, self.labels.tasks)

    def start(self, networks: Networks, recipe: Recipe) -> str:
        """See Method."""
        assert isinstance(networks, CurriculumNetworks)
        if recipe.start == "random":
            return "start: random weights"
        plain = ViT(recipe.encoder)
        told = start_stage1(plain, recipe.start)
        load_base(networks.student.encoder, plain.state_dict())
        networks.follow()
        return told

    def spread(self, networks: Networks, recipe: Recipe, device: torch.device, precision: str) -> Parallel:
        """See Method. Every process has all weights; gradients are added up once a step."""
        dtype = torch.float64 if precision == "fp64" else torch.float32
        networks.to(device=device, dtype=dtype)
        autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
        return Parallel(World.here(), device, autocast, dtype, recipe.parallel.accumulate, networks.student)

    def optimizer(self, recipe: Recipe, networks: Networks) -> torch.optim.Optimizer:
        """See Method."""
        assert isinstance(recipe, CurriculumRecipe)
        assert isinstance(networks, CurriculumNetworks)
        return curriculum_optimizer(recipe, networks)

    def schedules(self, recipe: Recipe, steps: int) -> Schedules:
        """See Method."""
        assert isinstance(recipe, CurriculumRecipe)
        return curriculum_schedules(recipe, steps, self.order.a_step if self.order else recipe.step2.slides)

    def begin(self, run: Run) -> None:
        """See Method."""
        assert isinstance(run.networks, CurriculumNetworks)
        names = ("recipe_hash", "plan_hash", "labels_hash", "precision", "device", "versions")
        told = run.identity
        precision = "bf16" if told["precision"] == "bf16" else "fp32"
        self.learning = Learning(
            self.recipe,
            run.networks,
            run.optimizer,
            run.parallel,
            self.recipe.whole_slide.model_copy(update={"precision": precision}),
            self.small,
            self.labels,
            self.order,
            # What is spread decides which slides of a step a process has: gradients of others are of no use to it.
            PartialFile(run.folder, hash_of([self.recipe.whole_slide.spread, *(told.get(name) for name in names)])),
            KeptVectors(self.recipe.whole_slide.keep_vectors_mb),
        )
        self.path = run.folder.root / SLIDES_FILE
        self.outputs: dict[int, dict[str, list[float]]] = {}
        if run.parallel.world.is_first:
            rows = [row for row in read_lines(self.path) if row["step"] < run.step]
            rewrite_lines(self.path, rows)
            self.outputs = {row["number"]: row["outputs"] for row in rows}
        self._say(run)

    def _say(self, run: Run) -> None:
        one, total = self.recipe.run.steps, run.schedules.steps
        say(f"step 1: {one} optimiser steps; step 2: {total - one}, of {self.order.a_step if self.order else 0} slides")
        for line in self.told:
            say(line)
        if held := int((~self.learned).sum()):
            say(f"held out: {held} slides, {len(self.watched)} of them are watched")

    def end(self, run: Run) -> None:
        """See Method."""
        if run.parallel.world.is_first:
            self.learning.file.drop()

    def step(self, run: Run, tiles: TileBatch, values: dict[str, float], stopping: Stopping) -> dict[str, Tensor]:
        """See Method."""
        if run.step == self.recipe.run.steps:
            say(f"step 2 of the curriculum begins at optimiser step {run.step}")
            self._standardise(run)
        losses, rows = curriculum_step(self.learning, tiles, run.step, values, stopping)
        every = [row for part in run.parallel.world.gather_objects(rows) for row in part]
        if run.parallel.world.is_first:
            for row in every:
                append_line(self.path, row)
                self.outputs[row["number"]] = row["outputs"]
        return losses

    def _standardise(self, run: Run) -> None:
        """Measure what tile vectors are standardised by, where the recipe wants it."""
        networks = run.networks
        assert isinstance(networks, CurriculumNetworks)
        if self.order is None or not self.recipe.pyramid.region.standardise:
            return
        seed, world = self.recipe.run.seed, run.parallel.world
        count = measure_tile_vectors(networks, self.small, self.order.numbers, self.learning.settings, seed, world)
        say(f"tile vectors are standardised by {count:,} tiles")

    def saves(self, run: Run) -> bool:
        """See Method: at the switch, and in step 2 so often that what is saved between slides has its checkpoint."""
        done = run.step - self.recipe.run.steps
        return done >= 0 and done % self.recipe.step2.checkpoint_every == 0

    def turns(self, run: Run) -> bool:
        """See Method."""
        return run.step == self.recipe.run.steps

    def look(self, run: Run, stopping: Stopping) -> dict[str, float]:
        """See Method: scores of the tasks, of slides learned from and of held-out patients."""
        done, last = run.step - self.recipe.run.steps, run.step == run.schedules.steps
        every = max(1, step_count(self.recipe.labels.watch_every, run.schedules.steps - self.recipe.run.steps))
        if not self.labels.tasks or done <= 0 or not (last or done % every == 0):
            return {}
        here = run.parallel.world
        patients = self.slides.patients
        told = task_scores(self.labels, patients, self.outputs, "learned") if here.is_first else {}
        if self.watched and (held := self._held_out(run, stopping)) is not None and here.is_first:
            told |= task_scores(self.labels, patients, held, "held_out")
        return here.first(told)

    def _held_out(self, run: Run, stopping: Stopping) -> dict[int, dict[str, list[float]]] | None:
        """What the student says of the watched slides, each process of some; None where the run is to stop."""
        here, pyramid = run.parallel.world, self.learning.networks.student.pyramid
        mine = self.watched[here.rank :: here.size]
        found: dict[int, dict[str, list[float]]] = {}

        def read() -> bool:
            with progress_bar("held-out slides", len(mine), "slides") as bar:
                for slide in mine:
                    if stopping():
                        return True
                    with self.slides.sample(slide, self.recipe.pyramid.side) as sample:
                        seen = encode_slide(pyramid, sample.grid, sample.read, self.learning.settings)
                    found[slide] = {name: logits[0].float().tolist() for name, logits in seen.outputs.items()}
                    bar.advance()
            return False

        if here.any(here.agree(read)):
            return None
        return {slide: outputs for part in here.gather_objects(found) for slide, outputs in part.items()}
