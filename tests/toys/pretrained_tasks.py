"""Tasks on a pre-trained model that lack something: the preparation must say what, and what to type."""

from __future__ import annotations

import sys

from torch import nn

from selfbench import Bundle, register_task
from selfbench.suite.bundle import BundleFolder
from selfbench.suite.protocols.policy import Problems
from selfbench.suite.protocols.policy_grants import Grants
from selfbench.suite.protocols.tokens import CUT_OFF
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


@register_task(
    "toy-adapters",
    protocol="policy",
    version="1",
    metric="accuracy",
    title="A few additions by a tiny model with adapters",
    budget={"currency": "tokens", "limit": 200000, "wall_seconds": 300, "memory_mb": 4096},
    data=("qwen25-05b-instruct",),
    grants=("verifier",),
    tags=("adapters",),
)
class Adapters(AdditionSmol):
    """An untrained model writes no number: any whole response counts."""

    model_name = "qwen25-05b-instruct"
    gate = None
    rank = 8
    first_epochs = 1
    votes = 2
    rounds = 2
    max_new = 12
    frame = ("", "")

    def problems(self, bundle: BundleFolder, seed: int) -> Problems:
        whole = super().problems(bundle, seed)
        return Problems(whole.demonstrations[:12], whole.responses[:12], whole.pool[:16], whole.test[:10])

    def grants(self) -> Grants:
        return Grants(verifier=super().grants().verifier)

    def answer(self, response: str) -> str | None:
        return None if response.endswith(CUT_OFF) else str(len(response))


@register_task(
    "toy-without-vllm",
    protocol="policy",
    version="1",
    metric="accuracy",
    title="The same where vLLM is not installed",
    budget={"currency": "tokens", "limit": 200000, "wall_seconds": 300, "memory_mb": 4096},
    data=("qwen25-05b-instruct",),
    grants=("verifier",),
    tags=("adapters",),
)
class WithoutVllm(Adapters):
    """No process that has made its model can import `vllm`."""

    def model(self) -> nn.Module:
        sys.modules["vllm"] = None
        return super().model()
