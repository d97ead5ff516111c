"""`selfbench data`: what the data sets are, where they lie, fetching and verifying them."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options

if TYPE_CHECKING:
    from ..data import Data

app = typer.Typer(no_args_is_help=True, help="The data sets: list, path, fetch, verify.")

Root = Annotated[
    Path | None,
    typer.Option(
        "--data-root", metavar="FOLDER", help="Data folder [default: $SELFBENCH_DATA, else one in the user's cache]."
    ),
]
Names = Annotated[list[str] | None, typer.Argument(metavar="NAME", help="Data sets.", show_default=False)]


@app.command("list")
def list_names(as_json: options.Json = False, data_root: Root = None) -> None:
    """List every data set: whether it is on this machine, its size and licence.

    \b
    Examples:
      selfbench data list
      selfbench data list --json
    """
    data = _data(data_root)
    rows = [_row(data, name) for name in data.names()]
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    lines = [("name", "here", "download", "on disk", "licence")]
    for row in rows:
        sizes = (_megabytes(row["bytes_to_fetch"]), _megabytes(row["bytes_on_disk"]))
        lines.append((row["name"], "yes" if row["present"] else "no", *sizes, row["licence"]))
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    for line in lines:
        typer.echo("  ".join([*(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=False)), line[4]]))


@app.command()
def path(
    name: Annotated[str | None, typer.Argument(help="A data set.", show_default=False)] = None,
    data_root: Root = None,
) -> None:
    """Print the folder of all data sets, or of one.

    \b
    Examples:
      selfbench data path
      selfbench data path newsgroups
    """
    data = _data(data_root)
    typer.echo(str(data.folder(name) if name else data.root))


@app.command()
def fetch(
    names: Names = None,
    suite: options.SuiteName = None,
    data_root: Root = None,
) -> None:
    """Bring data sets, or all that a suite needs, onto this machine; what is there and intact is kept.

    \b
    Examples:
      selfbench data fetch newsgroups minilm
      selfbench data fetch --suite quick
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    data = _data(data_root)
    wanted = [data.describe(name) for name in _wanted(names, suite)]
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        for dataset in wanted:
            bar = bars.add_task(dataset.name, total=dataset.bytes_to_fetch)
            data.fetch(dataset.name, functools.partial(_show, bars, bar))
            bars.remove_task(bar)
    for dataset in wanted:
        typer.echo(f"{dataset.name}: {data.folder(dataset.name)}")


@app.command()
def verify(names: Names = None, data_root: Root = None) -> None:
    """Check size and digest of every file of the named data sets, by default of those on this machine.

    Exit code 1 when a file is missing or damaged.

    \b
    Examples:
      selfbench data verify
      selfbench data verify minilm
    """
    data = _data(data_root)
    chosen = names or [name for name in data.names() if data.present(name)]
    problems = {name: data.verify(name) for name in chosen}
    for name, found in problems.items():
        typer.echo(f"{name}: {'intact' if not found else ''}".rstrip())
        for problem in found:
            typer.echo(f"  {problem}")
    damaged = [name for name, found in problems.items() if found]
    if damaged:
        typer.echo(f"Type `selfbench data fetch {' '.join(damaged)}`.", err=True)
        raise typer.Exit(1)


def _show(bars: Any, bar: Any, done: int, total: int) -> None:
    bars.update(bar, completed=done, total=total)


def _data(root: Path | None) -> Data:
    from ..data import Data
    from ..places import data_folder

    return Data(root or data_folder())


def _wanted(names: list[str] | None, suite: str | None) -> list[str]:
    """The named data sets and those that the suite's runs need, each once, in that order."""
    from ..errors import UsageError

    if not names and not suite:
        raise UsageError("Name a data set or a suite: `selfbench data fetch NAME...` or `--suite quick`.")
    wanted = list(names or [])
    if suite:
        from .. import registry
        from ..prepare.bundles import data_sets
        from ..suites import load_suite

        runs = dict.fromkeys((spec.task.name, spec.method.name) for spec in load_suite(suite).specs)
        wanted += data_sets((registry.get("task", task), registry.get("method", method)) for task, method in runs)
    return list(dict.fromkeys(wanted))


def _row(data: Data, name: str) -> dict[str, Any]:
    dataset = data.describe(name)
    return {
        "name": name,
        "title": dataset.title,
        "kind": dataset.kind,
        "present": data.present(name),
        "bytes_to_fetch": dataset.bytes_to_fetch,
        "bytes_on_disk": dataset.bytes_on_disk,
        "licence": dataset.licence,
        "homepage": dataset.homepage,
        "citation": dataset.citation,
    }


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size else "-"
