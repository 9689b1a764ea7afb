"""Best checkpoints and early stopping of many heads at once."""

from __future__ import annotations

import torch
from torch import Tensor

from eosin.evaluation.probes.decisions import Cut, Scorer, decide
from eosin.evaluation.probes.stacked import StackedLinear


class Watch:
    """Looks at the heads [S, G] of a `StackedLinear` on watched samples; keeps the weights of each head's best look.

    A look is the best where its score is above all earlier ones (the first of equals stays). A head is done after
    `patience` looks in a row none of which was more than `min_delta` above the best at that time; None: never. These
    are Lightning's ModelCheckpoint and EarlyStopping. `alive`: the streams (their first numbers) that still run.
    """

    def __init__(
        self, heads: StackedLinear, x: Tensor, scorer: Scorer, cut: Cut, patience: int | None, min_delta: float
    ) -> None:
        streams, settings = heads.shape[:2]
        self.x, self.scorer, self.cut = x, scorer, cut
        self.patience, self.min_delta = patience, min_delta
        self.alive = list(range(streams))
        device = heads.weight.device
        self.weight, self.bias = heads.weight.clone(), heads.bias.clone()
        self.best = torch.full((streams, settings), -torch.inf, dtype=torch.float64, device=device)
        self.best_step = torch.zeros(streams, settings, dtype=torch.int64, device=device)
        self.last_step = torch.zeros(streams, settings, dtype=torch.int64, device=device)
        self._bar = self.best.clone()
        self._waited = torch.zeros_like(self.best_step)
        self._done = torch.zeros_like(self.best_step, dtype=torch.bool)

    def look(self, heads: StackedLinear) -> bool:
        """Score the heads as they are; drops streams all of whose heads are done. False once all are."""
        alive = torch.as_tensor(self.alive, device=self.x.device)
        score = self.scorer(decide(heads.logits(self.x), self.cut))  # [A, G]
        running = ~self._done[alive]
        better = running & (score > self.best[alive])
        self.last_step[alive] = torch.where(running, heads.steps, self.last_step[alive])
        if better.any():
            stream, setting = torch.nonzero(better, as_tuple=True)
            self.best[alive[stream], setting] = score[stream, setting]
            self.best_step[alive[stream], setting] = heads.steps
            self.weight[alive[stream], setting] = heads.weight[stream, setting]
            self.bias[alive[stream], setting] = heads.bias[stream, setting]
        if self.patience is None:
            return True
        raised = running & (score - self.min_delta > self._bar[alive])
        self._bar[alive] = torch.where(raised, score, self._bar[alive])
        self._waited[alive] = torch.where(raised, 0, self._waited[alive] + 1)
        self._done[alive] |= self._waited[alive] >= self.patience
        stays = (~self._done[alive]).any(dim=1).tolist()
        if all(stays):
            return True
        self.alive = [stream for stream, stay in zip(self.alive, stays, strict=True) if stay]
        if self.alive:
            heads.keep([place for place, stay in enumerate(stays) if stay])
        return bool(self.alive)

    def settle(self, heads: StackedLinear) -> None:
        """Where a head was never looked at (less than an epoch of steps), its last weights are its best."""
        for place, stream in enumerate(self.alive):
            for setting in torch.nonzero(self.best[stream].isinf())[:, 0].tolist():
                self.weight[stream, setting], self.bias[stream, setting] = (
                    heads.weight[place, setting],
                    heads.bias[place, setting],
                )
                self.best_step[stream, setting] = self.last_step[stream, setting] = heads.steps
