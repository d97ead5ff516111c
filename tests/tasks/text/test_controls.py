"""The controls of self-training on texts: random pseudo-labels hurt, true ones are worth what the oracle gets of them.

If not, a method does not train on its pseudo-labels, or the task cannot show that it does. The questions are made up:
four words of a class's own vocabulary among eight that all classes share.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from selfbench.methods.baselines.oracle_labels import OracleLabels
from selfbench.methods.baselines.supervised import Supervised
from selfbench.suite import registry
from selfbench.suite.bundle import BundleFolder, write_bundle
from selfbench.suite.data import Data
from selfbench.suite.protocols.active import ActiveTask
from selfbench.suite.protocols.adaptation import AdaptationTask
from selfbench.suite.suites import misfit
from selfbench.tasks.text import few_labels
from selfbench.tasks.text.trec import TrecFew

STEPS, RATIO = 40, 3
METHODS: dict[str, tuple[dict[str, Any], int]] = {
    "pseudo-label": ({"ratio": RATIO, "ramp": 0.0}, 1),
    "fixmatch": ({"ratio": RATIO}, 2),
    "hast": ({"ratio": RATIO, "weight": 1.0, "confidence": 0.0}, 1),
    "ust": ({"ratio": RATIO, "rounds": 1, "weight": 3.0}, 1),
    "actune": ({"ratio": RATIO, "rounds": 1, "confidence": 0.0, "selection": "memory"}, 1),
    "verips": ({"ratio": RATIO, "uncertainty": 1.0}, 1),
}
"""Hyper-parameters, and the passes of a step over an unlabelled example."""
Play = Callable[..., Any]


class Questions(TrecFew):
    """Sixty training and forty test questions a class, whose vectors are the means of their words' vectors."""

    recipe = dataclasses.replace(TrecFew.recipe, points=1)

    def read(self, data: Data) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        draw = np.random.default_rng(0)

        def part(per_class: int) -> list[tuple[str, str]]:
            return [(name, text(name)) for name in self.classes for _ in range(per_class)]

        def text(name: str) -> str:
            own = [f"{name}{number}" for number in draw.integers(25, size=4)]
            return " ".join([*own, *(f"any{number}" for number in draw.integers(200, size=8))])

        return part(60), part(40)


def word_vector(word: str) -> np.ndarray:
    return np.random.default_rng(zlib.crc32(word.encode())).standard_normal(384)


def encode(data: Data, texts: Sequence[str], *rest: Any) -> Any:
    vectors = np.array([np.mean([word_vector(word) for word in text.split()], axis=0) for text in texts])
    return {"vectors": (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)}, {}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> BundleFolder:
    folder = tmp_path_factory.mktemp("bundle")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(few_labels, "encode", encode)
        return write_bundle(folder / "questions", Questions().build(Data(folder)))


@pytest.fixture(scope="module")
def given(bundle: BundleFolder) -> dict[str, Tensor]:
    """The true classes of the pool, and random ones."""
    pool = Questions().split(bundle, 0).unlabeled
    true = torch.from_numpy(np.array(bundle.private()["labels"][pool], np.int64))
    random = torch.randint(0, 6, true.shape, generator=torch.Generator().manual_seed(0))
    return {"true": true, "random": random}


def controlled(name: str, labels: Tensor, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The method `name` as it is, but for its pseudo-labels: they are `labels` (U,), those of a batch all sure."""
    entry = registry.get("method", name)
    cls: Any = entry.load()
    if hasattr(cls, "_label"):
        choose = cls._label

        def chosen(self: Any) -> None:
            choose(self)
            assert len(self.chosen)
            self.targets = labels[self.chosen]

        monkeypatch.setattr(cls, "_label", chosen)
        return cls(**METHODS[name][0])
    now: list[Tensor] = []
    loss = cls.loss

    def watched(self: Any, labeled: Any, unlabeled: Any) -> Tensor:
        now.append(unlabeled.index)
        return loss(self, labeled, unlabeled)  # type: ignore[no-any-return]

    monkeypatch.setattr(cls, "loss", watched)
    monkeypatch.setattr(
        AdaptationTask, "pseudo_label_loss", lambda self, logits, *rest: F.cross_entropy(logits, labels[now[-1]])
    )
    return cls(**METHODS[name][0])


def accuracy(play: Play, bundle: BundleFolder, method: Any, passes: int, name: str = "tested") -> float:
    """The accuracy after about `STEPS` steps, each of 1 + `RATIO` x `passes` passes a labelled example."""
    shown = 60 * 6 - 30
    limit = shown + 3.0 * STEPS * Questions.recipe.batch_size * (1 + RATIO * passes)
    return float(play(method, Questions(), bundle, limit=limit, name=name).metrics["accuracy"])


@pytest.fixture(scope="module")
def references() -> dict[str, float]:
    """Accuracies of the references, each run once."""
    return {}


@pytest.mark.parametrize("name", METHODS)
def test_random_pseudo_labels_hurt_and_true_ones_reach_the_oracle(
    play: Play, bundle: BundleFolder, given: dict[str, Tensor], references: dict[str, float], name: str
) -> None:
    if not references:
        references["alone"] = accuracy(play, bundle, Supervised(), 0)
        references["oracle"] = accuracy(play, bundle, OracleLabels(ratio=RATIO), 1, "oracle-labels")
    params, passes = METHODS[name]
    found = {"own": accuracy(play, bundle, registry.get("method", name).load()(**params), passes)}
    for kind, labels in given.items():
        with pytest.MonkeyPatch.context() as patch:
            found[kind] = accuracy(play, bundle, controlled(name, labels, patch), passes)
    print(name, references, found)
    assert references["oracle"] > references["alone"] + 0.1
    assert found["random"] < references["alone"] - 0.03
    assert references["alone"] + 0.05 < found["true"] < references["oracle"] + 0.05
    assert references["oracle"] > found["own"]


def test_the_oracle_is_told_the_pool_and_pays_for_it(
    play: Play, bundle: BundleFolder, given: dict[str, Tensor]
) -> None:
    told = OracleLabels()
    play(told, Questions(), bundle, limit=2_000.0, name="oracle-labels")
    assert torch.equal(told.view.unlabeled_labels, given["true"])
    assert told.view.meter.counts.labels == 30 + len(given["true"])
    blind = Supervised()
    play(blind, Questions(), bundle, limit=2_000.0, name="supervised")
    assert (len(blind.view.unlabeled_labels), blind.view.meter.counts.labels) == (0, 30)


def test_weight_zero_is_the_supervised_baseline(play: Play, bundle: BundleFolder) -> None:
    zero = play(OracleLabels(weight=0.0), Questions(), bundle, limit=5_000.0, name="oracle-labels")
    assert zero.predictions_sha256 == play(Supervised(), Questions(), bundle, limit=5_000.0).predictions_sha256


def test_the_oracle_runs_on_every_text_that_is_classified() -> None:
    oracle = registry.get("method", "oracle-labels")
    room = Path(registry.PACKAGE) / "tasks" / "text"
    texts = [task for task in registry.entries("task").values() if room in task.file.parents]
    refused = {task.name for task in texts if misfit(oracle, task)}
    assert refused == {"mlqa-gxlt", "mlqa-gxlt-zero-shot"}, "tasks without unlabelled examples"
    assert any(issubclass(task.load(), ActiveTask) for task in texts)
