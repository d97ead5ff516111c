"""`selfbench plan` and `selfbench status`: what is there, what is missing, what it takes."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING

import typer

from . import options
from .progress import unprepared
from .select import choose_device, gather

if TYPE_CHECKING:
    from ..plan import State


def plan(
    suite: options.SuiteName = None,
    task: options.Tasks = None,
    method: options.Methods = None,
    seeds: options.Seeds = None,
    device: options.Device = "auto",
    precision: options.Precision = "fp32",
    threads: options.Threads = 1,
    generation: options.Generation = "native",
    results: options.Results = None,
    as_json: options.Json = False,
) -> None:
    """Show the matrix of runs, what of it has a record, and what has to be fetched or built first.

    \b
    Examples:
      selfbench plan --suite quick
      selfbench plan -t digits-semi -m fixmatch -s 0-9 --json
    """
    from ..plan import needs

    rows = _rows(suite, task, method, seeds, device, precision, threads, generation, results)
    open_specs = [row.spec for row in rows if row.to_do]
    wanted = needs(open_specs)
    if as_json:
        data = {"runs": [_as_dict(row) for row in rows], "needs": [need.__dict__ for need in wanted]}
        typer.echo(json.dumps(data, indent=1))
        return
    _print_matrix(rows)
    limit = sum(spec.budget.wall_seconds for spec in open_specs)
    typer.echo(f"{len(rows)} runs, {len(open_specs)} to do, at most {limit / 3600:.1f} hours of one slot.")
    for need in wanted:
        size = f"{need.size / 1e6:.0f} MB" if need.size else ""
        if need.kind == "put":
            told = f"{need.name} by hand{f' ({size})' if size else ''} {need.note}"
        else:
            told = need.name + (f" ({size}{f' {need.note}' if need.note else ''})" if size else "")
        typer.echo(f"first: {need.kind} {told}")


def status(
    suite: options.SuiteName = None,
    task: options.Tasks = None,
    method: options.Methods = None,
    seeds: options.Seeds = None,
    device: options.Device = "auto",
    precision: options.Precision = "fp32",
    threads: options.Threads = 1,
    generation: options.Generation = "native",
    results: options.Results = None,
    as_json: options.Json = False,
) -> None:
    """Show how far a matrix is: finished, failed (with the reason), running, missing.

    \b
    Examples:
      selfbench status --suite quick
      selfbench status --suite quick --json
    """
    rows = _rows(suite, task, method, seeds, device, precision, threads, generation, results)
    if as_json:
        typer.echo(json.dumps([_as_dict(row) for row in rows], indent=1))
        return
    _print_matrix(rows)
    for row in rows:
        if row.state not in ("ok", "missing", "running") and not row.unprepared:
            typer.echo(f"{row.state}: {row.spec.label} ({row.spec.run_id}): {row.detail}")
    for text in unprepared((row.spec, row.detail) for row in rows if row.unprepared):
        typer.echo(text)
    counts = Counter(row.state for row in rows)
    typer.echo(", ".join(f"{number} {state}" for state, number in sorted(counts.items())))


def _rows(
    suite: options.SuiteName,
    task: options.Tasks,
    method: options.Methods,
    seeds: options.Seeds,
    device: str,
    precision: str,
    threads: int,
    generation: str,
    results: options.Results,
) -> list[State]:
    from ..places import results_folder
    from ..plan import states
    from ..store import Store

    specs = gather(
        suite, task, method, seeds, device=choose_device(device), precision=precision, threads=threads,
        generation=generation,
    )  # fmt: skip
    return states(specs, Store(results_folder(results)))


def _as_dict(row: State) -> dict[str, object]:
    spec = row.spec
    return {
        "run_id": spec.run_id,
        "task": spec.task.name,
        "method": spec.method.name,
        "seed": spec.seed,
        "state": row.state,
        "detail": row.detail,
    }


def _print_matrix(rows: list[State]) -> None:
    from ..plan import matrix

    cells = matrix(rows)
    task_width = max(len(task) for task, _, _ in cells)
    method_width = max(len(method) for _, method, _ in cells)
    for task, method, counts in cells:
        text = ", ".join(f"{number} {state}" for state, number in sorted(counts.items()))
        typer.echo(f"{task:<{task_width}}  {method:<{method_width}}  {text}")
