"""The command line. One file per verb; heavy imports happen inside the verbs, so that help answers at once.

Exit codes: 0 all well, 1 some runs failed or some files are broken, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import sys

import typer

from ..errors import SelfbenchError
from . import board, check, data, doctor, export, info, list, new, plan, run, site, tune, validate

app = typer.Typer(
    name="selfbench",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Benchmark suite and leaderboard for models that teach themselves.",
    epilog="Start with: selfbench run --suite quick",
)
app.command("list")(list.list_names)
app.command("info")(info.info)
app.command("plan")(plan.plan)
app.command("run")(run.run)
app.command("status")(plan.status)
app.command("retry")(run.retry)
app.command("tune")(tune.tune)
app.command("board")(board.board)
app.command("check")(check.check)
app.command("validate")(validate.validate)
app.command("doctor")(doctor.doctor)
app.add_typer(data.app, name="data")
app.add_typer(new.app, name="new")
app.add_typer(site.app, name="site")
app.add_typer(export.app, name="export")


def main() -> None:
    """The entry point of the `selfbench` command."""
    try:
        app()
    except SelfbenchError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
