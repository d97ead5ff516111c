"""The decorators that register methods and tasks: they mark a class, and their signatures say what may be declared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

from ..errors import SelfbenchError

Kind = Literal["method", "task"]
PROTOCOLS = ("stream", "adaptation", "policy")
_Class = TypeVar("_Class", bound=type)


class RegistryError(SelfbenchError):
    """A registration that cannot be read, or one name registered twice."""


def register_method(
    name: str,
    *,
    family: str,
    protocol: str,
    paper: str,
    needs: tuple[str, ...] = (),
    frozen: tuple[str, ...] = (),
    outputs: tuple[str, ...] = ("classes",),
    own_judge: bool = False,
    version: str = "1",
) -> Callable[[_Class], _Class]:
    """Register a method class. All arguments must be literals.

    `family` is the idea it belongs to, `paper` its source (`arXiv:...`, a DOI, or `-`), `needs` what it asks of a
    task (see docs/architecture.md), `frozen` the passes of the unchanged source model that it takes from
    `Source.frozen` ("source" or "batch" statistics, and "source-features" or "batch-features" beside them for what
    `with_features` gives), `outputs` the kinds of model outputs that it works on (`OUTPUTS`), `own_judge` that its own
    policy's verdicts reward it, for which it asks `view.gate`: boards mark it where the task has no gate (tag
    `judge-gate`); raise `version` whenever its results change.
    """
    return mark("method", name, {"family": family, "protocol": protocol, "paper": paper, "needs": needs,
                                  "frozen": frozen, "outputs": outputs, "own_judge": own_judge,
                                  "version": version})  # fmt: skip


def register_task(
    name: str,
    *,
    protocol: str,
    version: str,
    metric: str,
    title: str,
    budget: Mapping[str, Any],
    data: tuple[str, ...],
    grants: tuple[str, ...] = (),
    tags: tuple[str, ...] = (),
    selection: str = "last",
    bundle: str | None = None,
    preset: str = "",
    outputs: str = "classes",
    references: Mapping[str, Any] | None = None,
    variants: Mapping[str, Mapping[str, Any]] | None = None,
    source: Mapping[str, Any] | None = None,
    decoded: Mapping[str, Any] | None = None,
    folds: int = 0,
) -> Callable[[_Class], _Class]:
    """Register a task class. All arguments must be literals.

    `metric` names the primary one, `budget` is the standard budget of a run (fields of `Budget`), `data` the data
    sets it needs, `grants` what it offers to methods, `selection` its standard rule, `bundle` the name of the bundle
    that it shares with other tasks of its file, `preset` the published hyper-parameters that methods use on it where
    they have them (`presets` of the method; those of `a` where it has none for `a/b`), `outputs` what its model returns
    (`OUTPUTS`); any change of the protocol raises `version`, and the board never mixes versions. Of the `tags`, boards
    read `judge-gate` (a judge's verdicts count only after it has beaten a heuristic) and `pairs` (test examples are
    scored two by two, which halves the items of the smallest detectable gap).

    `references` draws the task's page a plot beside known values: `family` and `panel` name the tasks that belong into
    one plot, `axis` and `at` what sets them apart and this one's place on it, `metric` what is measured, and `curves`
    maps names to the points (x, value) of what is known; one task of a panel gives them.

    `variants` are further tasks on the same data: name -> the arguments that differ, such as the title, and under `set`
    the class attributes that do. They share the bundle unless they name one.

    `source` says that the source's own images lie apart from the bundle, made by `build_source` and `build_posterior`
    and only for methods that need them (`source-unlabeled`, `source-data`, `source-posterior`); all others run without
    its data sets. Its `data` are all that these two stand on, the weights included; its `bundle` is the name that tasks
    of one file share where both come out the same. None: whatever the task grants lies in its bundle.

    `decoded` says that examples are made of files by `decoded(public, indices)` of the class, and would be kept decoded
    (`suite/prepare/decoded.py`): how many `pictures` there are as published, their `shape` as arrays, and their `dtype`
    where it is not "uint8".

    `folds` is the number of published folds where the seeds, from 0, stand for these and there are no others (`fold_of`
    in `suite/seed_ranges.py`); 0: any seed is one of the task's.
    """
    options = {"protocol": protocol, "version": version, "metric": metric, "title": title, "budget": dict(budget),
               "data": data, "grants": grants, "tags": tags, "selection": selection, "bundle": bundle,
               "preset": preset, "outputs": outputs, "references": references, "source": source,
               "decoded": decoded, "folds": folds}  # fmt: skip
    return mark("task", name, options)


def mark(kind: Kind, name: str, options: dict[str, Any]) -> Callable[[_Class], _Class]:
    """Write on the class what it is; raises `RegistryError` for what its protocol does not have."""
    if options["protocol"] not in PROTOCOLS:
        raise RegistryError(
            f"{kind} '{name}': unknown protocol '{options['protocol']}'; it must be one of {PROTOCOLS}."
        )

    def decorate(cls: _Class) -> _Class:
        cls.__selfbench__ = {"kind": kind, "name": name, **options}  # type: ignore[attr-defined]
        if kind == "task" and options["protocol"] == "policy":
            _check_grants(name, cls, options["grants"])
        return cls

    return decorate


def _check_grants(name: str, cls: type, declared: Sequence[str]) -> None:
    """A policy task declares the needs that it gives objects for, and no others."""
    from ..protocols.policy_grants import mismatch

    wrong = mismatch(cls().grants(), declared)
    if wrong:
        raise RegistryError(f"Task '{name}' {wrong}")
