"""Tasks on a pre-trained model that lack something: the preparation must say what, and what to type."""

from __future__ import annotations

import sys

from selfbench import Bundle, register_task
from selfbench.suite.protocols.policy_grants import Grants
from selfbench.tasks.language.addition_smol import AdditionSmol


@register_task(
    "toy-without-model",
    protocol="policy",
    version="1",
    metric="accuracy",
    title="Additions by a model that is not here",
    budget={"currency": "tokens", "limit": 1000, "wall_seconds": 60, "memory_mb": 2048},
    data=("math", "qwen25-05b-instruct"),
)
class WithoutModel(AdditionSmol):
    """Of its data sets one is never here in a test."""

    def grants(self) -> Grants:
        return Grants()


@register_task(
    "toy-without-template",
    protocol="policy",
    version="1",
    metric="accuracy",
    title="Additions by a model without chat template",
    budget={"currency": "tokens", "limit": 1000, "wall_seconds": 60, "memory_mb": 2048},
    data=("qwen25-05b-instruct",),
)
class WithoutTemplate(WithoutModel):
    """On the tiny model of the tests."""

    model_name = "qwen25-05b-instruct"
    gate = None


@register_task(
    "toy-without-extra",
    protocol="policy",
    version="1",
    metric="accuracy",
    title="Additions by a model without the package for its adapters",
    budget={"currency": "tokens", "limit": 1000, "wall_seconds": 60, "memory_mb": 2048},
    data=("qwen25-05b-instruct",),
)
class WithoutExtra(WithoutTemplate):
    """Its preparing process cannot import `peft`."""

    frame = ("", "")

    def build(self, data) -> Bundle:
        sys.modules["peft"] = None
        return super().build(data)
