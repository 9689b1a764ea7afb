"""In which order a probe sees its training samples: a stream of shuffled epochs for each run, keyed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from eosin.randomness import Words

# Epochs are drawn in blocks of about this many sample numbers, all runs together.
_BLOCK = 500_000
_INDEX_BITS = 23


def shuffled_epochs(counts: Sequence[int], words: Sequence[Words]) -> Iterator[torch.Tensor]:
    """Endless epochs: int64 [S, N], row s a permutation of 0..counts[s]-1 from words[s]. All counts alike (N)."""
    count = counts[0]
    block = max(1, _BLOCK // (count * len(counts)))
    while True:
        drawn = torch.from_numpy(np.stack([_permutations(stream, block, count) for stream in words], axis=1))
        yield from drawn  # [block, S, N]


def even_batches(counts: Sequence[int], words: Sequence[Words], batch: int) -> Iterator[torch.Tensor]:
    """Endless batches int64 [S, batch]: each row s goes through shuffled epochs of its own counts[s] samples, end to
    end, so that every batch is full.
    """
    left = [torch.empty(0, dtype=torch.int64) for _ in counts]
    while True:
        for number, (count, stream) in enumerate(zip(counts, words, strict=True)):
            if len(left[number]) < batch:
                block = max(1, -(-_BLOCK // (len(counts) * count)))
                block = min(block, -(-64 * batch // count))
                fresh = torch.from_numpy(_permutations(stream, block, count).reshape(-1))
                left[number] = torch.cat([left[number], fresh])
        full = min(len(part) for part in left) // batch
        taken = torch.stack([part[: full * batch].view(full, batch) for part in left], dim=1)
        left = [part[full * batch :] for part in left]
        yield from taken  # [full, S, batch]


def _permutations(words: Words, epochs: int, count: int) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """Permutations [epochs, count]. Sorting numbers that carry their own place is several times faster than
    argsort, and has no ties.
    """
    if count >> _INDEX_BITS:
        return words.permutations(count, epochs)
    keys = (words.uniform(epochs, count) * 2.0**40).astype(np.int64) << _INDEX_BITS
    keys |= np.arange(count)
    keys.sort(axis=-1)
    keys &= (1 << _INDEX_BITS) - 1
    return keys
