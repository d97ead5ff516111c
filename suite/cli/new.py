"""`selfbench new`: a file that runs as it is, to write a method or a task into."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import SelfbenchError

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Start a new method or task from a file that runs.")
Name = Annotated[str, typer.Argument(metavar="NAME", help="Its registered name, such as my-method.")]
Protocol = Annotated[str, typer.Option("--protocol", metavar="stream|adaptation|policy", help="Its protocol.")]
Folder = Annotated[Path, typer.Option("--folder", metavar="FOLDER", help="Where the file goes.")]


@app.command()
def method(name: Name, protocol: Protocol = "stream", folder: Folder = Path()) -> None:
    """Write a method file that runs, and say how to run and check it.

    \b
    Examples:
      selfbench new method my-method
      selfbench new method my-method --protocol adaptation --folder methods/self_training
    """
    _write("method", name, protocol, folder)


@app.command()
def task(name: Name, protocol: Protocol = "stream", folder: Folder = Path()) -> None:
    """Write a task file that runs, and say how to run and check it.

    \b
    Examples:
      selfbench new task my-task --protocol adaptation
    """
    _write("task", name, protocol, folder)


def _write(kind: str, name: str, protocol: str, folder: Path) -> None:
    from ..registry import entries
    from ..scaffold import write_scaffold

    if name in entries(kind):  # type: ignore[arg-type]
        raise SelfbenchError(f"There is a {kind} '{name}' already; choose another name.")
    path = write_scaffold(kind, name, protocol, folder)
    typer.echo(f"{path} is written. Next:")
    typer.echo(f"  export SELFBENCH_PATH={path.resolve()}      # not needed inside the {kind}s/ folder of the package")
    typer.echo(f"  selfbench info {name}")
    typer.echo(f"  selfbench check {name}")
