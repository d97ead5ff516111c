"""Presets of streams: those that tasks name exist, and what methods cost with them fits into the tasks' budgets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from selfbench.suite import registry
from selfbench.suite.registry import Entry
from selfbench.suite.suites import misfit

from .conftest import STREAM_PLAN
from .test_streams import METHODS, make


def entry_of(method: str) -> Entry:
    return registry.get("method", method)


TASKS = {
    name: entry
    for name, entry in registry.entries("task").items()
    if entry.protocol == "stream" and registry.PACKAGE in entry.file.parents
}
IMAGES = {
    "imagenet-c-5k-vit-imbalanced": 150_000, "imagenet-c-5k-resnet50-gn-imbalanced": 150_000,
    "imagenet-c-50k-vit-imbalanced": 1_500_000, "imagenet-c-50k-resnet50-gn-imbalanced": 1_500_000,
    "imagenet-c-5k-recurring": 750_000, "imagenet-c-5k-gradual": 675_000, "imagenet-c-5k-": 75_000,
    "imagenet-c-50k-": 750_000, "imagenet-3dcc-": 60_000, "imagenet-r-": 30_000, "imagenet-a-": 7_500,
    "ccc-": 100_000, "domainnet-126-": 72_712, "pacs-": 8_321, "vlcs-": 7_353,
    "cifar10-c-recurring": 1_500_000, "cifar10-c-gradual": 1_350_000, "cifar10-c-": 150_000,
    "cifar100-c-recurring": 1_500_000, "cifar100-c-gradual": 1_350_000, "cifar100-c-": 150_000,
    "cifar10-jpeg-c-bs1": 3_000, "cifar10-jpeg-c-gn-bs1": 3_000, "cifar10-jpeg-c-gradual": 27_000,
    "cifar10-jpeg-c-long": 300_000, "cifar10-jpeg-c-": 30_000, "digits-c-": 13_515,
}  # fmt: skip
"""Images of each stream by the beginning of its name; DomainNet-126 as AdaContrast's lists count them."""
BATCH = {"cifar10-c-": 200, "cifar100-c-": 200, "imagenet-": 64, "ccc-": 64, "digits-c-": 64}
"""Images of a batch, of tasks whose class does not say it as `batch_size`."""
PER_IMAGE: dict[str, Callable[[dict[str, Any], float], float]] = {
    "adacontrast": lambda p, b: 7,
    "cmf": lambda p, b: 6,
    "cotta": lambda p, b: 4 + p["views"],
    "deyo": lambda p, b: 4,
    "eata": lambda p, b: 3,
    "eta": lambda p, b: 3,
    "fst": lambda p, b: 4 * (p["ahead"] + 1),
    "lame": lambda p, b: 1,
    "memo": lambda p, b: 3 * p["views"] * p["steps"] + 1,
    "norm": lambda p, b: 1,
    "note": lambda p, b: 4,
    "petal": lambda p, b: 4 + p["views"],
    "pseudo-label-stream": lambda p, b: 3,
    "rdumb": lambda p, b: 3,
    "rmt": lambda p, b: 7,
    "rmt-replay": lambda p, b: 7 + 3 * p["source_batch"] / b,
    "roid": lambda p, b: 6,
    "rotta": lambda p, b: 5,
    "sar": lambda p, b: 6,
    "source": lambda p, b: 1,
    "tent": lambda p, b: 3 * p["steps"],
    "vida": lambda p, b: 4 + p["views"],
    "vida-pretrained": lambda p, b: 4 + p["views"],
    "visual-prompt": lambda p, b: 4,
}
"""Passes of an image at most, from hyper-parameters and batch size, as docstrings have it."""
BEFORE: dict[str, Callable[[dict[str, Any], int], float]] = {
    "eata": lambda p, n: 3 * min(p["fisher_images"], n),
    "note": lambda p, n: 384 * p["source_steps"],
    "rmt-replay": lambda p, n: min(n, 100_000) + 4 * p["warmup_images"],
    "vida-pretrained": lambda p, n: 3 * p["pretrain_steps"] * p["source_batch"],
}
"""Passes before the stream, from hyper-parameters and the number of source images."""
PAIRS = [(task, method) for task in TASKS for method in METHODS if not misfit(entry_of(method), TASKS[task])]
UNTIL_THE_BUDGET_ENDS = {("digits-c-continual", "memo"), ("digits-c-mixed", "memo")}
"""These tasks grant 50 passes an image and say so; MEMO, with 97, adapts on half of the stream."""


def of_task(table: dict[str, int], task: str) -> int:
    return next(value for begin, value in table.items() if task.startswith(begin))


@pytest.mark.parametrize("name", METHODS)
def test_no_method_costs_more_than_said(stream: Callable[..., Any], name: str) -> None:
    method = make(name)
    params, batch = vars(make(name)), 40 / (len(STREAM_PLAN["cuts"]) - 1)
    counted = stream(method).counts.passes
    said = 40 * PER_IMAGE[name](params, batch) + BEFORE.get(name, lambda p, n: 0)(params, 60)
    assert counted <= said
    assert counted > 0.3 * said, "what is said is near what is counted"


@pytest.mark.parametrize("task", TASKS)
def test_a_preset_that_a_stream_names_is_one_of_every_method_that_has_presets(task: str) -> None:
    """Without it a method would silently run with its defaults, which are those of CIFAR-10."""
    name = TASKS[task].options["preset"]
    wider = [name[:end] for end in range(len(name), 0, -1) if end == len(name) or name[end] == "/"]
    without = [
        method for where, method in PAIRS
        if where == task and entry_of(method).presets and not set(wider) & set(entry_of(method).presets)
    ]  # fmt: skip
    assert not (name and without), f"{task} names '{name}', which these have not: {without}"


@pytest.mark.parametrize("task", TASKS)
def test_the_budget_holds_every_method_with_its_preset(task: str) -> None:
    options, cls = TASKS[task].options, TASKS[task].load()
    images, limit = of_task(IMAGES, task), options["budget"]["limit"]
    batch = getattr(cls, "batch_size", None) or of_task(BATCH, task)
    source = 2000 if task.startswith(("cifar10-jpeg-c", "digits-c")) else 100_000
    costs = {}
    for method in [name for where, name in PAIRS if where == task and (task, name) not in UNTIL_THE_BUDGET_ENDS]:
        params = entry_of(method).params(preset=options["preset"])
        # Batches that are short at the end of a domain make a few more of them.
        before = BEFORE.get(method, lambda p, n: 0)(params, source)
        costs[method] = PER_IMAGE[method](params, 0.98 * batch) * images + before
    assert {method: cost for method, cost in costs.items() if cost > limit} == {}
    assert limit <= 2.8 * max(costs.values()), "nor is it so large that it bounds nothing"


def test_values_of_single_images() -> None:
    """`BN.ALPHA` 0.1 of mariodoebler/test-time-adaptation, and source batches as large as those of the stream."""
    for task in ("cifar10-jpeg-c-bs1", "imagenet-c-5k-reset-bs1", "imagenet-c-50k-reset-bs1"):
        preset = TASKS[task].options["preset"]
        assert entry_of("norm").params(preset=preset) == {"source_weight": 0.9}
        replay = entry_of("rmt-replay")
        assert replay.params(preset=preset) == replay.params(preset=preset.partition("/")[0]) | {"source_batch": 1}
        assert entry_of("memo").params(preset=preset) == entry_of("memo").params(preset=preset.partition("/")[0])
    assert entry_of("norm").params(preset="cifar10") == entry_of("norm").params() == {"source_weight": 0.0}
