"""Writes embeddings with eva's own writer: `python eva_embeddings.py FOLDER tiles|bags`, where kaiko-eva is installed.

eva-0.4.5.zip holds what it wrote with kaiko-eva 0.4.5, and beside each folder the vectors that went in.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

WIDTH = 5


def main(folder: str, bags: bool) -> None:
    """Three splits of 4 tiles, or of 4 slides with 3 tiles each, written in small pieces."""
    import lightning.pytorch as lightning
    import torch
    from eva.core.callbacks.writers.embeddings import ClassificationEmbeddingsWriter
    from eva.core.models.modules.typings import INPUT_BATCH
    from torch.utils.data import DataLoader, Dataset

    class Vectors(Dataset[Any]):
        def __init__(self, split: str, values: torch.Tensor) -> None:
            self.split, self.values = split, values

        def __len__(self) -> int:
            return len(self.values)

        def filename(self, row: int) -> str:
            return f"{self.split}/slide_{row // 3}.tiff" if bags else f"{'ab'[row % 2]}/{self.split}_{row}.png"

        def __getitem__(self, row: int) -> Any:
            label = torch.tensor((row // 3 if bags else row) % 2)
            return INPUT_BATCH(self.values[row], label, {"wsi_id": f"{self.split}-{row // 3}"})

    class Through(lightning.LightningModule):
        def predict_step(self, batch: Any, number: int, dataloader_idx: int = 0) -> Any:
            return INPUT_BATCH(*batch).data

    random = np.random.default_rng(7)
    sets = []
    for split in ("train", "val", "test"):
        values = random.normal(size=(12 if bags else 4, WIDTH)).astype(np.float32)
        np.save(f"{folder}-{split}.npy", values)
        sets.append(Vectors(split, torch.from_numpy(values)))
    writer = ClassificationEmbeddingsWriter(
        folder, None, dict(enumerate(("train", "val", "test"))), ["wsi_id"] if bags else None, save_every_n=5
    )
    trainer = lightning.Trainer(
        accelerator="cpu", devices=1, logger=False, callbacks=[writer], enable_progress_bar=False
    )
    trainer.predict(Through(), [DataLoader(one, batch_size=3) for one in sets])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] == "bags")
