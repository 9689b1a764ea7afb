"""What a run logs arrives in metrics.jsonl and, read back with their own libraries, in TensorBoard, W&B and MLflow."""

from __future__ import annotations

import importlib.util
import json
import math
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from eosin.errors import OutputError, RecipeError
from eosin.runs import RunFolder
from eosin.training import train
from eosin.training.loggers import check_loggers
from eosin.training.metrics_log import MetricsLog

from .conftest import TINY

SETTINGS = {"name": "tiny", "encoder": {"width": 24, "depth": 2}, "tiles": {"mpp": [0.5, 1.0]}}


def needs(library: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(library) is None, reason=f"{library} is not installed")


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run x")
    folder.root.mkdir()
    return folder


def write(run: RunFolder, first_step: int, steps: range, *log_to: str) -> None:
    with MetricsLog(run, first_step, log_to, SETTINGS) as log:
        for step in steps:
            log.write(step, {"loss": 10.0 - step, "loss/ibot": 3.0})
            if step % 2 == 0:
                log.write(step, {"knn/my probe": step / 100, "teacher_entropy": math.nan})


def test_rows_after_the_checkpoint_go_and_numbers_stay_finite(run: RunFolder) -> None:
    write(run, 0, range(6))
    write(run, 3, range(4, 8))
    rows = run.read_metrics()
    assert [row["step"] for row in rows if "loss" in row] == list(range(8))
    assert [row["knn/my probe"] for row in rows if "knn/my probe" in row] == [0.0, 0.02, 0.04, 0.06]
    assert all(row["teacher_entropy"] is None for row in rows if "teacher_entropy" in row)
    assert "NaN" not in run.metrics.read_text()
    assert not run.tensorboard.exists()


def test_tensorboard_holds_the_same_curve(run: RunFolder) -> None:
    write(run, 0, range(6), "tensorboard")
    write(run, 3, range(4, 8), "tensorboard", "tensorboard")
    assert len(list(run.tensorboard.glob("events*"))) == 2
    board = EventAccumulator(str(run.tensorboard))
    board.Reload()
    assert [(event.step, event.value) for event in board.Scalars("loss")] == [(n, 10.0 - n) for n in range(8)]
    assert board.Scalars("knn/my probe")[-1].value == pytest.approx(0.06)


@needs("wandb")
def test_wandb_offline_goes_on_in_the_same_run(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    write(run, 0, range(6), "wandb")
    known = json.loads(run.loggers.read_text())["wandb"]["id"]
    write(run, 3, range(4, 8), "wandb")
    assert json.loads(run.loggers.read_text())["wandb"]["id"] == known
    records = [path for folder in (run.root / "wandb").glob("offline-run-*") for path in folder.glob("*.wandb")]
    assert {path.stem for path in records} == {f"run-{known}"}
    histories = [wandb_history(path) for path in sorted(records, key=lambda path: path.stat().st_mtime)]
    assert [row["step"] for row in histories[0] if "loss" in row] == [0, 1, 2, 3, 4, 5]
    assert [row["step"] for row in histories[1] if "loss" in row] == [4, 5, 6, 7]  # none refused as too old
    assert histories[1][-1]["loss"] == 3.0


def wandb_history(path: Path) -> list[dict[str, float]]:
    """The rows that one offline record would send. The file is 7 bytes, then a LevelDB log in blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    deadline = time.time() + 20
    while path.stat().st_size <= 7 and time.time() < deadline:  # some versions write when their own process ends
        time.sleep(0.1)
    data, at, part, rows = path.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if 2**15 - at % 2**15 < 7:
            at += 2**15 - at % 2**15
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        part += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            record, part = Record.FromString(part), b""
            if items := record.history.item:
                rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    return rows


@needs("mlflow")
def test_mlflow_goes_on_in_the_same_run(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    write(run, 0, range(6), "mlflow")
    with pytest.raises(KeyboardInterrupt), MetricsLog(run, 3, ["mlflow"], SETTINGS) as log:
        log.write(4, {"loss": 0.5})
        raise KeyboardInterrupt
    from mlflow import MlflowClient

    known = json.loads(run.loggers.read_text())["mlflow"]
    client = MlflowClient(tracking_uri=known["tracking_uri"])
    experiment = client.get_experiment_by_name("eosin")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_id == known["run_id"]
    assert (found.info.run_name, found.info.status) == ("run x", "FAILED")
    assert found.data.params["encoder.width"] == "24"
    assert found.data.params["tiles.mpp"] == "[0.5, 1.0]"
    loss = client.get_metric_history(known["run_id"], "loss")
    assert [(metric.step, metric.value) for metric in loss] == [*((n, 10.0 - n) for n in range(6)), (4, 0.5)]
    assert len(client.get_metric_history(known["run_id"], "loss.ibot")) == 6
    assert client.get_metric_history(known["run_id"], "knn.my probe")[-1].value == 0.04
    assert (run.root / "mlruns").is_dir()


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_logger_that_is_not_installed_is_one_line_before_anything_is_written(
    name: str, tiles_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, name, None)  # as if it were not there
    with pytest.raises(RecipeError, match=rf"run.log_to: {name} cannot be imported .* pip install 'eosin\[{name}\]'"):
        train("quickstart", tmp_path / "run", tiles=[str(tiles_folder)], mpp=0.5, set=[*TINY, f"run.log_to=[{name}]"])
    assert list((tmp_path / "run").iterdir()) == []
    with pytest.raises(RecipeError, match=r"run\.log_to"):
        train("quickstart", tmp_path / "run", tiles=[str(tiles_folder)], mpp=0.5, set=[*TINY, "run.log_to=[excel]"])
    check_loggers(["tensorboard"])


def test_a_folder_of_records_is_not_taken_for_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("wandb") is not None:
        pytest.skip("wandb is installed")
    (tmp_path / "wandb").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RecipeError, match="only a folder of records"):
        check_loggers(["wandb"])
    __import__("sys").modules.pop("wandb", None)


def test_a_logger_that_fails_is_left_out_and_the_run_goes_on(run: RunFolder, capsys: pytest.CaptureFixture) -> None:
    class Gone:
        def write(self, step: int, values: object) -> None:
            raise ConnectionError("server\nis gone")

        def close(self, failed: bool) -> None:
            raise AssertionError("it was left out")

    with MetricsLog(run, 0, ["tensorboard"]) as log:
        log._loggers["mlflow"] = Gone()
        for step in range(3):
            log.write(step, {"loss": 1.0})
    assert [row["step"] for row in run.read_metrics()] == [0, 1, 2]
    assert capsys.readouterr().err.splitlines() == [
        "mlflow takes no more numbers (server is gone); metrics.jsonl has them all"
    ]


def test_damaged_ids_are_one_line(run: RunFolder) -> None:
    pytest.importorskip("mlflow", reason="mlflow is not installed")
    run.loggers.write_text("[1, 2")
    with pytest.raises(OutputError, match=r"loggers.json is damaged .* remove it"):
        MetricsLog(run, 0, ["mlflow"])
