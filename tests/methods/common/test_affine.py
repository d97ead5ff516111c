from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from selfbench.methods.common.affine import copies, go_back, normalizes_by_batch, top_norm_layers, train_affine
from selfbench.suite.errors import UsageError


def _names(model: nn.Module, share: float = 0.25) -> set[str]:
    top = {id(layer) for layer in top_norm_layers(model, share)}
    return {name for name, layer in model.named_modules() if id(layer) in top}


def _stage(blocks: int) -> nn.Sequential:
    return nn.Sequential(*[nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)) for _ in range(blocks)])


class Staged(nn.Module):
    """A ResNet's layout: a stem, stages, a classifier; with a wrapper around it, as one that normalises has."""

    def __init__(self, stages: int, final: bool = False) -> None:
        super().__init__()
        self.net = nn.Module()
        self.net.conv1, self.net.bn1 = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        for i in range(stages):
            setattr(self.net, f"layer{i + 1}", _stage(2))
        if final:
            self.net.bn = nn.BatchNorm2d(3)
        self.net.fc = nn.Linear(3, 2)


class Transformer(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 4, 2)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"norm1": nn.LayerNorm(4), "norm2": nn.LayerNorm(4)}) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 2)


def test_the_last_of_four_stages_is_the_top() -> None:
    assert _names(Staged(4)) == {"net.layer4.0.1", "net.layer4.1.1"}
    assert _names(Staged(3, final=True)) == {"net.layer3.0.1", "net.layer3.1.1", "net.bn"}


def test_the_last_three_of_twelve_blocks_and_the_final_norm_are_the_top() -> None:
    expected = {f"blocks.{i}.norm{j}" for i in (9, 10, 11) for j in (1, 2)} | {"norm"}
    assert _names(Transformer(12)) == expected


def test_the_rule_is_that_of_the_reference_on_torchvision_models() -> None:
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.resnet18()
    norms = {name for name, layer in model.named_modules() if isinstance(layer, nn.BatchNorm2d)}
    assert _names(model) == {name for name in norms if "layer4" in name}
    with torch.device("meta"):
        vit = torchvision.models.vit_b_16()
    top = {"encoder.ln"} | {f"encoder.layers.encoder_layer_{i}.ln_{j}" for i in (9, 10, 11) for j in (1, 2)}
    assert _names(vit) == top


def test_the_rule_is_that_of_the_reference_on_timm_models() -> None:
    """SAR and DeYO leave out every layer of `layer4`, `blocks.9` to `blocks.11`, and the final norm, by their names."""
    create_model = pytest.importorskip("timm").create_model
    for name, count in (("vit_base_patch16_224", 18), ("resnet50_gn", 43)):
        with torch.device("meta"):
            model = create_model(name)
        norms = {part for part, layer in model.named_modules() if isinstance(layer, (nn.LayerNorm, nn.GroupNorm))}
        left_out = {
            part
            for part in norms
            if part == "norm" or part.startswith(("layer4.", "blocks.9.", "blocks.10.", "blocks.11."))
        }
        assert _names(model) == left_out
        trained = train_affine(model, 0.25)
        assert len(trained) == 2 * count == 2 * len(norms - left_out)
        assert len(train_affine(model)) == 2 * len(norms), "tent and eata train all of them"


def test_something_is_always_left_to_train(source_model: Callable[..., nn.Module]) -> None:
    assert _names(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)), 0.9) == set()
    assert _names(Staged(4), 0.0) == set()
    assert _names(source_model()) == {"3.1"}
    # A chain without blocks: each norm layer is one.
    chain = nn.Sequential(*[layer for _ in range(5) for layer in (nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))])
    assert _names(chain) == {"7", "9"}


def test_only_the_chosen_scales_and_shifts_want_gradients(source_model: Callable[..., nn.Module]) -> None:
    model = source_model().train().requires_grad_(True)
    trained = train_affine(model, 0.25)
    assert [id(parameter) for parameter in trained] == [id(model[1].weight), id(model[1].bias)]
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == ["1.weight", "1.bias"]
    assert not model.training
    assert model[1].running_mean is None
    with pytest.raises(UsageError, match="no norm layer"):
        train_affine(nn.Sequential(nn.Linear(2, 2)))


def test_batch_statistics_are_noticed(source_model: Callable[..., nn.Module]) -> None:
    model = source_model()
    assert not normalizes_by_batch(model)
    train_affine(model)
    assert normalizes_by_batch(model)
    assert not normalizes_by_batch(source_model(lambda c: nn.GroupNorm(1, c)))


def test_going_back_restores_values_and_forgets_the_optimiser() -> None:
    weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    updater = torch.optim.Adam([weight], lr=0.1)
    start = copies([weight])
    paths = []
    for _ in range(2):
        for factor in (1.0, 3.0):
            weight.grad = factor * torch.tensor([1.0, -2.0])
            updater.step()
        paths.append(weight.detach().clone())
        go_back([weight], start, updater)
        assert torch.equal(weight.detach(), torch.tensor([1.0, 2.0]))
    assert torch.equal(*paths)
    assert not torch.equal(paths[0], start[0])
