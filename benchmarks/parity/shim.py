"""All that is put around Meta's code so that it runs here, beside ours. Nothing else of it is touched.

Every item is one function whose docstring says what is replaced, by what, and why; `python -m benchmarks.parity --shim`
prints the list (`ITEMS`). The context managers hold only while their code runs, so our code never sees them. Besides,
what is recorded is copied in wrappers of forward_backward and update_teacher (dinov2) and of clip_gradients (dino) that
call the wrapped function and change nothing.
"""

from __future__ import annotations

import importlib.util
import io
import random
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

# ---- packages that their code imports ------------------------------------------------------------------------------


class BlockDiagonalMask:
    """Which rows of a [1, sum B_k * N_k, ...] tensor belong to one sequence: crop sizes in order, B_k of N_k tokens."""

    def __init__(self, lengths: list[int]) -> None:
        self.lengths = lengths
        self._batch_sizes: list[int] | None = None

    @classmethod
    def from_seqlens(cls, lengths: list[int]) -> BlockDiagonalMask:
        """One entry a sequence; the caller sets `_batch_sizes` afterwards."""
        return cls(lengths)

    @classmethod
    def from_tensor_list(cls, tensors: list[Tensor]) -> tuple[BlockDiagonalMask, Tensor]:
        """Tensors [B_k, N_k, ...] -> the mask and all tokens in one row [1, sum B_k * N_k, ...]."""
        mask = cls([tensor.shape[1] for tensor in tensors for _ in range(len(tensor))])
        mask._batch_sizes = [len(tensor) for tensor in tensors]
        return mask, torch.cat([tensor.reshape(1, -1, *tensor.shape[2:]) for tensor in tensors], dim=1)

    def split(self, tensor: Tensor) -> list[Tensor]:
        """[1, sum B_k * N_k, ...] -> [B_k, N_k, ...] of each crop size."""
        sizes = self._batch_sizes or [1] * len(self.lengths)
        first = np.cumsum([0, *sizes])[:-1]
        tokens = [self.lengths[at] for at in first]
        rows = tensor.split([b * n for b, n in zip(sizes, tokens, strict=True)], dim=1)
        return [row.reshape(b, n, *tensor.shape[2:]) for row, b, n in zip(rows, sizes, tokens, strict=True)]


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """[B, N, heads, d] -> the same: torch's fused attention."""
    return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


def plain_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """[B, N, heads, d] -> the same, by two products and a softmax: faster than `sdpa` in bf16 on a CPU."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    weights = torch.softmax((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1), dim=-1)
    return (weights.to(v.dtype) @ v).transpose(1, 2)


attention: Callable[[Tensor, Tensor, Tensor], Tensor] = sdpa


def memory_efficient_attention(
    q: Tensor, k: Tensor, v: Tensor, attn_bias: BlockDiagonalMask | None = None, **_: Any
) -> Tensor:
    """Attention inside each sequence: one call a crop size, as all sequences of a size are equally long."""
    if attn_bias is None:
        return attention(q, k, v)
    parts = zip(attn_bias.split(q), attn_bias.split(k), attn_bias.split(v), strict=True)
    return torch.cat([attention(*part).reshape(1, -1, *q.shape[2:]) for part in parts], dim=1)


def xformers() -> None:
    """xFormers (CUDA only) -> torch: scaled_dot_product_attention once a crop size for block-diagonal attention;
    BlockDiagonalMask as a list of lengths; index_select_cat and scaled_index_add as index_select, cat, index_add. Its
    SwiGLU and cross_entropy are left out, so their code takes its own plain versions.
    """
    ops: Any = ModuleType("xformers.ops")
    ops.memory_efficient_attention = memory_efficient_attention
    ops.unbind = torch.unbind
    ops.fmha = SimpleNamespace(BlockDiagonalMask=BlockDiagonalMask)
    ops.index_select_cat = lambda tensors, rows: torch.cat(
        [tensor.index_select(0, row).flatten() for tensor, row in zip(tensors, rows, strict=True)]
    )
    ops.scaled_index_add = lambda x, rows, part, scaling, alpha: x.index_add(0, rows, part * scaling, alpha=alpha)
    package: Any = ModuleType("xformers")
    package.ops = ops
    sys.modules.update({"xformers": package, "xformers.ops": ops})


class Config(dict[str, Any]):
    """A nested mapping whose values can also be read and set as attributes."""

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__({key: Config(value) if isinstance(value, dict) else value for key, value in values.items()})

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def merged(self, above: dict[str, Any]) -> Config:
        """This with `above` on top, group by group."""
        values = dict(self)
        for key, value in above.items():
            below = values.get(key)
            values[key] = below.merged(value) if isinstance(below, Config) and isinstance(value, dict) else value
        return Config(values)


def omegaconf() -> None:
    """omegaconf, if it is not installed -> nested mappings read by PyYAML, for their configuration files."""

    def load(path: str) -> Config:
        with open(path, encoding="utf-8") as file:
            return Config(yaml.safe_load(file) or {})

    def merge(first: Config, *others: Config) -> Config:
        for other in others:
            first = first.merged(other)
        return first

    module: Any = ModuleType("omegaconf")
    module.OmegaConf = SimpleNamespace(load=load, create=Config, merge=merge)
    sys.modules["omegaconf"] = module


def fvcore() -> None:
    """fvcore, if it is not installed -> two empty checkpoint classes: nothing is saved here."""
    names: list[Any] = [ModuleType(name) for name in ("fvcore", "fvcore.common", "fvcore.common.checkpoint")]
    names[2].Checkpointer = names[2].PeriodicCheckpointer = object
    sys.modules.update({module.__name__: module for module in names})


def install(device: torch.device) -> None:
    """Put the packages in place. xFormers itself is used on a GPU where it is installed."""
    if device.type == "cpu" or importlib.util.find_spec("xformers") is None:
        xformers()
    for stand_in in (omegaconf, fvcore):
        if importlib.util.find_spec(stand_in.__name__) is None:
            stand_in()
    warnings.filterwarnings("ignore", message="xFormers is")
    warnings.filterwarnings("ignore", message=".*weight_norm.*deprecated.*")
    warnings.filterwarnings("ignore", message=".*torch.cuda.amp.*")
    warnings.filterwarnings("ignore", message=".*CUDA is not available.*")


# ---- the machine ---------------------------------------------------------------------------------------------------


def world_of_one(device: torch.device) -> None:
    """A cluster -> torch.distributed with one process (gloo; NCCL on a GPU): their collectives run as written."""
    if not dist.is_initialized():
        backend = "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)


@contextmanager
def on_this_device(device: torch.device, after_step: Callable[[], None] | None = None) -> Iterator[None]:
    """Device calls, on a CPU -> nothing: Tensor.cuda is the tensor itself, torch.cuda.synchronize does nothing. (DINO
    v1 synchronises once a step, right after the teacher's update: there the weights are recorded.)
    """
    with ExitStack() as stack:
        if device.type == "cpu":
            stack.enter_context(patch.object(torch.Tensor, "cuda", lambda self, *_, **__: self))
            stack.enter_context(patch.object(torch.cuda, "synchronize", after_step or (lambda: None)))
        yield


@contextmanager
def in_fp64(dtype: torch.dtype) -> Iterator[None]:
    """In fp64 runs only, where their code drops to fp32: Tensor.float() of an fp64 tensor -> the tensor itself
    (Sinkhorn, position table), and torch's default dtype -> fp64 (the weights 1 / masked patches of their collate
    function).
    """
    plain = torch.Tensor.float

    def kept(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self if self.dtype == torch.float64 else plain(self, *args, **kwargs)

    with ExitStack() as stack:
        if dtype == torch.float64:
            stack.enter_context(patch.object(torch.Tensor, "float", kept))
            stack.callback(torch.set_default_dtype, torch.get_default_dtype())
            torch.set_default_dtype(torch.float64)
        yield


@contextmanager
def without_fsdp(architecture: ModuleType) -> Iterator[None]:
    """FSDP wrappers -> the plain modules: `get_fsdp_wrapper` gives back the module with torch's clip_grad_norm_ (FSDP's
    formula) as a method, `get_fsdp_modules` the module with its parameters, `reshard_fsdp_model` does nothing, and
    FSDP's streams are not joined (`need_to_synchronize_fsdp_streams` is false).
    """

    def wrapper(*_: Any, **__: Any) -> Callable[[nn.Module], nn.Module]:
        def wrap(module: nn.Module) -> nn.Module:
            clip: Any = partial(_clip, module)
            module.clip_grad_norm_ = clip
            return module

        return wrap

    def parts(module: nn.Module) -> list[Any]:
        return [SimpleNamespace(params=list(module.parameters()))]

    with (
        patch.object(architecture, "get_fsdp_wrapper", wrapper),
        patch.object(architecture, "get_fsdp_modules", parts),
        patch.object(architecture, "reshard_fsdp_model", lambda _: None),
    ):
        yield


def _clip(module: nn.Module, limit: float) -> Tensor:
    return nn.utils.clip_grad_norm_(module.parameters(), limit)


# ---- what their training loops are given ---------------------------------------------------------------------------


@contextmanager
def our_size(vits: ModuleType, **size: Any) -> Iterator[None]:
    """DINOv2's architectures -> the same and one more, `vit_of_recipe`, made as theirs are, in a recipe's size. (DINO
    v1's VisionTransformer is made with the settings of its vit_tiny … vit_base.)
    """

    def vit_of_recipe(**settings: Any) -> nn.Module:
        block = partial(vits.Block, attn_class=vits.MemEffAttention)
        return vits.DinoVisionTransformer(**size, block_fn=block, **settings)

    with patch.object(vits, "vit_of_recipe", vit_of_recipe, create=True):
        yield


@contextmanager
def given_batches(train: ModuleType, batches: list[Any]) -> Iterator[None]:
    """DINOv2's data set, loader and checkpoints -> a list of collated batches, and nothing saved. (DINO v1's
    train_one_epoch takes a list as it is.)
    """
    nothing = SimpleNamespace(resume_or_load=lambda *_, **__: {}, step=lambda _: None)
    with ExitStack() as stack:
        for name in ("FSDPCheckpointer", "PeriodicCheckpointer", "make_dataset"):
            stack.enter_context(patch.object(train, name, lambda *_, **__: nothing))
        stack.enter_context(patch.object(train, "make_data_loader", lambda **_: batches))
        yield


@contextmanager
def on_gpus(distributed: ModuleType, count: int) -> Iterator[None]:
    """DINOv2's number of processes, for its learning-rate rule -> that of the run whose tables are compared."""
    with patch.object(distributed, "get_global_size", lambda: count):
        yield


@contextmanager
def without_hub() -> Iterator[None]:
    """torch.hub.list, for the defaults of DINO v1's command line -> no models: it would ask the network."""
    with patch.object(torch.hub, "list", lambda _: []):
        yield


# ---- randomness: theirs comes from our draws -----------------------------------------------------------------------


@contextmanager
def our_subsets(subsets: Iterable[Tensor]) -> Iterator[None]:
    """torch.randperm, in call order -> the crops that our draw keeps, then the others: DINOv2's drop path takes the
    first ones. One call a layer, branch (attention, FFN) and crop size (globals, locals).
    """
    left = iter(subsets)

    def permutation(count: int, **_: Any) -> Tensor:
        kept = next(left)
        others = torch.ones(count, dtype=torch.bool)
        others[kept] = False
        return torch.cat([kept, others.nonzero().flatten()])

    with patch.object(torch, "randperm", permutation):
        yield
    if next(left, None) is not None:
        raise AssertionError("their step drew fewer drop-path subsets than ours")


@contextmanager
def our_keeps(keeps: Iterable[Tensor]) -> Iterator[None]:
    """torch.rand, in call order -> just below 1 for crops that our draw keeps and 0 for the others: DINO v1's drop path
    keeps a crop where keep probability + number reaches 1. One call a crop size, layer with a rate above 0, and branch.
    """
    left = iter(keeps)

    def numbers(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        kept = next(left).to(device, dtype) * (1 - 2**-20)
        return kept.view(shape)

    with patch.object(torch, "rand", numbers):
        yield
    if next(left, None) is not None:
        raise AssertionError("their step drew fewer drop-path choices than ours")


@contextmanager
def our_masks(masks: np.ndarray) -> Iterator[None]:
    """random.shuffle of DINOv2's list of masks (the end of its drawing) -> our masks [crops, rows, columns]; indices,
    weights and padding are then worked out by their own collate function.
    """

    def shuffle(drawn: list[Tensor]) -> None:
        drawn[:] = [torch.from_numpy(mask) for mask in masks]

    with patch.object(random, "shuffle", shuffle):
        yield


@contextmanager
def quietly(*loggers: Any) -> Iterator[None]:
    """Their printed progress -> nowhere, and the averages of it are not gathered (that asks for a GPU). Their loss
    scaler for fp16 is off, by their own setting.
    """
    with ExitStack() as stack:
        stack.enter_context(redirect_stdout(io.StringIO()))
        for logger in loggers:
            stack.enter_context(patch.object(logger, "synchronize_between_processes", lambda self: None))
        yield


ITEMS: list[Any] = [
    xformers,
    omegaconf,
    fvcore,
    world_of_one,
    on_this_device,
    in_fp64,
    without_fsdp,
    our_size,
    given_batches,
    on_gpus,
    without_hub,
    our_subsets,
    our_keeps,
    our_masks,
    quietly,
]


def listed() -> str:
    """The items as numbered lines."""
    texts = [" ".join((item.__doc__ or "").split()) for item in ITEMS]
    return "\n".join(f"{number:2d}. {text}" for number, text in enumerate(texts, 1))
