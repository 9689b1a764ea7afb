"""`eosin doctor`: what is wrong with a slide or a cohort, how fast it is read, and whether a GPU would wait for it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def doctor(
    target: Annotated[str, typer.Argument(metavar="SLIDE|COHORT", help="A slide, or a cohort from `eosin index`.")],
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="Whose scales, filters and step to reckon with: a name or a .yaml.")
    ] = None,
    changes: Annotated[list[str] | None, typer.Option("--set", help="Change a value of the recipe. Repeat.")] = None,
    gpu: Annotated[
        str | None,
        typer.Option("--gpu", help="Predict for this GPU, e.g. H100, RTX4090; without, this one."),
    ] = None,
    gpus: Annotated[int, typer.Option("--gpus", min=1, help="Predict for so many GPUs in one machine.")] = 1,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Write a page as well: one HTML file.")] = None,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.05, max=600.0, help="Time to read tiles, for each µm/px.")
    ] = 2.0,
    json_: Annotated[bool, typer.Option("--json", help="Print everything as JSON, for machines.")] = False,
    mpp_csv: Annotated[
        Path | None, typer.Option("--mpp-csv", help="CSV slide,mpp where the slide does not say its scale.")
    ] = None,
    reader: Annotated[
        str, typer.Option("--reader", help="auto, or openslide to measure the slide through OpenSlide.")
    ] = "auto",
) -> None:
    """Examine a slide or a cohort: format, scale, tissue, reading speed, and the problems in plain words."""
    from eosin.errors import CohortError, OutputError, RecipeError

    if reader not in ("auto", "openslide"):
        raise CohortError(f"--reader {reader}: it is auto or openslide")
    if recipe is None and (gpu is not None or changes):
        raise RecipeError("--gpu and --set need a recipe: --recipe NAME (see `eosin recipes list`)")
    import json

    from eosin.files import check_writable
    from eosin.report.doctor import diagnose

    if out is not None:
        if out.is_dir():
            raise OutputError(f"{out} is a folder; name the page, e.g. {out / 'doctor.html'}")
        check_writable(out.parent)

    told = diagnose(
        target,
        recipe=recipe,
        changes=changes or [],
        gpu=gpu,
        gpus=gpus,
        seconds=seconds,
        mpp_csv=mpp_csv,
        reader=None if reader == "auto" else reader,
    )
    if json_:
        from eosin.report.doctor_json import as_values

        typer.echo(json.dumps(as_values(told), indent=2, ensure_ascii=False))
    else:
        from eosin.report.doctor_terminal import show

        show(told)
    if out is not None:
        from eosin.report.doctor_page import write_doctor_page

        write_doctor_page(told, out)
        typer.echo(f"written: {out}", err=json_)
