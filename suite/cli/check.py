"""`selfbench check`: what a reviewer checks, before the reviewer does."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from . import options


def check(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A method or a task.")],
    partner: Annotated[
        list[str] | None,
        typer.Option("--with", metavar="NAME", help="The task (or method) to check it with [default: the first fit]."),
    ] = None,
    budget: options.BudgetFields = None,
    as_json: options.Json = False,
) -> None:
    """Check by real runs that a method or task keeps the rules; exit code 1 when one is broken.

    It must be registered as written, stay within its budget, give equal results for equal seeds, resume to the same
    results after a kill, and predict the same when hidden labels are permuted.

    \b
    Examples:
      selfbench check tent
      selfbench check my-method --with digits-semi --budget limit=20000
      SELFBENCH_PATH=my_method.py selfbench check my-method
    """
    import sys
    import tempfile
    from pathlib import Path

    from .. import check as checks
    from .. import registry
    from ..command import parse_assignments
    from ..errors import UsageError, did_you_mean

    methods, tasks = registry.entries("method"), registry.entries("task")
    entry = methods.get(name) or tasks.get(name)
    if entry is None:
        raise UsageError(f"There is no method or task '{name}'.{did_you_mean(name, [*methods, *tasks])}")
    partners = partner or checks.partners(entry)[:1]
    if not partners:
        other = "task" if entry.kind == "method" else "method"
        raise UsageError(f"No registered {other} fits {entry.kind} '{name}'; name one with --with to see why.")
    findings = []
    with tempfile.TemporaryDirectory(prefix="selfbench-check-") as folder:
        for item in partners:
            for finding in checks.check(
                entry,
                item,
                Path(folder) / item,
                budget=parse_assignments(budget or [], "--budget"),
                tell=lambda text: print(f"... {text}", file=sys.stderr, flush=True),
            ):
                findings.append(finding)
                if not as_json:
                    typer.echo(f"{'ok  ' if finding.ok else 'BAD '} {finding.what}: {finding.detail}")
    if as_json:
        typer.echo(json.dumps([finding._asdict() for finding in findings], indent=1))
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)
