"""The loops keep the protocol: order, budget, selection, randomness and labels are the harness's and nobody else's."""

from __future__ import annotations

import dataclasses
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from selfbench import AdaptationMethod, AdaptationTask, Batch, LabeledBatch, Split, Stream, StreamMethod
from selfbench.suite import registry
from selfbench.suite.engine.local import LocalExecutor
from selfbench.suite.engine.preparation import prepare
from selfbench.suite.engine.runner import run
from selfbench.suite.errors import MethodError
from selfbench.suite.meter import Counts, Meter
from selfbench.suite.prepare.bundles import build
from selfbench.suite.protocols.adaptation import pool_sample
from selfbench.suite.protocols.adaptation_loop import run_adaptation
from selfbench.suite.protocols.adaptation_view import View
from selfbench.suite.protocols.context import Context
from selfbench.suite.protocols.stream import even_cuts
from selfbench.suite.protocols.stream_loop import run_stream
from selfbench.suite.record import Record
from selfbench.suite.registry import PACKAGE
from selfbench.suite.run.scorer import Outcome, make_scorer
from selfbench.suite.scoring import score_classification
from selfbench.suite.spec import Budget, MethodRef, RunSpec, TaskRef
from selfbench.suite.store import Store
from selfbench.suite.suites import expand, misfit
from selfbench.suite.wire import Message, Wire


class Played(NamedTuple):
    """A run in this process: what the scorer made of it, what the meter counted."""

    outcome: Outcome
    counts: Counts
    ended: bool


Play = Callable[..., Played]


@pytest.fixture
def play(tmp_path: Path) -> Play:
    """play(method, task_name, ...): the real loop here, the real scorer at the other end of a real line."""

    def call(
        method: Any, task_name: str, *, task: Any = None, seed: int = 0, limit: float | None = None,
        selection: str = "last", precision: str = "fp32", needs: tuple[str, ...] = (),
    ) -> Played:  # fmt: skip
        entry = registry.get("task", task_name)
        bundle = build(entry)
        task = task or entry.load()()
        spec = RunSpec(
            task=TaskRef(name=entry.name, version=entry.version),
            method=MethodRef(name="tested", version="1"),
            seed=seed,
            budget=Budget.model_validate({**entry.options["budget"], **({"limit": limit} if limit else {})}),
            selection=selection,
            precision=precision,
        )
        scorer = make_scorer(task, bundle, spec, tmp_path)
        ours, theirs = socket.socketpair()
        errors: list[Exception] = []

        def listen() -> None:
            wire = Wire(ours)
            try:
                while (message := wire.receive()) is not None:
                    scorer.handle(message, wire)
            except Exception as error:
                errors.append(error)
                ours.close()

        listener = threading.Thread(target=listen)
        listener.start()
        meter = Meter(spec.budget, "tested")
        context = Context(spec, torch.device("cpu"), Wire(theirs), tmp_path, checkpoint_seconds=1e9)
        plan = scorer.plan()
        try:
            with torch.random.fork_rng(devices=[]):
                if entry.protocol == "stream":
                    run_stream(method, task, bundle.public(), bundle.model(), plan, meter, context)
                else:
                    run_adaptation(method, task, bundle.public(), plan, meter, context, needs)
        finally:
            theirs.close()
            listener.join()
            ours.close()
        if errors:
            raise errors[0]
        return Played(scorer.outcome(), meter.counts, meter.ended)

    return call


def stream_of(seed: int = 0) -> tuple[Any, Stream, dict[str, Any], nn.Module, Any]:
    """The toy stream's task, order, public arrays, source model and labels."""
    entry = registry.get("task", "toy-stream")
    bundle = build(entry)
    task = entry.load()()
    model = task.model()
    model.load_state_dict(bundle.model())
    stream = task.stream(bundle, seed)
    return task, stream, bundle.public(), model.eval(), bundle.private()["labels"][stream.indices]


@dataclass
class Recorder(StreamMethod):
    """Predicts with the source model and keeps what it was shown."""

    def setup(self, model: nn.Module, source: Any) -> None:
        self.model, self.source = model, source
        self.seen: list[Tensor] = []
        self.draws = (torch.rand(3), torch.rand(3, generator=source.generator))
        self.was_training = any(module.training for module in model.modules())

    def predict(self, images: Tensor) -> Tensor:
        self.seen.append(images.clone())
        return self.model(images)


def test_every_image_is_shown_once_in_the_order_of_the_stream(play: Play) -> None:
    task, stream, public, _, _ = stream_of()
    method = Recorder()
    play(method, "toy-stream")
    assert [len(images) for images in method.seen] == np.diff(stream.cuts).tolist()
    assert torch.equal(torch.cat(method.seen), task.images(public, stream.indices))
    assert sorted(stream.indices.tolist()) == list(range(len(stream.indices)))
    assert not method.was_training


def test_the_scores_are_those_of_a_bare_loop(play: Play) -> None:
    task, stream, public, model, labels = stream_of(seed=3)
    played = play(Recorder(), "toy-stream", seed=3)
    with torch.no_grad():
        logits = torch.cat(
            [
                model(task.images(public, stream.indices[start:stop]))
                for start, stop in zip(stream.cuts[:-1], stream.cuts[1:], strict=True)
            ]
        ).numpy()
    expected = score_classification(logits, labels, stream.domains, stream.domain_names)
    outcome = played.outcome
    ends = {"end_error": float((logits.argmax(1) != labels)[-len(labels) // 10 :].mean())}
    assert (outcome.metrics, outcome.groups, outcome.n) == (expected.metrics | ends, expected.groups, len(labels))
    assert played.counts.forward == len(labels)
    assert outcome.curve[-1].x == len(labels)
    starts = [0.0, *(point.x for point in outcome.curve)]
    wrong = sum(
        point.values["error"] * (point.x - start) for start, point in zip(starts[:-1], outcome.curve, strict=True)
    )
    assert wrong / len(labels) == pytest.approx(expected.metrics["error"])


def test_sealed_predictions_cannot_be_changed_afterwards(play: Play) -> None:
    @dataclass
    class Rewriter(Recorder):
        """Turns every prediction that it has returned into nonsense, as soon as the next batch is shown."""

        def predict(self, images: Tensor) -> Tensor:
            if self.seen:
                self.last.fill_(-1e9)
            self.last = super().predict(images).detach()
            return self.last

    assert play(Rewriter(), "toy-stream").outcome == play(Recorder(), "toy-stream").outcome


def test_random_streams_depend_on_the_seed_alone(play: Play) -> None:
    methods = [Recorder(), Recorder(), Recorder()]
    for method, seed in zip(methods, (1, 1, 2), strict=True):
        torch.rand(7)  # Whatever this process did before.
        play(method, "toy-stream", seed=seed)
    first, same, other = methods
    for mine, theirs, others in zip(first.draws, same.draws, other.draws, strict=True):
        assert torch.equal(mine, theirs)
        assert not torch.equal(mine, others)
    assert torch.equal(first.seen[0], same.seen[0])
    assert not torch.equal(first.seen[0], other.seen[0])


def test_when_the_budget_ends_the_predictor_as_it_stands_does_the_rest(play: Play) -> None:
    @dataclass
    class Drifts(Recorder):
        """Moves its bias with every batch; a frozen twin predicts when the budget has ended."""

        def predict(self, images: Tensor) -> Tensor:
            logits = super().predict(images)
            with torch.no_grad():
                self.model[-1].bias += 0.1
            return logits

        def predictor(self) -> nn.Module:
            assert self.model[-1].bias.sum() != 0
            return self.model

    task, stream, public, model, labels = stream_of()
    played = play(Drifts(), "toy-stream", limit=120)
    assert played.ended
    assert played.counts.passes == 100, "the third batch of 50 would have exceeded 120"
    wrong = []
    for batch, (start, stop) in enumerate(zip(stream.cuts[:-1], stream.cuts[1:], strict=True)):
        with torch.no_grad():
            guess = model(task.images(public, stream.indices[start:stop])).argmax(1).numpy()
            if batch < 2:
                model[-1].bias += 0.1
        wrong.append(guess != labels[start:stop])
    assert played.outcome.metrics["error"] == np.concatenate(wrong).mean()


def returning(stream: Stream, resets: tuple[int, ...], after: int) -> Any:
    """The toy stream's task with resets before batches, and its first `after` images shown once more at the end."""
    task = registry.get("task", "toy-stream").load()()
    task.stream = lambda bundle, seed: dataclasses.replace(
        stream, resets=np.array(resets, np.int64), after=np.arange(after)
    )
    return task


def drifting(log: list[tuple[int, float]]) -> StreamMethod:
    """Lifts another class with every batch; notes in `log`, which no reset reaches, its count of batches and a draw."""

    @dataclass
    class Drifting(StreamMethod):
        def setup(self, model: nn.Module, source: Any) -> None:
            self.model, self.generator, self.batches = model, source.generator, 0

        def predict(self, images: Tensor) -> Tensor:
            log.append((self.batches, float(torch.rand((), generator=self.generator))))
            self.batches += 1
            with torch.no_grad():
                self.model[-1].bias[self.batches % 3] += 1.0
            return self.model(images)

    return Drifting()


def test_before_the_batches_named_resets_a_method_is_back_at_its_start(play: Play) -> None:
    task, stream, public, model, labels = stream_of()
    total, log = len(stream.cuts) - 1, []
    played = play(drifting(log), "toy-stream", task=returning(stream, (3, 4, 10), after=0))
    expected = [*range(3), 0, *range(6), *range(total - 10)]
    assert [count for count, _ in log] == expected
    assert len({draw for _, draw in log}) == total, "its random numbers go on"
    wrong = []
    for count, start, stop in zip(expected, stream.cuts[:-1], stream.cuts[1:], strict=True):
        lifted = torch.tensor([float(sum(batch % 3 == k for batch in range(1, count + 2))) for k in range(3)])
        with torch.no_grad():
            guess = (model(task.images(public, stream.indices[start:stop])) + lifted).argmax(1).numpy()
        wrong.append(guess != labels[start:stop])
    assert played.outcome.metrics["error"] == np.concatenate(wrong).mean()
    log.clear()
    plain = play(drifting(log), "toy-stream", task=returning(stream, (), after=0))
    assert [count for count, _ in log] == list(range(total))
    assert plain.outcome.metrics["error"] != played.outcome.metrics["error"]


def test_images_after_the_stream_are_scored_apart_and_teach_nothing(play: Play) -> None:
    task, stream, public, _, _ = stream_of()
    labels = np.asarray(build(registry.get("task", "toy-stream")).private()["labels"])
    log, other = [], []
    method = drifting(log)
    with_after = play(method, "toy-stream", task=returning(stream, (), after=130))
    without = play(drifting(other), "toy-stream")
    assert log == other, "they are predicted by `predictor`, not by `predict`"
    assert with_after.counts.passes == without.counts.passes, "off the meter"
    with torch.no_grad():
        guess = method.model(task.images(public, np.arange(130))).argmax(1).numpy()
    clean = with_after.outcome.metrics.pop("clean_error")
    assert clean == (guess != labels[:130]).mean()
    assert 0 < clean < 1
    assert with_after.outcome.metrics == without.outcome.metrics
    assert with_after.outcome.groups == without.outcome.groups
    assert with_after.outcome.curve == without.outcome.curve
    assert with_after.outcome.n == without.outcome.n == len(stream.indices)
    assert with_after.outcome.predictions_sha256 != without.outcome.predictions_sha256


def test_a_method_that_ends_before_the_images_after_the_stream_is_refused(tmp_path: Path) -> None:
    _, stream, _, _, _ = stream_of()
    task = returning(stream, (), after=60)
    entry = registry.get("task", "toy-stream")
    spec = expand(tasks=["toy-stream"], methods=["source"], seeds=[0])[0]
    scorer = make_scorer(task, build(entry), spec, tmp_path)
    plan = scorer.plan()
    assert plan["after_cuts"].tolist() == [0, 50, 60]
    sizes = [*np.diff(plan["cuts"]), *np.diff(plan["after_cuts"])]
    for batch, size in enumerate(sizes[:-1]):
        scorer.handle(Message("seal", {}, {"step": np.array([batch]), "logits": np.eye(3)[np.zeros(size, int)]}), None)
    with pytest.raises(MethodError, match="ended before the stream did"):
        scorer.outcome()
    with pytest.raises(MethodError, match=r"shape \(9, 3\)"):
        scorer.handle(Message("seal", {}, {"step": np.array([len(sizes) - 1]), "logits": np.zeros((9, 3))}), None)
    scorer.handle(Message("seal", {}, {"step": np.array([len(sizes) - 1]), "logits": np.zeros((10, 3))}), None)
    labels = np.asarray(build(entry).private()["labels"])
    assert scorer.outcome().metrics["clean_error"] == (labels[:60] != 0).mean()


@pytest.mark.parametrize("resets", [(0,), (24,), (-1, 3)])
def test_a_reset_comes_before_a_batch_from_the_second_on(resets: tuple[int, ...]) -> None:
    _, stream, _, _, _ = stream_of()
    assert len(stream.cuts) - 1 == 24
    with pytest.raises(ValueError, match="resets are batches of the stream from 1"):
        dataclasses.replace(stream, resets=np.array(resets))


def test_a_budget_that_ends_in_setup_is_an_error_with_the_methods_name(play: Play) -> None:
    @dataclass
    class Greedy(StreamMethod):
        def setup(self, model: nn.Module, source: Any) -> None:
            for _ in range(10):
                model(torch.zeros(5, 4))

    with pytest.raises(MethodError, match="'tested' used up its budget before the stream began"):
        play(Greedy(), "toy-stream", limit=20)


def test_bf16_is_computed_in_bf16_and_scored_in_float(play: Play) -> None:
    @dataclass
    class Asks(Recorder):
        def predict(self, images: Tensor) -> Tensor:
            logits = super().predict(images)
            self.dtype = logits.dtype
            return logits

    method = Asks()
    low = play(method, "toy-stream", precision="bf16").outcome
    assert method.dtype == torch.bfloat16
    full = play(Recorder(), "toy-stream").outcome
    assert low.predictions_sha256 != full.predictions_sha256
    assert low.metrics["error"] == pytest.approx(full.metrics["error"], abs=0.02)


STREAM = {
    "indices": np.arange(6),
    "cuts": np.array([0, 2, 6]),
    "domains": np.array([0, 0, 1, 1, 1, 1]),
    "domain_names": ("a", "b"),
}


def test_a_stream_is_immutable_and_named_by_all_of_its_content() -> None:
    base = Stream(**{name: np.array(value) if name != "domain_names" else value for name, value in STREAM.items()})
    for array in (base.indices, base.cuts, base.domains):
        with pytest.raises(ValueError):
            array[0] = 9
    changes = {
        "indices": np.array([1, 0, 2, 3, 4, 5]),
        "cuts": np.array([0, 3, 6]),
        "domains": np.array([0, 0, 0, 1, 1, 1]),
        "domain_names": ("a", "c"),
    }
    digests = {base.sha256} | {dataclasses.replace(base, **{name: value}).sha256 for name, value in changes.items()}
    assert len(digests) == 1 + len(changes)
    arrays = {name: np.array(value, np.int32) for name, value in STREAM.items() if name != "domain_names"}
    again = Stream(**arrays, domain_names=STREAM["domain_names"])
    assert again.sha256 == base.sha256


@pytest.mark.parametrize("cuts", [[0, 2, 5], [1, 6], [0, 3, 3, 6], [0, 4, 2, 6]])
def test_cuts_must_rise_over_the_whole_stream(cuts: list[int]) -> None:
    with pytest.raises(ValueError, match="cuts must rise strictly from 0"):
        Stream(np.arange(6), np.array(cuts), np.zeros(6, int), ("a",))


def test_every_image_needs_a_domain() -> None:
    with pytest.raises(ValueError, match="needs a domain"):
        Stream(np.arange(6), np.array([0, 6]), np.zeros(5, int), ("a",))


def test_even_cuts() -> None:
    assert even_cuts(10, 4).tolist() == [0, 4, 8, 10]
    assert even_cuts(8, 4).tolist() == [0, 4, 8]
    assert even_cuts(3, 4).tolist() == [0, 3]


@dataclass
class Watcher(AdaptationMethod):
    """The supervised baseline that keeps what it was shown."""

    ratio: int = 2
    keep_average: bool = False

    def unlabeled_ratio(self) -> int:
        return self.ratio

    def setup(self, model: nn.Module, view: View) -> None:
        super().setup(model, view)
        self.initial = [parameter.detach().clone() for parameter in model.parameters()]
        self.labeled: list[Tensor] = []
        self.unlabeled: list[Tensor] = []
        self.steps = 0
        self.average = [parameter.detach().clone() for parameter in model.parameters()]

    def loss(self, labeled: Any, unlabeled: Any) -> Tensor:
        assert self.model.training
        self.labeled.append(labeled.x.clone())
        self.unlabeled.append(unlabeled.x.clone())
        return nn.functional.cross_entropy(self.model(labeled.weak), labeled.y)

    def after_step(self) -> None:
        """A slow average of the weights, d_t = min(ema, (1 + t) / (10 + t))."""
        self.steps += 1
        decay = min(self.view.recipe.ema, (1 + self.steps) / (10 + self.steps))
        for mine, weight in zip(self.average, self.model.parameters(), strict=True):
            mine.copy_(decay * mine + (1 - decay) * weight.detach())


def row_counts(batches: list[Tensor], pool: Tensor) -> list[int]:
    """How often each row of the pool was drawn."""
    places = {tuple(row): number for number, row in enumerate(pool.tolist())}
    counts = [0] * len(pool)
    for batch in batches:
        for row in batch.tolist():
            counts[places[tuple(row)]] += 1
    return counts


def test_examples_come_in_turn_and_labelled_ones_with_their_labels(play: Play) -> None:
    """A chain of permutations: after any number of steps no example was drawn twice more than another."""
    method = Watcher()
    play(method, "toy-adaptation", limit=48 * 7)
    view = method.view
    assert method.steps == 7
    # The batches of an eighth step are drawn as well, before its first pass is refused.
    assert sum(row_counts(method.labeled[:7], view.labeled)) == 7 * 16
    assert sum(row_counts(method.unlabeled[:7], view.unlabeled)) == 7 * 32
    for steps in range(1, 8):
        for batches, pool in ((method.labeled, view.labeled), (method.unlabeled, view.unlabeled)):
            counts = row_counts(batches[:steps], pool)
            assert max(counts) - min(counts) <= 1
    truth = {tuple(row): int(label) for row, label in zip(view.labeled.tolist(), view.labels, strict=True)}
    assert len(truth) == 12
    entry = registry.get("task", "toy-adaptation")
    bundle = build(entry)
    split = entry.load()().split(bundle, 0)
    assert view.labels.tolist() == bundle.private()["labels"][split.labeled].tolist()


def test_a_method_is_shown_neither_validation_nor_test_labels(play: Play) -> None:
    method = Watcher()
    play(method, "toy-adaptation", limit=500)
    assert len(method.view.labels) == len(method.view.labeled) == 12
    held = [*vars(method.view).values(), *method.view._evaluated.values()]
    arrays = [value for value in held if isinstance(value, (Tensor, np.ndarray))]
    integers = [array for array in arrays if "int" in str(array.dtype) and len(array)]
    assert len(integers) == 1, "the labels it may see, and no other classes"


def test_without_unlabelled_examples_the_batch_is_empty(play: Play) -> None:
    method = Watcher(ratio=0)
    play(method, "toy-adaptation", limit=500)
    assert {len(batch) for batch in method.unlabeled} == {0}


def test_a_view_does_not_depend_on_which_others_are_asked_for(play: Play) -> None:
    @dataclass
    class Asks(Watcher):
        order: tuple[str, ...] = ("weak",)

        def loss(self, labeled: Any, unlabeled: Any) -> Tensor:
            self.views = {name: getattr(unlabeled, name).clone() for name in self.order}
            assert unlabeled.weak is unlabeled.weak
            return super().loss(labeled, unlabeled)

    one, other = Asks(order=("weak", "weak2", "strong")), Asks(order=("strong", "weak2", "weak"))
    assert play(one, "toy-adaptation", limit=48 * 3).outcome == play(other, "toy-adaptation", limit=48 * 3).outcome
    for name in one.views:
        assert torch.equal(one.views[name], other.views[name])
    assert not torch.equal(one.views["weak"], one.views["weak2"])
    assert not torch.equal(one.views["weak"], one.views["strong"])


def test_what_a_method_draws_does_not_move_the_data(play: Play) -> None:
    """Batches, views and initial weights come from streams of their own."""

    @dataclass
    class Draws(Watcher):
        def loss(self, labeled: Any, unlabeled: Any) -> Tensor:
            torch.rand(3, generator=self.view.generator)
            torch.rand(self.steps)
            return super().loss(labeled, unlabeled)

    plain, draws, other_seed = Watcher(), Draws(), Watcher()
    play(plain, "toy-adaptation", limit=500)
    play(draws, "toy-adaptation", limit=500)
    play(other_seed, "toy-adaptation", limit=500, seed=1)
    assert len(plain.labeled) == len(draws.labeled) > 5
    for mine, theirs in zip(plain.unlabeled + plain.initial, draws.unlabeled + draws.initial, strict=True):
        assert torch.equal(mine, theirs)
    assert not torch.equal(plain.unlabeled[0], other_seed.unlabeled[0])
    assert not torch.equal(plain.initial[0], other_seed.initial[0])


def test_every_new_model_starts_from_the_same_weights_and_counts(play: Play) -> None:
    @dataclass
    class Two(Watcher):
        def fit(self, view: View) -> None:
            before = torch.get_rng_state()
            second = view.new_model()
            assert torch.equal(torch.get_rng_state(), before)
            for mine, theirs in zip(self.initial, second.parameters(), strict=True):
                assert torch.equal(mine, theirs)
            second(view.unlabeled[:7])

    assert play(Two(), "toy-adaptation").counts.forward == 7


def test_the_learning_rate_falls_by_cosine_over_the_budget(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = []
    step = torch.optim.SGD.step

    def watched(self: Any, *args: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args)

    monkeypatch.setattr(torch.optim.SGD, "step", watched)
    play(Watcher(lr_scale=2.0), "toy-adaptation", limit=48 * 100)
    expected = [2.0 * 0.05 * np.cos(7 * np.pi / 16 * done / 100) for done in range(100)]
    np.testing.assert_allclose(rates, expected, rtol=1e-12)


def test_points_are_spread_over_the_budget_and_the_last_is_the_end(play: Play) -> None:
    played = play(Watcher(), "toy-adaptation", limit=48 * 40)
    assert [point.x for point in played.outcome.curve] == [480, 960, 1440, 1920]
    assert played.counts.passes == 1920
    assert played.ended


def test_the_averaged_weights_are_evaluated(play: Play) -> None:
    method = Watcher()
    played = play(method, "toy-adaptation", limit=48 * 20)
    averaged = method.view._averaged
    for mine, theirs in zip(method.average, averaged.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs.detach())
    for mine, theirs in zip(method.model.buffers(), averaged.buffers(), strict=True):
        assert torch.equal(mine, theirs)
    with method.view.meter.paused():
        logits = averaged.eval()(method.view._evaluated["test"]).detach().numpy()
    entry = registry.get("task", "toy-adaptation")
    bundle = build(entry)
    labels = bundle.private()["labels"][entry.load()().split(bundle, 0).test]
    assert played.outcome.metrics == score_classification(logits, labels).metrics


def test_what_the_predictor_says_of_the_pool_is_scored_and_not_shown(play: Play) -> None:
    """Against a loop over the examples; the method hears nothing of it."""
    method = Watcher()
    played = play(method, "toy-adaptation", limit=48 * 200)
    entry = registry.get("task", "toy-adaptation")
    bundle, view = build(entry), method.view
    pool = entry.load()().split(bundle, 0).unlabeled
    places = pool_sample(0, len(pool))
    with view.meter.paused():
        p = view._averaged.eval()(view.unlabeled[torch.from_numpy(places)]).softmax(1).detach()
    right, sure = 0, []
    for row, truth in zip(p, bundle.private()["labels"][pool[places]], strict=True):
        right += int(row.argmax()) == truth
        sure += [int(row.argmax()) == truth] if row.max() >= 0.95 else []
    expected = {"pool_accuracy": right / len(places), "confident_share": len(sure) / len(places)}
    expected["confident_accuracy"] = sum(sure) / len(sure)
    assert 0 < len(sure) < len(places)
    found = played.outcome.diagnostics
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert {name: played.outcome.curve[-1].values[name] for name in expected} == pytest.approx(expected)
    assert not len(view.unlabeled_labels)


def test_a_pool_is_not_scored_without_an_oracle(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    options = registry.get("task", "toy-adaptation").options
    monkeypatch.setitem(options, "grants", tuple(need for need in options["grants"] if need != "oracle-labels"))
    played = play(Watcher(), "toy-adaptation", limit=48 * 20)
    assert set(played.outcome.diagnostics) == {"selected_at"}
    assert {"entropy", "transfer_score"} <= played.outcome.curve[-1].values.keys()


def test_a_predictor_of_its_own_is_evaluated_instead(play: Play) -> None:
    @dataclass
    class Constant(Watcher):
        def predictor(self) -> nn.Module:
            head = nn.Linear(4, 3)
            nn.init.zeros_(head.weight)
            head.bias.data = torch.tensor([5.0, 0.0, 0.0])
            return head

    played = play(Constant(), "toy-adaptation", limit=500)
    assert played.outcome.metrics["error"] == pytest.approx(2 / 3, abs=0.15)
    assert len({point.values["error"] for point in played.outcome.curve}) == 1


def test_evaluation_is_off_the_meter_and_changes_nothing(play: Play) -> None:
    @dataclass
    class Curious(Watcher):
        """Asks for validation scores at every step; dropout and batch norm would tell of any disturbance."""

        def after_step(self) -> None:
            super().after_step()
            self.scores = [*getattr(self, "scores", []), self.view.validate()]

    plain, curious = (
        play(Watcher(), "toy-adaptation", limit=960),
        play(method := Curious(), "toy-adaptation", limit=960),
    )
    assert curious.outcome == plain.outcome
    assert curious.counts.passes == plain.counts.passes == 960
    assert (plain.counts.validation_calls, plain.counts.labels) == (0, 12)
    assert (curious.counts.validation_calls, curious.counts.labels) == (20, 12 + 12)
    assert all(0 <= score <= 1 for score in method.scores)
    assert len(set(method.scores)) > 1


def test_a_validation_score_is_the_true_one(play: Play) -> None:
    @dataclass
    class Once(Watcher):
        def fit(self, view: View) -> None:
            self.score = view.validate()

    method = Once()
    play(method, "toy-adaptation")
    entry = registry.get("task", "toy-adaptation")
    bundle = build(entry)
    split = entry.load()().split(bundle, 0)
    logits = method.model.eval()(method.view._evaluated["validation"]).detach().numpy()
    labels = bundle.private()["labels"][split.validation]
    assert method.score == score_classification(logits, labels).metrics["error"]


def test_passes_that_a_cache_saved_are_charged(play: Play) -> None:
    entry = registry.get("task", "toy-adaptation")

    class Cached(entry.load()):  # type: ignore[misc]
        cached_passes = 1.0

    shown = 12 + 376
    played = play(Watcher(), "toy-adaptation", task=Cached(), limit=shown + 48 * 3)
    assert played.counts.forward == shown + 3 * 16
    assert played.counts.passes == shown + 3 * 48
    with pytest.raises(MethodError, match="used up its budget before it had a predictor"):
        play(Watcher(), "toy-adaptation", task=Cached(), limit=shown - 1)


def test_selection_by_validation_without_a_validation_set_is_explained(play: Play) -> None:
    class Blind(registry.get("task", "toy-adaptation").load()):  # type: ignore[misc]
        def split(self, bundle: Any, seed: int) -> Split:
            return dataclasses.replace(super().split(bundle, seed), validation=np.arange(0))

    assert play(Watcher(), "toy-adaptation", task=Blind(), limit=500).outcome.n == 200
    with pytest.raises(MethodError, match="task 'toy-adaptation' does not fit: selection 'validation' needs examples"):
        play(Watcher(), "toy-adaptation", task=Blind(), limit=500, selection="validation")


def test_a_method_that_never_makes_a_model_is_explained(play: Play) -> None:
    @dataclass
    class Nothing(Watcher):
        def setup(self, model: nn.Module, view: View) -> None:
            for _ in range(100):
                model(view.unlabeled)

    with pytest.raises(MethodError, match="'tested' used up its budget before it had a predictor"):
        play(Nothing(), "toy-adaptation", limit=1000)


@pytest.mark.parametrize(
    ("labeled", "labels", "unlabeled", "validation", "says"),
    [
        ([0, 1], [0], [2], [3], "every labelled example needs its label"),
        ([0, 9], [0, 1], [2], [3], "test examples may not be among those a method is shown"),
        ([0, 1], [0, 1], [2, 9], [3], "test examples may not be"),
        ([0, 1], [0, 1], [2], [9], "test examples may not be"),
    ],
)
def test_a_split_keeps_the_test_set_apart(
    labeled: list[int], labels: list[int], unlabeled: list[int], validation: list[int], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        Split(*map(np.array, (labeled, labels, unlabeled, validation, [9, 10])))


def test_a_task_without_a_strong_view_says_so() -> None:
    with pytest.raises(NotImplementedError):
        AdaptationTask().strong(torch.zeros(1), torch.Generator())


TOYS = {
    "stream": ("toy-stream", "toy-image-stream"),
    "adaptation": ("toy-adaptation", "toy-images", "toy-tokens"),
}
SHORT: dict[str, dict[str, Any]] = {
    "note": {"source_steps": 5},
    "rmt-replay": {"warmup_images": 100},
    "vida-pretrained": {"pretrain_steps": 5},
    "memo": {"views": 4},
    "cotta": {"views": 4},
    "petal": {"views": 4},
    "swav": {"hidden": 16, "size": 8, "frozen": 2},
}
"""Methods that train on source data before the stream, take many views or wide layers: less of it than usual."""
OURS = {
    name: entry
    for name, entry in registry.entries("method").items()
    if PACKAGE / "methods" in entry.file.parents and entry.protocol in TOYS
}


def toy_of(method: registry.Entry) -> str:
    return next(toy for toy in TOYS[method.protocol] if not misfit(method, registry.get("task", toy)))


class _Silent:
    def started(self, *_: Any) -> None: ...
    def tick(self, *_: Any) -> None: ...
    def finished(self, *_: Any) -> None: ...


Runs = dict[str, dict[str, Record]]


@pytest.fixture(scope="module")
def runs(executor: LocalExecutor, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Every method of the package on the first toy it fits: as usual, in one slot, and with permuted hidden labels."""
    folder = tmp_path_factory.mktemp("runs")
    specs: list[RunSpec] = []
    for name, entry in OURS.items():
        method = {"name": name, "params": SHORT.get(name, {})}
        specs += expand(tasks=[toy_of(entry)], methods=[method], seeds=[0])
    prepare(specs, executor, Store(folder / "usual"), lambda text: None)
    found: Runs = {}
    with pytest.MonkeyPatch.context() as patch:
        for variant, slots, permute in (("usual", 2, None), ("one slot", 1, None), ("permuted", 2, 1)):
            patch.setattr(executor, "slots", slots)
            done = run(specs, Store(folder / variant), executor, _Silent(), permute=permute)
            found[variant] = {record.spec.method.name: record for record in done.finished}
    return found


each = pytest.mark.parametrize("method", OURS)


@each
def test_every_method_finishes_its_toy_within_its_budget(runs: Runs, method: str) -> None:
    record = runs["usual"][method]
    assert record.status == "ok", record.reason
    assert 0 < record.cost.passes <= record.spec.budget.limit
    assert record.cost.passes == record.cost.forward + 2 * record.cost.backward


@each
def test_equal_seeds_give_equal_records_however_many_slots(runs: Runs, method: str) -> None:
    assert runs["usual"][method].results() == runs["one slot"][method].results()


@each
def test_hidden_labels_move_no_prediction(runs: Runs, method: str) -> None:
    usual, permuted = runs["usual"][method], runs["permuted"][method]
    assert permuted.predictions_sha256 == usual.predictions_sha256
    assert permuted.metrics["nll"] != usual.metrics["nll"], "the labels were permuted indeed"


@pytest.fixture
def with_domains() -> Any:
    """Three labelled domains of unequal size, two unlabelled ones, and held-out source examples."""

    class WithDomains(registry.get("task", "toy-adaptation").load()):  # type: ignore[misc]
        def split(self, bundle: Any, seed: int) -> Split:
            split = super().split(bundle, seed)
            kept, held = split.unlabeled[:-40], split.unlabeled[-40:]
            return dataclasses.replace(
                split, unlabeled=kept, source_validation=held, labeled_domains=np.array([0] * 7 + [1] * 4 + [5]),
                unlabeled_domains=np.arange(len(kept)) % 10 // 9 + 3,
            )  # fmt: skip

    return WithDomains()


@dataclasses.dataclass
class DomainWatcher(AdaptationMethod):
    domains: int = 0

    def unlabeled_ratio(self) -> int:
        return 1

    def domains_per_batch(self) -> int:
        return self.domains

    def setup(self, model: nn.Module, view: View) -> None:
        super().setup(model, view)
        self.seen: list[Any] = []

    def loss(self, labeled: LabeledBatch, unlabeled: Batch) -> Tensor:
        self.seen.append((labeled, unlabeled))
        return nn.functional.cross_entropy(self.model(labeled.x), labeled.y) + 0 * self.model(unlabeled.x).sum()


def test_domains_are_shown_to_those_who_need_them_alone(play: Play, with_domains: Any) -> None:
    play(blind := DomainWatcher(), "toy-adaptation", task=with_domains, limit=960)
    assert all(len(batch.domains) == 0 for pair in blind.seen for batch in pair)
    assert len(blind.view.labeled_domains) == len(blind.view.unlabeled_domains) == 0
    play(method := DomainWatcher(), "toy-adaptation", task=with_domains, limit=960, needs=("domains",))
    for labeled, unlabeled in method.seen:
        assert torch.equal(labeled.domains, method.view.labeled_domains[labeled.index])
        assert torch.equal(unlabeled.domains, method.view.unlabeled_domains[unlabeled.index])
        assert torch.equal(unlabeled.x, method.view.unlabeled[unlabeled.index])
    # Knowing the domains changes no batch.
    for (mine, _), (theirs, _) in zip(method.seen, blind.seen, strict=True):
        assert torch.equal(mine.index, theirs.index)


def test_batches_of_domains_hold_equal_shares_of_as_many_as_asked_for(play: Play, with_domains: Any) -> None:
    play(method := DomainWatcher(domains=2), "toy-adaptation", task=with_domains, limit=96 * 60, needs=("domains",))
    met = {0: 0, 1: 0, 5: 0}
    for labeled, unlabeled in method.seen:
        values, counts = labeled.domains.unique(return_counts=True)
        assert counts.tolist() == [8, 8]
        assert unlabeled.domains.unique(return_counts=True)[1].tolist() == [8, 8]
        for value in values.tolist():
            met[value] += 1
        # Without replacement where the domain is large enough.
        assert len(unlabeled.index.unique()) == 16
    assert min(met.values()) > 0.4 * len(method.seen)


def test_held_out_source_examples_are_scored_at_every_point(play: Play, with_domains: Any) -> None:
    outcome = play(DomainWatcher(), "toy-adaptation", task=with_domains, limit=2000).outcome
    assert all(0 <= point.values["source_validation"] <= 1 for point in outcome.curve)
    assert all({"entropy", "transfer_score"} <= point.values.keys() for point in outcome.curve)
    chosen = play(DomainWatcher(), "toy-adaptation", task=with_domains, limit=2000, selection="source-validation")
    best = min(outcome.curve, key=lambda point: (point.values["source_validation"], point.x))
    assert chosen.outcome.metrics["error"] == best.values["error"]
    assert chosen.outcome.extra_labels == 40


@dataclasses.dataclass
class TwoRates(AdaptationMethod):
    def setup(self, model: nn.Module, view: View) -> None:
        super().setup(model, view)
        self.extra = nn.Linear(1, 1)
        self.before = [parameter.detach().clone() for parameter in (*model.parameters(), *self.extra.parameters())]

    def parameter_groups(self) -> list[tuple[list[nn.Parameter], float]]:
        return [(list(self.model.parameters()), 0.0), (list(self.extra.parameters()), 10.0)]

    def loss(self, labeled: LabeledBatch, unlabeled: Batch) -> Tensor:
        return nn.functional.cross_entropy(self.model(labeled.x), labeled.y) + self.extra.weight.sum()


def test_groups_of_parameters_have_rates_of_their_own(play: Play) -> None:
    play(method := TwoRates(), "toy-adaptation", limit=48)
    now = [*method.model.parameters(), *method.extra.parameters()]
    assert all(torch.equal(old, new) for old, new in zip(method.before[:-2], now[:-2], strict=True))
    # One step of SGD: Nesterov's momentum 0.9 and weight decay 5e-4, at ten times the task's 0.05.
    old, new = method.before[-2], now[-2].detach()
    torch.testing.assert_close(new, old - 0.5 * 1.9 * (1 + 5e-4 * old))


def test_the_end_of_a_stream_is_its_last_tenth(play: Play) -> None:
    class Late(StreamMethod):
        """Right for the first nine tenths."""

        def setup(self, model: nn.Module, source: Any) -> None:
            super().setup(model, source)
            self.batch = 0

        def predict(self, images: Tensor) -> Tensor:
            self.batch += 1
            with torch.no_grad():
                logits = self.model(images)
            return logits if self.batch <= 1080 // 50 else torch.full_like(logits, -1.0).index_fill_(1, KEPT, 0.0)

    KEPT = torch.tensor([2])
    outcome = play(Late(), "toy-stream").outcome
    _, stream, _, _, labels = stream_of()
    assert len(labels) == 1200
    # The last tenth is images 1080 to 1199; batches 22 and 23 (from image 1100 on) say class 2.
    wrong = np.asarray(labels)[stream.indices][1100:] != 2
    assert outcome.metrics["end_error"] * 120 >= wrong.sum()
    assert outcome.metrics["end_error"] * 120 <= wrong.sum() + 20
    assert outcome.metrics["end_error"] > 2 * outcome.metrics["error"]


def test_the_schedule_counts_what_a_cache_saved(play: Play) -> None:
    """The first step of a task with cached passes is not at the schedule's beginning."""
    shares: list[float] = []
    entry = registry.get("task", "toy-adaptation")

    class Cached(entry.load()):  # type: ignore[misc]
        cached_passes = 1.0
        recipe = dataclasses.replace(entry.load().recipe, schedule=lambda share: shares.append(share) or 1.0)

    shown = 12 + 376
    play(Watcher(), "toy-adaptation", task=Cached(), limit=2 * shown)
    assert shares[0] == 0.5
    assert shares == sorted(shares)
