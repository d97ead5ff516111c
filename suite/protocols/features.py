"""The features of a model: what its classifier, the last linear layer, reads."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def last_linear(model: nn.Module) -> nn.Linear | None:
    """The last linear layer of `model` in module order; None when there is none."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return layers[-1] if layers else None


def forward_with_features(model: nn.Module, inputs: Tensor) -> tuple[Tensor, Tensor | None]:
    """One forward pass: inputs (B, ...) -> logits, and the flattened input (B, D) of the last linear layer.

    The features are None when the model has no linear layer or its forward does not call the last one. A gradient
    through the features alone is a backward pass as well, and the meter counts it.
    """
    classifier = last_linear(model)
    if classifier is None:
        return model(inputs), None
    seen: list[Tensor] = []

    def keep(layer: nn.Module, arguments: tuple[Any, ...]) -> None:
        seen.append(arguments[0])

    def join(module: nn.Module, arguments: tuple[Any, ...], logits: Tensor) -> Any:
        return (logits, seen[-1].flatten(1)) if seen else (logits, None)

    # First of all hooks, so that the meter's sees the features among the outputs.
    handles = [classifier.register_forward_pre_hook(keep), model.register_forward_hook(join, prepend=True)]
    try:
        outputs: tuple[Tensor, Tensor | None] = model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return outputs
