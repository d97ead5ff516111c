"""Active learning: rounds are runs of `adaptation`, kills change nothing, and no label is had that was not bought."""

from __future__ import annotations

import dataclasses
import json
import mmap
import socket
import sys
import threading
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selfbench import AdaptationMethod
from selfbench.methods.baselines.oracle_labels import OracleLabels
from selfbench.methods.baselines.supervised import Supervised
from selfbench.methods.self_training.hast import Hast
from selfbench.suite import registry
from selfbench.suite.bundle import BundleFolder
from selfbench.suite.errors import BudgetExhausted, MethodError
from selfbench.suite.meter import Counts, Meter
from selfbench.suite.needs import ORACLE
from selfbench.suite.prepare.bundles import build
from selfbench.suite.protocols.active import ActiveTask, learning_curve_area
from selfbench.suite.protocols.active_loop import RoundView, extended, run_active
from selfbench.suite.protocols.adaptation_loop import run_adaptation
from selfbench.suite.protocols.context import Context
from selfbench.suite.run.scorer import ActiveScorer, Outcome, make_scorer
from selfbench.suite.spec import Budget, MethodRef, RunSpec, TaskRef
from selfbench.suite.suites import misfit
from selfbench.suite.wire import Wire

ROUNDS, SIZE, START, VALIDATION = 3, 5, 12, 12
LIMIT = 3000.0


class Stopped(Exception):
    """The run was killed, right after a checkpoint."""


@dataclass
class StoppingContext(Context):
    """A context whose run dies after `stop_after` checkpoints."""

    stop_after: int = 0
    saved: int = 0

    def save_checkpoint(self, state: Any, step: int) -> None:
        super().save_checkpoint(state, step)
        self.saved += 1
        if self.saved == self.stop_after:
            raise Stopped


@dataclass
class Played:
    """A run in this process: what was sent, what the scorer made of it, what the meter counted."""

    counts: Counts
    scorer: ActiveScorer
    outcome: Outcome | None = None
    logits: list[np.ndarray] = field(default_factory=list)
    bought: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    resumed: int = 0


class PrivateLabels(BundleFolder):
    """The toy bundle with other labels."""

    def __init__(self, path: Path, labels: np.ndarray) -> None:
        super().__init__(path)
        object.__setattr__(self, "labels", labels)

    def private(self) -> dict[str, np.ndarray]:
        return {"labels": self.labels}


Play = Callable[..., Played]


@pytest.fixture
def toy() -> tuple[ActiveTask, BundleFolder]:
    entry = registry.get("task", "toy-active")
    return entry.load()(), build(entry)


@pytest.fixture
def play(tmp_path: Path, toy: tuple[ActiveTask, BundleFolder]) -> Play:
    """play(method, ...): the real loop here, the real scorer at the other end of a line; runs in one folder resume."""

    def call(
        method: Any, *, task: ActiveTask | None = None, folder: str = "run", stop_after: int = 0,
        checkpoints: float = 1e9, selection: str = "last", limit: float = LIMIT, labels: np.ndarray | None = None,
        needs: tuple[str, ...] = (),
    ) -> Played:  # fmt: skip
        task, bundle = task or toy[0], toy[1]
        if labels is not None:
            bundle = PrivateLabels(bundle.path, labels)
        work = tmp_path / folder
        work.mkdir(exist_ok=True)
        spec = RunSpec(
            task=TaskRef(name="toy-active", version="1"),
            method=MethodRef(name="tested", version="1"),
            seed=4,
            budget=Budget(limit=limit),
            selection=selection,
        )
        scorer = make_scorer(task, bundle, spec, work)
        assert isinstance(scorer, ActiveScorer)
        meter = Meter(spec.budget, "tested")
        played = Played(meter.counts, scorer)
        ours, theirs = socket.socketpair()
        errors: list[Exception] = []

        class Listening(Wire):
            def send(self, kind: str, arrays: Any = None, **values: Any) -> None:
                if kind == "bought":
                    played.bought.append((arrays["places"].copy(), arrays["labels"].copy()))
                super().send(kind, arrays, **values)

        def listen() -> None:
            wire = Listening(ours)
            try:
                while (message := wire.receive()) is not None:
                    if message.kind == "point":
                        played.logits.append(np.array(message.arrays["test"]))
                    scorer.handle(message, wire)
            except Exception as error:
                errors.append(error)
                ours.close()

        listener = threading.Thread(target=listen)
        listener.start()
        context = StoppingContext(spec, torch.device("cpu"), Wire(theirs), work, checkpoints, stop_after=stop_after)
        stopped = False
        try:
            with torch.random.fork_rng(devices=[]):
                run_active(method, task, bundle.public(), scorer.plan(), meter, context, needs)
        except Stopped:
            stopped = True
        except (MethodError, BrokenPipeError, ConnectionResetError):
            # The scorer has hung up, and says why below.
            if not errors:
                raise
        finally:
            theirs.close()
            listener.join()
            ours.close()
        if errors:
            raise errors[0]
        played.counts, played.resumed = meter.counts, context.resumed
        if not stopped:
            played.outcome = scorer.outcome()
        return played

    return call


@dataclass
class Watcher(AdaptationMethod):
    """The supervised baseline; what each of its rounds was shown goes into `seen`, which no round forgets."""

    seen: list[Any] = field(default_factory=list)

    def setup(self, model: nn.Module, view: Any) -> None:
        super().setup(model, view)
        self.seen.append((view.labeled.clone(), view.labels.clone(), view.unlabeled.clone(), view.progress))

    def loss(self, labeled: Any, unlabeled: Any) -> Tensor:
        return F.cross_entropy(self.model(labeled.weak), labeled.y)


@dataclass
class Validates(AdaptationMethod):
    """The supervised baseline; asks twice for a validation score in the middle of round `asks_in`."""

    asks_in: int = 0

    def setup(self, model: nn.Module, view: Any) -> None:
        super().setup(model, view)
        self.asked = False

    def loss(self, labeled: Any, unlabeled: Any) -> Tensor:
        return F.cross_entropy(self.model(labeled.weak), labeled.y)

    def fit(self, view: Any) -> None:
        if len(view.labels) == START + self.asks_in * SIZE and not self.asked:
            view.train(self, until=0.5)
            view.validate()
            view.validate()
            self.asked = True
        view.train(self)


def test_each_round_adds_what_was_bought(play: Play, toy: tuple[ActiveTask, BundleFolder]) -> None:
    task, bundle = toy
    method = Watcher()
    played = play(method)
    split, labels = task.split(bundle, 4), bundle.private()["labels"]
    pool, labeled = split.unlabeled, split.labeled
    assert len(method.seen) == ROUNDS + 1
    for number, (x, y, rest, progress) in enumerate(method.seen):
        assert progress == 0
        assert torch.equal(x, task.inputs(bundle.public(), labeled))
        assert y.tolist() == labels[labeled].tolist()
        assert torch.equal(rest, task.inputs(bundle.public(), pool))
        if number < ROUNDS:
            places, told = played.bought[number]
            assert len(set(places.tolist())) == SIZE
            assert told.tolist() == labels[pool[places]].tolist()
            labeled, pool = np.concatenate([labeled, pool[places]]), np.delete(pool, places)
    assert played.counts.labels == START + ROUNDS * SIZE == played.outcome.given_labels


def test_a_round_is_a_run_of_adaptation_with_the_labels_bought_so_far(
    play: Play, toy: tuple[ActiveTask, BundleFolder], tmp_path: Path
) -> None:
    task, bundle = toy
    played = play(Hast(rounds=1, confidence=0.4))
    plan, budget, found = played.scorer.plan(), Budget(limit=LIMIT / (ROUNDS + 1)), []
    spec = RunSpec(
        task=TaskRef(name="t", version="1"), method=MethodRef(name="m", version="1"), seed=4, budget=budget
    )  # fmt: skip

    class Sink(Wire):
        def send(self, kind: str, arrays: Any = None, **values: Any) -> None:
            found.append(arrays["test"])

    with socket.socket() as end:
        context = Context(spec, torch.device("cpu"), Sink(end), tmp_path, 1e9)
        for number in range(ROUNDS + 1):
            with torch.random.fork_rng(devices=[]):
                run_adaptation(Hast(rounds=1, confidence=0.4), task, bundle.public(), plan, Meter(budget, "m"), context)
            np.testing.assert_array_equal(found[-1], played.logits[number])
            if number < ROUNDS:
                plan = extended(plan, *played.bought[number])


def test_the_curve_stands_at_labels_bought_and_its_area_is_scored(play: Play) -> None:
    outcome = play(Supervised()).outcome
    assert [point.x for point in outcome.curve] == [12.0, 17.0, 22.0, 27.0]
    accuracy = [point.values["accuracy"] for point in outcome.curve]
    assert outcome.metrics["accuracy"] == accuracy[-1]
    by_hand = (accuracy[0] / 2 + accuracy[1] + accuracy[2] + accuracy[3] / 2) / 3
    assert outcome.metrics["learning_curve_area"] == pytest.approx(by_hand, abs=1e-12)
    assert learning_curve_area(np.array([10.0, 20.0, 50.0]), np.array([0.0, 1.0, 0.5])) == pytest.approx(27.5 / 40)


def test_budgets_of_rounds_are_equal_and_a_frozen_model_is_charged_once(
    play: Play, toy: tuple[ActiveTask, BundleFolder]
) -> None:
    # 750 passes a round: 15 steps of 48, and the forward pass of another one.
    used = (ROUNDS + 1) * (15 * 48 + 16)
    assert play(Supervised()).counts.passes == used
    cached = type("Cached", (type(toy[0]),), {"cached_passes": 2.0})()
    shown = 2.0 * (400 - VALIDATION)
    again = play(Supervised(), task=cached, folder="cached", limit=LIMIT + shown)
    assert again.counts.passes == shown + used
    with pytest.raises(MethodError, match="used up its budget before it had a predictor"):
        play(Supervised(), task=cached, folder="small", limit=shown - 1)


def test_weight_zero_is_the_supervised_baseline_in_every_round(play: Play) -> None:
    zero, baseline = play(Hast(weight=0.0), folder="zero"), play(Supervised(), folder="baseline")
    for mine, theirs in zip(zero.logits, baseline.logits, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert zero.outcome == baseline.outcome


@pytest.mark.parametrize("stop_after", [1, 9, 16, 17, 24, 31, 32])
def test_a_run_killed_in_any_round_goes_on_bit_equal(play: Play, stop_after: int) -> None:
    method = Hast(rounds=2, confidence=0.4, ratio=2)
    whole = play(method, folder="whole", limit=8000)
    killed = play(method, stop_after=stop_after, checkpoints=0, limit=8000)
    assert killed.counts.passes < whole.counts.passes
    resumed = play(method, limit=8000)
    assert resumed.resumed == 1
    assert resumed.outcome == whole.outcome
    assert resumed.counts == dataclasses.replace(whole.counts, seconds=resumed.counts.seconds)
    for mine, theirs in zip(whole.logits[::-1], resumed.logits[::-1], strict=False):
        np.testing.assert_array_equal(mine, theirs)


def test_a_kill_after_a_sale_buys_the_same_labels_again(play: Play, tmp_path: Path) -> None:
    """The scorer is a query ahead of the last checkpoint, and the run that resumes has other predictions."""
    killed = play(Supervised(), stop_after=20, checkpoints=0)
    assert len(killed.bought) == 1
    account = tmp_path / "run" / "scorer-account.json"
    first = json.loads(account.read_text())["bought"]
    (tmp_path / "run" / "checkpoint.pt").unlink()
    again = play(Supervised(lr_scale=0.1))
    assert json.loads(account.read_text())["bought"][: len(first)] == first
    for mine, theirs in zip(killed.bought, again.bought, strict=False):
        np.testing.assert_array_equal(mine, theirs)
    free = play(Supervised(lr_scale=0.1), folder="free")
    assert not np.array_equal(free.bought[0][0], again.bought[0][0]), "without the account it would buy others"


def test_labels_that_were_not_bought_move_nothing(play: Play, toy: tuple[ActiveTask, BundleFolder]) -> None:
    task, bundle = toy
    first = play(Hast(confidence=0.4), folder="first")
    labels = np.array(bundle.private()["labels"])
    kept = np.concatenate([*first.scorer._bought, first.scorer._split.labeled])
    split = first.scorer._split
    hidden = np.setdiff1d(split.unlabeled, kept)
    assert len(hidden) == 400 - VALIDATION - START - ROUNDS * SIZE
    labels[hidden] = (labels[hidden] + 1) % 3
    same = type("SameSplit", (type(task),), {"split": lambda self, bundle, seed: split})()
    again = play(Hast(confidence=0.4), task=same, folder="again", labels=labels)
    for mine, theirs in zip(first.logits, again.logits, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_validation_labels_are_counted_once_and_shift_the_curve(play: Play) -> None:
    played = play(Validates(asks_in=1))
    assert [point.x for point in played.outcome.curve] == [12.0, 29.0, 34.0, 39.0]
    assert played.counts.labels == START + ROUNDS * SIZE + VALIDATION == played.outcome.given_labels
    assert played.counts.validation_calls == 2


@pytest.mark.parametrize("stop_after", [20, 41])
def test_validation_is_counted_in_its_round_after_a_kill(play: Play, tmp_path: Path, stop_after: int) -> None:
    """Killed before and after it asked, with the account of a run that had gone on to its end."""
    whole = play(Validates(asks_in=2), folder="whole")
    killed = play(Validates(asks_in=2), stop_after=stop_after, checkpoints=0)
    assert killed.counts.validation_calls == (2 if stop_after == 41 else 0)
    account = (tmp_path / "whole" / "scorer-account.json").read_text()
    (tmp_path / "run" / "scorer-account.json").write_text(account)
    resumed = play(Validates(asks_in=2))
    assert resumed.outcome == whole.outcome
    assert [point.x for point in resumed.outcome.curve] == [12.0, 17.0, 34.0, 39.0]
    assert resumed.counts.labels == resumed.outcome.given_labels


@dataclass
class Talks(AdaptationMethod):
    """Sends messages of its own in its first round, and then trains."""

    what: str = "query"

    def loss(self, labeled: Any, unlabeled: Any) -> Tensor:
        return F.cross_entropy(self.model(labeled.weak), labeled.y)

    def fit(self, view: Any) -> None:
        wire, n, seen = view.context.wire, len(view.unlabeled), len(view.labeled)
        query = {"logits": np.zeros((n, 3), np.float32), "features": np.zeros((n, 0), np.float32),
                 "labeled_logits": np.zeros((seen, 3), np.float32),
                 "labeled_features": np.zeros((seen, 0), np.float32)}  # fmt: skip
        if seen == START:
            if self.what == "point, query":
                zeros = {"test": np.zeros((200, 3), np.float32), "validation": np.zeros((12, 3), np.float32)}
                wire.send("point", zeros, index=0, x=0.0)
            if self.what in ("query", "point, query"):
                wire.send("query", query, round=0)
                wire.receive()
            if self.what == "later query":
                wire.send("query", query, round=1)
                wire.receive()
            if self.what == "later point":
                wire.send("point", {"test": np.zeros((200, 3), np.float32)}, index=1, x=0.0)
            if self.what == "plan":
                wire.send("plan")
        view.train(self)


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("query", "query 0 came out of order"),
        ("later query", "query 1 came out of order"),
        ("point, query", "point 0 of the curve came out of order"),
        ("later point", "came before its labels were bought"),
        ("plan", "unknown message 'plan'"),
    ],
)
def test_labels_cannot_be_bought_ahead_of_the_round_they_are_scored_in(play: Play, what: str, says: str) -> None:
    with pytest.raises(MethodError, match=says):
        play(Talks(what=what))


def test_asking_twice_in_a_round_gives_the_same_labels_twice(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    once = RoundView.ask

    def twice(self: Any, features: bool) -> Any:
        once(self, features)
        return once(self, features)

    monkeypatch.setattr(RoundView, "ask", twice)
    bought = play(Supervised()).bought
    assert len(bought) == 2 * ROUNDS
    for first, second in zip(bought[::2], bought[1::2], strict=True):
        np.testing.assert_array_equal(first, second)


def test_selection_and_pool_must_fit(play: Play, toy: tuple[ActiveTask, BundleFolder]) -> None:
    with pytest.raises(MethodError, match="selection 'validation' has nothing to choose"):
        play(Supervised(), selection="validation")
    greedy = type("Greedy", (type(toy[0]),), {"query_size": 200})()
    with pytest.raises(MethodError, match="it buys 600 labels of a pool of 376"):
        play(Supervised(), task=greedy, folder="greedy")


def test_features_are_shown_to_a_strategy_that_wants_them(play: Play, toy: tuple[ActiveTask, BundleFolder]) -> None:
    shown = []

    def query(self: Any, seen: Any, size: int, draw: Any) -> np.ndarray:
        shown.append(seen)
        return draw.permutation(len(seen.logits))[:size]

    curious = type("Curious", (type(toy[0]),), {"query": query, "query_features": True})()
    play(Supervised(), task=curious)
    assert [item.features.shape for item in shown] == [(376, 3), (371, 3), (366, 3)]
    assert [item.labeled_features.shape for item in shown] == [(12, 3), (17, 3), (22, 3)]
    plain = type("Plain", (type(toy[0]),), {"query": query})()
    shown.clear()
    play(Supervised(), task=plain, folder="plain")
    assert shown[0].features.shape == (376, 0)


def test_what_is_bought_takes_its_domain_along() -> None:
    plan = {
        "labeled": np.array([5]), "labels": np.array([1]), "labeled_domains": np.array([7]),
        "unlabeled": np.array([10, 11, 12, 13]), "unlabeled_domains": np.array([0, 1, 2, 3]), "test": np.array([20]),
    }  # fmt: skip
    moved = extended(plan, np.array([2, 0]), np.array([4, 3]))
    assert {name: value.tolist() for name, value in moved.items()} == {
        "labeled": [5, 12, 10], "labels": [1, 4, 3], "labeled_domains": [7, 2, 0],
        "unlabeled": [11, 13], "unlabeled_domains": [1, 3], "test": [20],
    }  # fmt: skip
    assert extended(plan | {"oracle": np.array([6, 7, 8, 9])}, [2, 0], [4, 3])["oracle"].tolist() == [7, 9]
    none = extended(plan | {name: np.empty(0, int) for name in ("labeled_domains", "unlabeled_domains")}, [1], [0])
    assert len(none["labeled_domains"]) == len(none["unlabeled_domains"]) == 0


@dataclass
class WatchedOracle(OracleLabels):
    """The upper bound; what each of its rounds was told of the pool goes into `seen`, which no round forgets."""

    seen: list[Any] = field(default_factory=list)

    def setup(self, model: nn.Module, view: Any) -> None:
        super().setup(model, view)
        self.seen.append((view.labels.clone(), view.unlabeled.clone(), view.unlabeled_labels.clone()))


@pytest.fixture
def upper_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scorer takes the method that is played for one that has declared `oracle-labels`."""
    monkeypatch.setattr("selfbench.suite.run.scorer._granted", lambda spec, need: need == ORACLE)


@pytest.mark.usefixtures("upper_bound")
def test_an_upper_bound_is_told_the_pool_that_is_left_and_its_labels_are_counted_once(
    play: Play, toy: tuple[ActiveTask, BundleFolder]
) -> None:
    task, bundle = toy
    method = WatchedOracle(ratio=1)
    played = play(method)
    labels, pool = bundle.private()["labels"], played.scorer._split.unlabeled
    assert len(method.seen) == ROUNDS + 1
    for number, (y, rest, told) in enumerate(method.seen):
        assert len(y) == START + number * SIZE
        assert torch.equal(rest, task.inputs(bundle.public(), pool))
        assert told.tolist() == labels[pool].tolist()
        if number < ROUNDS:
            pool = np.delete(pool, played.bought[number][0])
    assert played.counts.labels == 400 - VALIDATION == played.outcome.given_labels
    assert [point.x for point in played.outcome.curve] == [12.0, 17.0, 22.0, 27.0]


@pytest.mark.usefixtures("upper_bound")
@pytest.mark.parametrize("stop_after", [9, 24])
def test_an_upper_bound_that_is_killed_goes_on_bit_equal(play: Play, stop_after: int) -> None:
    whole = play(OracleLabels(ratio=1), folder="whole", limit=8000)
    killed = play(OracleLabels(ratio=1), stop_after=stop_after, checkpoints=0, limit=8000)
    assert killed.outcome is None
    resumed = play(OracleLabels(ratio=1), limit=8000)
    assert (resumed.resumed, resumed.outcome) == (1, whole.outcome)
    assert resumed.counts == dataclasses.replace(whole.counts, seconds=resumed.counts.seconds)


@pytest.mark.usefixtures("upper_bound")
def test_an_upper_bound_of_weight_zero_is_the_supervised_baseline(play: Play) -> None:
    zero, baseline = play(OracleLabels(weight=0.0), folder="zero"), play(Supervised(), folder="baseline")
    for mine, theirs in zip(zero.logits, baseline.logits, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_part_of_the_budget_ends_and_the_next_begins() -> None:
    meter = Meter(Budget(limit=100), "tested")
    meter.charge(forward=10)
    assert meter.allot(30) == 10
    meter.charge(forward=15)
    assert meter.progress == 0.5
    with pytest.raises(BudgetExhausted):
        meter.charge(forward=16)
    with pytest.raises(MethodError, match="went on"):
        meter.charge(forward=1)
    assert meter.allot(30) == 25
    assert (meter.progress, meter.ended) == (0.0, False)
    again = Meter(Budget(limit=100), "tested")
    again.allot(30, since=25)
    again.restore({"forward": 40.0, "backward": 0.0, "tokens": 0, "labels": 0, "validation_calls": 0, "seconds": 0.0})
    assert again.progress == 0.5


def test_counts_that_are_not_the_account_fail_the_run(campaign: Any) -> None:
    [honest] = campaign("toy-active", "supervised").finished
    assert (honest.status, honest.cost.labels) == ("ok", START + ROUNDS * SIZE)
    [forged] = campaign("toy-active", "forgets-labels").finished
    assert forged.status == "failed"
    assert forged.reason == "27 labels were given out, the method's process counted 3"


WAYS = (
    "objects", "frames", "threads", "modules", "attributes", "descriptors", "maps", "memory", "environment", "folder",
    "line", "oracle",
)  # fmt: skip


def needle_of(labels: np.ndarray, path: Path) -> str:
    np.save(path, labels.astype(np.uint8) + np.uint8(100))
    return str(path)


@pytest.mark.parametrize("way", WAYS)
def test_a_thief_finds_no_label_that_it_did_not_buy(campaign: Any, tmp_path: Path, way: str) -> None:
    labels = build(registry.get("task", "toy-active")).private()["labels"]
    report = tmp_path / "report.json"
    params = {"needle": needle_of(labels, tmp_path / "needle.npy"), "report": str(report), "way": way}
    [record] = campaign("toy-active", {"name": "steals-labels", "params": params}).finished
    assert record.status == "ok", record.reason
    found = json.loads(report.read_text())
    assert found["looked_at"] > 0, "the way leads nowhere: it looked at nothing"
    assert not found["found"]


@pytest.mark.parametrize("way", ["objects", "frames", "threads", "modules", "memory", "folder", "environment"])
def test_the_thief_would_find_a_leaked_label(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ways are not blind: each finds hidden labels where it looks for them."""
    truth = np.random.default_rng(0).integers(0, 3, 600)
    hidden = np.arange(100, 400)
    thief = registry.get("method", "steals-labels").load()(needle=needle_of(truth, tmp_path / "needle.npy"), way=way)
    thief.prepare(hidden, tmp_path / "work")
    (tmp_path / "work").mkdir()
    leak = truth[hidden]
    monkeypatch.setitem(sys.modules, "leaky", types.SimpleNamespace(labels=leak.copy()))
    monkeypatch.setenv("LEAK", "".join(map(str, leak.tolist())))
    np.save(tmp_path / "work" / "leak.npy", leak)
    # A mapping of its own: the heap of a long test session is larger than what the thief reads at once.
    with mmap.mmap(-1, leak.nbytes) as mapped:
        mapped.write(leak.tobytes())
        assert thief.search()[1]


def test_every_adaptation_method_runs_unchanged(campaign: Any) -> None:
    task = registry.get("task", "toy-active")
    ours = [entry for entry in registry.entries("method").values() if entry.module and not misfit(entry, task)]
    names = [entry.name for entry in ours if entry.protocol == "adaptation"]
    assert {"supervised", "pseudo-label", "fixmatch", "mean-teacher", "hast", "ust", "actune", "verips"} <= set(names)
    summary = campaign("toy-active", *names, budget={"limit": 8000})
    assert not summary.lost
    failed = {record.spec.method.name: record.reason for record in summary.finished if record.status != "ok"}
    assert not failed
    labels = {record.spec.method.name: record.cost.labels for record in summary.finished}
    assert labels.pop("oracle-labels") == 400 - VALIDATION
    assert set(labels.values()) == {START + ROUNDS * SIZE}
    assert all(len(record.curve) == ROUNDS + 1 for record in summary.finished)
