from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from selfbench.methods.common.features import classifier_of, with_features
from selfbench.suite.errors import UsageError
from selfbench.suite.meter import Meter
from selfbench.suite.spec import Budget


class TwoHeads(nn.Module):
    """A backbone whose hidden layer is linear too, and a classifier that is not its last child."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(6, 5)
        self.classifier = nn.Linear(10, 3)
        self.act = nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.act(self.hidden(x)).flatten(1))


def test_features_are_what_the_classifier_reads() -> None:
    model = TwoHeads()
    x = torch.randn(4, 2, 6)
    logits, features = with_features(model, x)
    assert classifier_of(model) is model.classifier
    assert torch.equal(logits, model(x))
    assert torch.equal(features, model.act(model.hidden(x)).flatten(1))
    assert torch.equal(logits, features @ model.classifier.weight.T + model.classifier.bias)


def test_gradient_flows_through_the_features() -> None:
    model = TwoHeads()
    _, features = with_features(model, torch.randn(4, 2, 6))
    features.sum().backward()
    assert model.hidden.weight.grad.abs().max() > 0
    assert model.classifier.weight.grad is None


def test_the_hook_is_temporary_also_after_an_error() -> None:
    model = TwoHeads()
    with_features(model, torch.randn(4, 2, 6))
    with pytest.raises(RuntimeError):
        with_features(model, torch.randn(4, 2, 7))
    assert not model.classifier._forward_pre_hooks


def test_a_model_of_images(source_model: Callable[..., nn.Module], images: Tensor) -> None:
    model = source_model()
    with torch.no_grad():
        logits, features = with_features(model, images)
    assert logits.shape == (40, 4)
    assert features.shape == (40, 6)
    assert not features.requires_grad


def test_models_without_a_usable_classifier_are_refused() -> None:
    with pytest.raises(UsageError, match=r"no linear layer.*`nn.Linear`"):
        classifier_of(nn.Sequential(nn.Conv2d(3, 4, 1)))

    class Unused(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[0](x)

    with pytest.raises(UsageError, match="does not call its last linear layer"):
        with_features(Unused(nn.Linear(2, 2), nn.Linear(2, 2)), torch.zeros(1, 2))


@pytest.mark.parametrize("through", ["logits", "features", "both"])
def test_a_backward_through_the_features_alone_is_counted_once(through: str) -> None:
    meter = Meter(Budget(limit=1000), "tested")
    model = meter.attach(TwoHeads())
    logits, features = with_features(model, torch.randn(4, 2, 6))
    parts = {"logits": (logits,), "features": (features,), "both": (logits, features)}[through]
    sum(part.sum() for part in parts).backward()
    assert (meter.counts.forward, meter.counts.backward) == (4, 4)
    with torch.no_grad():
        with_features(model, torch.randn(3, 2, 6))
    assert (meter.counts.forward, meter.counts.backward) == (7, 4)
