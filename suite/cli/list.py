"""`selfbench list`: names, without importing what they name."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from ..errors import UsageError, did_you_mean
from . import options

_KINDS = ("methods", "tasks", "suites")


def list_names(
    kind: Annotated[str, typer.Argument(metavar="methods|tasks|suites", help="What to list.")],
    as_json: options.Json = False,
) -> None:
    """List methods, tasks or suites.

    \b
    Examples:
      selfbench list methods
      selfbench list tasks --json
    """
    if kind not in _KINDS:
        raise UsageError(f"`selfbench list` shows methods, tasks or suites, not '{kind}'.{did_you_mean(kind, _KINDS)}")
    rows = _suites() if kind == "suites" else _entries(kind)
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    columns = [key for key in rows[0] if key != "summary"] if rows else []
    widths = {key: max(len(key), *(len(str(row[key])) for row in rows)) for key in columns}
    for row in [{key: key for key in [*columns, "summary"]}, *rows]:
        cells = [f"{row[key]!s:<{widths[key]}}" for key in columns]
        typer.echo("  ".join([*cells, str(row["summary"])]).rstrip())


def _entries(kind: str) -> list[dict[str, Any]]:
    from .. import registry

    rows = []
    for entry in registry.entries("method" if kind == "methods" else "task").values():
        row: dict[str, Any] = {"name": entry.name, "protocol": entry.protocol, "version": entry.version}
        if kind == "methods":
            row |= {"family": entry.options["family"], "needs": ", ".join(entry.options["needs"]) or "-"}
            row["summary"] = entry.summary
        else:
            row |= {"metric": entry.options["metric"], "data": ", ".join(entry.options["data"])}
            row["summary"] = entry.options["title"]
        rows.append(row)
    return rows


def _suites() -> list[dict[str, Any]]:
    from ..suites import read_suite, suite_names

    rows = []
    for name in suite_names():
        _, table = read_suite(name)
        tasks = {task for pair in table.get("pairs", []) for task in pair.get("tasks", [])}
        rows.append(
            {
                "name": name,
                "tasks": len(tasks),
                "seeds": len(table.get("seeds", [])),
                "summary": str(table.get("description", "")),
            }
        )
    return rows
