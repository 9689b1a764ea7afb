"""Attention maps on the page: the colour of a patch says how far it is from an even share."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from eosin.report.attention import FULL_COLOUR, MORE, MOST_PAINT, Attention, attention_section, painted
from eosin.report.pictures import Sample
from eosin.runs import ATTENTION, RunFolder
from eosin.training.attention import keep_attention


def test_an_even_share_leaves_the_tile_grey_and_more_is_red() -> None:
    tile = np.full((8, 8, 3), (200, 100, 150), dtype=np.uint8)
    octaves = np.float32([[0.0, FULL_COLOUR], [-FULL_COLOUR / 2, 9.0]])
    found = painted(tile, octaves)
    grey = round(0.299 * 200 + 0.587 * 100 + 0.114 * 150)
    assert np.array_equal(np.unique(found[:4, :4]), [grey])
    full = np.round((1 - MOST_PAINT) * grey + MOST_PAINT * MORE)
    assert found[0, 7] == pytest.approx(full, abs=1)
    assert np.array_equal(found[0, 7], found[7, 7])  # more than full colour is full colour
    red, _, blue = found[7, 0].astype(int)
    assert blue > grey > red


def test_what_a_run_keeps_is_what_the_page_shows(run: RunFolder) -> None:
    for name in ATTENTION:
        (run.pictures / f"{name}.npz").unlink()
    sample = Sample.read(run.pictures / "sample.npz")
    assert attention_section(run, sample).body == []
    assert "not kept" in attention_section(run, sample).missing
    even = torch.full((2, 6, 4, 4), 1 / 16)
    peaked = even.clone()
    peaked[:, :, 0, 0] = 0.5
    keep_attention(even, 0, run)
    body = "".join(attention_section(run, sample).body)
    assert body.count("<figure>") == 6  # two tiles, each with the only look and its heads
    keep_attention(peaked, 1200, run)
    look = Attention.read(run.pictures / f"{ATTENTION[1]}.npz")
    assert look is not None
    assert look.octaves.shape == (2, 7, 4, 4)
    assert look.octaves[0, 0, 0, 0] == pytest.approx(math.log2(8), abs=0.05)
    body = "".join(attention_section(run, sample).body)
    assert body.count("<figure>") == 8
    assert "mean of heads, step 0, peak 1\u00a0×\u00a0even" in body
    assert "mean of heads, step 1,200, peak 8\u00a0×\u00a0even" in body
    assert "each of 6 heads, step 1,200" in body
    assert 'style="--locals: 1.5fr"' in body  # three columns of half a tile


@pytest.mark.parametrize("heads", [1, 3, 5, 12, 16, 24])
def test_any_number_of_heads_fills_its_sheet(run: RunFolder, heads: int) -> None:
    (run.pictures / f"{ATTENTION[1]}.npz").unlink()
    keep_attention(torch.full((1, heads, 2, 2), 0.25), 3, run)
    assert f"each of {heads} heads" in "".join(attention_section(run, Sample.read(run.pictures / "sample.npz")).body)
