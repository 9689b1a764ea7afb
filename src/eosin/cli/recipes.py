"""`eosin recipes list | show`: the shipped recipes, value by value, each with where it comes from."""

from __future__ import annotations

from typing import Annotated

import typer

recipes = typer.Typer(no_args_is_help=True, help="The shipped recipes and where their values come from.")


@recipes.command("list")
def list_() -> None:
    """Names and one line each."""
    from eosin.training.recipe import shipped_recipes

    for name, description in shipped_recipes().items():
        typer.echo(f"{name:16s} {description}")


@recipes.command()
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A shipped name, or a .yaml file.")],
    changes: Annotated[list[str] | None, typer.Option("--set", help="Change a value: run.batch=64. Repeat.")] = None,
) -> None:
    """The complete recipe as YAML, a mark in front of each value; redirect it into a file to start your own."""
    from eosin.marks import MARKS
    from eosin.training.recipe import load_recipe, recipe_text

    recipe, marks = load_recipe(name, changes)
    for mark in sorted(set(marks.values())):
        typer.echo(f"# !{mark}  {MARKS[mark]}")
    typer.echo(recipe_text(recipe, marks), nl=False)
