"""The classifier of a model and the features that it reads."""

from __future__ import annotations

from torch import Tensor, nn

from ...suite.errors import UsageError
from ...suite.protocols.features import forward_with_features, last_linear


def classifier_of(model: nn.Module) -> nn.Linear:
    """The last linear layer of `model` in module order, taken for its classifier.

    Raises `UsageError` when there is none.
    """
    layer = last_linear(model)
    if layer is None:
        raise UsageError(
            f"{type(model).__name__} has no linear layer, whose input this method takes as features. "
            "Give the model an `nn.Linear` as its classifier, declared after all other linear layers; one that "
            "ends in a 1 x 1 convolution can flatten its features and use a linear layer of the same weights."
        )
    return layer


def with_features(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """One forward pass: images (B, C, H, W) -> logits (B, K) and features (B, D).

    The features are the flattened input of `classifier_of(model)`, and gradients flow through both. Raises
    `UsageError` when the model has no such layer or its forward does not call it.
    """
    classifier_of(model)
    logits, features = forward_with_features(model, images)
    if features is None:
        raise no_features(model)
    return logits, features


def no_features(model: nn.Module) -> UsageError:
    """The error of a model whose forward does not call its last linear layer."""
    return UsageError(
        f"the forward pass of {type(model).__name__} does not call its last linear layer, whose input this "
        "method takes as features. Declare the classifier after all other linear layers."
    )
