"""Scores without labels: closed forms, slow loops, and what they cannot be computed from."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from selfbench.suite.protocols.label_free import (
    angle_spread,
    hopkins_statistic,
    label_free_scores,
    outputs_with_features,
)


def scores_of(model: nn.Module, inputs: torch.Tensor, seed: int = 0) -> dict[str, float]:
    with torch.no_grad():
        return label_free_scores(model, *outputs_with_features(model, inputs), np.random.default_rng(seed))


def test_weights_spread_evenly_have_no_spread() -> None:
    simplex = torch.eye(4, dtype=torch.float64) - 0.25
    assert angle_spread(simplex) == pytest.approx(0.0, abs=1e-12)
    assert angle_spread(torch.eye(4, dtype=torch.float64)) == pytest.approx((math.pi / 2 - math.acos(-1 / 3)) ** 2)
    # Two equal and one opposite vector: angles 0 (twice) and pi (four times) against arccos(-1/2).
    weight = torch.tensor([[1.0, 0.0], [2.0, 0.0], [-1.0, 0.0]])
    ideal = 2 * math.pi / 3
    assert angle_spread(weight) == pytest.approx((2 * ideal**2 + 4 * (math.pi - ideal) ** 2) / 6, abs=1e-6)


def test_hopkins_of_even_and_of_clustered_features() -> None:
    draw = np.random.default_rng(0)
    even = [hopkins_statistic(draw.uniform(size=(1000, 2)), draw) for _ in range(20)]
    assert np.mean(even) == pytest.approx(0.5, abs=0.03)
    clustered = np.repeat([[0.0, 0.0], [1.0, 1.0], [1.0, 0.0]], 300, axis=0) + 1e-3 * draw.normal(size=(900, 2))
    assert hopkins_statistic(clustered, draw) > 0.95
    assert math.isnan(hopkins_statistic(np.ones((50, 3)), draw))
    assert math.isnan(hopkins_statistic(np.ones((1, 3)), draw))


def test_hopkins_equals_a_loop() -> None:
    features = np.random.default_rng(1).normal(size=(60, 3))
    value = hopkins_statistic(features, np.random.default_rng(5))
    draw = np.random.default_rng(5)
    even = draw.uniform(features.min(0), features.max(0), (3, 3))
    own = draw.choice(60, 3, replace=False)
    u = sum(min(np.linalg.norm(point - other) for other in features) for point in even)
    w = sum(min(np.linalg.norm(features[i] - features[j]) for j in range(60) if j != i) for i in own)
    assert value == pytest.approx(u / (u + w), abs=1e-12)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def test_the_scores_equal_their_definition() -> None:
    model, inputs = network(), torch.randn(1500, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        scores = scores_of(model, inputs, 3)
        p = model(inputs).softmax(1).numpy()
        features = model[:2](inputs).numpy()
    entropy = float(np.mean([-sum(v * math.log(v) for v in row) for row in p]))
    information = -sum(v * math.log(v) for v in p.mean(0)) - entropy
    assert scores["entropy"] == pytest.approx(entropy, abs=1e-6)
    hopkins = hopkins_statistic(features, np.random.default_rng(3))
    expected = hopkins + information / math.log(3) - angle_spread(model[2].weight.detach())
    assert scores["transfer_score"] == pytest.approx(expected, abs=1e-6)


def test_a_model_that_knows_its_classes_scores_higher_than_a_confused_one() -> None:
    centers = 4 * torch.eye(3, dtype=torch.float64)
    inputs = centers.repeat(100, 1) + 0.1 * torch.randn(300, 3, dtype=torch.float64)
    good = nn.Sequential(nn.Identity(), nn.Linear(3, 3, bias=False)).double()
    bad = nn.Sequential(nn.Identity(), nn.Linear(3, 3, bias=False)).double()
    with torch.no_grad():
        good[1].weight.copy_(4 * torch.eye(3) - 4 / 3)
        bad[1].weight.copy_(torch.ones(3, 3) + 0.01 * torch.eye(3))
        ours, theirs = (scores_of(model, inputs) for model in (good, bad))
    assert ours["transfer_score"] > theirs["transfer_score"] + 1
    assert ours["entropy"] < theirs["entropy"]


class NoClassifier(nn.Module):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs


@pytest.mark.parametrize("model", [NoClassifier(), nn.Sequential(nn.Linear(3, 7), nn.Flatten(), nn.MaxPool1d(2))])
def test_without_a_linear_classifier_there_is_no_transfer_score(model: nn.Module) -> None:
    scores = scores_of(model, torch.randn(30, 3))
    assert list(scores) == ["entropy"]


def test_scores_that_are_not_finite_are_left_out() -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    assert scores_of(model, torch.full((9, 3), torch.nan)) == {}
    assert list(scores_of(model, torch.ones(9, 3))) == ["entropy"]
    assert not model[0]._forward_pre_hooks
