"""Scorers: they hold the hidden labels of a run, apart from the method, and turn predictions into metrics."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NoReturn, Protocol

import numpy as np

from ..bundle import Array, BundleFolder
from ..errors import MethodError
from ..files import write_atomic
from ..metrics import METRICS
from ..needs import ORACLE, TRANSDUCTIVE
from ..protocols.active import ActiveTask, Shown, learning_curve_area
from ..protocols.adaptation import EVALUATED, AdaptationTask, Split, pool_sample
from ..protocols.policy import PolicyTask
from ..protocols.stream import StreamTask
from ..record import Point
from ..scoring import Scores, label_correlation, score_pool
from ..seeds import rng
from ..selection import RULES, chosen_point
from ..spec import RunSpec
from ..wire import Message, Wire
from .outcome import Outcome
from .policy_scorer import PolicyScorer

CURVE_POINTS = 60
LABEL_FREE = ("entropy", "transfer_score")
OF_POOL = ("pool_accuracy", "confident_share", "confident_accuracy")


class Scorer(Protocol):
    """One run's scorer. `plan` is what the method's process is told; `handle` takes one of its messages."""

    def plan(self) -> dict[str, Array]: ...
    def handle(self, message: Message, wire: Wire) -> None: ...
    def outcome(self) -> Outcome: ...


def _finite(logits: Array, owner: str, where: str) -> None:
    bad = int((~np.isfinite(logits)).sum())
    if bad:
        raise MethodError(
            f"method '{owner}' returned {bad} non-finite values of {logits.size} for {where}; run it with a smaller "
            "learning rate (`selfbench info` names its hyper-parameters), or look for a division by zero in it"
        )


class StreamScorer:
    """Takes sealed logits batch by batch, each once and in order."""

    def __init__(self, task: StreamTask, bundle: BundleFolder, spec: RunSpec, work: Path, permute: int | None) -> None:
        self._task, self._spec = task, spec
        self._file = work / "scorer.npy"
        self.stream = task.stream(bundle, spec.seed)
        shown = np.concatenate([self.stream.indices, self.stream.after])
        self._cuts = np.concatenate([self.stream.cuts, len(self.stream.indices) + self.stream.after_cuts[1:]])
        self._labels = task.labels(bundle.private(), shown)
        if permute is not None:
            self._labels = self._labels[rng(permute, "permute").permutation(len(self._labels))]
        self._logits = np.zeros((len(shown), task.n_classes), np.float32)
        self._saved = 0
        if self._file.exists():
            saved = np.load(self._file, allow_pickle=False)
            self._logits[: len(saved)] = saved
            self._saved = int(np.searchsorted(self._cuts, len(saved)))
        self._next: int | None = None

    def plan(self) -> dict[str, Array]:
        stream = self.stream
        return {"indices": stream.indices, "cuts": stream.cuts, "resets": stream.resets,
                "after": stream.after, "after_cuts": stream.after_cuts}  # fmt: skip

    def handle(self, message: Message, wire: Wire) -> None:
        if message.kind == "seal":
            self._seal(int(message.arrays["step"][0]), message.arrays["logits"])
        elif message.kind == "checkpoint":
            self._save(int(message.fields["step"]))
            wire.send("saved")
        else:
            raise MethodError(f"the method's process sent an unknown message '{message.kind}'")

    def _seal(self, batch: int, logits: Array) -> None:
        expected = self._next
        if batch != expected and not (expected is None and batch <= self._saved):
            raise MethodError(f"predictions of batch {batch} came out of order")
        start, stop = self._cuts[batch], self._cuts[batch + 1]
        if logits.shape != (stop - start, self._task.n_classes):
            raise MethodError(f"predictions of batch {batch} have the shape {logits.shape}")
        _finite(logits, self._spec.method.name, f"batch {batch}")
        self._logits[start:stop] = logits
        self._next = batch + 1

    def _save(self, step: int) -> None:
        buffer = io.BytesIO()
        np.save(buffer, self._logits[: self._cuts[step]], allow_pickle=False)
        write_atomic(self._file, buffer.getvalue())

    def outcome(self) -> Outcome:
        if self._next != len(self._cuts) - 1:
            raise MethodError(f"method '{self._spec.method.name}' ended before the stream did")
        stream, n = self.stream, len(self.stream.indices)
        wrong = self._logits.argmax(axis=1) != self._labels
        scores = self._task.score(self._logits[:n], self._labels[:n], stream.domains, stream.domain_names)
        metrics = dict(scores.metrics)
        if len(stream.after):
            metrics["clean_error"] = float(wrong[n:].mean())
        wrong = wrong[:n]
        metrics["end_error"] = float(wrong[-max(1, n // 10) :].mean())
        edges = np.unique(np.linspace(0, len(wrong), CURVE_POINTS + 1).astype(int))
        curve = [
            Point(x=float(stop), values={"error": float(wrong[start:stop].mean())})
            for start, stop in itertools.pairwise(edges)
        ]
        digest = hashlib.sha256(self._logits.tobytes()).hexdigest()
        diagnostics = {"label_correlation": label_correlation(self._labels[:n])}
        return Outcome(metrics, scores.groups, scores.n, curve, digest, diagnostics)


class AdaptationScorer:
    """Scores every evaluated point; the selection rule of the spec chooses the one that counts."""

    def __init__(
        self, task: AdaptationTask, bundle: BundleFolder, spec: RunSpec, work: Path, permute: int | None
    ) -> None:
        self._task, self._spec = task, spec
        self._file = work / "scorer.json"
        self._split = task.split(bundle, spec.seed)
        self._private = bundle.private()
        self._labels = {name: task.labels(self._private, getattr(self._split, name)) for name in EVALUATED}
        rule, needed = RULES[spec.selection], RULES[spec.selection].labels
        if rule.label_free and not (task.label_free and len(self._split.unlabeled)):
            why = "this task has no unlabelled examples" if task.label_free else "the outputs of this task are none"
            self._refuse(
                f"selection '{rule.name}' looks at probabilities of classes on unlabelled examples, and {why}; choose "
                "another rule with --selection"
            )
        if needed and not len(self._labels[needed]):
            self._refuse(f"selection '{spec.selection}' needs examples for {needed.replace('_', ' ')}")
        if permute is not None:
            test = self._labels["test"]
            self._labels["test"] = test[rng(permute, "permute").permutation(len(test))]
        self._pool = self._known_in_pool() if task.label_free else np.empty(0, np.int64)
        self._metric = _metric_of(spec)
        self._points: list[dict[str, Any]] = json.loads(self._file.read_text()) if self._file.exists() else []
        self._began = False

    def _known_in_pool(self) -> Array:
        """The true classes (N,) of the part of the pool that is looked at; none where the task has no oracle."""
        unlabeled = self._split.unlabeled
        if ORACLE not in _grants(self._spec) or not len(unlabeled):
            return np.empty(0, np.int64)
        return self._task.oracle(self._private, unlabeled[pool_sample(self._spec.seed, len(unlabeled))])

    def plan(self) -> dict[str, Array]:
        plan = {part.name: getattr(self._split, part.name) for part in fields(Split)}
        if _granted(self._spec, ORACLE):
            plan["oracle"] = self._task.oracle(self._private, self._split.unlabeled)
        return plan

    def handle(self, message: Message, wire: Wire) -> None:
        if message.kind == "point":
            label_free = {str(name): float(value) for name, value in message.fields.get("label_free", {}).items()}
            self._point(int(message.fields["index"]), float(message.fields["x"]), message.arrays, label_free)
        elif message.kind == "validate":
            labels = self._labels["validation"]
            logits = self._checked(message.arrays, "logits", len(labels))
            wire.send("score", value=self._task.score(logits, labels).metrics[self._metric])
        elif message.kind == "checkpoint":
            write_atomic(self._file, json.dumps(self._points[: int(message.fields["step"])]).encode())
            wire.send("saved")
        else:
            raise MethodError(f"the method's process sent an unknown message '{message.kind}'")

    def _point(self, index: int, x: float, arrays: Mapping[str, Array], label_free: dict[str, float]) -> None:
        if index > len(self._points) or (self._began and index != len(self._points)):
            raise MethodError(f"point {index} of the curve came out of order")
        del self._points[index:]
        self._began = True
        logits = self._checked(arrays, "test", len(self._labels["test"]))
        scores = self._task.score(logits, self._labels["test"])
        values = {name: label_free[name] for name in LABEL_FREE if name in label_free}
        for name in EVALUATED[1:]:
            if len(labels := self._labels[name]):
                own = self._checked(arrays, name, len(labels))
                values[name] = self._task.score(own, labels).metrics[self._metric]
        if len(self._pool) and "pool" in arrays:
            values |= score_pool(self._checked(arrays, "pool", len(self._pool)), self._pool)
        if self._task.keep_predictions:
            buffer = io.BytesIO()
            kept: dict[str, Any] = {name: self._task.predicted(arrays[name]) for name in EVALUATED if name in arrays}
            np.savez_compressed(buffer, **kept)
            write_atomic(self._predictions(index), buffer.getvalue())
        self._points.append(
            {
                "x": x,
                "metrics": scores.metrics,
                "groups": scores.groups,
                "n": scores.n,
                "sha256": hashlib.sha256(np.ascontiguousarray(logits, np.float32).tobytes()).hexdigest(),
                "values": values,
            }
        )

    def _checked(self, arrays: Mapping[str, Array], name: str, n: int) -> Array:
        logits = arrays.get(name)
        if logits is None or logits.shape[:1] != (n,):
            raise MethodError(f"the method's process sent no predictions for the {n} examples of '{name}'")
        _finite(logits, self._spec.method.name, f"the {name} set")
        return logits

    def _refuse(self, reason: str) -> NoReturn:
        raise MethodError(f"task '{self._spec.task.name}' does not fit: {reason}") from None

    def outcome(self) -> Outcome:
        points = self._points
        if not points:
            raise MethodError(f"method '{self._spec.method.name}' ended without a predictor")
        values = [point["values"] | {"test": point["metrics"][self._metric]} for point in points]
        try:
            index = chosen_point(self._spec.selection, self._metric, values)
        except ValueError as error:
            self._refuse(str(error))
        chosen = points[index]
        scores = Scores(chosen["metrics"], chosen["n"], chosen["groups"])
        curve = [
            Point(x=point["x"], values={self._metric: point["metrics"][self._metric]} | point["values"])
            for point in points
        ]
        spent = RULES[self._spec.selection].labels
        labels = len(self._labels[spent]) if spent else 0
        diagnostics = {"selected_at": chosen["x"]}
        diagnostics |= {name: chosen["values"][name] for name in OF_POOL if name in chosen["values"]}
        if _granted(self._spec, TRANSDUCTIVE):
            diagnostics["test_inputs_shown"] = float(len(self._split.test))
        kept = self._predictions(index) if self._task.keep_predictions else None
        return Outcome(scores.metrics, scores.groups, scores.n, curve, chosen["sha256"], diagnostics, labels, kept)

    def _predictions(self, index: int) -> Path:
        return self._file.with_name(f"scorer-point-{index}.npz")


class ActiveScorer(AdaptationScorer):
    """The oracle of active learning, beside the scorer of its rounds.

    After the predictions that score a round it answers one query, with the labels that the task's strategy asks for,
    and keeps the account. What was sold is on disk before it is told, and a run that is resumed before a query gets the
    same answer again: no kill can buy another label. The last round counts. The points of the curve stand at the number
    of labels given out, validation labels included from the round on that first asked for them. An upper bound's points
    stand there too, at the labels that it would have bought; the account has all that it was told.
    """

    def __init__(self, task: ActiveTask, bundle: BundleFolder, spec: RunSpec, work: Path, permute: int | None) -> None:
        super().__init__(task, bundle, spec, work, permute)
        self._active = task
        if spec.selection != "last":
            self._refuse(f"its last round counts, so that selection '{spec.selection}' has nothing to choose")
        queries, pool = task.rounds * task.query_size, len(self._split.unlabeled)
        if queries >= pool:
            self._refuse(f"it buys {queries} labels of a pool of {pool}")
        self._account = work / "scorer-account.json"
        saved = json.loads(self._account.read_text()) if self._account.exists() else {}
        self._bought: list[list[int]] = saved.get("bought", [])
        """The examples sold for each query."""
        self._validated: int | None = saved.get("validated")
        """The round in which a validation score was first asked for."""

    def handle(self, message: Message, wire: Wire) -> None:
        if message.kind == "query":
            places, labels = self._sell(int(message.fields["round"]), message.arrays)
            wire.send("bought", {"places": places, "labels": labels})
            return
        if message.kind == "validate" and self._validated is None:
            self._validated = len(self._bought)
            self._save_account()
        super().handle(message, wire)

    def _sell(self, number: int, arrays: Mapping[str, Array]) -> tuple[Array, Array]:
        """Places in the pool of round `number` of what its query buys, and the classes of the examples there."""
        task = self._active
        if not self._began or number != len(self._points) - 1 or number >= task.rounds or number > len(self._bought):
            raise MethodError(f"query {number} came out of order")
        sold = np.array(self._bought[:number], dtype=np.int64).reshape(-1)
        pool = self._split.unlabeled[~np.isin(self._split.unlabeled, sold)]
        if number == len(self._bought):
            shown = Shown(*(arrays[item.name] for item in fields(Shown)))
            for logits, n in ((shown.logits, len(pool)), (shown.labeled_logits, len(self._split.labeled) + len(sold))):
                if logits.shape != (n, task.n_classes):
                    raise MethodError(f"the predictions for query {number} have the shape {logits.shape}")
                _finite(logits, self._spec.method.name, f"query {number}")
            chosen = task.query(shown, task.query_size, rng(self._spec.seed, "query", number))
            self._bought.append(pool[chosen].tolist())
            self._save_account()
        bought = np.array(self._bought[number], dtype=np.int64)
        place = {index: at for at, index in enumerate(pool.tolist())}
        return np.array([place[index] for index in bought.tolist()]), task.oracle(self._private, bought)

    def _save_account(self) -> None:
        write_atomic(self._account, json.dumps({"bought": self._bought, "validated": self._validated}).encode())

    def _labels_at(self, number: int) -> int:
        """Labels given out by the end of round `number`."""
        validated = self._validated is not None and self._validated <= number
        held = len(self._split.validation) if validated else 0
        return len(self._split.labeled) + number * self._active.query_size + held

    def _point(self, index: int, x: float, arrays: Mapping[str, Array], label_free: dict[str, float]) -> None:
        if index > len(self._bought):
            raise MethodError(f"the predictions of round {index} came before its labels were bought")
        super()._point(index, float(self._labels_at(index)), arrays, label_free)

    def outcome(self) -> Outcome:
        rounds = self._active.rounds
        if len(self._points) != rounds + 1:
            raise MethodError(
                f"method '{self._spec.method.name}' ended after {len(self._points)} of {rounds + 1} rounds"
            )
        outcome = super().outcome()
        labels = np.array([point["x"] for point in self._points])
        accuracy = np.array([point["metrics"]["accuracy"] for point in self._points])
        metrics = outcome.metrics | {"learning_curve_area": learning_curve_area(labels, accuracy)}
        told = len(self._split.unlabeled) - rounds * self._active.query_size if _granted(self._spec, ORACLE) else 0
        return replace(outcome, metrics=metrics, given_labels=self._labels_at(rounds) + told)


def _granted(spec: RunSpec, need: str) -> bool:
    """Whether the method has declared `need` and the task grants it."""
    from .. import registry

    method = registry.entries("method").get(spec.method.name)
    return bool(method and need in method.options["needs"] and need in _grants(spec))


def _grants(spec: RunSpec) -> tuple[str, ...]:
    """What the task grants; nothing where it is not registered."""
    from .. import registry

    task = registry.entries("task").get(spec.task.name)
    return tuple(task.options["grants"]) if task else ()


def _metric_of(spec: RunSpec) -> str:
    from .. import registry

    metric = str(registry.get("task", spec.task.name).options["metric"])
    if metric not in METRICS:
        raise MethodError(f"task '{spec.task.name}' names the unknown metric '{metric}'")
    return metric


def make_scorer(task: Any, bundle: BundleFolder, spec: RunSpec, work: Path, permute: int | None = None) -> Scorer:
    """The scorer of the task's protocol. `permute` shuffles the hidden labels, to prove that nothing else moves."""
    if isinstance(task, StreamTask):
        return StreamScorer(task, bundle, spec, work, permute)
    if isinstance(task, PolicyTask):
        return PolicyScorer(task, bundle, spec, work, permute)
    kind = ActiveScorer if isinstance(task, ActiveTask) else AdaptationScorer
    return kind(task, bundle, spec, work, permute)
