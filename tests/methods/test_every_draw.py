"""Every method on every kind of task that it fits: what tuning draws is run, and nothing of it is refused."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from selfbench.suite import registry
from selfbench.suite.meter import Meter
from selfbench.suite.needs import NEEDS
from selfbench.suite.protocols.adaptation import AdaptationTask, Recipe, Split, Vocabulary
from selfbench.suite.protocols.adaptation_loop import run_adaptation
from selfbench.suite.protocols.context import Context
from selfbench.suite.registry import Entry
from selfbench.suite.spec import Budget, MethodRef, RunSpec, TaskRef
from selfbench.suite.suites import misfit
from selfbench.suite.tuning import plan_search, tuning_rule
from selfbench.suite.wire import Wire
from selfbench.tasks.text.encoders import LanguageModel, Marks, TextClassifier, TextEncoder
from selfbench.tasks.wilds.boxes import DETECTIONS

DRAWS = 4
MANY = 8
"""Draws of the slow session."""
LIMIT = 200.0
"""Passes: a hungry first step takes them all, most methods take several steps."""
LABELED, POOL, TEST, TOKENS, SIDE = 12, 30, 8, 8, 16
MARKS = Marks(pad=0, begin=1, end=2, mask=3, size=30)
OF_MODEL = {"norm-layers", "batch-norm"}
"""Grants that no method for adaptation asks for."""
NARROW = {"swav": {"hidden": 16, "size": 8, "prototypes": 2}}
"""Layers that are wide for any network."""


class Kind(NamedTuple):
    """What tells kinds of tasks apart: the outputs of the model, and what is granted."""

    outputs: str
    grants: frozenset[str]

    def __str__(self) -> str:
        return " ".join([self.outputs, *sorted(self.grants)])


def kinds() -> dict[Kind, Entry]:
    """The kinds of all registered tasks, each with its first task."""
    found: dict[Kind, Entry] = {}
    for task in registry.entries("task").values():
        if task.protocol == "adaptation" and registry.PACKAGE / "tasks" in task.file.parents:
            grants = frozenset(task.options["grants"]) - OF_MODEL
            found.setdefault(Kind(task.options["outputs"], grants), task)
    return found


KINDS = kinds()


class Convolutions(nn.Module):
    """Two stages of a convolution and a pooled classifier."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(channels, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.head = nn.Linear(6, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.second(self.first(images)).mean(dim=(2, 3)))


class Tokens(nn.Module):
    """Embedded tokens, each with logits of its own (B, T, K)."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(MARKS.size, 8), nn.Linear(8, classes)

    def forward(self, ids: Tensor) -> Tensor:
        chosen = ids > MARKS.mask
        own = self.head(self.words(ids[chosen]))
        found = own.new_full((*ids.shape, own.shape[1]), -5.0)
        found[chosen] = own
        return found


class Spans(Tokens):
    """Logits of first and last token (B, 2, T)."""

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids).transpose(1, 2)


class Labels(Tokens):
    """The mean over tokens (B, K)."""

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.words(ids).mean(dim=1))


class Boxes(nn.Module):
    """Two boxes a picture, at places that are a linear function of its mean colours; a loss of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 8)

    def forward(self, images: Tensor, targets: Tensor | None = None) -> Tensor:
        corners = SIDE / 2 * (1 + self.layer(images.mean(dim=(2, 3)))).view(-1, 2, 4)
        if targets is not None:
            return (corners - targets[:, :2]).square().mul(targets[:, :2].amin(dim=2, keepdim=True) >= 0).mean()
        found = torch.zeros(len(images), DETECTIONS, 6)
        found[:, :2, :4], found[:, :2, 4], found[:, :2, 5] = corners, 0.9, 1.0
        return found


def text_classifier(classes: int) -> nn.Module:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=MARKS.size, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=TOKENS,
    )  # fmt: skip
    net = BertModel(config, add_pooling_layer=False)
    return TextClassifier(TextEncoder(net, MARKS, "mean", scale=5.0), classes)


def small_task(kind: Kind) -> AdaptationTask:
    """A task of this kind: the losses and targets of a registered one, with a small model on small inputs."""
    entry, grants = KINDS[kind], kind.grants
    classes = {"classes": 4, "tokens": 4, "labels": 128, "numbers": 1, "boxes": 1, "spans": 2}[kind.outputs]
    real = bool(grants & {"images", "real-inputs"})
    channels = 8 if kind.outputs == "numbers" else 3
    base = AdaptationTask if kind.outputs == "classes" else entry.load()

    def model(self: AdaptationTask) -> nn.Module:
        if kind.outputs == "boxes":
            return Boxes()
        if "convolutions" in grants:
            return Convolutions(channels, classes)
        if real:
            return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, classes))
        if kind.outputs == "classes":
            return text_classifier(classes)
        return {"tokens": Tokens, "spans": Spans, "labels": Labels}[kind.outputs](classes)

    def inputs(self: AdaptationTask, public: Any, indices: Any) -> Tensor:
        draw = np.random.default_rng(0)
        n, chosen = LABELED + POOL + TEST, np.asarray(indices)
        if not real:
            return torch.from_numpy(draw.integers(MARKS.mask + 1, MARKS.size, (n, TOKENS))[chosen])
        shape = (n, channels, SIDE, SIDE) if grants & {"images", "convolutions"} else (n, 6)
        return torch.from_numpy(draw.random(shape, dtype=np.float32)[chosen])

    members: dict[str, Any] = {
        "__module__": __name__, "n_classes": classes, "recipe": Recipe(lr=0.01, batch_size=2, ema=0.0, points=1),
        "lazy": False, "model": model, "inputs": inputs, "weak": lambda self, x, generator: x,
        "places": lambda self, x: x > MARKS.mask,
        "sealed": lambda self, outputs, n, owner: outputs.detach().float(),
    }  # fmt: skip
    members["strong"] = (lambda self, x, generator: x) if "strong-augmentation" in grants else AdaptationTask.strong
    if "masked-tokens" in grants:
        members["vocabulary"] = lambda self: Vocabulary(MARKS.size, MARKS.mask, MARKS.special)
        members["language_model"] = lambda self, model: LanguageModel(model.encoder)
    return type("Small", (base,), members)()


def small_plan(kind: Kind, needs: tuple[str, ...], pool: int) -> dict[str, Any]:
    draw, n = np.random.default_rng(1), LABELED + POOL
    corners = draw.integers(0, SIDE // 2, (n, 1, 2)).repeat(2, axis=1).astype(np.float32)
    labels = {
        "classes": np.arange(n) % 4,
        "tokens": draw.integers(0, 4, (n, TOKENS)),
        "labels": draw.integers(0, 2, (n, 128)).astype(np.float32),
        "numbers": draw.normal(size=(n, 1)).astype(np.float32),
        "boxes": np.concatenate([corners, corners + SIDE // 4], axis=2),
        "spans": draw.integers(0, TOKENS, (n, 2)),
    }[kind.outputs]
    split = Split(
        labeled=np.arange(LABELED), labels=labels[:LABELED], unlabeled=LABELED + np.arange(pool),
        validation=np.arange(0), test=n + np.arange(TEST), labeled_domains=np.arange(LABELED) % 3,
        unlabeled_domains=3 + np.arange(pool) % 2,
    )  # fmt: skip
    plan = {item.name: getattr(split, item.name) for item in fields(Split)}
    return plan | ({"oracle": labels[LABELED : LABELED + pool]} if "oracle-labels" in needs else {})


@pytest.fixture
def adapt(tmp_path: Path) -> Callable[..., list[float]]:
    """adapt(method entry, params, kind, pool=...): a run through the real loop; the losses of its steps."""

    def run(entry: Entry, params: dict[str, Any], kind: Kind, pool: int = POOL) -> list[float]:
        spec = RunSpec(
            task=TaskRef(name="small", version="1"), method=MethodRef(name=entry.name, version="1"), seed=0,
            budget=Budget(limit=LIMIT),
        )  # fmt: skip
        method, heard = entry.load()(**params), []
        own = method.loss

        def loss(*batches: Any) -> Tensor:
            found = own(*batches)
            heard.append(float(found.detach()))
            return found

        method.loss = loss
        ours, theirs = socket.socketpair()
        listener = threading.Thread(target=lambda: [None for _ in iter(Wire(ours).receive, None)])
        listener.start()
        try:
            with torch.random.fork_rng(devices=[]):
                context = Context(spec, torch.device("cpu"), Wire(theirs), tmp_path, checkpoint_seconds=1e9)
                needs = entry.options["needs"]
                plan = small_plan(kind, needs, pool)
                run_adaptation(method, small_task(kind), {}, plan, Meter(spec.budget, entry.name), context, needs)
        finally:
            theirs.close()
            listener.join()
            ours.close()
        return heard

    return run


def pairs() -> list[Any]:
    methods = [entry for entry in registry.entries("method").values() if registry.PACKAGE in entry.file.parents]
    return [
        pytest.param(method, kind, id=f"{method.name} on {kind}")
        for kind, task in KINDS.items()
        for method in methods
        if not misfit(method, task)
    ]


@pytest.mark.parametrize("draws", [DRAWS, pytest.param(MANY, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("method", "kind"), pairs())
def test_no_draw_is_refused(adapt: Callable[..., list[float]], method: Entry, kind: Kind, draws: int) -> None:
    """The standard parameters and the first draws, as `selfbench tune` plans them on a registered task of this kind."""
    rule, fixed = tuning_rule("validation"), NARROW.get(method.name)
    search = plan_search(KINDS[kind], method, draws=draws, seeds=[100], rule=rule, fixed=fixed)
    for draw in search.draws:
        losses = adapt(method, dict(draw.params), kind)
        assert draw.number or np.isfinite(losses).all()


@pytest.mark.parametrize("method", [pair.values[0] for pair in pairs() if "rxrx1" in KINDS[pair.values[1]].name])
def test_without_a_pool_losses_stay_finite(adapt: Callable[..., list[float]], method: Entry) -> None:
    """RxRx1 has domains and no unlabelled examples."""
    [kind] = [kind for kind, task in KINDS.items() if task.name == "wilds-rxrx1"]
    losses = adapt(method, method.params(NARROW.get(method.name)), kind, pool=0)
    assert losses
    assert np.isfinite(losses).all()


def test_kinds_are_told_apart_by_what_may_be_asked_for() -> None:
    assert {kind.outputs for kind in KINDS} == {"classes", "numbers", "labels", "tokens", "boxes", "spans"}
    assert all(kind.grants <= NEEDS.keys() for kind in KINDS)
    assert len(KINDS) > 15
