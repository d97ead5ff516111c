"""`selfbench validate`: are these record files what they claim to be?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options


def validate(
    folder: Annotated[Path | None, typer.Argument(metavar="[FOLDER]", help="A results folder.")] = None,
    as_json: options.Json = False,
) -> None:
    """Check every record of a results folder: schema, digest, run id, place. Exit code 1 when one is broken.

    \b
    Examples:
      selfbench validate
      selfbench validate my-results --json
    """
    import json

    from ..places import results_folder
    from ..store import Store

    store = Store(results_folder(folder))
    with store.index() as index:
        broken = index.broken()
        valid = len(index)
    if as_json:
        typer.echo(json.dumps({"valid": valid, "broken": [item._asdict() for item in broken]}, indent=1))
    else:
        for item in broken:
            typer.echo(item.error)
        typer.echo(f"{valid} valid records, {len(broken)} broken files in {store.root}")
    if broken:
        raise typer.Exit(1)
