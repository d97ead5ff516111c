"""Suites: named matrices of tasks, methods and seeds, resolved to the specs of their runs.

name = "quick"
title = "Quick"
description = "..."
seeds = [0, 1, 2]

[[pairs]]                       # every listed method on every listed task it fits
tasks = ["digits-c-continual"]
methods = ["source", "tent", { name = "pseudo-label", params = { threshold = 0.0 } }]
budget = { limit = 1000 }       # optional: fields over the task's standard budget
selection = "last"              # optional: another rule than the task's
precision = "auto"              # optional: unless another one than fp32 is asked for; auto: bf16 where it is native
generation = "vllm"             # optional: what a policy's samples come from
"""

from __future__ import annotations

import dataclasses
import itertools
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import registry
from .errors import UsageError, did_you_mean
from .generation import NATIVE, unfit
from .native import AUTO, native_precision
from .needs import missing_needs
from .registry import Entry
from .seed_ranges import TUNING_SEEDS_FROM, fold_of

FOLDER = Path(__file__).resolve().parent / "suites"
_KEYS = {"name", "title", "description", "seeds", "pairs"}
_PAIR_KEYS = {"tasks", "methods", "budget", "selection", "precision", "generation"}


@dataclass(frozen=True)
class Settings:
    """How runs are executed, as far as it is part of their identity."""

    device: str = "cpu"
    precision: str = "fp32"
    threads: int = 1
    generation: str = NATIVE


@dataclass(frozen=True)
class Suite:
    name: str
    title: str
    description: str
    seeds: tuple[int, ...]
    specs: tuple[Any, ...]
    """The `RunSpec` of every run, ordered by task, seed, method as listed."""


def suite_names() -> list[str]:
    """The suites that come with the package; the one that everybody runs first is first."""
    return sorted((path.stem for path in FOLDER.glob("*.toml")), key=lambda name: (name != "quick", name))


def load_suite(name: str | Path, settings: Settings = Settings()) -> Suite:
    """The suite called `name`, or the one in the TOML file `name`; raises `UsageError` on anything amiss."""
    path, table = read_suite(name)
    _expect_keys(table, _KEYS, f"{path}")
    seeds = table.get("seeds")
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise UsageError(f"{path}: 'seeds' must be a list of integers from 0, such as [0, 1, 2].")
    if max(seeds) >= TUNING_SEEDS_FROM:
        raise UsageError(
            f"{path}: seed {max(seeds)} belongs to tuning, as do all from {TUNING_SEEDS_FROM} on; take a smaller one."
        )
    if len(set(seeds)) != len(seeds):
        raise UsageError(f"{path}: 'seeds' names one seed twice.")
    pairs = table.get("pairs")
    if not isinstance(pairs, list) or not pairs:
        raise UsageError(f"{path}: there is no [[pairs]] table with 'tasks' and 'methods'.")
    specs: dict[str, Any] = {}
    for number, pair in enumerate(pairs, start=1):
        where = f"{path}, pairs {number}"
        _expect_keys(pair, _PAIR_KEYS, where)
        for task in _list(pair, "tasks", where):
            for spec in expand(
                tasks=[str(task)],
                methods=_list(pair, "methods", where),
                seeds=seeds,
                settings=_preferred(settings, pair, registry.get("task", str(task))),
                budget=_table(pair, "budget", where),
                selection=str(pair["selection"]) if "selection" in pair else None,
                where=where,
            ):
                specs.setdefault(spec.run_id, spec)
    return Suite(
        name=str(table.get("name", path.stem)),
        title=str(table.get("title", path.stem)),
        description=str(table.get("description", "")),
        seeds=tuple(seeds),
        specs=tuple(specs.values()),
    )


def _preferred(settings: Settings, pair: Mapping[str, Any], task: Entry) -> Settings:
    """`settings` with a pair's own precision and generation, where nobody asked for others than the standard ones.

    A generation that was asked for the whole suite leaves out the tasks that it does not fit.
    """
    precision, generation = settings.precision, settings.generation
    if precision == Settings.precision:
        precision = str(pair.get("precision", precision))
    if generation == NATIVE:
        generation = str(pair.get("generation", generation))
    elif unfit(task, generation):
        generation = NATIVE
    return dataclasses.replace(settings, precision=precision, generation=generation)


def read_suite(name: str | Path) -> tuple[Path, dict[str, Any]]:
    """The file of a suite and its parsed table."""
    text = str(name)
    path = Path(text) if text.endswith(".toml") else FOLDER / f"{text}.toml"
    try:
        return path, tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        names = suite_names()
        raise UsageError(
            f"There is no suite '{text}'.{did_you_mean(text, names)} The suites are: {', '.join(names)}; "
            "or give the path of a .toml file."
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}.") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from None


def expand(
    *,
    tasks: Iterable[str],
    methods: Iterable[str | Mapping[str, Any]],
    seeds: Iterable[int],
    settings: Settings = Settings(),
    budget: Mapping[str, Any] | None = None,
    selection: str | None = None,
    where: str = "run",
) -> list[Any]:
    """The specs of every method on every task, for every seed; a pair that does not fit is an error that says why."""
    chosen_tasks = [registry.get("task", name) for name in tasks]
    chosen_methods = [_method(item, where) for item in methods]
    for task, (method, _) in itertools.product(chosen_tasks, chosen_methods):
        reason = misfit(method, task)
        if reason:
            raise UsageError(f"{where}: {reason} {_instead(method)}")
    return [
        make_spec(task, method, params, seed, settings, budget, selection, where)
        for task in chosen_tasks
        for seed in seeds
        for method, params in chosen_methods
    ]


_NAMED = 4
"""How many tasks are named in place of one that does not fit."""


def _instead(method: Entry) -> str:
    """On which tasks `method` can run."""
    fits = [task.name for task in registry.entries("task").values() if not misfit(method, task)]
    if not fits:
        return "No task grants all that it needs: `selfbench new task NAME` begins one."
    more = f" and {len(fits) - _NAMED} more" if len(fits) > _NAMED else ""
    return f"It runs on {', '.join(fits[:_NAMED])}{more}."


def misfit(method: Entry, task: Entry) -> str:
    """Why `method` cannot run on `task`, or an empty string."""
    if method.protocol != task.protocol:
        return (
            f"method '{method.name}' follows the protocol {method.protocol}, "
            f"task '{task.name}' the protocol {task.protocol}."
        )
    lacking = missing_needs(method.options["needs"], task.options["grants"])
    if lacking:
        return f"method '{method.name}' needs {', '.join(lacking)}, which task '{task.name}' does not grant."
    if method.protocol == "adaptation" and task.options["outputs"] not in method.options["outputs"]:
        return (
            f"method '{method.name}' works on models that return {' or '.join(method.options['outputs'])}, "
            f"that of task '{task.name}' returns {task.options['outputs']}."
        )
    return ""


def make_spec(
    task: Entry,
    method: Entry,
    params: Mapping[str, Any],
    seed: int,
    settings: Settings = Settings(),
    budget: Mapping[str, Any] | None = None,
    selection: str | None = None,
    where: str = "run",
) -> Any:
    """The resolved `RunSpec` of one run."""
    from pydantic import ValidationError

    from .selection import RULES
    from .spec import Budget, MethodRef, RunSpec, TaskRef

    rule = selection or task.options["selection"]
    if rule not in RULES:
        raise UsageError(
            f"{where}: there is no selection rule '{rule}'.{did_you_mean(rule, RULES)} "
            f"The rules are: {', '.join(RULES)}."
        )
    if task.protocol == "stream" and rule != "last":
        raise UsageError(
            f"{where}: a stream has one prediction of each image and nothing to select; leave out '{rule}'."
        )
    if task.protocol == "policy" and RULES[rule].by not in (None, "test"):
        raise UsageError(
            f"{where}: a policy has no scores but those of its test, and selection '{rule}' takes none of these; type "
            "--selection last."
        )
    if RULES[rule].label_free and task.options["outputs"] != "classes":
        raise UsageError(
            f"{where}: selection '{rule}' looks at probabilities of classes, and the model of task '{task.name}' "
            f"returns {task.options['outputs']}; type --selection {task.options['selection']}."
        )
    folds = task.options["folds"]
    if folds and fold_of(seed, folds) is None:
        raise UsageError(
            f"{where}: the seeds of task '{task.name}' are the {folds} folds of its data, 0 to {folds - 1}; it has no "
            f"seed {seed}."
        )
    if reason := unfit(task, settings.generation):
        raise UsageError(f"{where}: {reason}")
    chosen, added = method.params(params, task.options["preset"]), method.added
    chosen = {name: value for name, value in chosen.items() if name not in added or value != added[name]}
    try:
        return RunSpec(
            task=TaskRef(name=task.name, version=task.version),
            method=MethodRef(name=method.name, version=method.version, params=chosen),
            seed=seed,
            budget=Budget.model_validate({**task.options["budget"], **(budget or {})}),
            selection=rule,
            device=settings.device,  # type: ignore[arg-type]
            precision=native_precision(settings.device) if settings.precision == AUTO else settings.precision,  # type: ignore[arg-type]
            threads=settings.threads,
            generation=settings.generation,  # type: ignore[arg-type]
        )
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "budget"
        raise UsageError(f"{where}: {field}: {first['msg']} (got {first['input']!r}).") from None


def _method(item: str | Mapping[str, Any], where: str) -> tuple[Entry, Mapping[str, Any]]:
    if isinstance(item, str):
        return registry.get("method", item), {}
    if not isinstance(item, Mapping) or not isinstance(item.get("name"), str):
        raise UsageError(f"{where}: a method is a name or a table with 'name' and 'params', got {item!r}.")
    _expect_keys(item, {"name", "params"}, where)
    return registry.get("method", item["name"]), _table(item, "params", where)


def _list(pair: Mapping[str, Any], key: str, where: str) -> list[Any]:
    value = pair.get(key)
    if not isinstance(value, list) or not value:
        raise UsageError(f"{where}: '{key}' must be a list of names.")
    return value


def _table(owner: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    value = owner.get(key, {})
    if not isinstance(value, Mapping):
        raise UsageError(f"{where}: '{key}' must be a table such as {{ name = 1 }}, got {value!r}.")
    return value


def _expect_keys(table: Any, allowed: set[str], where: str) -> None:
    if not isinstance(table, Mapping):
        raise UsageError(f"{where}: expected a table, got {table!r}.")
    for key in table:
        if key not in allowed:
            raise UsageError(f"{where}: unknown key '{key}'.{did_you_mean(key, allowed)}")
