from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from selfbench.methods.self_training.deyo import DeYO, shuffle_patches
from selfbench.suite.protocols.stream import Source


def _group(channels: int) -> nn.Module:
    return nn.GroupNorm(1, channels)


def _shuffle(image: Tensor, order: list[int], n: int) -> Tensor:
    """Patch by patch: the k-th place receives the patch order[k]."""
    out, size = torch.zeros_like(image), image.size(1) // n
    for k, take in enumerate(order):
        (r, c), (i, j) = divmod(k, n), divmod(take, n)
        out[:, r * size : (r + 1) * size, c * size : (c + 1) * size] = image[
            :, i * size : (i + 1) * size, j * size : (j + 1) * size
        ]
    return out


def test_shuffled_patches_equal_a_loop() -> None:
    images = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    orders = torch.rand(5, 16, generator=torch.Generator().manual_seed(2)).argsort(dim=1)
    expected = torch.stack([_shuffle(x, order, 4) for x, order in zip(images, orders.tolist(), strict=True)])
    assert torch.equal(shuffle_patches(images, 4, torch.Generator().manual_seed(2)), expected)


def test_sides_that_do_not_divide_are_resized_and_back() -> None:
    images = torch.rand(2, 3, 10, 9, generator=torch.Generator().manual_seed(1))
    out = shuffle_patches(images, 4, torch.Generator().manual_seed(2))
    assert out.shape == images.shape
    assert not torch.equal(out, images)
    flat = torch.full((2, 3, 10, 9), 0.3)
    torch.testing.assert_close(shuffle_patches(flat, 4, torch.Generator()), flat)


def _sharp(model: nn.Module) -> nn.Module:
    """The model with a steeper classifier, so that entropies differ from image to image; in double precision."""
    model.double().train()[3][2].eval()
    noise = 1.5 * torch.randn(60, 3, 8, 8, generator=torch.Generator().manual_seed(9), dtype=torch.float64) + 0.3
    with torch.no_grad():
        model[6].weight.mul_(60.0)
        model[6].bias.sub_(model(noise).mean(0))
    return model.eval()


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, _group], ids=["batch", "group"])
@pytest.mark.parametrize("plpd", [-1.0, 0.0, 0.02])
def test_steps_equal_a_loop_over_images(
    source_model: Callable[..., nn.Module],
    source: Source,
    images: Tensor,
    norm: Callable[[int], nn.Module],
    plpd: float,
) -> None:
    lr, log_k = 0.05, math.log(4)
    method = DeYO(lr=lr, optimizer="sgd", margin=0.6, plpd=plpd, top_share=0.0)
    method.setup(_sharp(source_model(norm)), source)
    slow = _sharp(source_model(norm)).train()
    slow[3][2].eval()
    theta = [slow[1].weight, slow[1].bias, slow[3][1].weight, slow[3][1].bias]
    momentum = [torch.zeros_like(part) for part in theta]
    generator = torch.Generator().manual_seed(0)
    sizes = []
    for batch in images.double().split(10):
        logits = slow(batch)
        torch.testing.assert_close(method.predict(batch), logits.detach(), rtol=0, atol=1e-10)
        p = [row.exp() / row.exp().sum() for row in logits]
        h = [-(q * q.log()).sum() for q in p]
        first = [b for b in range(10) if h[b].item() < 0.6 * log_k]
        terms = []
        if first:
            orders = torch.rand(len(first), 16, generator=generator).argsort(dim=1).tolist()
            destroyed = torch.stack([_shuffle(batch[b], order, 4) for b, order in zip(first, orders, strict=True)])
            others = slow(destroyed).detach().softmax(1)
            for b, other in zip(first, others, strict=True):
                label = int(p[b].argmax())
                drop = p[b][label].item() - other[label].item()
                if drop > plpd:
                    terms.append((math.exp(0.4 * log_k - h[b].item()) + math.exp(drop)) * h[b])
        sizes.append((len(first), len(terms)))
        if terms:
            gradients = torch.autograd.grad(sum(terms) / len(terms), theta)
            with torch.no_grad():
                for part, m, g in zip(theta, momentum, gradients, strict=True):
                    m.mul_(0.9).add_(g)
                    part -= lr * (g + 0.9 * m)
    chosen, kept = (sum(column) for column in zip(*sizes, strict=True))
    assert 0 < chosen < 40
    assert kept == chosen if plpd < 0 else 0 < kept < chosen


def test_unreachable_bounds_never_step(stream: Callable[..., object], source_model: Callable[..., nn.Module]) -> None:
    for method, passes in ((DeYO(margin=0.0), 40), (DeYO(margin=1.0, plpd=1.0), 80)):
        result = stream(method)
        before = source_model().state_dict()
        after = result.method.model.state_dict()
        assert all(torch.equal(after[name], before[name]) for name in after)
        assert result.counts.passes == passes
