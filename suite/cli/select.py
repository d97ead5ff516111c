"""From the options of a verb to the specs they mean."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UsageError
from .options import BudgetFields, Methods, Params, Seeds, Selection, SuiteName, Tasks

if TYPE_CHECKING:
    from ..spec import RunSpec


def parse_seeds(text: str) -> list[int]:
    """`"0"`, `"0,1,2"` or `"0-4"` to a list of seeds without repetitions."""
    seeds: list[int] = []
    try:
        for part in text.split(","):
            first, dash, last = part.partition("-")
            seeds += range(int(first), int(last) + 1) if dash else [int(first)]
    except ValueError:
        raise UsageError(f"Seeds are numbers from 0, such as 0 or 0,1,2 or 0-9; got '{text}'.") from None
    return list(dict.fromkeys(seeds))


def choose_device(name: str) -> str:
    """`auto` to the GPU where there is one, else the CPU; asks the driver only where there is a driver."""
    if name in ("cpu", "cuda"):
        has_gpu = name == "cuda" and _has_gpu()
        if name == "cuda" and not has_gpu:
            raise UsageError("There is no CUDA device here; run with --device cpu.")
        return name
    if name != "auto":
        raise UsageError(f"--device is auto, cpu or cuda; got '{name}'.")
    return "cuda" if _has_gpu() else "cpu"


def _has_gpu() -> bool:
    if not (Path("/proc/driver/nvidia").exists() or shutil.which("nvidia-smi")):
        return False
    import torch

    return torch.cuda.is_available()


def gather(
    suite: SuiteName,
    tasks: Tasks,
    methods: Methods,
    seeds: Seeds,
    *,
    params: Params = None,
    budget: BudgetFields = None,
    selection: Selection = None,
    device: str = "cpu",
    precision: str = "fp32",
    threads: int = 1,
    generation: str = "native",
) -> list[RunSpec]:
    """The runs that are meant: a suite (narrowed by -t, -m, -s), or every given method on every given task."""
    from ..command import parse_assignments
    from ..generation import NATIVE, unfit
    from ..registry import get
    from ..suites import Settings, expand, load_suite

    settings = Settings(device, precision, threads, generation)
    if suite is not None:
        if params or budget or selection:
            raise UsageError("-p, --budget and --selection go with -t and -m; a suite fixes them in its file.")
        specs: list[RunSpec] = list(load_suite(suite, settings).specs)
        chosen_seeds = parse_seeds(seeds) if seeds else None
        chosen = [
            spec
            for spec in specs
            if (not tasks or spec.task.name in tasks)
            and (not methods or spec.method.name in methods)
            and (chosen_seeds is None or spec.seed in chosen_seeds)
        ]
        if not chosen:
            raise UsageError(f"Suite '{suite}' has no run with these tasks, methods and seeds; see `selfbench plan`.")
        for spec in chosen:
            if generation != NATIVE and (reason := unfit(get("task", spec.task.name), generation)):
                raise UsageError(f"suite '{suite}': {reason} `-t` names the tasks of a suite that are to be run.")
        return chosen
    if not tasks or not methods:
        raise UsageError("Say what to run: --suite NAME, or -t TASK -m METHOD. `selfbench list suites` shows suites.")
    return expand(
        tasks=tasks,
        methods=[{"name": name, "params": parse_assignments(params or [], "-p")} for name in methods],
        seeds=parse_seeds(seeds or "0"),
        settings=settings,
        budget=parse_assignments(budget or [], "--budget"),
        selection=selection,
    )
