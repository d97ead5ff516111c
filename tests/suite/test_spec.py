"""The run id names exactly one run: it is stable, and every field of the spec moves it."""

from __future__ import annotations

import json
import math
import random

import pytest
from pydantic import ValidationError

from selfbench.suite.spec import Budget, MethodRef, RunSpec, TaskRef, canonical

BASE = {
    "task": {"name": "digits-c-continual", "version": "1"},
    "method": {"name": "tent", "version": "2", "params": {"lr": 0.001, "optimizer": "adam", "steps": 1, "wd": False}},
    "seed": 3,
    "budget": {"currency": "passes", "limit": 1000, "wall_seconds": 60, "memory_mb": 2048},
    "selection": "last",
    "device": "cpu",
    "precision": "fp32",
    "threads": 1,
}
CHANGES = [
    (("task", "name"), "digits-c-mixed"),
    (("task", "version"), "2"),
    (("method", "name"), "norm"),
    (("method", "version"), "3"),
    (("method", "params", "lr"), 0.0010000000000000002),
    (("method", "params", "optimizer"), "sgd"),
    (("method", "params", "steps"), 2),
    (("method", "params", "wd"), True),
    (("seed",), 4),
    (("budget", "currency"), "seconds"),
    (("budget", "limit"), 1001),
    (("budget", "wall_seconds"), 61),
    (("budget", "memory_mb"), 2049),
    (("selection",), "oracle"),
    (("device",), "cuda"),
    (("precision",), "bf16"),
    (("threads",), 2),
    (("generation",), "vllm"),
    (("schema_version",), 2),
]


def changed(path: tuple[str, ...], value: object) -> dict:
    data = json.loads(json.dumps(BASE))
    inner = data
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return data


def spec(data: dict = BASE) -> RunSpec:
    return RunSpec.model_validate(data)


def test_the_run_id_of_a_spec_is_the_same_for_ever() -> None:
    """If this fails, every published record would lose its name: raise SPEC_VERSION with a migration instead."""
    assert spec().run_id == "a42c64d1ec6beb0f"


def test_the_canonical_form_has_one_spelling() -> None:
    assert canonical({"b": 1, "a": [1.0, "é", True, None]}) == '{"a":[1.0,"é",true,null],"b":1}'.encode()
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError):
            canonical({"x": bad})


def test_every_field_moves_the_id() -> None:
    ids = {spec(changed(path, value)).run_id for path, value in CHANGES}
    assert len(ids) == len(CHANGES)
    assert spec().run_id not in ids


def test_no_field_is_left_out_of_the_changes() -> None:
    def paths(data: dict, prefix: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
        found = set()
        for key, value in data.items():
            found |= paths(value, (*prefix, key)) if isinstance(value, dict) else {(*prefix, key)}
        return found

    # What was added later is left out where it has its default.
    whole = spec(changed(("generation",), "vllm"))
    assert paths(whole.model_dump(mode="json")) == {path for path, _ in CHANGES}


def test_the_order_of_keys_and_parameters_does_not_move_the_id() -> None:
    def shuffled(value: object, rng: random.Random) -> object:
        if not isinstance(value, dict):
            return value
        items = [(key, shuffled(item, rng)) for key, item in value.items()]
        rng.shuffle(items)
        return dict(items)

    for seed in range(20):
        assert spec(shuffled(BASE, random.Random(seed))).run_id == spec().run_id
    turned = MethodRef(name="m", version="1", params={"b": 1, "a": 2})
    assert list(turned.params) == ["a", "b"]


def test_numbers_keep_their_type() -> None:
    """1, 1.0 and true are three hyper-parameters; a budget is a float however it is written."""
    ids = {spec(changed(("method", "params", "steps"), value)).run_id for value in (1, 1.0, True, "1")}
    assert len(ids) == 4
    assert spec(changed(("budget", "limit"), 1000.0)).run_id == spec().run_id


def test_a_spec_survives_json_bit_by_bit() -> None:
    rng = random.Random(0)
    for _ in range(200):
        value = rng.choice([rng.uniform(-1, 1) * 10 ** rng.randint(-300, 300), rng.getrandbits(60), -0.0, 5e-324])
        before = spec(changed(("method", "params", "lr"), value))
        after = RunSpec.model_validate_json(before.model_dump_json())
        assert after == before
        assert after.run_id == before.run_id == RunSpec.model_validate(json.loads(before.model_dump_json())).run_id


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("budget", "limit"), 0),
        (("budget", "limit"), -1),
        (("budget", "limit"), math.nan),
        (("budget", "limit"), math.inf),
        (("budget", "wall_seconds"), 0),
        (("budget", "wall_seconds"), -5),
        (("budget", "memory_mb"), 255),
        (("budget", "currency"), "euros"),
        (("budget", "seconds"), 5),
        (("method", "params", "lr"), math.nan),
        (("method", "params", "lr"), -math.inf),
        (("method", "params", "lr"), None),
        (("method", "params", "lr"), [1]),
        (("method", "colour"), "red"),
        (("task", "metric"), "error"),
        (("seed",), -1),
        (("seed",), 1.5),
        (("threads",), 0),
        (("device",), "tpu"),
        (("precision",), "fp8"),
        (("generation",), "other"),
        (("note",), "hello"),
    ],
)
def test_what_is_no_spec_is_refused(path: tuple[str, ...], value: object) -> None:
    with pytest.raises(ValidationError) as caught:
        spec(changed(path, value))
    assert path[-1] in str(caught.value)


def test_nothing_changes_after_construction() -> None:
    frozen = spec()
    for owner, name in ((frozen, "seed"), (frozen.budget, "limit"), (frozen.method, "version")):
        with pytest.raises(ValidationError):
            setattr(owner, name, 9)


def test_the_label_names_method_task_and_seed() -> None:
    made = RunSpec(
        task=TaskRef(name="t", version="1"), method=MethodRef(name="m", version="1"), seed=7, budget=Budget(limit=1)
    )
    assert made.label == "m on t, seed 7"
