"""The zoo: names, facts, the owners' tensors against our networks, and what the hub says (a local one)."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save

from eosin.errors import WeightsError
from eosin.models import ViT, config_of_timm, open_start
from eosin.models.layouts import guess_layout, is_ignored, to_ours
from eosin.models.zoo import ZooEntry, close_names, find_entry, licence_of, zoo

SHAPES: dict[str, Any] = json.loads((Path(__file__).parent / "zoo_shapes.json").read_text())
VITS = [name for name, entry in zoo().items() if entry.encoder is not None]


def shapes_of(name: str, depth: int | None = None) -> dict[str, list[int]]:
    """Names and shapes of the owner's tensors, with `depth` layers in place of all."""
    told = SHAPES[name]
    layers = {
        key.replace("{}", str(number)): shape
        for number in range(depth or told.get("depth", 0))
        for key, shape in told.get("layer", {}).items()
    }
    return told["outer"] | layers


def test_every_entry_has_its_list_and_the_lists_are_whole() -> None:
    assert list(SHAPES) == list(zoo())
    for name, told in SHAPES.items():
        shapes = shapes_of(name)
        assert len(shapes) == told["tensors"], name
        assert sum(math.prod(shape) for shape in shapes.values()) == told["values"], name


@pytest.mark.parametrize("name", VITS)
def test_our_network_takes_every_tensor_of_the_owners(name: str) -> None:
    entry = zoo()[name]
    assert entry.encoder is not None
    with torch.device("meta"):
        state = {key: torch.empty(shape) for key, shape in shapes_of(name).items()}
        ours = ViT(entry.encoder).state_dict()
    layout = guess_layout(state)
    # Plain ViT names are the same in timm's and in Meta's layout.
    assert layout == entry.layout or (layout, entry.layout) == ("timm", "meta")
    taken = to_ours(state, layout, entry.encoder)
    wanted = {key: value.shape for key, value in ours.items() if key != "mask_token" or key in taken}
    assert {key: value.shape for key, value in taken.items()} == wanted
    left = sum(is_ignored(key, layout) for key in state)
    assert left == (2 if name == "owkin/phikon" else 0)  # the pooler of ViTModel
    assert entry.embedding == entry.encoder.width * (2 if entry.pooling == "cls+mean" else 1)


@pytest.mark.parametrize("name", VITS)
def test_timm_says_the_same_network(name: str) -> None:
    """All settings that timm knows; it has its own rule for positions, and no CLS row beside registers.

    With two layers: the lists of tensors say how many there are.
    """
    entry = zoo()[name]
    assert entry.encoder is not None
    args = entry.timm.args | {"depth": 2}
    if entry.encoder.ffn == "swiglu" and entry.encoder.positions == "table":
        args |= {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": torch.nn.SiLU}
    told, ours = (
        config.model_dump(exclude={"interpolation", "class_position", "layer_scale", "mlp_ratio", "depth"})
        | {"ffn_hidden": config.ffn_hidden, "layer_scale": config.layer_scale is not None}
        for config in (config_of_timm(entry.timm.name, **args), entry.encoder)
    )
    assert told == ours


def safetensors_bytes(shapes: dict[str, list[int]]) -> int:
    """Bytes of a safetensors file with these tensors in fp32 and no metadata, after its format."""
    end, header = 0, {}
    for name, shape in sorted(shapes.items()):
        start, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    return 8 + math.ceil(len(json.dumps(header, separators=(",", ":"))) / 8) * 8 + end


def test_safetensors_bytes_are_right() -> None:
    shapes = {"b.weight": [3, 5], "a": [7]}
    assert safetensors_bytes(shapes) == len(save({key: torch.zeros(shape) for key, shape in shapes.items()}))


def test_what_was_checked_is_what_the_entry_says() -> None:
    for name, entry in zoo().items():
        shapes = shapes_of(name)
        assert (entry.weights.bytes is not None) == ("size" in entry.checked), name
        assert (entry.weights.tensors is not None) == ("count" in entry.checked), name
        assert entry.weights.bytes in (None, safetensors_bytes(shapes)), name
        assert entry.weights.tensors in (None, len(shapes)), name
    assert {name for name, entry in zoo().items() if entry.tested == "untested"} == {
        "histai/hibou-b",
        "histai/hibou-l",
        "lgai-exaone/exaonepath",
    }


def test_names_are_found_as_people_write_them() -> None:
    cases = {
        "kaiko/midnight-12k": "kaiko/midnight-12k",
        "MahmoodLab/UNI2-h": "mahmoodlab/uni2-h",
        "uni_v2": "mahmoodlab/uni2-h",
        "hoptimus0": "bioptimus/h-optimus-0",
        "Virchow2": "paige/virchow2",
        "dinov2_vits14": "facebook/dinov2-small",
        "timm/vit_small_patch14_dinov2.lvd142m": "facebook/dinov2-small",
    }
    for word, name in cases.items():
        entry = find_entry(word)
        assert entry is not None
        assert entry.name == name
    assert find_entry("midnight-13k") is None
    assert close_names("virchov2")[0] == "paige/virchow2"
    with pytest.raises(WeightsError, match="'vits16' may mean kaiko/vits16 or lunit/vits16"):
        find_entry("vits16")


def test_no_word_of_the_zoo_is_a_timm_name_or_means_two() -> None:
    said: dict[str, str] = {}
    for name, entry in zoo().items():
        for word in (name, entry.weights.repo, *entry.aliases):
            assert said.setdefault(word.lower().replace("_", "-"), name) == name, word
            assert not timm.is_model(word), word


def test_licences_of_starts() -> None:
    assert licence_of("kaiko/vits16") == "Kaiko non-commercial (kaiko/vits16)"
    assert licence_of("hf-hub:MahmoodLab/UNI2-h@main") == "CC-BY-NC-ND-4.0 (mahmoodlab/uni2-h)"
    assert licence_of("vit_base_patch14_dinov2.lvd142m") == "Apache-2.0 (facebook/dinov2-base)"
    assert licence_of("/some/folder/weights.pth") is None


def test_what_is_not_a_start_is_one_line() -> None:
    for start, said in {
        "torchvision/resnet50": "is no ViT",
        "kaiko/vits17": r"no name of the zoo; is .*kaiko/vits16",
        "midnigt-12k": "is kaiko/midnight-12k meant",
    }.items():
        with pytest.raises(WeightsError, match=said) as caught:
            open_start(start)
        assert "\n" not in str(caught.value)


class Hub(BaseHTTPRequestHandler):
    """A hub with one gated repository that opens for the token `good`, and one open one without the usual file."""

    FILE = b"the weights"

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        if "MahmoodLab/UNI/" in self.path and self.headers.get("Authorization") != "Bearer good":
            self.reply(401, {"X-Error-Code": "GatedRepo"}, b"Access to model is restricted. Ask.\n\nMore lines.")
        elif self.path.endswith("UNI/resolve/main/pytorch_model.bin"):
            self.reply(200, {"ETag": '"abc"', "X-Repo-Commit": "1" * 40}, self.FILE)
        elif "MahmoodLab/UNI/" in self.path or "1aurent" in self.path:
            self.reply(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": "1" * 40}, b"")
        else:
            self.reply(404, {"X-Error-Code": "RepoNotFound"}, b"")

    def reply(self, code: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(code)
        for key, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


ASK = """
import os, sys
from eosin.errors import WeightsError
from eosin.models.zoo import cached_file, fetch_weights, find_entry
for word in ("uni", "kaiko/vits16", "paige/virchow"):
    try:
        fetch_weights(find_entry(word))
    except WeightsError as error:
        print(error)
os.environ["HF_TOKEN"] = "good"
assert cached_file(find_entry("uni")) is None
path = fetch_weights(find_entry("uni"))
print(path.read_bytes(), cached_file(find_entry("uni")) == path)
"""


def said_by(code: str, **environment: str) -> list[str]:
    """Lines that `code` prints in a process of its own: the hub's library reads its settings once."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    done = subprocess.run([sys.executable, "-c", code], env=kept | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_hub_asks_for_consent_and_then_gives_the_weights(hub: str, tmp_path: Path) -> None:
    gated, without, nowhere, got = said_by(ASK, HF_ENDPOINT=hub, HF_HOME=str(tmp_path), HF_HUB_DISABLE_XET="1")
    assert gated == (
        "mahmoodlab/uni: the weights are gated: accept the licence (CC-BY-NC-ND-4.0) at"
        " https://huggingface.co/MahmoodLab/UNI, then log in with `hf auth login` or set HF_TOKEN"
    )
    assert without.startswith("kaiko/vits16: https://huggingface.co/1aurent/")
    assert "has none of model.safetensors; give --weights FILE" in without
    assert nowhere.startswith("paige/virchow: https://huggingface.co/paige-ai/Virchow is not there for you")
    assert got == "b'the weights' True"


OFFLINE = """
from eosin.models.zoo import cached_file, fetch_weights, find_entry
print(fetch_weights(find_entry("kaiko/vitl14")).name)
for word in ("uni", "phikon"):
    try:
        fetch_weights(find_entry(word))
    except Exception as error:
        print(type(error).__name__, error)
"""


def test_offline_the_cache_is_used_and_nothing_else(tmp_path: Path) -> None:
    where = zoo()["kaiko/vitl14"].weights
    snapshot = tmp_path / "hub" / f"models--{where.repo.replace('/', '--')}" / "snapshots" / str(where.revision)
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes(b"")
    found, gated, open_ = said_by(OFFLINE, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    assert found == "model.safetensors"
    assert gated.startswith("WeightsError mahmoodlab/uni: the weights are not in the hub's cache")
    assert "must be accepted at https://huggingface.co/MahmoodLab/UNI once; or give --weights FILE" in gated
    assert open_.startswith("WeightsError owkin/phikon: the weights are not in the hub's cache")


def test_an_entry_without_a_source_is_refused() -> None:
    told = zoo()["mahmoodlab/uni"].model_dump()
    with pytest.raises(ValueError, match="no source for licence"):
        ZooEntry.model_validate(
            told | {"facts": {key: told["facts"][key] for key in told["facts"] if key != "licence"}}
        )
