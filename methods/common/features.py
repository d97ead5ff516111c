"""The classifier of a model and the features that it reads."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ...suite.errors import UsageError


def classifier_of(model: nn.Module) -> nn.Linear:
    """The last linear layer of `model` in module order, taken for its classifier.

    Raises `UsageError` when there is none.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise UsageError(
            f"{type(model).__name__} has no linear layer, whose input this method takes as features. "
            "Give the model an `nn.Linear` as its classifier, declared after all other linear layers; one that "
            "ends in a 1 x 1 convolution can flatten its features and use a linear layer of the same weights."
        )
    return layers[-1]


def with_features(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """One forward pass: images (B, C, H, W) -> logits (B, K) and features (B, D).

    The features are the flattened input of `classifier_of(model)`, and gradients flow through both. Raises
    `UsageError` when the model has no such layer or its forward does not call it.
    """
    classifier = classifier_of(model)
    seen: list[Tensor] = []

    def keep(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen.append(inputs[0])

    handle = classifier.register_forward_pre_hook(keep)
    try:
        logits: Tensor = model(images)
    finally:
        handle.remove()
    if not seen:
        raise UsageError(
            f"the forward pass of {type(model).__name__} does not call its last linear layer, whose input this "
            "method takes as features. Declare the classifier after all other linear layers."
        )
    return logits, seen[-1].flatten(1)
