"""A policy task grants the needs that it gives objects for, and no others: what does not fit is said when it loads."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from selfbench.suite import registry
from selfbench.suite.needs import NEEDS
from selfbench.suite.protocols.policy import PolicyTask
from selfbench.suite.protocols.policy_grants import Grants, Hints, Verifier
from selfbench.suite.registry import RegistryError, register_task

POLICY_TASKS = {name: entry for name, entry in registry.entries("task").items() if entry.protocol == "policy"}
TASK = '''
from selfbench import PolicyTask, register_task
from selfbench.suite.protocols.policy_grants import Grants, Verifier


@register_task(
    "my-task", protocol="policy", version="1", metric="accuracy", title="-", budget={{}}, data=(), grants={declared},
    variants={{"my-other-task": {{"grants": ("verifier", "code")}}}},
)
class MyTask(PolicyTask):
    """A task."""

    def grants(self):
        return Grants(verifier=Verifier(8))
'''


@pytest.mark.parametrize("entry", POLICY_TASKS.values(), ids=POLICY_TASKS)
def test_every_task_gives_what_its_registration_grants(entry: registry.Entry) -> None:
    assert set(entry.load()().grants().needs) == set(entry.options["grants"])


def test_the_names_are_those_of_needs() -> None:
    assert {item.name for item in dataclasses.fields(Grants)} <= NEEDS.keys()
    assert Grants().needs == []
    assert Grants(answers=Hints(str.join), verifier=Verifier()).needs == ["verifier", "answers"]


@pytest.mark.parametrize(
    ("declared", "given", "says"),
    [
        (("verifier", "code"), Grants(verifier=Verifier()),
         r"Task 'written' grants 'code' .* no object for it: write `code=Code\(program=..., observed=..., limits=..."),
        (("verifier",), Grants(), r"Task 'written' grants 'verifier' .*: write `verifier=Verifier\(\)` there"),
        (("attempts",), Grants(), r"`attempts=Attempts\(again=..., critique=...\)`"),
        (("answers",), Grants(answers=Hints(str.join), verifier=Verifier()),
         r"Task 'written' gives `verifier` .* does not grant it: write `grants=\('answers', 'verifier'\)` there"),
        ((), Grants(verifier=Verifier()), r"write `grants=\('verifier',\)` there, or leave `verifier` out"),
        (("domains",), Grants(), r"grants 'domains' .* no policy task can \(they can: verifier, answers, environment"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named_with_what_to_write(declared: tuple[str, ...], given: Grants, says: str) -> None:
    class Written(PolicyTask):
        def grants(self) -> Grants:
            return given

    register = register_task(
        "written", protocol="policy", version="1", metric="accuracy", title="-", budget={}, data=(), grants=declared
    )
    with pytest.raises(RegistryError, match=says):
        register(Written)


def test_a_task_and_its_variants_are_checked_when_they_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "right.py"
    file.write_text(TASK.format(declared=("verifier",)))
    monkeypatch.setenv("SELFBENCH_PATH", str(file))
    assert registry.get("task", "my-task").load()().grants().needs == ["verifier"]
    with pytest.raises(RegistryError, match="Task 'my-other-task' grants 'code' in its registration, but"):
        registry.get("task", "my-other-task").load()
    wrong = tmp_path / "wrong.py"
    wrong.write_text(TASK.format(declared=()))
    monkeypatch.setenv("SELFBENCH_PATH", str(wrong))
    # Listing imports nothing, and so checks nothing.
    entry = registry.get("task", "my-task")
    with pytest.raises(RegistryError, match="Task 'my-task' gives `verifier` in its"):
        entry.load()
