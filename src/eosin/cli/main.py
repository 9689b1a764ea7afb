"""The command `eosin`: one verb a file. Errors that a user can act on are one line and exit with 2."""

from __future__ import annotations

import os
import sys
import time

import typer

from eosin.cli.doctor import doctor
from eosin.cli.embed import embed
from eosin.cli.eval import eval_
from eosin.cli.export import export
from eosin.cli.features import features
from eosin.cli.heatmap import heatmap
from eosin.cli.index import index
from eosin.cli.leaderboard import leaderboard
from eosin.cli.mil import mil
from eosin.cli.quickstart import quickstart
from eosin.cli.recipes import recipes
from eosin.cli.report import report
from eosin.cli.study import study
from eosin.cli.tasks import tasks
from eosin.cli.train import train
from eosin.cli.zoo import zoo
from eosin.errors import EosinError

app = typer.Typer(
    name="eosin",
    help="Train, evaluate and use pathology foundation models on your own whole-slide images.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(quickstart)
app.command()(index)
app.command()(train)
app.command()(export)
app.command(name="eval")(eval_)
app.command()(leaderboard)
app.command()(features)
app.command()(embed)
app.add_typer(mil, name="mil")
app.command()(heatmap)
app.command()(report)
app.command()(study)
app.add_typer(recipes, name="recipes")
app.add_typer(tasks, name="tasks")
app.add_typer(zoo, name="zoo")
app.command()(doctor)


@app.callback(invoke_without_command=True)
def _version(
    version: bool = typer.Option(False, "--version", help="Print the version and exit.", is_eager=True),
) -> None:
    if version:
        from eosin import __version__

        typer.echo(__version__)
        raise typer.Exit


# Click's error for a wrong call: newer typers carry their own copy of click, so it is taken from typer itself.
UsageError: type[Exception] = typer.BadParameter.__bases__[0]


def main() -> None:
    """Run the command line; exit 0 done, 2 refused or bad input (one line), 1 unexpected."""
    try:
        sys.exit(app(standalone_mode=False) or 0)
    except UsageError as error:
        said = error.format_message() if hasattr(error, "format_message") else str(error)
        if type(error).__name__ == "NoArgsIsHelpError":
            print(said, file=sys.stderr)
        else:
            print(f"eosin: {' '.join(said.split())}; see --help", file=sys.stderr)
        sys.exit(2)
    except (typer.Abort, KeyboardInterrupt):
        print("eosin: stopped; the same command goes on where it can", file=sys.stderr)
        sys.exit(130)
    except EosinError as error:
        _leave_it_to_the_first_process()
        print(f"eosin: {error}", file=sys.stderr)
        sys.exit(2)


def _leave_it_to_the_first_process() -> None:
    """Under torchrun all processes refuse alike, and the launcher stops the others when the first one has spoken."""
    if os.environ.get("RANK", "0") != "0":
        time.sleep(3)
