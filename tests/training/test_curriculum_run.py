"""The curriculum end to end: stopped and killed between slides it goes on exactly; exported, embedded, judged."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open

from eosin.distributed import World
from eosin.errors import DataError, EosinError, RecipeError, WeightsError
from eosin.evaluation.mil import train_mil
from eosin.features import export_model, load_model
from eosin.features.embed import embed_slides
from eosin.features.embed_pyramid import StageEmbedding, embed_stage
from eosin.features.embed_run import share
from eosin.features.pyramid_file import load_pyramid
from eosin.models import ViT
from eosin.runs import RunFolder, read_lines
from eosin.slides import Cohort
from eosin.training import load_recipe, train
from eosin.training.curriculum import curriculum_of, partial
from eosin.training.curriculum.targets import parted, patients_of
from eosin.training.export import export_run
from eosin.training.lineage import seen_until_now

from .curriculum_cases import TINY, train_words, write_cohort

FROM_SLIDES = ["run.steps=0", "step2.passes=2"]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten slides with labels."""
    return write_cohort(tmp_path_factory.mktemp("slides"))


def go(cohort: Path, out: Path, *changes: str) -> RunFolder:
    """`eosin train`, in this process."""
    return train("pyramid-quickstart", out, cohort=[str(cohort)], set=[*TINY, *changes])


def tensors(run: RunFolder, step: int | None = None) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, the newest without `step`."""
    found = {}
    for file in run.checkpoint(run.steps()[-1] if step is None else step).glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            found |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    return found


def told(run: Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl and slides.jsonl without what tells of time."""
    rows = [*read_lines(run / "metrics.jsonl"), *read_lines(run / "slides.jsonl")]
    return [{name: value for name, value in row.items() if name not in ("img_s", "data_wait", "mfu")} for row in rows]


def same(one: Path, other: Path) -> None:
    """Bit for bit the same run."""
    assert RunFolder(one).steps() == RunFolder(other).steps()
    left, right = tensors(RunFolder(one)), tensors(RunFolder(other))
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert told(one) == told(other)


def test_stopped_between_slides_it_goes_on_exactly(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    go(cohort, tmp_path / "whole", *FROM_SLIDES)
    write, left = partial.PartialFile.write, [3]

    def write_and_stop(self: partial.PartialFile, *words: Any) -> None:
        write(self, *words)
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(partial.PartialFile, "write", write_and_stop)
    with pytest.raises(Exception, match="stopped by a signal at step 0; the same command goes on"):
        go(cohort, tmp_path / "parts", *FROM_SLIDES)
    capfd.readouterr()
    go(cohort, tmp_path / "parts", *FROM_SLIDES)
    assert "3 slides of optimiser step 0 had been learned from already" in capfd.readouterr().err
    same(tmp_path / "whole", tmp_path / "parts")
    assert not list((tmp_path / "parts" / "checkpoints").glob("slides-*"))


@pytest.mark.slow
def test_killed_between_slides_it_goes_on_exactly(cohort: Path, tmp_path: Path) -> None:
    changes = ("run.steps=1", "step2.passes=2")
    go(cohort, tmp_path / "whole", *changes)
    script = Path(__file__).with_name("curriculum_cases.py")
    words = [sys.executable, str(script), *train_words(cohort, *changes), "-o", str(tmp_path / "parts")]
    for saves in (2, 5):  # 4 saves a step
        killed = subprocess.run(words, env=os.environ | {"EOSIN_TEST_KILL": str(saves)}, check=False)
        assert killed.returncode == -signal.SIGKILL
    done = subprocess.run(words, env=os.environ | {"EOSIN_TEST_KILL": "0"}, check=True, capture_output=True, text=True)
    assert "resuming" in done.stderr
    same(tmp_path / "whole", tmp_path / "parts")


def test_both_steps_are_learned_and_logged(cohort: Path, tmp_path: Path) -> None:
    tasks = "tasks=[{column: msi}, {column: age, kind: regression}, {column: os}]"
    run = go(cohort, tmp_path / "run", tasks, "run.keep_last=9")
    rows = [row for row in run.read_metrics() if "loss" in row]
    assert [row["curriculum_step"] for row in rows] == [1, 1, 2, 2]
    assert all("loss/dino_local" in row and "loss/region" in row for row in rows)
    last = rows[-1]
    assert {"loss/task/msi", "loss/task/age", "loss/task/os"} <= last.keys()
    assert "loss/task/msi" not in rows[0]
    assert 0 <= last["attention/tiles_entropy"] <= 1 <= last["attention/tiles_max_times_n"]
    parts = [value for name, value in last.items() if name.startswith(("loss/task", "loss/region"))]
    dino = last["loss/dino_global"] + last["loss/dino_local"]
    assert last["loss"] == pytest.approx(sum(parts) + 0.5 * dino, rel=1e-5)
    looks = [row for row in run.read_metrics() if "learned/msi/n" in row]
    assert looks[-1]["learned/os/n"] > looks[0]["learned/os/n"]
    assert {"held_out/os/c_index", "learned/age/r2/low", "learned/msi/auroc/high"} <= looks[-1].keys()
    identity = run.read_identity()
    assert identity["tasks"] == ["msi", "age", "os"]
    assert len(identity["patients"]) == 8
    assert not set(identity["held_out"]) & set(identity["patients"])
    before, frozen, after = (tensors(run, step) for step in (2, 3, 4))
    stage1 = [name for name in before if name.startswith("networks.student.pyramid.tile")]
    assert all(torch.equal(before[name], frozen[name]) for name in stage1)
    assert not any(torch.equal(frozen[name], after[name]) for name in stage1 if name.endswith("qkv.weight"))
    heads = [name for name in before if name.startswith("networks.student.pyramid.heads") and "weight" in name]
    assert not any(torch.equal(before[name], frozen[name]) for name in heads)


def test_exported_it_embeds_at_every_stage_and_says_what_it_learned(cohort: Path, tmp_path: Path) -> None:
    run = go(cohort, tmp_path / "run", "lora.rank=2", "tasks=[{column: msi}]", "step2.tile_frozen_slides=0")
    model = export_run(run.root, tmp_path / "model")
    pyramid, encoder = load_pyramid(model), load_model(model)
    state = tensors(run)
    assert torch.equal(pyramid.pyramid.heads[0].weight, state["networks.student.pyramid.heads.0.weight"])
    tiles = torch.randint(256, (3, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(pyramid.pyramid.tile(tiles), encoder.embed(tiles))
    assert encoder.info["training"]["tasks"] == ["msi"]
    assert "learned from labels of | msi (binary: mss, msi)" in (model / "README.md").read_text()

    embed_slides(model, [cohort], tmp_path / "tiles", stage="tile", workers=0)
    assert json.loads((tmp_path / "tiles" / "embedding.json").read_text())["training_tasks"] == ["msi"]
    embed_slides(model, [cohort], tmp_path / "upper", stage="region")
    embed_slides(model, [cohort], tmp_path / "upper", stage="slide")
    slides = pq.read_table(tmp_path / "upper" / "slides.parquet")
    assert slides.column_names == ["slide", "vector", "output.msi"]
    assert len(slides) == 10
    regions = pq.read_table(tmp_path / "upper" / "regions.parquet").to_pandas()
    first = regions[regions["slide"] == "s0"]
    assert (len(first), first["tiles"].sum()) == (9, len(load_tiles(tmp_path / "tiles" / "s0.h5")))
    assert sorted({(x, y) for x, y in zip(first["x"], first["y"], strict=True)})[0] == (
        first["x"].min(),
        first["y"].min(),
    )
    assert first["x"].max() - first["x"].min() == 2 * 4 * 16

    labels, held_out = tmp_path / "labels.csv", set(run.read_identity()["held_out"])
    splits = [f"s{n},p{n},{'test' if n < 4 else 'val' if n < 6 else 'train'},{('mss', 'msi')[n % 2]}" for n in range(8)]
    labels.write_text("\n".join(["slide,patient,split,msi", *splits]) + "\n")
    bags = {"mean-linear": tmp_path / "tiles", "linear": tmp_path / "upper" / "slides.parquet"}
    for head, features in bags.items():
        rows = train_mil(features, labels, tmp_path / head, head=head, protocol="exaone", changes=["train.epochs=1"])
        assert all(row["task_in_training"] for row in rows)
        assert rows[0]["patients_in_training"] == len({"p0", "p1", "p2", "p3"} - held_out)

    with pytest.raises(DataError, match="unknown stage 'slides': tile, region, slide"):
        embed_slides(model, [cohort], tmp_path / "none", stage="slides")
    with pytest.raises(DataError, match="takes tiles, scale and weights as the exported pyramid has them"):
        embed_slides(model, [cohort], tmp_path / "none", stage="slide", size=32)


def load_tiles(path: Path) -> Any:
    """Coordinates in a feature file."""
    import h5py

    with h5py.File(path) as file:
        return file["coords"][:]


def test_stage_1_starts_from_an_export_and_stands_still_when_frozen(cohort: Path, tmp_path: Path) -> None:
    config = load_recipe("pyramid-quickstart", TINY)[0].encoder
    vit = ViT(config, torch.Generator().manual_seed(5))
    export_model(vit, tmp_path / "ssl", input_size=16, mean=(0.7, 0.5, 0.7), std=(0.2, 0.2, 0.2))
    changes = (f"start={tmp_path / 'ssl'}", "encoder=start", "step2.tile_frozen_slides=99", "tasks=[{column: msi}]")
    run = go(cohort, tmp_path / "run", *changes, "run.steps=0")
    state = tensors(run)
    assert all(
        torch.equal(state[f"networks.student.pyramid.tile.vit.{name}"], value)
        for name, value in vit.state_dict().items()
    )
    model = load_pyramid(export_run(run.root, tmp_path / "model"))
    assert model.pyramid.tile.mean.flatten().tolist() == pytest.approx([0.7, 0.5, 0.7])


def test_runs_without_anything_to_learn_from_are_one_line(cohort: Path, tmp_path: Path) -> None:
    for change, told in {
        "pyramid.mpp=0.1": "no tile of 16 px at 0.1 µm/px with tissue on any slide that has a label",
        "tasks=[{column: mis}]": "has no column mis to learn from",
        "labels.held_out=0.99": "leaves none of 10 patients to learn from",
    }.items():
        with pytest.raises(EosinError, match=told):
            go(cohort, tmp_path / "run", change)
    with pytest.raises(RecipeError, match="a curriculum learns from whole slides"):
        train("pyramid-quickstart", tmp_path / "run", tiles=[str(cohort.parent)], mpp=0.5, set=TINY)
    assert not (tmp_path / "run").exists()
    run = go(cohort, tmp_path / "whole", "step2.passes=0", "run.steps=1")
    with pytest.raises(WeightsError, match=r"is a run of a curriculum: `eosin export .*whole -o DIR`, and"):
        go(cohort, tmp_path / "run", f"start={run.root}", "encoder=start")


def other_cohort(cohort: Path, out: Path, slides: range, renamed: str = "grade") -> Path:
    """Some slides of `cohort` indexed into `out`, the column `grade` under another name."""
    labels = out.with_suffix(".csv")
    labels.write_text((cohort.parent / "labels.csv").read_text().replace("grade", renamed))
    files, scales = [cohort.parent / f"s{n}.png" for n in slides], cohort.parent / "mpp.csv"
    rows = labels.read_text().splitlines()
    labels.write_text("\n".join([rows[0], *(rows[n + 1] for n in slides)]) + "\n")
    Cohort.index(files, out, metadata=labels, mpp_csv=scales, workers=0)
    return out


def test_a_patient_held_out_in_one_cohort_is_held_out_in_all(cohort: Path, tmp_path: Path) -> None:
    both = [Cohort.read(cohort), Cohort.read(other_cohort(cohort, tmp_path / "some.parquet", range(4, 10)))]

    def parts(cohorts: list[Cohort], seed: int) -> tuple[set[str], set[str]]:
        found = parted(cohorts, 0.3, seed)
        learned = {name for part, _ in found for name in patients_of(part.usable)}
        return learned, {name for _, part in found if part is not None for name in patients_of(part.usable)}

    apart = False
    for seed in range(10):
        learned, held = parts(both, seed)
        assert learned.isdisjoint(held)
        assert learned | held == {f"p{n}" for n in range(10)}
        each = [parts([one], seed) for one in both]
        assert all(len(out) == round(0.3 * len(inside | out)) for inside, out in each)
        apart |= bool((each[0][0] | each[1][0]) & (each[0][1] | each[1][1]))
    assert apart  # each cohort by itself would have parted them in another way


def test_a_choice_of_held_out_slides_is_watched_not_the_first_ones(cohort: Path) -> None:
    seen = set()
    for seed in range(6):
        changes = [*TINY, "labels.held_out=0.5", "labels.watch_slides=2", f"run.seed={seed}"]
        method = curriculum_of(load_recipe("pyramid-quickstart", changes)[0], [Cohort.read(cohort)])
        held = [int(slide) for slide in np.flatnonzero(~method.learned)]
        assert set(method.watched) < set(held)
        assert "task grade (classification): 5 slides" in method.told[1]
        seen.add(tuple(held.index(slide) for slide in method.watched))
    assert len(seen) > 1


def test_a_task_may_be_called_region_and_few_slides_are_counted_as_they_are(cohort: Path, tmp_path: Path) -> None:
    named = other_cohort(cohort, tmp_path / "named.parquet", range(10), "region")
    # All 8 slides that are learned from are in each step, so 9 slides of standing still are two steps.
    changes = ["tasks=[{column: region}]", "step2.slides=32", "step2.tile_frozen_slides=9", "step2.passes=3"]
    run = go(named, tmp_path / "run", *changes, "run.steps=0", "run.keep_last=9", "step2.tile_weight=0.0")
    rows = [row for row in run.read_metrics() if "loss" in row]
    assert all(row["loss"] == pytest.approx(row["loss/task/region"] + row["loss/region"], rel=1e-6) for row in rows)
    assert all(min(row["loss/task/region"], row["loss/region"]) > 0.1 for row in rows)
    start, first, second, third = (tensors(run, step) for step in (0, 1, 2, 3))
    stage1 = [name for name in start if name.startswith("networks.student.pyramid.tile") and "qkv.weight" in name]
    assert all(torch.equal(start[name], first[name]) and torch.equal(start[name], second[name]) for name in stage1)
    assert not any(torch.equal(second[name], third[name]) for name in stage1)


def test_an_export_tells_what_its_start_had_learned(cohort: Path, tmp_path: Path) -> None:
    one = go(cohort, tmp_path / "one", *FROM_SLIDES[:1], "tasks=[{column: msi}]")
    first = export_run(one.root, tmp_path / "first")
    config = json.loads((first / "config.json").read_text())
    config["eosin"]["start_licence"] = "CC-BY-NC 4.0 (somebody's)"
    (first / "config.json").write_text(json.dumps(config))
    few = other_cohort(cohort, tmp_path / "few.parquet", range(4))
    two = go(few, tmp_path / "two", *FROM_SLIDES[:1], "tasks=[{column: age}]", f"start={first}", "labels.held_out=0")
    told = json.loads((export_run(two.root, tmp_path / "second") / "config.json").read_text())["eosin"]
    assert told["training"]["tasks"] == ["age", "msi"]
    assert set(told["training"]["patients"]) == {*one.read_identity()["patients"], "p0", "p1", "p2", "p3"}
    assert told["start_licence"] == "CC-BY-NC 4.0 (somebody's)"
    assert "msi (what it started from)" in (tmp_path / "second" / "README.md").read_text()


def test_what_a_start_had_learned_is_kept_when_its_folder_is_gone(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = go(cohort, tmp_path / "one", *FROM_SLIDES[:1], "tasks=[{column: msi}]")
    first = export_run(one.root, tmp_path / "first")
    few = other_cohort(cohort, tmp_path / "few.parquet", range(4))
    words = *FROM_SLIDES, "tasks=[{column: age}]", f"start={first}", "labels.held_out=0"
    write, left = partial.PartialFile.write, [6]  # of four slides a step: in the middle of the second one

    def write_and_stop(self: partial.PartialFile, *words: Any) -> None:
        write(self, *words)
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(partial.PartialFile, "write", write_and_stop)
    with pytest.raises(EosinError, match="stopped by a signal"):
        go(few, tmp_path / "two", *words)
    monkeypatch.setattr(partial.PartialFile, "write", write)
    shutil.rmtree(first)
    two = go(few, tmp_path / "two", *words)
    told = json.loads((export_run(two.root, tmp_path / "second") / "config.json").read_text())["eosin"]["training"]
    assert told["tasks"] == ["age", "msi"]
    assert set(told["patients"]) == {*one.read_identity()["patients"], "p0", "p1", "p2", "p3"}


def test_what_was_learned_before_a_change_that_was_accepted_counts() -> None:
    now = {"tasks": ["b"], "patients": ["p2"], "slides": None}
    known = {"tasks": ["a"], "patients": ["p1"], "slides": ["s1"], "start_seen": {"tasks": ["t"], "licence": "MIT"}}
    seen = {"tasks": ["a", "t"], "patients": ["p1"], "slides": ["s1"], "licence": "MIT"}
    assert seen_until_now("random", known, now) == seen
    assert seen_until_now("random", {**now, "start_seen": seen}, now) == seen
    assert seen_until_now("random", None, now) == {}


def test_without_labels_the_teacher_is_exported_and_with_them_the_student(cohort: Path, tmp_path: Path) -> None:
    run = go(cohort, tmp_path / "run", "run.steps=2", "tasks=[{column: msi}]", "run.keep_last=9")
    for step, who in ((2, "teacher"), (run.steps()[-1], "student")):
        saved, made = tensors(run, step), load_pyramid(export_run(run.root, tmp_path / f"{step}", step=step)).pyramid
        names = {"teacher": ("own_tile.vit", "own_region"), "student": ("pyramid.tile.vit", "pyramid.region")}[who]
        for module, name in zip((made.tile.vit, made.region), names, strict=True):  # type: ignore[union-attr]
            for key, value in module.state_dict().items():
                assert torch.equal(value, saved[f"networks.{who}.{name}.{key}"]), (step, key)
    asked = export_run(run.root, tmp_path / "asked", step=2, student=True)
    saved, made = tensors(run, 2), load_pyramid(asked).pyramid
    assert torch.equal(made.region.state_dict()["norm.weight"], saved["networks.student.pyramid.region.norm.weight"])


def test_slides_that_were_embedded_are_not_embedded_again_for_one_that_failed(cohort: Path, tmp_path: Path) -> None:
    run = go(cohort, tmp_path / "run", "step2.passes=0", "run.steps=1")
    model = export_run(run.root, tmp_path / "model")
    some = other_cohort(cohort, tmp_path / "some.parquet", range(3))
    bad = Cohort.read(some).usable["path"][1]
    kept = Path(bad).read_bytes()
    Path(bad).write_bytes(b"no picture")
    try:
        first = embed_slides(model, [some], tmp_path / "out", stage="slide")
    finally:
        Path(bad).write_bytes(kept)
    assert (first.slides, list(first.failures)) == (2, ["s1"])
    assert "s1" in (tmp_path / "out" / "failures.csv").read_text()
    again = embed_slides(model, [some], tmp_path / "out", stage="slide")
    assert (again.slides, again.finished, again.failures) == (1, 2, {})
    assert pq.read_table(tmp_path / "out" / "slides.parquet")["slide"].to_pylist() == ["s0", "s1", "s2"]
    assert not list((tmp_path / "out").glob(".*-parts"))


def test_several_processes_embed_their_shares_and_the_last_one_writes_the_table(
    cohort: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = export_run(go(cohort, tmp_path / "run", "step2.passes=0", "run.steps=1").root, tmp_path / "model")
    slides = Cohort.read(cohort)
    whole = embed_stage(model, slides, tmp_path / "whole", "slide", torch.device("cpu"), "fp32", 64, False)
    words = slides, tmp_path / "parts", "slide", torch.device("cpu"), "fp32", 64, False
    first = embed_stage(model, *words, part=(1, 3))
    assert not (tmp_path / "parts" / "slides.parquet").exists()
    assert f"{10 - first.slides} of 10 slides are still to be embedded by others" in capfd.readouterr().err
    again = embed_stage(model, *words, part=(1, 3))
    assert (again.slides, again.finished) == (0, first.slides)
    second = embed_stage(model, *words, part=(2, 3))
    rest = StageEmbedding(model, *words[:-1])
    # Two processes of the third part, as torchrun starts them.
    numbers = [share(slides, World(rank, 2), (3, 3)) for rank in range(2)]
    done = [rest.embed(some).slides for some in numbers]
    assert rest.finish() == 0
    assert first.slides + second.slides + sum(done) == whole.slides == 10
    assert not {*numbers[0]} & {*numbers[1]}
    tables = [pq.read_table(tmp_path / folder / "slides.parquet") for folder in ("whole", "parts")]
    assert tables[0].equals(tables[1], check_metadata=False)
    assert rest.finish() == 0  # another process that finds so at the same time
    assert not (tmp_path / "parts" / ".slide-parts").exists()
    complete = embed_stage(model, *words)
    assert (complete.slides, complete.finished) == (0, 10)
    assert embed_stage(model, *words[:-1], True).slides == 10
