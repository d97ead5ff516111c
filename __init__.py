"""Selfbench: the benchmark suite and leaderboard for models that teach themselves.

What an author of a method or a task imports. Everything is loaded on first use: `import selfbench` takes no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "ActiveTask": ".suite.protocols.active",
    "AdaptationMethod": ".suite.protocols.adaptation_method",
    "AdaptationTask": ".suite.protocols.adaptation",
    "Batch": ".suite.protocols.adaptation",
    "Bundle": ".suite.bundle",
    "Example": ".suite.protocols.policy_examples",
    "LabeledBatch": ".suite.protocols.adaptation",
    "Pair": ".suite.protocols.policy_examples",
    "Policy": ".suite.protocols.policy_model",
    "PolicyMethod": ".suite.protocols.policy_method",
    "PolicyTask": ".suite.protocols.policy",
    "PolicyView": ".suite.protocols.policy_view",
    "Problems": ".suite.protocols.policy",
    "Recipe": ".suite.protocols.adaptation",
    "Source": ".suite.protocols.stream",
    "Split": ".suite.protocols.adaptation",
    "Stream": ".suite.protocols.stream",
    "StreamMethod": ".suite.protocols.stream",
    "StreamTask": ".suite.protocols.stream",
    "View": ".suite.protocols.adaptation_view",
    "even_cuts": ".suite.protocols.stream",
    "hyper": ".suite.hyper",
    "register_method": ".suite.registry",
    "register_task": ".suite.registry",
}
__all__ = [
    "ActiveTask",
    "AdaptationMethod",
    "AdaptationTask",
    "Batch",
    "Bundle",
    "Example",
    "LabeledBatch",
    "Pair",
    "Policy",
    "PolicyMethod",
    "PolicyTask",
    "PolicyView",
    "Problems",
    "Recipe",
    "Source",
    "Split",
    "Stream",
    "StreamMethod",
    "StreamTask",
    "View",
    "even_cuts",
    "hyper",
    "register_method",
    "register_task",
]

if TYPE_CHECKING:
    from .suite.bundle import Bundle
    from .suite.hyper import hyper
    from .suite.protocols.active import ActiveTask
    from .suite.protocols.adaptation import AdaptationTask, Batch, LabeledBatch, Recipe, Split
    from .suite.protocols.adaptation_method import AdaptationMethod
    from .suite.protocols.adaptation_view import View
    from .suite.protocols.policy import PolicyTask, Problems
    from .suite.protocols.policy_examples import Example, Pair
    from .suite.protocols.policy_method import PolicyMethod
    from .suite.protocols.policy_model import Policy
    from .suite.protocols.policy_view import PolicyView
    from .suite.protocols.stream import Source, Stream, StreamMethod, StreamTask, even_cuts
    from .suite.registry import register_method, register_task


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'selfbench' has no attribute '{name}'")
    value = getattr(importlib.import_module(_PUBLIC[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
