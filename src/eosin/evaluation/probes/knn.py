"""k nearest neighbours by cosine similarity: nothing is trained, so it is cheap enough to watch a run with.

The vote is DINO's (Caron et al., ICCV 2021): each of the k neighbours votes with exp(similarity /
temperature); `majority` gives each one vote, ties to the class with the larger sum of similarities. Features
are L2-normalised and not centred.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from eosin.errors import DataError
from eosin.evaluation.probes.probe import Examples, Floats, Prediction

Vote = Literal["softmax", "majority"]


def knn_scores(
    train_x: npt.ArrayLike | torch.Tensor,
    train_y: npt.ArrayLike | torch.Tensor,
    test_x: npt.ArrayLike | torch.Tensor,
    classes: int,
    k: int = 20,
    vote: Vote = "softmax",
    temperature: float = 0.07,
    chunk: int = 1024,
) -> npt.NDArray[np.float64]:
    """Class scores of `test_x` [M, D] from labelled `train_x` [N, D], `train_y` int [N] in 0..classes-1.

    float64 [M, classes], rows sum to 1. k is cut to N. Raises DataError where shapes do not fit or `vote` is
    unknown.
    """
    bank, queries = _unit(train_x), _unit(test_x)
    labels = torch.as_tensor(train_y).to(bank.device, torch.int64)
    if bank.ndim != 2 or queries.ndim != 2 or bank.shape[1] != queries.shape[1] or len(bank) != len(labels):
        raise DataError(
            f"k-NN cannot compare shapes {tuple(bank.shape)}, {tuple(labels.shape)}, {tuple(queries.shape)}"
        )
    if vote not in ("softmax", "majority"):
        raise DataError(f"unknown k-NN vote {vote!r}: softmax or majority")
    scores = []
    for part in queries.split(chunk):
        similarity, nearest = (part @ bank.T).topk(min(k, len(bank)), dim=1)  # [m, k]
        similarity = similarity.double()
        if vote == "softmax":
            weight = torch.exp((similarity - similarity[:, :1]) / temperature)
        else:
            # A similarity lies in [-1, 1]: k of them, scaled like this, only ever settle a tie.
            weight = 1.0 + similarity * 1e-3 / k
        votes = torch.zeros(len(part), classes, dtype=torch.float64, device=part.device)
        votes.scatter_add_(1, labels[nearest], weight)  # [m, classes]
        scores.append(votes / votes.sum(dim=1, keepdim=True))
    return torch.cat(scores).cpu().numpy()


def knn(
    train: Examples,
    test_x: Floats,
    classes: int,
    *,
    inner: Sequence[tuple[Examples, Examples]] = (),
    seed: int = 0,
    fold: int = 0,
    k: int = 20,
    vote: Vote = "softmax",
    temperature: float = 0.07,
) -> Prediction:
    """`knn_scores` as a probe; nothing is chosen and nothing is random."""
    scores = knn_scores(train.x, train.y, test_x, classes, k, vote, temperature)
    return Prediction(scores, scores.argmax(axis=1)[None, :], {})


def knn_accuracy(
    train_x: npt.ArrayLike | torch.Tensor,
    train_y: npt.ArrayLike | torch.Tensor,
    test_x: npt.ArrayLike | torch.Tensor,
    test_y: npt.ArrayLike | torch.Tensor,
    k: int = 20,
) -> float:
    """Balanced accuracy (mean recall over the classes present in `test_y`) of k-NN, in [0, 1]."""
    truth = torch.as_tensor(test_y).cpu().numpy().astype(np.int64)
    known = torch.as_tensor(train_y).cpu().numpy().astype(np.int64)
    classes = int(max(truth.max(), known.max())) + 1
    predicted = knn_scores(train_x, known, test_x, classes, k).argmax(axis=1)
    return float(np.mean([(predicted[truth == label] == label).mean() for label in np.unique(truth)]))


def _unit(x: npt.ArrayLike | torch.Tensor) -> torch.Tensor:
    # torch takes no read-only arrays, which memory maps are.
    rows = torch.as_tensor(np.require(x, requirements="W") if isinstance(x, np.ndarray) else x).detach().float()
    return rows / rows.norm(dim=-1, keepdim=True).clamp_min(1e-12)
