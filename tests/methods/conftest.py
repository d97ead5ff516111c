"""Tiny tasks, models and real loops in which the methods are tested."""

from __future__ import annotations

import contextlib
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from selfbench.suite.meter import Meter
from selfbench.suite.protocols.adaptation import AdaptationTask, Batch, LabeledBatch, Recipe, Split, Vocabulary
from selfbench.suite.protocols.adaptation_loop import run_adaptation
from selfbench.suite.protocols.adaptation_view import View
from selfbench.suite.protocols.context import Context
from selfbench.suite.protocols.stream import Source, SourceImages, StreamTask
from selfbench.suite.protocols.stream_loop import run_stream, split_parameters
from selfbench.suite.spec import Budget, MethodRef, RunSpec, TaskRef
from selfbench.suite.wire import Wire
from selfbench.tasks.text.encoders import LanguageModel, Marks, TextClassifier, TextEncoder, drop_words

K = 4
DIM = 6
MARKS = Marks(pad=0, begin=1, end=2, mask=3, size=30)


class DropoutNet(nn.Sequential):
    """Batch norm and dropout: whatever disturbs statistics or random numbers changes its results."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(DIM, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.2), nn.Linear(12, K))
        self.double()


class PerExampleNet(nn.Sequential):
    """No layer looks at more than one example, so that a loop over single examples gives the same logits."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(DIM, 12), nn.LayerNorm(12), nn.Tanh(), nn.Linear(12, K))
        self.double()


class ImageNet(nn.Sequential):
    """A convolutional model with batch norm whose source statistics and scales are not the initial ones."""

    def __init__(self, norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__(
            nn.Conv2d(3, 5, 3, padding=1, bias=False),
            norm(5),
            nn.ReLU(),
            nn.Sequential(nn.Conv2d(5, 6, 3, bias=False), norm(6), nn.Dropout(0.5)),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(6, K),
        )
        generator = torch.Generator().manual_seed(3)
        for name, value in self.state_dict().items():
            if value.is_floating_point():
                noise = torch.rand(value.shape, generator=generator)
                value.copy_(noise + 0.5 if name.endswith("var") else noise - 0.4)


class TinyTask(AdaptationTask):
    n_classes = K
    recipe = Recipe(lr=0.05, batch_size=8, ema=0.9, points=3)
    net: type[nn.Module] = DropoutNet

    def model(self) -> nn.Module:
        return self.net()

    def inputs(self, public: Any, indices: Any) -> Tensor:
        return torch.from_numpy(np.array(public["x"][indices]))

    def weak(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        return inputs + 0.1 * torch.randn(inputs.shape, generator=generator, dtype=inputs.dtype)

    def strong(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        return inputs * (0.5 + torch.rand(inputs.shape, generator=generator, dtype=inputs.dtype))


class PerExampleTask(TinyTask):
    net = PerExampleNet


class TinyStream(StreamTask):
    n_classes = K

    def __init__(self, norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> None:
        self.norm = norm

    def model(self) -> nn.Module:
        return ImageNet(self.norm)

    def images(self, public: Any, indices: Any) -> Tensor:
        return torch.from_numpy(np.array(public["images"][indices]))

    def source_images(self, public: Any, indices: Any) -> Tensor:
        return torch.from_numpy(np.array(public["source_images"][indices]))


def stream_data(images: Tensor, model: nn.Module) -> dict[str, Any]:
    """Public arrays: the stream's images, 60 labelled source images, and a posterior around the weights of `model`."""
    generator = torch.Generator().manual_seed(11)
    weights = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    return {
        "images": images.numpy(),
        "source_images": torch.rand(60, 3, 8, 8, generator=generator).numpy(),
        "source_labels": np.arange(60) % K,
        "posterior_mean": (weights + 0.01).numpy(),
        "posterior_variance": (0.05 + torch.rand(weights.shape, generator=generator)).numpy(),
    }


STREAM_PLAN = {
    "indices": np.arange(40),
    "cuts": np.array([0, 9, 18, 27, 36, 40]),
    "resets": np.zeros(0, np.int64),
    "after": np.zeros(0, np.int64),
    "after_cuts": np.zeros(1, np.int64),
}
"""Five batches, the last one short."""

RETURNING_PLAN = {
    "indices": np.concatenate([np.arange(18), np.arange(18), np.arange(18, 40)]),
    "cuts": np.array([0, 9, 18, 27, 36, 45, 54, 58]),
    "resets": np.array([2, 4]),
    "after": np.arange(12),
    "after_cuts": np.array([0, 9, 12]),
}
"""Seven batches: two, the same again after a reset, three more after another one; then images that teach nothing."""


class Stopped(Exception):
    """The run was killed, right after a checkpoint."""


@dataclass
class StoppingContext(Context):
    """A context whose run dies after `stop_after` checkpoints; with `keep`, number n stays as `keep`/n."""

    stop_after: int = 0
    saved: int = 0
    keep: Path | None = None

    def save_checkpoint(self, state: Any, step: int) -> None:
        super().save_checkpoint(state, step)
        self.saved += 1
        if self.keep is not None:
            (self.keep / str(self.saved)).mkdir()
            shutil.copy(self.work / "checkpoint.pt", self.keep / str(self.saved))
        if self.saved == self.stop_after:
            raise Stopped


@dataclass
class Result:
    """What a run sent to its scorer, and the method as it stood at the end."""

    method: Any
    counts: Any
    logits: list[np.ndarray] = field(default_factory=list)
    at: list[float] = field(default_factory=list)


def _spec(limit: float) -> RunSpec:
    return RunSpec(
        task=TaskRef(name="tiny", version="1"),
        method=MethodRef(name="tested", version="1"),
        seed=5,
        budget=Budget(limit=limit),
    )


@contextlib.contextmanager
def _scorer(result: Result) -> Iterator[socket.socket]:
    """The other end of the line: keeps predictions, answers what the loops wait for."""
    ours, theirs = socket.socketpair()
    wire = Wire(ours)

    def listen() -> None:
        while (message := wire.receive()) is not None:
            if message.kind == "point":
                index = message.fields["index"]
                del result.logits[index:], result.at[index:]
                result.logits.append(np.array(message.arrays["test"]))
                result.at.append(message.fields["x"])
            elif message.kind == "seal":
                del result.logits[int(message.arrays["step"][0]) :]
                result.logits.append(np.array(message.arrays["logits"]))
            elif message.kind == "checkpoint":
                wire.send("saved")

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        yield theirs
    finally:
        theirs.close()
        thread.join()
        ours.close()


def _adaptation_data() -> tuple[dict[str, Any], dict[str, Any]]:
    random = np.random.default_rng(0)
    centres = random.normal(size=(K, DIM))
    y = np.arange(120) % K
    x = centres[y] + 0.7 * random.normal(size=(120, DIM))
    split = Split(
        labeled=np.arange(12), labels=y[:12], unlabeled=np.arange(12, 80), validation=np.arange(0),
        test=np.arange(80, 120), labeled_domains=np.arange(12) % 3, unlabeled_domains=np.arange(68) % 2 + 2,
    )  # fmt: skip
    plan = {item.name: getattr(split, item.name) for item in fields(Split)}
    return {"x": x}, plan


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Models this small are ten times slower on threads that wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def dropout_task() -> TinyTask:
    """A task whose model has batch norm and dropout."""
    return TinyTask()


@pytest.fixture
def text_task() -> TinyTask:
    """Texts of 6 tokens and two marks, a BERT of two layers with dropout in double precision, and a classifier."""
    from transformers import BertConfig, BertModel

    class TextTask(TinyTask):
        recipe = Recipe(optimizer="adamw", lr=0.01, batch_size=8, ema=0.0, points=3)

        def model(self) -> nn.Module:
            config = BertConfig(
                vocab_size=30, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
                max_position_embeddings=10,
            )  # fmt: skip
            net = BertModel(config, add_pooling_layer=False)
            model = TextClassifier(TextEncoder(net, MARKS, "mean", scale=5.0), self.n_classes).double()
            model.encoder.word_embeddings().requires_grad_(False)
            nn.init.normal_(model.head.weight, std=0.3)
            return model

        def vocabulary(self) -> Vocabulary:
            return Vocabulary(MARKS.size, MARKS.mask, MARKS.special)

        def language_model(self, model: Any) -> nn.Module:
            return LanguageModel(model.encoder)

        def inputs(self, public: Any, indices: Any) -> Tensor:
            words = torch.from_numpy(public["x"][indices]).mul(4).round().long().clamp(-12, 12) + 16
            marks = torch.ones(len(words), 1, dtype=torch.int64)
            return torch.cat([marks * MARKS.begin, words, marks * MARKS.end], dim=1)

        def weak(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
            return drop_words(inputs, generator, 0.2, MARKS)

    return TextTask()


@pytest.fixture
def make_view() -> Iterator[Callable[..., View]]:
    """make_view(method, task=..., progress=...): a real view, the method set up in it, `progress` of it used."""
    with contextlib.ExitStack() as stack:

        def make(method: Any, task: TinyTask | None = None, progress: float = 0.5) -> View:
            spec = _spec(1e18)
            wire = Wire(stack.enter_context(_scorer(Result(method, None))))
            context = Context(spec, torch.device("cpu"), wire, Path())
            public, plan = _adaptation_data()
            meter = Meter(spec.budget, "tested")
            needs = type(method).__selfbench__["needs"]
            view = View(method, task or PerExampleTask(), public, plan, meter, context, needs)
            meter.charge(forward=progress * spec.budget.limit)
            method.setup(view.new_model(), view)
            return view

        yield make


@pytest.fixture
def make_batches() -> Callable[..., tuple[LabeledBatch, Batch]]:
    """make_batches(view, labeled=..., unlabeled=...): one step's batches, with views of their own randomness."""

    def make(view: View, labeled: int = 8, unlabeled: int = 16) -> tuple[LabeledBatch, Batch]:
        def generators(salt: int) -> Callable[[str], torch.Generator]:
            seeds = {"weak": 1, "weak2": 2, "strong": 3, "strong2": 4}
            return lambda name: torch.Generator().manual_seed(10 * salt + seeds[name])

        task = view.task
        return (
            LabeledBatch(
                view.labeled[:labeled],
                view.labels[:labeled],
                task.weak,
                task.strong,
                generators(1),
                domains=view.labeled_domains[:labeled],
            ),
            Batch(
                view.unlabeled[:unlabeled],
                task.weak,
                task.strong,
                generators(2),
                domains=view.unlabeled_domains[:unlabeled],
            ),
        )

    return make


@pytest.fixture
def adapt(tmp_path: Path) -> Callable[..., Result]:
    """adapt(method, ...): a whole run through the real training loop."""

    def run(
        method: Any, task: TinyTask | None = None, limit: float = 1500, stop_after: int | None = None,
        checkpoints: float = 1e9,
    ) -> Result:  # fmt: skip
        spec = _spec(limit)
        meter = Meter(spec.budget, "tested")
        result = Result(method, meter.counts)
        public, plan = _adaptation_data()
        with _scorer(result) as end:
            context = StoppingContext(spec, torch.device("cpu"), Wire(end), tmp_path, checkpoints)
            context.stop_after = stop_after or 0
            with contextlib.suppress(Stopped):
                needs = type(method).__selfbench__["needs"]
                run_adaptation(method, task or TinyTask(), public, plan, meter, context, needs)
        result.counts = meter.counts
        return result

    return run


@pytest.fixture
def images() -> Tensor:
    """(40, 3, 8, 8) images whose statistics are not those of the source."""
    return 1.5 * torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(7)) + 0.3


@pytest.fixture
def stream(tmp_path: Path, images: Tensor) -> Callable[..., Result]:
    """stream(method, ...): a whole run over five batches, the last one short, through the real loop."""

    def run(
        method: Any, norm: Callable[[int], nn.Module] = nn.BatchNorm2d, limit: float = 1e6,
        stop_after: int | None = None, checkpoints: float = 1e9, plan: dict[str, Any] = STREAM_PLAN,
        folder: Path = tmp_path, keep: Path | None = None, task: TinyStream | None = None,
    ) -> Result:  # fmt: skip
        spec = _spec(limit)
        meter = Meter(spec.budget, "tested")
        result = Result(method, meter.counts)
        with _scorer(result) as end:
            context = StoppingContext(spec, torch.device("cpu"), Wire(end), folder, checkpoints)
            context.stop_after, context.keep = stop_after or 0, keep
            with contextlib.suppress(Stopped):
                run_stream(
                    method, task or TinyStream(norm), stream_data(images, ImageNet(norm)),
                    ImageNet(norm).state_dict(), plan, meter, context, type(method).__selfbench__["needs"],
                )  # fmt: skip
        result.counts = meter.counts
        return result

    return run


@pytest.fixture
def source(images: Tensor) -> Source:
    """All that a method may declare that it needs."""
    public = stream_data(images, ImageNet())
    device = torch.device("cpu")
    model = ImageNet()
    parts = [
        [part.clone() for part in split_parameters(public[f"posterior_{name}"], model, device)]
        for name in ("mean", "variance")
    ]
    return Source(
        K,
        device,
        torch.Generator().manual_seed(0),
        SourceImages(TinyStream(), public, device),
        torch.from_numpy(public["source_labels"]),
        (parts[0], parts[1]),
    )


@pytest.fixture
def source_model() -> Callable[..., nn.Module]:
    """source_model(norm=...): a source model in eval mode, as the harness hands it out."""

    def make(norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> nn.Module:
        return ImageNet(norm).eval()

    return make
