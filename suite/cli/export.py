"""`selfbench export`: the files that public leaderboards take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Write runs in the form of public leaderboards.")
Task = Annotated[str, typer.Option("-t", "--task", metavar="NAME", help="A task of WILDS.")]
Method = Annotated[str, typer.Option("-m", "--method", metavar="NAME", help="The submitted method.")]
Run = Annotated[
    str | None, typer.Option("--run", metavar="ID", help="One of the runs meant, when there are several settings.")
]
Out = Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where the folder of the data set goes.")]


@app.callback()
def _export() -> None:
    """More leaderboards may come: `wilds` is a word of its own."""


@app.command("wilds")
def wilds(
    task: Task, method: Method, run: Run = None, out: Out = Path("build/wilds"), results: options.Results = None
) -> None:
    """Write the prediction files of all replicates, as the evaluator of WILDS takes them.

    \b
    Examples:
      selfbench run -t wilds-camelyon17 -m fixmatch -s 0-9
      selfbench export wilds -t wilds-camelyon17 -m fixmatch
    """
    from .. import registry
    from ..errors import UsageError
    from ..export import replicates, write_submission
    from ..places import results_folder
    from ..store import Store

    entry = registry.get("task", task)
    if "wilds" not in entry.options["tags"]:
        known = ", ".join(name for name, item in registry.entries("task").items() if "wilds" in item.options["tags"])
        raise UsageError(f"Task '{task}' is not one of WILDS, which are: {known}.")
    store = Store(results_folder(results))
    specs = replicates(entry, method, store, run)
    written = write_submission(entry, specs, store, out)
    for path in written:
        typer.echo(str(path))
