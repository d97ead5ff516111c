from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from selfbench.methods.baselines.lame import Lame, affinities, assign
from selfbench.suite.errors import UsageError
from selfbench.suite.protocols.stream import Source

Z = torch.nn.functional.normalize(torch.randn(9, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64))
Q = torch.randn(9, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64).softmax(1)


def _distances() -> list[list[float]]:
    rows = Z.tolist()
    return [[math.dist(a, b) for b in rows] for a in rows]


def test_rbf_affinities_equal_a_loop() -> None:
    d = _distances()
    width = sum(sorted(row)[4] for row in d) / 9
    expected = [[math.exp(-(x**2) / (2 * width**2)) for x in row] for row in d]
    torch.testing.assert_close(affinities(Z, "rbf", 5), torch.tensor(expected, dtype=torch.float64))


def test_knn_affinities_equal_a_loop() -> None:
    expected = torch.zeros(9, 9, dtype=torch.float64)
    for i, row in enumerate(_distances()):
        for j in sorted((j for j in range(9) if j != i), key=row.__getitem__)[:3]:
            expected[i, j] = 1.0
    assert torch.equal(affinities(Z, "knn", 3), expected)
    torch.testing.assert_close(affinities(Z, "linear", 3), Z @ Z.T)


def test_assignments_are_a_fixed_point_with_a_lower_objective() -> None:
    w = affinities(Z, "rbf", 5)

    def objective(y: Tensor) -> float:
        kl = (y * (y / (Q + 1e-10)).log()).sum().item()
        return kl - (w * (y @ y.T)).sum().item() / 2

    y = assign(Q, w, 1000).exp()
    torch.testing.assert_close(y.sum(1), torch.ones(9, dtype=torch.float64))
    torch.testing.assert_close(y, (Q.log() + w @ y).softmax(1), rtol=0, atol=1e-4)
    assert objective(y) < objective(Q) - 0.1


@pytest.mark.parametrize("steps", [1, 2])
def test_iterations_equal_a_loop(steps: int) -> None:
    w = affinities(Z, "knn", 3).tolist()
    y = Q.tolist()
    for _ in range(steps):
        new = []
        for i in range(9):
            row = [(Q[i, k].item() + 1e-10) * math.exp(sum(w[i][j] * y[j][k] for j in range(9))) for k in range(4)]
            new.append([value / sum(row) for value in row])
        y = new
    torch.testing.assert_close(assign(Q, torch.tensor(w).double(), steps).exp(), torch.tensor(y, dtype=torch.float64))


def test_without_affinities_it_is_the_source_model(
    source_model: Callable[..., nn.Module], source: Source, images: Tensor
) -> None:
    method, model = Lame(steps=0), source_model()
    method.setup(model, source)
    torch.testing.assert_close(method.predict(images), model(images).log_softmax(1), rtol=0, atol=1e-6)
    assert all(not parameter.requires_grad for parameter in model.parameters())


def test_nothing_is_kept_from_batch_to_batch(
    source_model: Callable[..., nn.Module], source: Source, images: Tensor
) -> None:
    method = Lame()
    method.setup(source_model(), source)
    first = method.predict(images[:9])
    method.predict(images[9:])
    assert torch.equal(first, method.predict(images[:9]))


def test_a_model_without_a_linear_layer_is_refused(source: Source) -> None:
    with pytest.raises(UsageError, match="no linear layer"):
        Lame().setup(nn.Sequential(nn.Conv2d(3, 4, 1)), source)
