"""`eosin recipes list | show`: the shipped recipes, value by value, each with where it comes from."""

from __future__ import annotations

from typing import Annotated

import typer

recipes = typer.Typer(no_args_is_help=True, help="The shipped recipes and where their values come from.")


@recipes.command("list")
def list_() -> None:
    """One line each: encoder, batch and length, where it starts, what it is."""
    from eosin.training.estimate import encoder_name
    from eosin.training.recipe import load_recipe, shipped_recipes

    rows = [("name", "encoder", "batch x steps", "start", "what")]
    for name in shipped_recipes():
        recipe, _ = load_recipe(name)
        length = f"{recipe.run.batch:,} x {recipe.run.steps:,}"
        rows.append((name, encoder_name(recipe.encoder), length, recipe.start, recipe.description))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@recipes.command()
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A shipped name, or a .yaml file.")],
    changes: Annotated[list[str] | None, typer.Option("--set", help="Change a value: run.batch=64. Repeat.")] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Values only, without marks.")] = False,
) -> None:
    """The complete recipe as YAML, a mark in front of each value; redirect it into a file to start your own."""
    from eosin.marks import MARKS
    from eosin.training.recipe import load_recipe, recipe_text

    recipe, marks = load_recipe(name, changes)
    if plain:
        marks = {}
    for mark in (mark for mark in MARKS if mark in set(marks.values())):
        typer.echo(f"# !{mark}  {MARKS[mark]}")
    typer.echo(recipe_text(recipe, marks), nl=False)
