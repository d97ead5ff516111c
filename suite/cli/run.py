"""`selfbench run` and `selfbench retry`."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import SelfbenchError
from . import options
from .select import choose_device, gather

if TYPE_CHECKING:
    from ..engine.runner import Summary
    from ..record import Record
    from ..spec import RunSpec
    from ..store import Store

INTERRUPTED = 130
"""The shell's customary exit code after Ctrl-C."""

Jobs = Annotated[int | None, typer.Option("-j", "--jobs", min=1, help="Runs at once [default: cores / threads].")]


def run(
    suite: options.SuiteName = None,
    task: options.Tasks = None,
    method: options.Methods = None,
    seeds: options.Seeds = None,
    param: options.Params = None,
    budget: options.BudgetFields = None,
    selection: options.Selection = None,
    device: options.Device = "auto",
    precision: options.Precision = "fp32",
    threads: options.Threads = 1,
    generation: options.Generation = "native",
    jobs: Jobs = None,
    results: options.Results = None,
) -> None:
    """Run what has no record yet; a failed run is a record too (see `retry`).

    It may be interrupted at any moment: the same command completes exactly the missing runs. Runs of a task that cannot
    be prepared are among these.

    \b
    Examples:
      selfbench run --suite quick
      selfbench run --suite quick -m tent -s 0
      selfbench run -m tent -t digits-c-continual -s 0-4 -p lr=0.003
      selfbench run -m fixmatch -t digits-semi --device cuda --precision bf16
      selfbench run -m rest-em -t addition-smol --precision auto --generation vllm
    """
    from ..places import results_folder
    from ..store import Store

    specs = gather(
        suite, task, method, seeds, params=param, budget=budget, selection=selection,
        device=choose_device(device), precision=precision, threads=threads, generation=generation,
    )  # fmt: skip
    _execute(specs, Store(results_folder(results)), jobs, replace=False, suite=suite)


def retry(
    suite: options.SuiteName = None,
    task: options.Tasks = None,
    method: options.Methods = None,
    seeds: options.Seeds = None,
    device: options.Device = "auto",
    precision: options.Precision = "fp32",
    threads: options.Threads = 1,
    generation: options.Generation = "native",
    jobs: Jobs = None,
    results: options.Results = None,
) -> None:
    """Run failed, timed-out and out-of-memory runs again; each new record says which attempt it is.

    \b
    Examples:
      selfbench retry --suite quick
      selfbench retry -t digits-semi -m fixmatch -s 0-2
    """
    from ..places import results_folder
    from ..plan import states
    from ..store import Store

    specs = gather(
        suite, task, method, seeds, device=choose_device(device), precision=precision, threads=threads,
        generation=generation,
    )  # fmt: skip
    store = Store(results_folder(results))
    failed = [row.spec for row in states(specs, store) if row.state in ("failed", "timeout", "oom")]
    if not failed:
        typer.echo("No failed run among them.")
        return
    _execute(failed, store, jobs, replace=True, suite=suite)


def _execute(specs: list[RunSpec], store: Store, jobs: int | None, *, replace: bool, suite: str | None) -> None:
    from ..engine.runner import missing

    store.check_writable()
    todo = specs if replace else missing(specs, store)
    if not todo:
        typer.echo(f"All {len(specs)} runs have their records in {store.root}.", err=True)
        _tell_failures(specs, store)
        return
    try:
        summary = run_all(specs, todo, store, jobs, replace)
    except KeyboardInterrupt:
        typer.echo("\nInterrupted. Finished runs are kept; the same command completes the rest.", err=True)
        raise typer.Exit(INTERRUPTED) from None
    for spec, reason in summary.lost:
        typer.echo(f"no new record: {spec.label}: {reason}", err=True)
    done = len(summary.finished) - len(summary.failed)
    typer.echo(
        f"{done} runs well, {len(summary.failed)} failed, {len(summary.lost)} without a new record, "
        f"{summary.skipped} were there before. Records: {store.root}",
        err=True,
    )
    if suite:
        typer.echo(f"Next: selfbench board --suite {suite} --results {store.root}", err=True)
    if not summary.all_well:
        raise typer.Exit(1)
    if not replace:
        _tell_failures(specs, store)


def run_all(
    specs: list[RunSpec],
    todo: list[RunSpec],
    store: Store,
    jobs: int | None,
    replace: bool,
    describe: Callable[[Record], str] | None = None,
) -> Summary:
    """Run `specs`, of which `todo` have no record yet, and show progress and what could not begin.

    `describe` says what came of a run.
    """
    from ..engine.local import LocalExecutor
    from ..engine.preparation import Preparation, warm_modules
    from ..engine.runner import run as run_specs
    from .progress import make_watcher, unprepared

    on_gpu = specs[0].device == "cuda"
    slots = jobs or (1 if on_gpu else max(1, (os.cpu_count() or 1) // specs[0].threads))
    with (
        make_watcher(len(specs), len(specs) - len(todo), describe) as watcher,
        LocalExecutor(slots, _gpus() if on_gpu else (), warm_modules(todo)) as executor,
    ):
        preparation = Preparation(todo, executor, store, watcher.note)
        summary = run_specs(specs, store, executor, watcher, preparation=preparation, replace=replace)
    for text in unprepared((record.spec, record.reason) for record in summary.finished if not record.started):
        typer.echo(text, err=True)
    return summary


def _tell_failures(specs: list[RunSpec], store: Store) -> None:
    """Exit 1 when a record says that its run failed."""
    from ..plan import states

    failed = [row for row in states(specs, store) if row.state != "ok"]
    for row in failed:
        typer.echo(f"{row.state}: {row.spec.label}: {row.detail}", err=True)
    if failed:
        typer.echo("`selfbench retry` runs failed ones again.", err=True)
        raise typer.Exit(1)


def _gpus() -> tuple[int, ...]:
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible:
        try:
            return tuple(int(item) for item in visible.split(","))
        except ValueError:
            raise SelfbenchError(f"CUDA_VISIBLE_DEVICES={visible}: only device numbers are supported.") from None
    return tuple(range(torch.cuda.device_count()))
