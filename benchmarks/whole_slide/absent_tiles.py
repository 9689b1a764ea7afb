"""Absent tiles in stage 2: left out of the sequence, or kept as padding behind a key mask? Seconds of each.

python benchmarks/whole_slide/absent_tiles.py [--device cuda] [--width 384] [--depth 6] [--regions 4] [--repeats 5]

Forward and backward of stage 2 over `regions` regions of 16 × 16 places of which a share holds tissue. "packed" is
eosin's `GridEncoder`; "masked" runs the same blocks over all 257 places with a key-padding mask [B, 1, 1, 257] in
torch's fused attention. Turn by turn, median; outputs are compared first. "full" is packed with every place present.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from eosin.models.pyramid_config import StageConfig
from eosin.models.pyramid_stage import GridEncoder, Grids
from eosin.randomness import Words

SIDE = 16
PLACES = SIDE * SIDE


def masked(encoder: GridEncoder, vectors: Tensor, at: Tensor, region: Tensor, regions: int) -> Tensor:
    """Region vectors [B, D] with every place in the sequence. at: place of each tile [T], region: its region [T]."""
    heads = encoder.config.heads
    cls, table = encoder.cls_token + encoder.pos_embed[:, :1], encoder.pos_embed[:, 1:]
    x = vectors.new_zeros(regions, PLACES, vectors.shape[1]).index_put((region, at), encoder.entered(vectors)) + table
    x = torch.cat([cls.expand(regions, -1, -1), x], dim=1)  # [B, 257, D]
    seen = torch.zeros(regions, PLACES + 1, dtype=torch.bool, device=x.device).index_put(
        (region, at + 1), torch.ones_like(at, dtype=torch.bool)
    )
    seen[:, 0] = True
    for block in encoder.blocks:
        q, k, v = block.attn.qkv(block.norm1(x)).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None, None])
        x = x + block.attn.proj(mixed.transpose(1, 2).flatten(2))
        x = x + block.mlp(block.norm2(x))
    return encoder.norm(x)[:, 0]


def seconds(run: Callable[[], Tensor], device: str) -> float:
    """Forward and backward."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    start = time.perf_counter()
    run().sum().backward()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--regions", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    stage = StageConfig(width=args.width, depth=args.depth, heads=args.width // 64, positions="table")
    encoder = GridEncoder(args.width, stage, SIDE, torch.Generator().manual_seed(0)).to(args.device)
    print(f"torch {torch.__version__}, {args.device}, width {args.width}, {args.depth} layers, {args.regions} regions")
    print("| tissue | packed s | masked s | masked / packed |\n|---|---|---|---|")
    for share in (0.1, 0.3, 0.6, 0.9, 1.0):
        places = [
            torch.from_numpy(Words(0, region).permutations(PLACES)).to(args.device)[
                : round(PLACES * share) - region % 3
            ]
            for region in range(args.regions)
        ]
        at = torch.cat(places)
        region = torch.repeat_interleave(
            torch.arange(args.regions, device=args.device), torch.tensor([len(p) for p in places], device=args.device)
        )
        vectors = torch.from_numpy(Words(1).normal(len(at), args.width)).float().to(args.device).requires_grad_()
        grids = Grids(tuple(len(p) for p in places), at // SIDE, at % SIDE)
        ways: dict[str, Callable[[], Tensor]] = {
            "packed": lambda v=vectors, g=grids: encoder(v, g).grids,
            "masked": lambda v=vectors, a=at, r=region: masked(encoder, v, a, r, args.regions),
        }
        with torch.no_grad():
            torch.testing.assert_close(ways["packed"](), ways["masked"](), rtol=1e-3, atol=1e-3)
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(args.repeats):
            for name, run in ways.items():
                times[name].append(seconds(run, args.device))
        packed, padded = (statistics.median(times[name]) for name in ways)
        print(f"| {share:.0%} | {packed:.3f} | {padded:.3f} | {padded / packed:.2f} |", flush=True)


if __name__ == "__main__":
    main()
