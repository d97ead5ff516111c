from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from selfbench.methods.self_training.pseudo_label_stream import PseudoLabelStream
from selfbench.suite.protocols.stream import Source


def _sharp(model: nn.Module) -> nn.Module:
    """The model with a steeper classifier, so that entropies differ from image to image; in double precision."""
    model.double().train()[3][2].eval()
    noise = 1.5 * torch.randn(60, 3, 8, 8, generator=torch.Generator().manual_seed(9), dtype=torch.float64) + 0.3
    with torch.no_grad():
        model[6].weight.mul_(60.0)
        model[6].bias.sub_(model(noise).mean(0))
    return model.eval()


@pytest.mark.parametrize("threshold", [0.0, 0.7, 0.9])
def test_steps_equal_a_loop_over_images(
    source_model: Callable[..., nn.Module], source: Source, images: Tensor, threshold: float
) -> None:
    method = PseudoLabelStream(lr=0.05, optimizer="sgd", threshold=threshold)
    method.setup(_sharp(source_model()), source)
    slow = _sharp(source_model()).train()
    slow[3][2].eval()
    theta = [slow[1].weight, slow[1].bias, slow[3][1].weight, slow[3][1].bias]
    momentum = [torch.zeros_like(part) for part in theta]
    chosen = []
    for batch in images.double().split(10):
        logits = slow(batch)
        losses = []
        for row in logits:
            p = row.exp() / row.exp().sum()
            if p.max() > threshold:
                losses.append(-p.max().log())
        chosen.append(len(losses))
        torch.testing.assert_close(method.predict(batch), logits.detach(), rtol=0, atol=1e-10)
        if losses:
            gradients = torch.autograd.grad(sum(losses) / len(losses), theta)
            with torch.no_grad():
                for part, m, g in zip(theta, momentum, gradients, strict=True):
                    m.mul_(0.9).add_(g)
                    part -= 0.05 * (g + 0.9 * m)
    if threshold:
        assert 0 < sum(chosen) < 40


def test_an_unreachable_threshold_never_steps(
    source_model: Callable[..., nn.Module], source: Source, images: Tensor
) -> None:
    method = PseudoLabelStream(threshold=0.999)
    model = source_model()
    method.setup(model, source)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first = method.predict(images)
    assert torch.equal(first, method.predict(images))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
