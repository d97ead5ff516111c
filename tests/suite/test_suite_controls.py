"""Where a method runs, its controls run too: every adaptation and policy task of a suite has them, or an exception says
why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from selfbench.suite import registry
from selfbench.suite.needs import ORACLE
from selfbench.suite.protocols.adaptation import AdaptationTask
from selfbench.suite.spec import MethodRef
from selfbench.suite.suites import load_suite, suite_names

EXCEPTIONS: Mapping[tuple[str, str], tuple[set[str], str]] = {
    ("quick", "newsgroups-few"): (
        {"no view", "strong view", "unfiltered", "oracle"},
        "six minutes on two cores are all that quick may take; the same task has all controls in the suite small",
    ),
    ("quick", "digits-semi"): (
        {"unfiltered", "oracle"},
        "six minutes on two cores are all that quick may take; the same task has all controls in the suite small",
    ),
    ("quick", "reuters-r8-active"): (
        {"no view", "strong view", "unfiltered", "oracle"},
        "six minutes on two cores are all that quick may take; the same task has all controls in text-small",
    ),
    ("quick", "sentiment-domains"): (
        {"weak view", "unfiltered", "oracle"},
        "six minutes on two cores are all that quick may take; the same task has all controls in shift-small",
    ),
    ("smoke", "digits-semi"): (
        {"no view", "strong view", "unfiltered", "oracle"},
        "one seed of a tenth of the budget proves that a machine works and compares no methods",
    ),
    ("language-more", "addition-smol-forgetting"): (
        {"unfiltered", "few shots", "oracle"},
        "the problems of addition-smol, which has all controls in language-small, and a probe of what is forgotten",
    ),
    ("language-more", "judge-smol-published"): (
        {"same steps", "unfiltered", "oracle"},
        "what is asked for is its round 0, the published model, in which no method has a part; judge-smol has them all",
    ),
}
"""Suite and task -> the controls that it may lack, and why."""
SPECS = {name: load_suite(name).specs for name in suite_names()}
ALIKE: Mapping[str, str] = {
    "addition-smol-forgetting": "addition-smol", "judge-smol-published": "judge-smol",
}  # fmt: skip
"""Tasks whose controls are those of another one, on the same problems."""
TASKS = [
    pytest.param(suite, task, id=f"{suite}: {task}")
    for suite, specs in SPECS.items()
    for task in dict.fromkeys(spec.task.name for spec in specs)
    if registry.get("task", task).protocol in ("adaptation", "policy")
]


def has_weak_view(task: registry.Entry) -> bool:
    """Whether the weak view of `task` is another than its inputs."""
    return task.load().weak is not AdaptationTask.weak


def controls(task: registry.Entry, methods: list[MethodRef]) -> set[str]:
    """Which controls of `task` are among `methods`.

    `supervised` on no view is `erm`, and on the strong one `erm-augment`, bit by bit (`tests/methods/baselines`); where
    a task has no weak view, its default is `erm` too (`tests/tasks/synthetic`).
    """
    plain = task.protocol == "adaptation" and not has_weak_view(task)

    def has(name: str, **params: Any) -> bool:
        return any(ref.name == name and params.items() <= ref.params.items() for ref in methods)

    found = {
        "no view": has("erm") or has("supervised", augment="none") or (plain and has("supervised", augment="weak")),
        "weak view": has("supervised", augment="weak"),
        "strong view": has("erm-augment") or has("supervised", augment="strong"),
        "unfiltered": has("pseudo-label", threshold=0.0) or has("self-distillation"),
        "oracle": has("oracle-labels") or has("oracle-answers"),
        "demonstrations alone": has("sft"),
        "same steps": has("sft-matched"),
        "few shots": has("few-shot"),
    }
    return {name for name, is_there in found.items() if is_there}


def demanded(task: registry.Entry) -> set[str]:
    """The controls that `task` can have."""
    grants, outputs = task.options["grants"], task.options["outputs"]
    if task.protocol == "policy":
        granted = {"few shots": "shots", "oracle": "solutions"}
        return {"demonstrations alone", "same steps", "unfiltered"} | {
            name for name, need in granted.items() if need in grants
        }
    names = {"no view", "weak view"} if has_weak_view(task) else {"no view"}
    if "strong-augmentation" in grants and outputs in registry.get("method", "erm-augment").options["outputs"]:
        names.add("strong view")
    if outputs in registry.get("method", "pseudo-label").options["outputs"]:
        names.add("unfiltered")
    if ORACLE in grants and outputs in registry.get("method", "oracle-labels").options["outputs"]:
        names.add("oracle")
    return names


@pytest.mark.parametrize(("suite", "name"), TASKS)
def test_every_control_is_there(suite: str, name: str) -> None:
    specs = [spec for spec in SPECS[suite] if spec.task.name == name]
    seeds = {spec.seed for spec in specs}
    task, missing = registry.get("task", name), set()
    for seed in seeds:
        missing |= demanded(task) - controls(task, [s.method for s in specs if s.seed == seed])
    allowed, _ = EXCEPTIONS.get((suite, name), (set(), ""))
    assert missing == allowed, "what an exception allows and is not missing is no exception"


def test_exceptions_are_of_tasks_that_have_all_controls_elsewhere() -> None:
    for suite, name in EXCEPTIONS:
        task = registry.get("task", name)
        assert any(
            demanded(task) <= controls(task, [s.method for s in specs if s.task.name == ALIKE.get(name, name)])
            for other, specs in SPECS.items()
            if other != suite or name in ALIKE
        ), f"{name} of {suite}"


def test_what_is_demanded_depends_on_what_is_granted() -> None:
    assert demanded(registry.get("task", "digits-semi")) == {
        "no view", "weak view", "strong view", "unfiltered", "oracle",
    }  # fmt: skip
    assert demanded(registry.get("task", "gaussian-shift-d20-n1000")) == {"no view", "unfiltered"}
    assert demanded(registry.get("task", "judge-tiny")) == {
        "demonstrations alone", "same steps", "unfiltered", "oracle",
    }  # fmt: skip
    assert demanded(registry.get("task", "asdiv-smol")) == demanded(registry.get("task", "judge-tiny")) | {"few shots"}
    digits, plain = registry.get("task", "digits-semi"), registry.get("task", "gaussian-shift-d20-n1000")
    assert controls(digits, [MethodRef(name="pseudo-label", version="1", params={"threshold": 0.95})]) == set()
    supervised = MethodRef(name="supervised", version="1", params={"augment": "weak"})
    assert controls(digits, [supervised]) == {"weak view"}
    assert controls(plain, [supervised]) == {"no view", "weak view"}
