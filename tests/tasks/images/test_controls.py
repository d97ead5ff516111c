"""The controls of self-training on real digits: random pseudo-labels hurt, true ones reach what all labels reach.

If not, a method does not train on its pseudo-labels, or the task cannot show that it does.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selfbench.methods.baselines.oracle_labels import OracleLabels
from selfbench.methods.baselines.supervised import Supervised
from selfbench.suite import registry
from selfbench.suite.bundle import BundleFolder
from selfbench.suite.errors import SelfbenchError
from selfbench.suite.protocols.adaptation import AdaptationTask, Batch, LabeledBatch
from selfbench.suite.registry import source as registry_source
from selfbench.tasks.digits import convolution
from selfbench.tasks.images.digits_semi import DigitsSemi

STEPS, RATIO, WEIGHT = 45, 3, 5.0
"""In runs this short what pseudo-labels do shows at a larger weight than usual."""
SLOW = {"mean-teacher": 80, "mutual-mean-teacher": 80, "prototype": 80, "noisy-student": 80}
"""Steps of methods whose squared error on probabilities teaches more slowly, and of those that pay a pass over the
whole pool first."""
METHODS: dict[str, tuple[dict[str, Any], float, float, str]] = {
    "pseudo-label": ({"ramp": 0.0}, 1, 1, "weak"),
    "fixmatch": ({}, 1, 2, "weak"),
    "flexmatch": ({}, 1, 2, "weak"),
    "freematch": ({"fairness": 0.0}, 1, 2, "weak"),
    "softmatch": ({}, 1, 2, "weak"),
    "adamatch": ({}, 4, 2, "strong"),
    "noisy-student": ({"teacher": 0.05, "rounds": 1}, 1, 1, "strong"),
    "uda": ({}, 1, 2, "weak"),
    "mixmatch": ({"weight": 100.0, "alpha": 0.2}, 1, 8 / 3, "weak"),
    "prototype": ({"teacher": 0.05}, 1, 1, "weak"),
    "mean-teacher": ({"weight": 50.0, "ramp": 0.0}, 4 / 3, 4 / 3, "weak"),
    "mutual-mean-teacher": ({"ramp": 0.0}, 2, 8 / 3, "weak"),
    "fst-deep": ({"ahead": 1}, 2, 8 / 3, "weak"),
    "fst-wide": ({"ahead": 1}, 2, 8 / 3, "weak"),
    "robust-ssl": ({"inner": 1, "gamma_unlabeled": 10.0}, 1, 2, "weak"),
}
"""Hyper-parameters, the passes of a step over a labelled and over an unlabelled example, the view of labelled ones."""
Play = Callable[..., Any]


class Once(DigitsSemi):
    """Evaluated once."""

    recipe = dataclasses.replace(DigitsSemi.recipe, points=1)
    label_free = False


class Small(Once):
    """The task's network with one more pooling: two fifths of the arithmetic."""

    def model(self) -> nn.Module:
        return nn.Sequential(
            *convolution(1, 16), nn.MaxPool2d(2), *convolution(16, 32), nn.MaxPool2d(2), *convolution(32, 64),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, self.n_classes),
        )  # fmt: skip


@pytest.fixture(scope="module")
def given(digits_semi: BundleFolder) -> dict[str, Tensor]:
    """The true classes of the pool, and random ones."""
    split, labels = DigitsSemi().split(digits_semi, 0), digits_semi.private()["labels"]
    true = torch.from_numpy(np.array(labels[split.unlabeled], np.int64))
    random = torch.randint(0, 10, true.shape, generator=torch.Generator().manual_seed(0))
    return {"true": true, "random": random}


def controlled(name: str, labels: Tensor, patch: pytest.MonkeyPatch) -> Any:
    """The method `name`, whose pseudo-labels are `labels` (U,), all of them sure."""
    entry = registry.get("method", name)
    cls: Any = entry.load()
    module = importlib.import_module(str(entry.module))
    now: list[LabeledBatch | Batch] = []
    loss, setup = cls.loss, cls.setup

    def watched(self: Any, labeled: LabeledBatch, unlabeled: Batch) -> Tensor:
        now[:] = [labeled, unlabeled]
        return loss(self, labeled, unlabeled)  # type: ignore[no-any-return]

    def due() -> Tensor:
        """The labels of the step's unlabelled examples."""
        return labels[now[1].index]

    def told(self: Any, model: nn.Module, view: Any) -> None:
        setup(self, model, view)
        teachers = [self.model] if name == "uda" else getattr(self, "teachers", None) or [self.teacher]
        for teacher in teachers:
            teacher.register_forward_hook(answer)

    def answer(teacher: nn.Module, given: tuple[Tensor], logits: Tensor) -> Tensor | None:
        """Sure logits in place of those of the unlabelled weak views, of which `given` may hold a part."""
        if not teacher.training or not now or not len(now[1]):
            return None
        sure, n = 20.0 * F.one_hot(due(), 10).float(), len(now[1])
        if len(logits) < n:
            first = given[0].storage_offset() // given[0].stride(0)
            return sure[first : first + len(logits)]
        start = len(now[0]) if name == "uda" else len(logits) - n
        return torch.cat([logits[:start], sure, logits[start + n :]])

    patch.setattr(cls, "loss", watched)
    if name == "noisy-student":
        patch.setattr(cls, "_label", lambda self, inputs: labels)
    elif name == "mixmatch":
        patch.setattr(cls, "_guess", lambda self, unlabeled: F.one_hot(due(), 10).float())
    elif name == "prototype":
        begin = cls._label

        def once(self: Any, view: Any) -> None:
            begin(self, view)
            self.q = F.one_hot(labels, 10).float()

        patch.setattr(cls, "_label", once)
    elif name == "robust-ssl":
        perturbed = cls._perturbed
        patch.setattr(cls, "_perturbed", lambda self, x, y, gamma: perturbed(self, x, due() if y is None else y, gamma))
    elif name in ("uda", "mean-teacher", "mutual-mean-teacher", "fst-deep", "fst-wide"):
        patch.setattr(cls, "setup", told)
    elif hasattr(module, "weighted_cross_entropy"):
        patch.setattr(module, "weighted_cross_entropy", lambda logits, *rest: F.cross_entropy(logits, due()))
    else:
        patch.setattr(AdaptationTask, "pseudo_label_loss", lambda self, logits, *rest: F.cross_entropy(logits, due()))
    return cls(**{"ratio": RATIO, "weight": WEIGHT, **METHODS[name][0]})


@pytest.fixture(scope="module")
def errors() -> dict[str, float]:
    """Errors of the references, each run once."""
    return {}


def error(
    play: Play,
    bundle: BundleFolder,
    method: Any,
    labeled: float,
    unlabeled: float,
    name: str = "tested",
    steps: int = STEPS,
) -> float:
    """The error after `steps` steps, each of `labeled` + `RATIO` x `unlabeled` passes a labelled example."""
    limit = 3.0 * steps * Small.recipe.batch_size * (labeled + RATIO * unlabeled)
    return float(play(method, Small(), bundle, limit=limit, name=name).metrics["error"])


ORACLE = OracleLabels(ratio=RATIO, augment="strong")


@pytest.mark.parametrize("name", METHODS)
def test_random_pseudo_labels_hurt_and_true_ones_reach_the_oracle(
    play: Play, digits_semi: BundleFolder, given: dict[str, Tensor], errors: dict[str, float], name: str
) -> None:
    if not errors:
        errors |= {view: error(play, digits_semi, Supervised(augment=view), 1, 0) for view in ("weak", "strong")}
        errors["oracle"] = error(play, digits_semi, dataclasses.replace(ORACLE), 1, 1, "oracle-labels")
    found = {}
    for kind, labels in given.items():
        with pytest.MonkeyPatch.context() as patch:
            method, passes = controlled(name, labels, patch), METHODS[name][1:3]
            found[kind] = error(play, digits_semi, method, *passes, steps=SLOW.get(name, STEPS))
    print(name, errors, found)
    alone = errors[METHODS[name][3]]
    assert errors["oracle"] < alone - 0.1
    assert found["random"] > alone + 0.02
    assert found["true"] < min(errors["oracle"] + 0.05, alone - 0.1)


def test_the_oracle_reaches_what_all_labels_reach(play: Play, digits_semi: BundleFolder) -> None:
    """`supervised` on a split in which the pool is labelled, over as many passes."""

    class AllLabels(Once):
        def split(self, bundle: BundleFolder, seed: int) -> Any:
            split = super().split(bundle, seed)
            seen = np.concatenate([split.labeled, split.unlabeled])
            labels = np.asarray(bundle.private()["labels"][seen])
            return dataclasses.replace(split, labeled=seen, labels=labels, unlabeled=np.empty(0, np.int64))

    whole = float(play(Supervised(), AllLabels(), digits_semi, limit=20_000.0).metrics["error"])
    oracle = play(OracleLabels(), Once(), digits_semi, limit=20_000.0, name="oracle-labels").metrics["error"]
    assert oracle == pytest.approx(whole, abs=0.02)


def test_only_the_oracle_is_told(play: Play, digits_semi: BundleFolder, given: dict[str, Tensor]) -> None:
    told = OracleLabels()
    outcome = play(told, Small(), digits_semi, limit=3_000.0, name="oracle-labels")
    assert torch.equal(told.view.unlabeled_labels, given["true"])
    assert outcome.n == 600
    for other in (Supervised(), OracleLabels()):
        # The scorer goes by the registered method of the spec, whatever runs in its name.
        if isinstance(other, Supervised):
            play(other, Small(), digits_semi, limit=3_000.0, name="supervised")
            assert len(other.view.unlabeled_labels) == 0
        else:
            with pytest.raises(IndexError):
                play(other, Small(), digits_semi, limit=3_000.0, name="fixmatch")


def test_weight_zero_is_the_supervised_baseline(play: Play, digits_semi: BundleFolder) -> None:
    zero = play(OracleLabels(weight=0.0), Small(), digits_semi, limit=3_000.0, name="oracle-labels")
    assert zero.predictions_sha256 == play(Supervised(), Small(), digits_semi, limit=3_000.0).predictions_sha256


def test_a_method_that_is_no_upper_bound_may_not_ask(tmp_path: Any) -> None:
    file = tmp_path / "thief.py"
    file.write_text(
        '@register_method("thief", family="baseline", protocol="adaptation", paper="-", needs=("oracle-labels",))\n'
        "class Thief(AdaptationMethod):\n    pass\n"
    )
    with pytest.raises(SelfbenchError, match="needs oracle-labels is of the family upper-bound"):
        list(registry_source.read_file("method", file, None))
