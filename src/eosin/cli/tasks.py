"""`eosin tasks`: the public evaluation tasks: which there are, what is on the disk, how to get the rest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from eosin.evaluation.tasks import PublicTask
    from eosin.evaluation.tasks.check import Report

tasks = typer.Typer(
    help="Public evaluation tasks: list, how to get them, check what is on the disk.", no_args_is_help=True
)

_Data = Annotated[Path | None, typer.Option("--data", help="Folder that holds the data sets, as for `eosin eval`.")]


@tasks.command("list")
def list_(data: _Data = None) -> None:
    """All public tasks, and with --data which of them lie there."""
    from rich.console import Console
    from rich.table import Table

    from eosin.evaluation.tasks import PUBLIC

    table = Table(box=None, pad_edge=False)
    table.add_column("task", no_wrap=True)
    for name in ("kind", "samples", "what" if data is None else "found in"):
        table.add_column(name, overflow="fold")
    for task in PUBLIC.values():
        last = task.about if data is None else str(task.find(data) or ("incomplete" if task.begun(data) else "-"))
        table.add_row(task.name, task.kind, _counts(task.counts), last)
    Console().print(table)


@tasks.command()
def show(names: Annotated[list[str], typer.Argument(metavar="NAME…")], data: _Data = None) -> None:
    """One task: classes, split, official layout, licence, how to get it, what eva does differently."""
    from eosin.evaluation.tasks import expand, find_public

    for task in [find_public(name) for word in names for name in expand(word)]:
        for line in _page(task, data):
            typer.echo(line)


@tasks.command()
def check(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME…]", help="Public tasks, or NAME=PATH.")] = None,
    data: _Data = None,
    full: Annotated[bool, typer.Option("--full", help="Read every image; find images that lie in two splits.")] = False,
    any_count: Annotated[
        bool, typer.Option("--any-count", help="Other counts than the known ones are no fault.")
    ] = False,
) -> None:
    """Check layout, counts, classes, images and splits of the tasks given, or of all that lie below --data.

    Ends with 2 where a task is broken, or one that was asked for by name is not there.
    """
    from eosin.errors import DataError
    from eosin.evaluation.tasks import PUBLIC, expand

    if not names and data is None:
        raise DataError("give tasks to check, or --data ROOT with data sets in it")
    asked = [name for word in names or [] for name in expand(word)] or [
        task.name for task in PUBLIC.values() if data is not None and task.begun(data)
    ]
    if not asked:
        raise DataError(f"found none of the public tasks below {data}; `eosin tasks list --data {data}`")
    reports = [_checked(spec, data, full, any_count) for spec in asked]
    _print(reports)
    if not all(report.ok for report in reports):
        raise typer.Exit(2)


def _checked(spec: str, data: Path | None, full: bool, any_count: bool) -> Report:
    from eosin.errors import DataError
    from eosin.evaluation.tasks import find_public, open_task
    from eosin.evaluation.tasks.check import Report, check_public, check_task

    if "=" not in spec:
        public = find_public(spec)
        if data is None:
            raise DataError(f"task {spec}: give --data ROOT, the folder that holds it, or {spec}=FOLDER")
        return check_public(public, data, full, any_count)
    try:
        return check_task(open_task(spec, data, any_count), full)
    except DataError as error:
        return Report(spec.partition("=")[0], "-", spec.partition("=")[2], broken=(str(error),))


def _print(reports: list[Report]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("task", "kind", "samples", "", "found"):
        table.add_column(name, overflow="fold")
    for report in reports:
        lines = [*report.broken, *report.remarks]
        state = "broken" if report.broken else "ok"
        table.add_row(report.name, report.kind, _counts(report.counts), state, "\n".join(lines) or report.place)
    Console().print(table)


def _page(task: PublicTask, data: Path | None) -> list[str]:
    """The lines of `eosin tasks show`."""
    place = None if data is None else task.find(data)
    rows: list[tuple[str, str]] = [
        ("what", task.about),
        ("kind", task.kind),
        ("samples", f"{_counts(task.counts)}; {task.scale}"),
        ("classes", ", ".join(task.classes)),
        ("licence", task.licence),
        ("source", task.source),
        *(("get", line) for line in task.get),
        ("folder", f"ROOT/{' or ROOT/'.join(dict.fromkeys((task.name, *task.folders)))}"),
        *(("layout", line) for line in task.layout),
        *((name, text) for name, text in task.switches.items()),
        *(("note", line) for line in task.notes),
    ]
    if data is not None:
        rows.append(("here", str(place) if place is not None else f"not below {data}"))
    width = max(len(name) for name, _ in rows)
    return [task.name, *(f"  {name:<{width}}  {text}" for name, text in rows if text)]


def _counts(counts: dict[str, int] | None) -> str:
    return " + ".join(f"{count:,} {split}" for split, count in (counts or {}).items()) or "-"
