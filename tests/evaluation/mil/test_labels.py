"""The label table: kinds by the stated rule, task files, published counts, one line for each mistake."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from eosin.errors import DataError
from eosin.evaluation.mil.config import make_config
from eosin.evaluation.mil.label_file import read_patients
from eosin.evaluation.mil.labels import read_labels
from eosin.evaluation.mil.problems import check_counts
from eosin.evaluation.mil.splits import Run
from eosin.evaluation.mil.task_files import shipped_task_files

HEAD = "slide,patient,"


def write(folder: Path, header: str, rows: list[str]) -> Path:
    path = folder / "labels.csv"
    path.write_text("\n".join([HEAD + header, *(f"S{n}.svs,P{n},{row}" for n, row in enumerate(rows))]) + "\n")
    return path


@pytest.mark.parametrize(
    ("values", "kind", "classes"),
    [
        (["1", "0", "", "1"], "binary", ("0", "1")),
        (["1.0", "0.0", "NA", "1"], "binary", ("0", "1")),
        (["mut", "wild", "", "mut"], "binary", ("wild", "mut")),
        (["High", "Low", "", "Low"], "binary", ("Low", "High")),
        (["b", "a", "", "b"], "binary", ("a", "b")),
        (["10", "2", "1", "2"], "classification", ("1", "2", "10")),
        (["LUAD", "LUSC", "BRCA", "LUAD", "LUAD", "BRCA"], "classification", ("BRCA", "LUAD", "LUSC")),
        (["0.5", "1.25", "3", ""], "regression", ()),
        ([str(n) for n in range(12)], "regression", ()),
    ],
)
def test_kinds_follow_the_rule(values: list[str], kind: str, classes: tuple[str, ...], tmp_path: Path) -> None:
    (task,) = read_labels(write(tmp_path, "t", values)).tasks
    assert (task.kind, task.classes) == (kind, classes)
    if classes:
        named = [classes[value] for value in task.values]
        assert named == [value.removesuffix(".0") for value in values if value not in ("", "NA")]
    else:
        np.testing.assert_array_equal(task.values, [float(value) for value in values if value])


def test_survival_and_rows_without_any_label(tmp_path: Path) -> None:
    table = read_labels(write(tmp_path, "os_time,os_event,t", ["5,1,", ",,", "7.5,0,a", ",,b"]))
    assert table.slides == ("S0", "S2", "S3")
    by_name = {task.name: task for task in table.tasks}
    assert by_name["os"].kind == "survival"
    np.testing.assert_array_equal(by_name["os"].values, [[5, 1], [7.5, 0], [np.nan, np.nan]])
    assert by_name["t"].known.tolist() == [False, True, True]


def test_clam_columns_and_own_splits_of_a_task(tmp_path: Path) -> None:
    path = tmp_path / "l.csv"
    path.write_text("case_id,slide_id,a,b,split,b_split\nP,1,0,1,train,test\nQ,2,1,0,test,train\n")
    table = read_labels(path)
    assert table.slides == ("1", "2")
    assert table.patients == ("P", "Q")
    assert [task.split for task in table.tasks] == [("train", "test"), ("test", "train")]


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffslide;patient;t\nA.svs;P;1\nB;Q;nan\n\nC;R;0\n",
        "slide\tpatient\tt\r\nA\tP\t1\r\nB\tQ\r\nC\tR\t0\r\n",
        ",slide,patient,t,\n0,A,P, 1,\n1,B,Q,N/A,\n2,C.TIFF,R,0,\n,,,,\n",
    ],
)
def test_what_spreadsheets_write(text: str, tmp_path: Path) -> None:
    path = tmp_path / "l.csv"
    path.write_text(text, encoding="utf-8", newline="")
    table = read_labels(path)
    assert (table.slides, table.patients) == (("A", "C"), ("P", "R"))
    assert [(task.name, task.values.tolist()) for task in table.tasks] == [("t", [1, 0])]
    assert read_patients(path) == {"A": "P", "B": "Q", "C": "R"}


def test_decimal_commas_between_semicolons(tmp_path: Path) -> None:
    path = tmp_path / "l.csv"
    path.write_text("slide;patient;age\nA;P;14,5\nB;Q;-3\nC;R;0,25\n")
    assert read_labels(path).tasks[0].values.tolist() == [14.5, -3, 0.25]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("slide,t\na,1\n", "no column `patient`.*copy `slide` into it"),
        ("slide,pateint,t\na,b,1\n", "no column `patient` .'pateint' is near."),
        ("slide,patient,t\na,p,1\na.svs,p,0\n", "line 3 lists slide a a second time"),
        ("slide,patient,t\n\na,p,1\nb,p,1,0\n", "line 4 has 4 cells, the first line names 3"),
        ("slide,patient,t,t\na,p,1,0\n", "two columns `t`"),
        ("slide,patient,age\na,p,1.5\nb,p,2.5\nc,p,14;5\n", "age of .* holds numbers and also '14;5'"),
        ("slide,patient,o_time,o_event\n\na,p,1.5,1\nb,p,inf,1\n", "line 4: o_time is 'inf', not a number"),
        ("", "found nothing"),
        ("slide,patient,t\n,p,1\n", "line 2 has no slide"),
        ("slide,patient,t\na,,1\n", "line 2 has no patient"),
        ("slide,patient\na,p\n", "no column with labels"),
        ("slide,patient,t\na,p,1\nb,p,1\n", "one class only"),
        ("slide,patient,t,split\na,p,1,trian\nb,p,0,test\n", "'trian', none of train, val, test"),
        ("slide,patient,o_time,o_event\na,p,1,yes\nb,p,3,maybe\n", "line 3: o_event is 'maybe'"),
        ("slide,patient,o_time,o_event\na,p,1,1\nb,p,3,\n", "time or an event, not both"),
        ("slide,patient,o_time,o_event\na,p,1,0\nb,p,3,0\n", "has no event"),
        ("slide,patient,note\n" + "".join(f"s{n},p,word{n}\n" for n in range(30)), "looks like no task"),
    ],
)
def test_mistakes_are_one_line(text: str, match: str, tmp_path: Path) -> None:
    path = tmp_path / "l.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=match) as error:
        read_labels(path)
    assert "\n" not in str(error.value)


def test_the_six_public_tasks_and_their_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shipped = shipped_task_files()
    totals = {name: {split: tuple(c.values()) for split, c in task.counts.items()} for name, task in shipped.items()}
    assert totals == {
        "cptac-brca-tp53": {"train": (53, 37), "test": (14, 8)},
        "cptac-brca-pik3ca": {"train": (58, 33), "test": (14, 7)},
        "cptac-ccrcc-pbrm1": {"train": (97, 96), "test": (26, 26)},
        "cptac-ccrcc-bap1": {"train": (156, 39), "test": (46, 4)},
        "cptac-coad-kras": {"train": (50, 29), "test": (11, 8)},
        "cptac-coad-tp53": {"train": (53, 27), "test": (12, 6)},
    }
    anchors = np.mean([list(task.published.scores.values()) for task in shipped.values() if task.published], axis=0)
    np.testing.assert_allclose(anchors, [0.759, 0.770, 0.689, 0.704, 0.768, 0.722, 0.790], atol=6e-4)

    rows = [
        f"{label},{split}" for split, (w, m) in totals["cptac-coad-kras"].items() for label in ["WT"] * w + ["1"] * m
    ]
    path = write(tmp_path, "coad_kras,coad_kras_split", rows)
    (task,) = read_labels(path, ["cptac-coad-kras"]).tasks
    assert (task.name, task.classes) == ("cptac-coad-kras", ("wild", "mut"))
    config, _ = make_config("clam-sb", "exaone")
    split = np.asarray(task.split)
    train, test = np.flatnonzero(split == "train"), np.flatnonzero(split == "test")
    assert check_counts(task, Run(0, 0, train[5:], train[:5], test), config) is None
    assert check_counts(task, Run(0, 0, train, train[:0], test[1:]), config) == (
        "task cptac-coad-kras: 10 wild in test, 11 in the published task"
    )
    assert "10 wild in test" in capsys.readouterr().err


def test_task_files_override_and_are_checked(tmp_path: Path) -> None:
    path = write(tmp_path, "grade,stage", ["1,a", "2,b", "3,a", "2,b"])
    own = tmp_path / "grade.yaml"
    own.write_text("name: severity\ncolumn: grade\nkind: regression\n")
    (task,) = read_labels(path, [str(own)]).tasks
    assert (task.name, task.kind) == ("severity", "regression")
    own.write_text(
        'name: high\ncolumn: grade\nkind: binary\nclasses: [low, high]\nvalues: {low: ["1", "2"], high: ["3"]}\n'
    )
    (task,) = read_labels(path, [str(own)]).tasks
    assert task.values.tolist() == [0, 0, 1, 0]
    for text, match in (
        ("name: x\nkind: binary\n", "a binary task has two classes"),
        ("name: x\nkind: binry\n", "kind: "),
        ("name: x\nkind: regression\nclases: [a]\n", "unknown key clases"),
        ("name: stage\nkind: binary\nclasses: [x, b]\n", "'a' in column stage .* is none of x, b"),
        ("- a\n", "mapping"),
    ):
        own.write_text(text)
        with pytest.raises(DataError, match=match):
            read_labels(path, [str(own)])
    with pytest.raises(DataError, match="no task called 'grdae'; is 'grade' meant"):
        read_labels(path, ["grdae"])
    with pytest.raises(DataError, match=r"cannot read task file .*none\.yaml"):
        read_labels(path, [str(tmp_path / "none.yaml")])
