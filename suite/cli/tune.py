"""`selfbench tune`: equal numbers of draws from the registered ranges, and the best of them by a selection rule."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options
from .progress import why
from .run import INTERRUPTED, Jobs, run_all
from .select import choose_device, parse_seeds

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ..record import Record
    from ..spec import RunSpec
    from ..store import Store
    from ..tuning import Search, Trial

Draws = Annotated[int, typer.Option("-n", "--draws", min=1, help="Draws for each method, the standard one included.")]
TuningSeeds = Annotated[
    str, typer.Option("-s", "--seeds", metavar="LIST", help="Seeds of each draw, from 100; their mean score counts.")
]
Rule = Annotated[
    str | None, typer.Option("--selection", metavar="RULE", help="Whose score chooses [default: the task's rule].")
]
Fixed = Annotated[
    list[str] | None,
    typer.Option("-p", "--param", metavar="NAME=VALUE", help="A hyper-parameter to hold fixed; may be repeated."),
]
SearchSeed = Annotated[int, typer.Option("--search-seed", min=0, metavar="N", help="Another seed gives other draws.")]


def tune(
    task: options.Tasks = None,
    method: options.Methods = None,
    draws: Draws = 10,
    seeds: TuningSeeds = "100",
    selection: Rule = None,
    param: Fixed = None,
    budget: options.BudgetFields = None,
    search_seed: SearchSeed = 0,
    device: options.Device = "auto",
    precision: options.Precision = "fp32",
    threads: options.Threads = 1,
    generation: options.Generation = "native",
    jobs: Jobs = None,
    results: options.Results = None,
    no_run: Annotated[bool, typer.Option("--no-run", help="Run nothing; show the draws and their records.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run draws that failed once more.")] = False,
    show_test: Annotated[bool, typer.Option("--test", help="Show the winner's test score too.")] = False,
    as_json: options.Json = False,
) -> None:
    """Search hyper-parameters: the same number of draws, seeds and budget for every method.

    Draw 0 has the standard parameters (the task's preset where there is one), the others come from the ranges that the
    method declares. Every draw is an ordinary run with a record; the same command completes what is missing, and more
    draws or methods keep those that are there. The selection rule's own score chooses, never the test score. Seeds from
    100 belong to tuning: no suite may name them and no board ranks them.

    \b
    Examples:
      selfbench tune -t digits-semi -m fixmatch -m supervised --draws 10 --selection validation
      selfbench tune -t digits-semi -m fixmatch -n 20 -s 100-102 --selection entropy -p ratio=1
      selfbench tune -t digits-semi -m fixmatch --selection validation --no-run --json
    """
    from ..command import parse_assignments
    from ..engine.runner import missing
    from ..places import results_folder
    from ..store import Store
    from ..suites import Settings
    from ..tuning import judge, runs_of

    limits = parse_assignments(budget or [], "--budget")
    searches = _searches(
        task, method, draws, seeds, selection, search_seed, parse_assignments(param or [], "-p"), limits,
        Settings(choose_device(device), precision, threads, generation),
    )  # fmt: skip
    store = Store(results_folder(results))
    read = _reader(store)
    specs = runs_of(searches)
    lost: Sequence[tuple[RunSpec, str]] = ()
    if not no_run:
        todo = missing(specs, store)
        ran = [record for spec in specs if (record := read(spec)) is not None and record.started]
        failed = [record.spec for record in ran if record.status != "ok"] if retry_failed else []
        typer.echo(f"{len(specs)} runs, {len(todo) + len(failed)} to do. Records: {store.root}", err=True)
        lost = [*_run(specs, todo, store, jobs, searches), *_run(failed, failed, store, jobs, searches, replace=True)]
        for spec, reason in lost:
            typer.echo(f"no new record: {spec.label}: {reason}", err=True)
    judged = [(search, judge(search, read)) for search in searches]
    if as_json:
        typer.echo(json.dumps([_as_dict(search, trials, limits, show_test) for search, trials in judged], indent=1))
    else:
        _show(judged, limits, show_test)
    records = [record for _, trials in judged for trial in trials for record in trial.records]
    if lost or any(record is not None and record.status != "ok" for record in records):
        raise typer.Exit(1)


def _searches(
    tasks: Sequence[str] | None,
    methods: Sequence[str] | None,
    draws: int,
    seeds: str,
    selection: str | None,
    search_seed: int,
    fixed: Mapping[str, Any],
    budget: Mapping[str, Any],
    settings: Any,
) -> list[Search]:
    """One search for every method on every task, methods of a task together."""
    from .. import registry
    from ..errors import UsageError
    from ..seed_ranges import TUNING_SEEDS_FROM
    from ..tuning import plan_search, tuning_rule

    if not tasks or not methods:
        raise UsageError("Say what to tune: -t TASK -m METHOD. `selfbench list methods` shows methods.")
    chosen = parse_seeds(seeds)
    if not chosen or min(chosen) < TUNING_SEEDS_FROM:
        raise UsageError(
            f"Seeds below {TUNING_SEEDS_FROM} are those of suites; parameters chosen on them would look better there "
            f"than they are. Tune on seeds from {TUNING_SEEDS_FROM}, such as -s 100 or -s 100-102."
        )
    searches = []
    for name in dict.fromkeys(tasks):
        task = registry.get("task", name)
        for method in dict.fromkeys(methods):
            entry = registry.get("method", method)
            # A stream has no rule to choose by; `plan_search` says so.
            rule = tuning_rule("validation" if task.protocol == "stream" else selection or task.options["selection"])
            searches.append(
                plan_search(
                    task, entry, draws=draws, seeds=chosen, rule=rule, search_seed=search_seed, fixed=fixed,
                    settings=settings, budget=budget,
                )
            )  # fmt: skip
    return searches


def _reader(store: Store) -> Callable[[RunSpec], Record | None]:
    from ..errors import RecordError

    def read(spec: RunSpec) -> Record | None:
        try:
            return store.read(spec)
        except RecordError:
            return None

    return read


def _run(
    specs: list[RunSpec],
    todo: list[RunSpec],
    store: Store,
    jobs: int | None,
    searches: Sequence[Search],
    replace: bool = False,
) -> list[tuple[RunSpec, str]]:
    """Run what is to do; returns the runs that got no record, with the reason."""
    if not todo:
        return []
    store.check_writable()
    of_run = {spec.run_id: (search, draw.number) for search in searches for draw in search.draws for spec in draw.specs}

    def describe(record: Record) -> str:
        search, number = of_run[record.run_id]
        return f"draw {number}, {_outcome(record, search)}  {record.cost.seconds:.1f} s"

    try:
        return run_all(specs, todo, store, jobs, replace, describe).lost
    except KeyboardInterrupt:
        typer.echo("\nInterrupted. Finished runs are kept; the same command completes the rest.", err=True)
        raise typer.Exit(INTERRUPTED) from None


def _outcome(record: Record, search: Search) -> str:
    """The rule's score of one run, or why there is none; nothing of the test set."""
    from ..tuning import rule_score

    if record.status != "ok":
        return why(record)
    return f"{_score_title(search)} {_score(rule_score(record, search.rule), search)}"


def _score_title(search: Search) -> str:
    by = (search.rule.by or "").replace("_", " ")
    return f"{by} {search.task.options['metric'].replace('_', ' ')}" if search.rule.better == "metric" else by


def _score(value: float | None, search: Search) -> str:
    from ..metrics import METRICS

    if value is None:
        return "-"
    percent = search.rule.better == "metric" and METRICS[search.task.options["metric"]].percent
    return f"{100 * value:.1f} %" if percent else f"{value:.4f}"


def _show(judged: Sequence[tuple[Search, list[Trial]]], limits: Mapping[str, Any], show_test: bool) -> None:
    """A table of draws for each search, then what to do with the winners of each task."""
    from ..tuning import toml_pair, winner

    for name in dict.fromkeys(search.task.name for search, _ in judged):
        found: dict[str, Mapping[str, Any]] = {}
        of_task = [(search, trials) for search, trials in judged if search.task.name == name]
        for search, trials in of_task:
            best = winner(search, trials)
            typer.echo(f"\n{search.method.name} on {name}")
            _table(search, trials, best)
            typer.echo(_conclusion(search, trials, best))
            if best is not None:
                found[search.method.name] = best.draw.params
                typer.echo(_command(search, best))
                if show_test:
                    typer.echo(_test_text(best))
        if found:
            first = of_task[0][0]
            typer.echo(f"\nFor a suite file:\n\n{toml_pair(name, found, first.rule.name, limits, first.fold)}")


def _table(search: Search, trials: Sequence[Trial], best: Trial | None) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("draw", _score_title(search), *search.drawn):
        table.add_column(title, justify="right")
    table.add_column("")
    for trial in trials:
        values = (_plain(trial.draw.params[name]) for name in search.drawn)
        table.add_row(str(trial.draw.number), _score(trial.score, search), *values, _note(trial, trial is best))
    width = None if sys.stdout.isatty() else 1000
    Console(width=width, markup=False, highlight=False).print(table)


def _note(trial: Trial, best: bool) -> str:
    notes = ["winner"] if best else []
    notes += ["standard parameters"] if trial.draw.number == 0 else []
    gone = sum(record is None for record in trial.records)
    if gone:
        notes.append(f"{gone} to run" if len(trial.records) > 1 else "to run")
    notes += [f"{record.status}: {record.reason}" for record in trial.records if record and record.status != "ok"]
    return "; ".join(notes)


def _conclusion(search: Search, trials: Sequence[Trial], best: Trial | None) -> str:
    if best is not None:
        standard = f" (draw 0: {_score(trials[0].score, search)})" if best.draw.number else ", the standard parameters"
        score = f"{_score_title(search)} {_score(best.score, search)}"
        return f"{search.method.name}: {search.text}: draw {best.draw.number}, {score}{standard}."
    gone = sum(record is None for trial in trials for record in trial.records)
    if gone:
        return f"{search.method.name}: no winner yet, {gone} runs are missing; the same command completes them."
    return f"{search.method.name}: no winner, no draw finished well."


def _command(search: Search, best: Trial) -> str:
    """The command that runs the winner on seeds of suites, or on the one fold that it was chosen for."""
    from ..command import repeat_command

    return repeat_command(best.draw.specs[0], "0-2" if search.fold is None else str(search.fold))


def _test_text(best: Trial) -> str:
    metric, values = _test(best)
    shown = ", ".join(f"{value:.4f} (seed {seed})" for seed, value in values.items())
    return f"test {metric} of draw {best.draw.number}: {shown}; it took no part in the choice."


def _test(best: Trial) -> tuple[str, dict[int, float]]:
    """The primary metric's name and its test score for each seed."""
    found = [record for record in best.records if record is not None]
    return found[0].primary, {record.spec.seed: record.metrics[record.primary] for record in found}


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def _as_dict(search: Search, trials: Sequence[Trial], limits: Mapping[str, Any], show_test: bool) -> dict[str, Any]:
    from ..tuning import toml_pair, winner

    best = winner(search, trials)
    data: dict[str, Any] = {
        "task": search.task.name,
        "method": search.method.name,
        "tuned": search.text if best else None,
        "selection": search.rule.name,
        "score": _score_title(search),
        "better": search.better,
        "n_draws": len(search.draws),
        "seeds": list(search.seeds),
        "search_seed": search.search_seed,
        "drawn": list(search.drawn),
        "winner": None,
        "draws": [_draw_dict(trial, search) for trial in trials],
    }
    if best is not None:
        params = dict(best.draw.params)
        data["winner"] = {
            "draw": best.draw.number,
            "score": best.score,
            "params": params,
            "command": _command(search, best),
            "toml": toml_pair(search.task.name, {search.method.name: params}, search.rule.name, limits, search.fold),
        }
        if show_test:
            data["winner"]["test"] = dict([_test(best)])
    return data


def _draw_dict(trial: Trial, search: Search) -> dict[str, Any]:
    from ..tuning import rule_score

    runs = []
    for spec, record in zip(trial.draw.specs, trial.records, strict=True):
        run: dict[str, Any] = {
            "run_id": spec.run_id,
            "seed": spec.seed,
            "status": record.status if record else "missing",
        }
        if record is not None:
            run["score"] = rule_score(record, search.rule) if record.status == "ok" else None
            run["reason"] = record.reason
        runs.append(run)
    return {"draw": trial.draw.number, "score": trial.score, "params": dict(trial.draw.params), "runs": runs}
