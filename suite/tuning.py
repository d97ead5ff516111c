"""Tuning: equal numbers of draws for every method, and which draw wins. Nothing here runs or prints.

The model is DomainBed (Gulrajani and Lopez-Paz 2021, arXiv:2007.01434): search ranges are code beside the method, and
what chooses between draws is a selection rule with a name. Draw 0 has the method's own parameters (the preset of the
task where there is one). Every other value comes from a counter-based stream of its own, so that more draws, another
method or another hyper-parameter changes nothing that was drawn before.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from .errors import UsageError, did_you_mean
from .metrics import METRICS
from .needs import missing_needs
from .record import Record
from .registry import Entry, RegistryError
from .registry.entry import Hyper
from .seed_ranges import fold_of
from .seeds import rng
from .selection import RULES, Rule, chosen_point
from .spec import RunSpec
from .suites import Settings, make_spec, misfit

DIGITS = 4
"""Significant digits of a drawn float, so that a value can be read, typed and compared."""


@dataclass(frozen=True)
class Draw:
    """One setting of a method, with a run for each seed; number 0 has the standard parameters."""

    number: int
    params: Mapping[str, Any]
    specs: tuple[RunSpec, ...]


@dataclass(frozen=True)
class Search:
    """The draws of one method on one task. `drawn` names the hyper-parameters that differ between draws."""

    task: Entry
    method: Entry
    rule: Rule
    seeds: tuple[int, ...]
    search_seed: int
    drawn: tuple[str, ...]
    draws: tuple[Draw, ...]

    @property
    def better(self) -> str:
        """`lower` or `higher`: the direction of the rule's score."""
        return METRICS[str(self.task.options["metric"])].better if self.rule.better == "metric" else self.rule.better

    @property
    def fold(self) -> int | None:
        """The fold of the data that all seeds stand for; None where seeds are no folds."""
        folds = self.task.options["folds"]
        return fold_of(self.seeds[0], folds) if folds else None

    @property
    def text(self) -> str:
        """How the winner was found, to be told with every result of its parameters."""
        seeds = f"seed{'s' if len(self.seeds) > 1 else ''} {', '.join(map(str, self.seeds))}"
        seeds += f" (fold {self.fold})" if self.fold is not None else ""
        draws = f"{len(self.draws)} draw{'s' if len(self.draws) > 1 else ''}"
        other = f", search seed {self.search_seed}" if self.search_seed else ""
        return f"tuned with {draws} on {seeds} by rule {self.rule.name}{other}"


class Trial(NamedTuple):
    """What came of a draw: the records of its runs (None where there is none) and the rule's scores of the good ones.

    `score` is their mean, and None unless every run of the draw finished well.
    """

    draw: Draw
    records: tuple[Record | None, ...]
    score: float | None


def tuning_rule(name: str) -> Rule:
    """The selection rule `name`; raises `UsageError` for one that cannot compare draws without test labels."""
    usable = [rule.name for rule in RULES.values() if rule.by not in (None, "test")]
    remedy = f"Choose another with --selection: {', '.join(usable)}."
    if name not in RULES:
        raise UsageError(f"There is no selection rule '{name}'.{did_you_mean(name, usable)} {remedy}")
    rule = RULES[name]
    if rule.by is None:
        raise UsageError(
            f"The rule '{name}' takes a point by its place and not by a score, so that only test labels could tell one "
            f"draw from another. {remedy}"
        )
    if rule.by == "test":
        raise UsageError(f"The rule '{name}' reads test labels; parameters chosen by them prove nothing. {remedy}")
    return rule


def draw_value(item: Hyper, generator: np.random.Generator) -> Any:
    """A value within the bounds of `item`; its default where it has no range.

    Floats are uniform in [low, high], on a log scale where the range is, and rounded to `DIGITS` significant digits.
    Integers are uniform in {low, ..., high}; on a log scale k has the share log((k + 1) / k) of log((high + 1) / low).
    Booleans and choices are uniform.
    """
    if not has_range(item):
        return item.default
    if item.choices is not None:
        return item.choices[int(generator.integers(len(item.choices)))]
    if isinstance(item.default, bool):
        return bool(generator.integers(2))
    assert item.low is not None
    assert item.high is not None
    if item.log and item.low <= 0:
        raise RegistryError(f"'{item.name}' is drawn on a log scale, so that its low must be above 0, not {item.low}.")
    if isinstance(item.default, int):
        low, high = math.ceil(item.low), math.floor(item.high)
        if not item.log:
            return int(generator.integers(low, high + 1))
        return min(int(math.exp(generator.uniform(math.log(low), math.log(high + 1)))), high)
    if item.log:
        value = math.exp(generator.uniform(math.log(item.low), math.log(item.high)))
    else:
        value = generator.uniform(item.low, item.high)
    return min(max(float(f"{value:.{DIGITS}g}"), float(item.low)), float(item.high))


def has_range(item: Hyper) -> bool:
    """Whether tuning draws this hyper-parameter: it has choices, is a boolean, or is a number bounded on both sides."""
    if item.choices is not None or isinstance(item.default, bool):
        return True
    return isinstance(item.default, (int, float)) and item.low is not None and item.high is not None


def possible(item: Hyper, offers: Collection[str]) -> Hyper:
    """`item` without what asks for more than a task `offers`: choices are left out, another range is closed."""
    if isinstance(item.asks, Mapping):
        kept = (choice for choice in item.choices or () if not missing_needs(item.asks.get(choice, ()), offers))
        return replace(item, choices=tuple(kept))
    return replace(item, low=None, high=None) if missing_needs(item.asks, offers) else item


def offers_of(task: Entry) -> tuple[str, ...]:
    """What values of hyper-parameters may ask of `task`: all that it grants, and the kind of its outputs."""
    return (*task.options["grants"], task.options["outputs"])


def draw_params(
    method: Entry,
    number: int,
    search_seed: int,
    fixed: Mapping[str, Any],
    preset: str,
    offers: Collection[str],
) -> dict[str, Any]:
    """All hyper-parameters of draw `number`: `fixed` ones are never drawn, draw 0 is not drawn at all.

    `offers` are those of the task (`offers_of`): what it cannot give keeps its standard value.
    """
    params = method.params(fixed, preset)
    if number == 0:
        return params
    for item in drawable(method, fixed, offers):
        params[item.name] = draw_value(item, rng(search_seed, "tune", method.name, number, item.name))
    return params


def drawable(method: Entry, fixed: Collection[str], offers: Collection[str]) -> list[Hyper]:
    """The hyper-parameters that draws differ in, with the values that are possible on a task that `offers` these."""
    items = (possible(item, offers) for item in method.hypers if item.name not in fixed)
    return [item for item in items if has_range(item)]


def plan_search(
    task: Entry,
    method: Entry,
    *,
    draws: int,
    seeds: Sequence[int],
    rule: Rule,
    search_seed: int = 0,
    fixed: Mapping[str, Any] | None = None,
    settings: Settings = Settings(),
    budget: Mapping[str, Any] | None = None,
) -> Search:
    """The search of one method on one task; raises `UsageError` where the two do not fit or nothing can choose."""
    if task.protocol == "stream":
        raise UsageError(
            f"tune: task '{task.name}' is a stream: all its labels are test labels, and nothing else could choose "
            "between draws. The presets of its methods are the published values."
        )
    if reason := misfit(method, task):
        raise UsageError(f"tune: {reason}")
    folds = task.options["folds"]
    if folds and len({fold_of(seed, folds) for seed in seeds}) > 1:
        alike = ",".join(str(seeds[0] + folds * more) for more in range(3))
        raise UsageError(
            f"tune: the seeds of task '{task.name}' are folds of its data, and the test examples of one fold are "
            f"training or validation examples of the others. Tune each fold by itself, on seeds {folds} apart: "
            f"-s {seeds[0]}, or -s {alike}."
        )
    held, offers = dict(fixed or {}), offers_of(task)
    planned = []
    for number in range(draws):
        params = draw_params(method, number, search_seed, held, task.options["preset"], offers)
        specs = [make_spec(task, method, params, seed, settings, budget, rule.name, "tune") for seed in seeds]
        planned.append(Draw(number, params, tuple(specs)))
    drawn = tuple(item.name for item in drawable(method, held, offers))
    return Search(task, method, rule, tuple(seeds), search_seed, drawn, tuple(planned))


def runs_of(searches: Sequence[Search]) -> list[RunSpec]:
    """Every run of the searches once, draw by draw, so that an interrupted search has treated all methods alike."""
    ordered = sorted(
        ((draw.number, at, spec) for at, search in enumerate(searches) for draw in search.draws for spec in draw.specs),
        key=lambda item: item[:2],
    )
    return list({spec.run_id: spec for _, _, spec in ordered}.values())


def rule_score(record: Record, rule: Rule) -> float:
    """The rule's own score of the point that it selected in this run: never the test score.

    Raises `ValueError` when a point of the curve lacks the score.
    """
    points = [point.values for point in record.curve]
    return points[chosen_point(rule.name, record.primary, points)][rule.by or ""]


def judge(search: Search, read: Callable[[RunSpec], Record | None]) -> list[Trial]:
    """Every draw with its records as `read` finds them, and its score."""
    trials = []
    for draw in search.draws:
        found = tuple(map(read, draw.specs))
        scores = [rule_score(record, search.rule) for record in found if record is not None and record.status == "ok"]
        score = float(np.mean(scores)) if len(scores) == len(found) else None
        trials.append(Trial(draw, found, score))
    return trials


def winner(search: Search, trials: Sequence[Trial]) -> Trial | None:
    """The draw with the best score, the earlier of equal ones.

    None while a run has no record, for the draws of all methods must be equal in number, and when no draw finished
    well.
    """
    if any(record is None for trial in trials for record in trial.records):
        return None
    sign = 1.0 if search.better == "higher" else -1.0
    scored = [(sign * trial.score, trial) for trial in trials if trial.score is not None]
    return max(scored, key=lambda item: item[0])[1] if scored else None


def toml_params(params: Mapping[str, Any]) -> str:
    """`{ lr = 0.1, optimizer = "sgd" }`, ready for `params = ...` in a suite file; TOML writes scalars as JSON does."""
    return f"{{ {', '.join(f'{name} = {json.dumps(value)}' for name, value in params.items())} }}" if params else "{}"


def toml_pair(
    task: str,
    methods: Mapping[str, Mapping[str, Any]],
    rule: str,
    budget: Mapping[str, Any],
    fold: int | None = None,
) -> str:
    """A [[pairs]] table of a suite file: `methods` with their tuned parameters on `task`, or on one `fold` of it."""
    lines = [] if fold is None else [f"# For seeds = [{fold}] alone: the choice has seen test examples of other folds."]
    lines += ["[[pairs]]", f"tasks = [{json.dumps(task)}]", "methods = ["]
    lines += [f"  {{ name = {json.dumps(name)}, params = {toml_params(params)} }}," for name, params in methods.items()]
    lines += ["]", f"selection = {json.dumps(rule)}"]
    return "\n".join(lines + ([f"budget = {toml_params(budget)}"] if budget else []))
