from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from selfbench.methods.common.contrastive_views import strong_views, weak_views
from selfbench.methods.self_training.adacontrast import AdaContrast
from selfbench.suite.protocols.stream import Source


def _group(channels: int) -> nn.Module:
    return nn.GroupNorm(1, channels)


def _train_norms(model: nn.Module, mode: bool) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train(mode)


def test_stream_equals_the_algorithm_image_by_image(source_model: Callable[..., nn.Module], source: Source) -> None:
    method = AdaContrast(lr=0.01, queue=20, neighbours=3, warm=14, decay=0.9, temperature=0.5)
    sharp, model, slow = (source_model().double() for _ in range(3))
    for net in (sharp, model, slow.requires_grad_(False)):
        with torch.no_grad():
            net[-1].weight.sub_(net[-1].weight.mean(0)).mul_(20.0)
            net[-1].bias.zero_()  # so that not all images get one class
    method.setup(sharp, source)
    trunk, slow_trunk = (nn.Sequential(*list(net)[:-1]) for net in (model, slow))
    sgd = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-4)
    generator = torch.Generator()
    generator.set_state(source.generator.get_state())
    memory: list[dict[str, Tensor]] = []
    refined = 0
    noise, tint = (
        torch.rand(5, 7, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(side))
        for side in (8, 1)
    )
    for x in tint + (noise - tint) * 0.3:
        weak = weak_views(x, generator)
        query, key = strong_views(x, generator), strong_views(x, generator)
        for net in (model, slow):
            _train_norms(net, True)
        with torch.no_grad():
            f = trunk(weak)
            p = model[-1](f).softmax(1)
        labels = []
        for i in range(7):
            if len(memory) < 14:
                labels.append(int(p[i].argmax()))
                continue
            likeness = [torch.cosine_similarity(f[i], item["feature"], dim=0).item() for item in memory[-20:]]
            best = np.argsort(likeness)[::-1][:3]
            labels.append(int(sum(memory[-20:][j]["p"] for j in best).argmax()))
            refined += labels[-1] != int(p[i].argmax())
        q = trunk(query)
        logits = model[-1](q)
        with torch.no_grad():
            for average, weight in zip(slow.parameters(), model.parameters(), strict=True):
                average.copy_(0.9 * average + 0.1 * weight)
            k = slow_trunk(key)
        loss = torch.zeros((), dtype=torch.float64)
        for i in range(7):
            loss = loss - logits[i].log_softmax(0)[labels[i]] / 7
            positive = (torch.cosine_similarity(q[i], k[i], dim=0) / 0.5).exp()
            others = [
                (torch.cosine_similarity(q[i], item["key"], dim=0) / 0.5).exp()
                for item in memory[-20:]
                if item["label"] != labels[i]
            ]
            loss = loss - (positive / (positive + sum(others))).log() / 7
        mean = logits.softmax(1).mean(0)
        loss = loss + (mean * mean.log()).sum()
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        with torch.no_grad():
            features = slow_trunk(weak)
            of_weak = slow[-1](features).softmax(1)
        memory += [{"key": k[i], "label": labels[i], "feature": features[i], "p": of_weak[i]} for i in range(7)]
        for net in (model, slow):
            _train_norms(net, False)
        with torch.no_grad():
            expected = model(x)
        torch.testing.assert_close(method.predict(x), expected, rtol=0, atol=1e-6)
    for mine, theirs in ((method.model, model), (method.momentum_model, slow)):
        for name, value in mine.state_dict().items():
            torch.testing.assert_close(value, theirs.state_dict()[name], rtol=0, atol=1e-6)
    assert refined > 0


@pytest.mark.parametrize("batch", [5, 16, 40])
def test_memory_keeps_the_last_images(source_model: Callable[..., nn.Module], source: Source, batch: int) -> None:
    method = AdaContrast(queue=16)
    method.setup(source_model(), source)
    written = torch.arange(120)
    for part in written.split(batch):
        rows = part[:, None].float()
        method._remember(rows.expand(-1, 6), part, rows.expand(-1, 6), rows.expand(-1, 4))
    for held in (method.labels, method.keys[:, 0], method.features[:, 5], method.p[:, 3]):
        assert sorted(held.tolist()) == list(range(104, 120))


def test_the_loss_has_a_gradient_on_all_weights_of_the_model_only(
    source_model: Callable[..., nn.Module], source: Source, images: Tensor
) -> None:
    method = AdaContrast(warm=0)
    method.setup(source_model(), source)
    for part in images.split(20):
        assert not method.predict(part).requires_grad
    assert all(weight.grad is not None and weight.grad.abs().max() > 0 for weight in method.model.parameters())
    assert all(weight.grad is None for weight in method.momentum_model.parameters())
    assert not any(module.training for net in (method.model, method.momentum_model) for module in net.modules())


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, _group], ids=["batch", "group"])
def test_counted_passes(stream: Callable[..., Any], images: Tensor, norm: Callable[[int], nn.Module]) -> None:
    assert stream(AdaContrast(queue=16, warm=10), norm).counts.passes == 7 * len(images)


def test_weight_zero_leaves_the_contrast_out(
    source_model: Callable[..., nn.Module], source: Source, images: Tensor
) -> None:
    logits = {}
    for contrast in (0.0, 1.0):
        method = AdaContrast(contrast=contrast, lr=0.05)
        method.setup(source_model(), dataclasses.replace(source, generator=torch.Generator().manual_seed(0)))
        logits[contrast] = [method.predict(images) for _ in range(2)]
    # There are no negatives before the first batch, and then the contrast is constant.
    torch.testing.assert_close(logits[0.0][0], logits[1.0][0], rtol=0, atol=1e-6)
    assert (logits[0.0][1] - logits[1.0][1]).abs().max() > 1e-4


def test_resumed_equals_uninterrupted(stream: Callable[..., Any]) -> None:
    method = AdaContrast(queue=16, warm=10, lr=0.01, min_area=0.3)
    whole = stream(dataclasses.replace(method))
    killed = stream(dataclasses.replace(method), checkpoints=0, stop_after=2)
    resumed = stream(dataclasses.replace(method))
    assert len(killed.logits) == 2
    for mine, theirs in zip(whole.logits, killed.logits + resumed.logits, strict=True):
        np.testing.assert_array_equal(mine, theirs)
