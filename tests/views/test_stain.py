"""HED jitter against a loop over pixels; concentrations there and back."""

from __future__ import annotations

import math

import numpy as np
import torch

from eosin.views import stain


def tile(seed: int = 0, count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, 5, 7, generator=torch.Generator().manual_seed(seed))


def slow_jitter(image: np.ndarray, alpha: np.ndarray, beta: np.ndarray) -> np.ndarray:
    """recipes' definition, pixel by pixel, in double precision. image [3, H, W] in 0..1."""
    vectors = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
    vectors = np.array([v / math.sqrt(sum(x * x for x in v)) for v in vectors])
    out = np.zeros_like(image)
    for y in range(image.shape[1]):
        for x in range(image.shape[2]):
            density = np.array([-math.log((min(max(i, 0.0), 1.0) * 255 + 1) / 256) for i in image[:, y, x]])
            concentrations = np.linalg.solve(vectors.T, density)
            density = vectors.T @ (concentrations * (1 + alpha) + beta)
            out[:, y, x] = [min(max((256 * math.exp(-d) - 1) / 255, 0.0), 1.0) for d in density]
    return out


def test_jitter_equals_a_loop_over_pixels() -> None:
    images = tile(count=4)
    rng = np.random.default_rng(0)
    alpha, beta = rng.uniform(-0.2, 0.2, (2, 4, 3))
    expected = [slow_jitter(image.double().numpy(), a, b) for image, a, b in zip(images, alpha, beta, strict=True)]
    ours = stain.jitter_hed_(images.clone(), torch.from_numpy(alpha).float(), torch.from_numpy(beta).float())
    np.testing.assert_allclose(ours.numpy(), np.stack(expected), atol=2e-5)


def test_no_jitter_is_identity() -> None:
    images = tile()
    zero = torch.zeros(2, 3)
    torch.testing.assert_close(stain.jitter_hed_(images.clone(), zero, zero), images, atol=1e-5, rtol=0)


def test_works_in_place() -> None:
    images = tile()
    before = images.clone()
    assert stain.jitter_hed_(images, torch.full((2, 3), 0.1), torch.zeros(2, 3)) is images
    assert (images - before).abs().max() > 0.01


def test_concentrations_there_and_back() -> None:
    images = tile()
    torch.testing.assert_close(stain.compose(stain.separate(images)), images, atol=1e-5, rtol=0)
    concentrations = torch.rand(2, 3, 4, 4)
    torch.testing.assert_close(stain.separate(stain.compose(concentrations)), concentrations, atol=1e-4, rtol=0)


def test_jitter_of_one_stain_leaves_the_others() -> None:
    concentrations = 0.2 + 0.5 * torch.rand(1, 3, 4, 4)
    alpha, beta = torch.tensor([[0.2, 0.0, 0.0]]), torch.tensor([[0.05, 0.0, 0.0]])
    after = stain.separate(stain.jitter_hed_(stain.compose(concentrations), alpha, beta))
    expected = concentrations.clone()
    expected[:, 0] = expected[:, 0] * 1.2 + 0.05
    torch.testing.assert_close(after, expected, atol=1e-4, rtol=0)


def test_stains_have_the_colours_of_an_h_and_e_slide() -> None:
    """Haematoxylin is blue-violet, eosin takes green away; unit vectors; glass has density 0."""
    vectors = torch.from_numpy(stain.STAIN_VECTORS)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3, dtype=torch.float64))
    haematoxylin, eosin, _ = stain.compose(torch.eye(3)[:, :, None, None])[:, :, 0, 0]
    assert haematoxylin[2] > haematoxylin[0] > haematoxylin[1]
    assert eosin[1] < 0.5 * eosin[[0, 2]].min()
    assert stain.separate(torch.ones(1, 3, 1, 1)).abs().max() < 1e-6


def test_values_outside_the_range_stay_finite() -> None:
    """Bicubic ringing leaves [0, 1]; black has the largest density, not an infinite one."""
    images = torch.tensor([-0.2, 0.0, 1.3]).view(1, 3, 1, 1)
    density = stain.optical_density(images)
    torch.testing.assert_close(density.flatten(), torch.tensor([math.log(256), math.log(256), 0.0]))
    jittered = stain.jitter_hed_(images.clone(), torch.full((1, 3), 0.2), torch.full((1, 3), -0.2))
    assert torch.isfinite(jittered).all()
    assert 0 <= jittered.min() <= jittered.max() <= 1
