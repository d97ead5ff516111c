"""`selfbench board`: the board in the terminal."""

from __future__ import annotations

import dataclasses

import typer

from . import options


def board(
    suite: options.SuiteName = None,
    task: options.Tasks = None,
    results: options.Results = None,
    as_json: options.Json = False,
) -> None:
    """Show who stands where: rank intervals, means, gaps to the best, failures.

    With --suite the suite's methods are ranked against each other; without it, all records of a task under equal
    conditions are.

    \b
    Examples:
      selfbench board --suite quick
      selfbench board -t digits-c-continual
      selfbench board --suite quick --json > board.json
    """
    from ..board.catalogue import Catalogue
    from ..board.choose import load_suites
    from ..board.export import board_data, json_text, suite_data
    from ..board.scores import score_field
    from ..board.suites import score_suite
    from ..board.table import fields_of
    from ..board.text import suite_text, task_text
    from ..errors import UsageError, did_you_mean
    from ..places import results_folder
    from ..seed_ranges import TUNING_SEEDS_FROM
    from ..store import Store

    catalogue = Catalogue.registered()
    with Store(results_folder(results)).index() as index:
        runs = index.summaries()
        broken = index.broken()
    for item in broken:
        typer.echo(f"no valid record: {item.error}", err=True)
    known = {run.task for run in runs}
    for name in task or ():
        if name not in known | catalogue.tasks.keys():
            raise UsageError(
                f"No record names the task '{name}'.{did_you_mean(name, known)} `selfbench list tasks` shows all."
            )
    wanted = [run for run in runs if not task or run.task in task]
    if suite is not None:
        chosen = load_suites([suite], runs)[0]
        if task:
            chosen = dataclasses.replace(chosen, specs=tuple(spec for spec in chosen.specs if spec.task.name in task))
        scored = score_suite(chosen, wanted, catalogue)
        typer.echo(json_text(suite_data(scored)) if as_json else suite_text(scored), nl=not as_json)
        return
    ranked = [run for run in wanted if run.seed < TUNING_SEEDS_FROM]
    if left_out := len(wanted) - len(ranked):
        typer.echo(f"{left_out} runs of tuning (seeds from {TUNING_SEEDS_FROM}) are not ranked.", err=True)
    boards = [score_field(field, catalogue) for field in fields_of(ranked, catalogue)]
    if as_json:
        typer.echo(json_text([board_data(item) for item in boards]), nl=False)
    elif boards:
        typer.echo("\n\n".join(task_text(item) for item in boards))
    elif not left_out:
        typer.echo("No records here yet. `selfbench run --suite quick` makes some.")
