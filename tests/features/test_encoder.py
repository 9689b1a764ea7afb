"""Encoders: the pixel path, the colour baseline, timm networks, weights from files, embedding many images."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torchvision.transforms import v2

from eosin.errors import DataError, WeightsError
from eosin.evaluation.tasks.images import ImageFiles
from eosin.features import FeatureStore, embed_images, feature_key, load_model
from eosin.features.encoder import batch_of, resize


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("shape", [(150, 100), (64, 64), (30, 50), (64, 90)])
def test_resize_is_evas_transform(shape: tuple[int, int]) -> None:
    tile = noise(*shape, 3)
    chain = v2.Compose([v2.ToImage(), v2.Resize(64), v2.CenterCrop(64)])
    assert torch.equal(resize(batch_of(tile[None]), 64)[0], torch.as_tensor(chain(tile)))


def test_texture_sees_rings_and_no_colour() -> None:
    rows, cols = np.mgrid[-32:32, -32:32]
    rings = 128 + 100 * np.cos(2 * np.pi * np.hypot(rows, cols) / 12)
    stripes = 128 + 100 * np.cos(2 * np.pi * cols / 12)
    encoder = load_model("texture")

    def embed(grey: np.ndarray) -> np.ndarray:
        return encoder.embed(np.repeat(grey.astype(np.uint8)[None, ..., None], 3, axis=3))[0].numpy()

    found = encoder.embed(noise(8, 64, 64, 3)).numpy()
    assert found.shape == (8, 30)
    assert np.abs(embed(rings) - found.mean(axis=0)).max() > 10 * found.std(axis=0).max()
    # 12 px is the first wavelength of the third octave: rings run in all directions, stripes in one.
    assert embed(rings)[28] > embed(stripes)[28] + 0.5
    np.testing.assert_allclose(embed(rings), embed(0.6 * rings + 40), atol=0.6)
    with pytest.raises(WeightsError, match="texture has no weights"):
        load_model("texture", random_init=True)


def test_colour_is_mean_and_sd_of_the_raw_tile(shared_data: Path) -> None:
    tile = np.asarray(Image.open(next((shared_data / "colon5_tiles" / "val" / "H").glob("*.jpg"))))
    found = load_model("colour").embed(tile[None])[0].numpy()
    values = tile.reshape(-1, 3) / 255.0
    np.testing.assert_allclose(found, [*values.mean(0), *values.std(0)], atol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_timm_networks_give_what_timm_gives(name: str) -> None:
    pooling = "cls" if name.startswith("vit") else "mean"
    encoder = load_model(name, random_init=True, seed=3)
    assert encoder.pooling == pooling
    tiles = noise(2, 224, 224, 3)
    network = encoder.network
    images = (torch.from_numpy(tiles).permute(0, 3, 1, 2) / 255.0 - encoder.mean) / encoder.std
    with torch.inference_mode():
        wanted = network(images)
    torch.testing.assert_close(encoder.embed(tiles), wanted, atol=1e-5, rtol=1e-5)
    assert encoder.dim == wanted.shape[1]


def test_mean_pooled_timm_vit_normalises_after_pooling() -> None:
    encoder = load_model("vit_small_patch16_224", random_init=True)
    network = timm.create_model("vit_small_patch16_224", num_classes=0, global_pool="avg", depth=2).eval()
    encoder.network, encoder.pooling = network, "mean"
    with torch.no_grad():
        network.fc_norm.weight.normal_()
    tiles = noise(1, 224, 224, 3)
    images = (torch.from_numpy(tiles).permute(0, 3, 1, 2) / 255.0 - encoder.mean) / encoder.std
    with torch.inference_mode():
        torch.testing.assert_close(encoder.embed(tiles), network(images), atol=1e-5, rtol=1e-5)


def test_input_size_changes_what_a_vit_sees() -> None:
    encoder = load_model("vit_tiny_patch16_224", random_init=True, input_size=112)
    assert encoder.patch_tokens(noise(1, 224, 300, 3)).shape == (1, 7, 7, 192)
    assert encoder.transform["input_size"] == 112


def test_weights_from_a_file(tmp_path: Path) -> None:
    for name in ("vit_tiny_patch16_224", "resnet18"):
        theirs = timm.create_model(name, num_classes=10).eval()
        torch.save(theirs.state_dict(), tmp_path / "w.pth")
        encoder = load_model(name, weights=tmp_path / "w.pth")
        tiles = noise(1, 224, 224, 3)
        images = (torch.from_numpy(tiles).permute(0, 3, 1, 2) / 255.0 - encoder.mean) / encoder.std
        with torch.inference_mode():
            wanted = theirs.forward_head(theirs.forward_features(images), pre_logits=True)
        torch.testing.assert_close(encoder.embed(tiles), wanted, atol=1e-4, rtol=0)
    with pytest.raises(WeightsError, match=r"w\.pth"):
        load_model("vit_small_patch16_224", weights=tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="does not fit convnext_atto"):
        load_model("convnext_atto", weights=tmp_path / "w.pth")


def test_bad_words_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    cases = [
        (("vit_tiny_patch16_22",), {}, "is 'vit_tiny_patch16_224' meant"),
        ((tmp_path / "run",), {}, "eosin export"),
        (("colour",), {"pooling": "max"}, "unknown pooling"),
        (("colour",), {"random_init": True}, "colour has no weights"),
        (("resnet18",), {"random_init": True, "pooling": "cls"}, "no class token"),
        (("resnet18",), {"random_init": True, "weights": "x"}, "exclude each other"),
        (("resnet18",), {"weights": tmp_path / "none.pth"}, "no such weights file"),
    ]
    for words, options, said in cases:
        with pytest.raises(WeightsError, match=said) as caught:
            load_model(*words, **options)
        assert "\n" not in str(caught.value)


def test_weights_that_cannot_be_had_offline_are_one_line(tmp_path: Path) -> None:
    code = """
from eosin.features import load_model
try:
    load_model('resnet18')
except Exception as error:
    print(repr(error))
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "TORCH_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("WeightsError('cannot get the weights of resnet18")
    assert "--weights FILE" in done.stdout


def test_pixels_of_another_kind_are_refused() -> None:
    encoder = load_model("colour")
    for bad in (noise(4, 4, 3), noise(1, 3, 4, 4), np.zeros((1, 4, 4, 3), dtype=np.float32)):
        with pytest.raises(DataError, match="uint8"):
            encoder.embed(bad)


def test_embedding_many_images_does_not_depend_on_batch_or_workers(tmp_path: Path) -> None:
    paths = []
    for number, shape in enumerate([(40, 50), (64, 64), (90, 70), (33, 33), (64, 64)]):
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(noise(*shape, 3, seed=number)).save(paths[-1])
    images = ImageFiles(paths)
    for name, options in (("colour", {}), ("vit_tiny_patch16_224", {"random_init": True, "input_size": 32})):
        encoder = load_model(name, **options)
        one_by_one = np.concatenate([encoder.embed(image[None]).numpy() for image in images])
        np.testing.assert_allclose(embed_images(encoder, images, batch=2), one_by_one, atol=1e-5)
        np.testing.assert_allclose(embed_images(encoder, images, batch=4, workers=2), one_by_one, atol=1e-5)
    paths[3].write_bytes(paths[3].read_bytes()[:60])
    for workers in (0, 1):
        with pytest.raises(DataError, match=r"3\.png") as caught:
            embed_images(load_model("colour"), images, workers=workers)
        assert "Traceback" not in str(caught.value)


def test_store_keeps_features_by_model_transform_and_data(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path)
    base = load_model("vit_tiny_patch16_224", random_init=True)
    keys = {feature_key(base, "data"), feature_key(base, "other data")}
    for options in ({"seed": 1}, {"pooling": "mean"}, {"input_size": 112}):
        keys.add(feature_key(load_model("vit_tiny_patch16_224", random_init=True, **options), "data"))
    assert len(keys) == 5
    key = feature_key(base, "data")
    made = np.arange(6, dtype=np.float32).reshape(3, 2)
    assert store.get(key) is None
    np.testing.assert_array_equal(store.get_or(key, lambda: made), made)
    kept = store.get_or(key, lambda: pytest.fail("made twice"))
    np.testing.assert_array_equal(kept, made)
    store.path(key).write_bytes(b"torn")
    np.testing.assert_array_equal(store.get_or(key, lambda: made + 1), made + 1)
    assert [path.name for path in tmp_path.iterdir()] == [f"{key}.npy"]
