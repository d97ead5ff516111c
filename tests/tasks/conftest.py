"""Built bundles of the digits tasks, each built once for all tests, and runs of adaptation and stream tasks."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from selfbench.suite.bundle import BundleFolder, write_bundle
from selfbench.suite.data import Data
from selfbench.suite.meter import Meter
from selfbench.suite.protocols.adaptation import AdaptationTask
from selfbench.suite.protocols.adaptation_loop import run_adaptation
from selfbench.suite.protocols.context import Context
from selfbench.suite.protocols.stream import StreamTask
from selfbench.suite.protocols.stream_loop import run_stream
from selfbench.suite.run.scorer import Outcome, make_scorer
from selfbench.suite.spec import Budget, MethodRef, RunSpec, TaskRef
from selfbench.suite.wire import Wire
from selfbench.tasks.images.digits_semi import DigitsSemi
from selfbench.tasks.streams.digits_c import DigitsCContinual


@pytest.fixture
def heard() -> Callable[[Any], list[float]]:
    """heard(method): a list to which each step's loss is added that the training loop asks `method` for."""

    def listen(method: Any) -> list[float]:
        own, losses = method.loss, []

        def loss(*batches: Any) -> torch.Tensor:
            found: torch.Tensor = own(*batches)
            losses.append(float(found.detach()))
            return found

        method.loss = loss
        return losses

    return listen


@pytest.fixture(scope="session")
def nothing_fetched(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """An empty data folder: enough for what libraries bring."""
    return Data(tmp_path_factory.mktemp("nothing"))


@pytest.fixture(scope="session")
def digits_c(tmp_path_factory: pytest.TempPathFactory, nothing_fetched: Data) -> BundleFolder:
    return write_bundle(tmp_path_factory.mktemp("bundles") / "digits-c", DigitsCContinual().build(nothing_fetched))


@pytest.fixture(scope="session")
def digits_semi(tmp_path_factory: pytest.TempPathFactory, nothing_fetched: Data) -> BundleFolder:
    return write_bundle(tmp_path_factory.mktemp("bundles") / "digits-semi", DigitsSemi().build(nothing_fetched))


@pytest.fixture
def play(tmp_path: Path) -> Callable[..., Outcome]:
    """play(method, task, bundle, ...): the real loop here, the real scorer at the other end of a real line."""

    def call(
        method: Any, task: AdaptationTask | StreamTask, bundle: BundleFolder, limit: float, seed: int = 0,
        name: str = "tested", source: Sequence[BundleFolder] = (),
    ) -> Outcome:  # fmt: skip
        options = type(task).__selfbench__  # type: ignore[attr-defined]
        spec = RunSpec(
            task=TaskRef(name=options["name"], version=options["version"]),
            method=MethodRef(name=name, version="1"),
            seed=seed,
            budget=Budget(limit=limit),
            selection=options["selection"],
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
        context = Context(spec, torch.device("cpu"), Wire(theirs), tmp_path, checkpoint_seconds=1e9)
        needs = type(method).__selfbench__["needs"]
        try:
            with torch.random.fork_rng(devices=[]):
                meter = Meter(spec.budget, name)
                public = {key: array for part in (bundle, *source) for key, array in part.public().items()}
                if isinstance(task, StreamTask):
                    run_stream(method, task, public, bundle.model(), scorer.plan(), meter, context, needs)
                else:
                    run_adaptation(method, task, public, scorer.plan(), meter, context, needs)
        finally:
            theirs.close()
            listener.join()
            ours.close()
        if errors:
            raise errors[0]
        return scorer.outcome()

    return call
