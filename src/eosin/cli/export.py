"""`eosin export`: the encoder of a run as a folder that timm and eosin open."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write.")],
    step: Annotated[int | None, typer.Option("--step", help="Checkpoint to take; the newest without.")] = None,
    student: Annotated[bool, typer.Option("--student", help="The student in place of the teacher.")] = False,
    average: Annotated[
        int, typer.Option("--average", min=1, help="Mean of the weights over so many newest checkpoints.")
    ] = 1,
    pooling: Annotated[str, typer.Option("--pooling", help="cls, cls+mean or mean.")] = "cls+mean",
) -> None:
    """Write the trained encoder: safetensors, timm's config.json, a model card."""
    from eosin.training.export import export_run

    written = export_run(run, out, step=step, student=student, average=average, pooling=pooling)
    typer.echo(f"written: {written}")
