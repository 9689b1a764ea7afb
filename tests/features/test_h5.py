"""Feature files: what is written is read back, what others write is read, what lies is refused in one line."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from eosin.errors import DataError, OutputError
from eosin.features.h5 import feature_writer, read_attributes, read_features, write_clam

FEATURES = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
COORDS = np.arange(14).reshape(7, 2) * 448


def test_rows_in_any_order_and_clam_files(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    (tmp_path / ".a.h5.123.tmp").write_bytes(b"what a killed process left")
    with feature_writer(path, COORDS, {"patch_size": 224, "mpp": 0.5, "name": "a"}, "vit") as writer:
        for rows in ([6, 0, 1], [3], [5, 4, 2]):
            writer.write("features", np.array(rows), FEATURES[rows])
            assert not path.exists()
    assert [file.name for file in tmp_path.iterdir()] == ["a.h5"]
    found = read_features(path)
    np.testing.assert_array_equal(found.features, FEATURES)
    np.testing.assert_array_equal(found.coords, COORDS)
    assert found.attributes == {"patch_size": 224, "mpp": 0.5, "name": "a", "encoder": "vit"} == read_attributes(path)
    write_clam(tmp_path / "clam", path)
    write_clam(tmp_path / "clam", path)
    for other in ("h5_files/a.h5", "pt_files/a.pt"):
        np.testing.assert_array_equal(read_features(tmp_path / "clam" / other).features, FEATURES)
    assert read_features(tmp_path / "clam/pt_files/a.pt").coords is None


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    path.write_bytes(b"old")
    with pytest.raises(DataError, match="no"), feature_writer(path, COORDS, {}):
        raise DataError("no")
    assert path.read_bytes() == b"old"
    with pytest.raises(OutputError), feature_writer(tmp_path / "a.h5" / "b.h5", COORDS, {}):
        pass


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("lead", [(), (1,)])
def test_layouts_of_others(tmp_path: Path, kind: type, lead: tuple[int, ...]) -> None:
    path = tmp_path / "theirs.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset(
            "features", data=FEATURES.astype(kind).reshape(*lead, 7, 5), chunks=True, compression="gzip"
        )
        table = file.create_dataset("coords", data=COORDS.astype(float).reshape(*lead, 7, 2))
        table.attrs.update({"patch_size": np.int64(256), "name": b"x", "level_dim": [3, 4], "empty": h5py.Empty("f")})
    found = read_features(path)
    np.testing.assert_array_equal(found.features, FEATURES.astype(kind).astype(np.float32))
    np.testing.assert_array_equal(found.coords, COORDS)
    assert found.coords.dtype == np.int64
    assert found.attributes == {"patch_size": 256, "name": "x", "level_dim": [3, 4]}
    torch.save(torch.tensor(FEATURES.astype(kind)).reshape(*lead, 7, 5), tmp_path / "theirs.pt")
    np.testing.assert_array_equal(read_features(tmp_path / "theirs.pt").features, found.features)


def good(file: h5py.File, features: np.ndarray = FEATURES, coords: np.ndarray = COORDS) -> None:
    file["features"], file["coords"] = features, coords


def external(file: h5py.File) -> None:
    file["coords"] = COORDS
    file["features"] = h5py.ExternalLink("secret.h5", "/features")


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((7, 5), np.float32)
    layout[:] = h5py.VirtualSource("secret.h5", "features", (7, 5))
    file.create_virtual_dataset("features", layout)


def raw_external(file: h5py.File) -> None:
    file.create_dataset("features", (7, 5), np.float32, external=[("secret.h5", 0, 140)])


def soft(file: h5py.File) -> None:
    file["other"] = FEATURES
    file["features"] = h5py.SoftLink("/other")


def bomb(file: h5py.File) -> None:
    file.create_dataset("features", (1 << 40, 5), np.float32, chunks=(64, 5))
    file["features"][0] = 1.0


def external_coords(file: h5py.File) -> None:
    file["features"] = FEATURES
    file["coords"] = h5py.ExternalLink("secret.h5", "/coords")


BAD = {
    "holds no 'features' (it holds x)": lambda file: file.create_dataset("x", data=1),
    "'features' is a link to elsewhere": external,
    "'coords' is a link to elsewhere": external_coords,
    "'features' is stored in other files": virtual,
    "stored in other files; ": raw_external,
    "links are not followed": soft,
    "claims (1099511627776, 5)": bomb,
    "is a group": lambda file: file.create_group("features"),
    "not floats [tiles, width]": lambda file: good(file, FEATURES[0]),
    "is int64 (7, 2), not floats": lambda file: good(file, COORDS),
    "'coords' is (6, 2), features are of 7": lambda file: good(file, coords=COORDS[:6]),
    "not whole level-0 px": lambda file: good(file, coords=COORDS + 0.5),
    "not numbers": lambda file: file.create_dataset("features", data=["a", "b"]),
    "holds 0 bytes": lambda file: file.create_dataset("features", (7, 5), np.float32, chunks=(7, 5)),
}


@pytest.mark.parametrize("said", BAD)
def test_files_that_lie_are_one_line(tmp_path: Path, said: str) -> None:
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        good(file)
    path = tmp_path / "bad.h5"
    with h5py.File(path, "w") as file:
        BAD[said](file)
    with pytest.raises(DataError) as caught:
        read_features(path)
    assert said in str(caught.value)
    assert "bad.h5" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        good(file, np.zeros((500, 64), np.float32), np.zeros((500, 2), int))
    whole = path.read_bytes()
    for size in (0, 100, len(whole) // 2, len(whole) - 8):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"a\.h5") as caught:
            read_features(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="no such feature file"):
        read_features(tmp_path / "none.h5")
    for name, value in {"list": [1, 2], "text": "x", "flat": torch.zeros(3), "whole": torch.zeros(3, 2).long()}.items():
        torch.save(value, tmp_path / f"{name}.pt")
        with pytest.raises(DataError, match=rf"{name}\.pt: holds .*, not floats"):
            read_features(tmp_path / f"{name}.pt")
    torch.save({"a": Path("code")}, tmp_path / "code.pt")
    with pytest.raises(DataError, match="read safely"):
        read_features(tmp_path / "code.pt")
    (tmp_path / "cut.pt").write_bytes(b"PK\x03\x04nothing")
    with pytest.raises(DataError, match="read safely"):
        read_features(tmp_path / "cut.pt")
