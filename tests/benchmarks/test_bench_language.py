"""What the harness's language model saves; ratios within one run, in processor time, on one thread.

pytest tests/benchmarks/test_bench_language.py -m benchmark_session -s
"""

from __future__ import annotations

import socket
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from selfbench.suite import registry
from selfbench.suite.data import Data
from selfbench.suite.meter import Meter
from selfbench.suite.native import native_precision
from selfbench.suite.places import data_folder
from selfbench.suite.prepare.bundles import build
from selfbench.suite.protocols.context import Context, autocast, prepare_torch
from selfbench.suite.protocols.policy_examples import Pair
from selfbench.suite.protocols.policy_model import Policy
from selfbench.suite.protocols.policy_weights import BASE
from selfbench.suite.spec import Budget, MethodRef, RunSpec, TaskRef
from selfbench.suite.wire import Wire

pytestmark = [pytest.mark.benchmark_session, pytest.mark.filterwarnings("default")]

PROMPTS, PAIRS, EPOCHS, TURNS = 64, 32, 3, 3


@pytest.fixture(scope="module", params=["arithmetic-tiny", "addition-smol"])
def ready(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Policy, Any, Any]]:
    """A task's policy as the harness makes it, the task, and prompts of its test problems."""
    entry = registry.get("task", request.param)
    data = entry.options.get("data", ())
    missing = [name for name in data if not Data(data_folder()).present(name)]
    if missing:
        pytest.skip(f"needs data that is not here: {', '.join(missing)}")
    for package in ("gguf", "peft") if data else ():
        pytest.importorskip(package)
    folder, task = build(entry), entry.load()()
    spec = RunSpec(
        task=TaskRef(name=entry.name, version=entry.version), method=MethodRef(name="sft", version="1"), seed=0,
        budget=Budget(currency="tokens", limit=1e12), precision=native_precision("cpu") if data else "fp32",
    )  # fmt: skip
    ours, theirs = socket.socketpair()
    context = Context(spec, prepare_torch(spec), Wire(theirs), tmp_path_factory.mktemp("work"))
    problems = task.problems(folder, 0)
    policy = Policy(task.policy(folder.model(), spec.precision), task, Meter(spec.budget, "sft"), context)
    yield policy, task, task.prompts(folder.public(), problems.test[:PROMPTS])
    ours.close()
    theirs.close()


def _processor_seconds(work: Callable[[], Any]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def _by_turns(first: Callable[[], Any], second: Callable[[], Any]) -> float:
    """The median of the second's time over the first's; both are called once before."""
    first(), second()
    return statistics.median(_processor_seconds(second) / _processor_seconds(first) for _ in range(TURNS))


def test_preferences_with_reference_log_probabilities_kept(ready: Any, benchmark: Any) -> None:
    """DPO over several epochs: the reference is asked once, or anew in every epoch."""
    policy, _, prompts = ready
    rounds = iter(range(1, 100))
    pairs = [Pair(prompt, str(at % 90 + 10), str(at % 7)) for at, prompt in enumerate(prompts[:PAIRS])]

    def kept() -> None:
        policy.begin(next(rounds))
        policy.use(BASE)
        policy.prefer(pairs, reference=BASE, epochs=EPOCHS)

    def anew() -> None:
        policy.use(BASE)
        for _ in range(EPOCHS):
            policy.begin(next(rounds))
            policy.prefer(pairs, reference=BASE)

    ratio = _by_turns(kept, anew)
    benchmark.extra_info["anew over kept"] = round(ratio, 2)
    print(f"\n{EPOCHS} epochs of DPO, reference asked anew in each over asked once: {ratio:.2f}")
    benchmark.pedantic(kept, rounds=1)


def test_generation_beside_transformers(ready: Any, benchmark: Any) -> None:
    """Greedy responses with keys and values kept, prompts sorted by length, in batches of equal size."""
    policy, task, prompts = ready
    tokenizer, model = task.tokenizer(), policy._model
    ids, lengths = tokenizer.encode(prompts)
    order = np.argsort(lengths, kind="stable")

    def ours() -> list[list[str]]:
        return policy.generate(prompts, 1, 0.0)

    def theirs() -> list[str]:
        found = [""] * len(prompts)
        for start in range(0, len(order), task.rows):
            chosen = order[start : start + task.rows]
            longest = int(lengths[chosen].max())
            column = np.arange(longest) - (longest - lengths[chosen])[:, None]
            rows = np.where(column >= 0, np.take_along_axis(ids[chosen], np.maximum(column, 0), axis=1), tokenizer.pad)
            with torch.no_grad(), autocast(policy._calls.context):
                made = model.generate(
                    input_ids=torch.from_numpy(rows), attention_mask=torch.from_numpy(column >= 0).long(),
                    do_sample=False,
                    max_new_tokens=task.max_new, pad_token_id=tokenizer.pad, eos_token_id=tokenizer.stop,
                )  # fmt: skip
            for at, text in zip(chosen.tolist(), tokenizer.decode(made[:, longest:].numpy()), strict=True):
                found[at] = text
        return found

    same = np.mean([one == other for [one], other in zip(ours(), theirs(), strict=True)])
    ratio = _by_turns(ours, theirs)
    benchmark.extra_info["transformers over ours"] = round(ratio, 2)
    print(f"\n{len(prompts)} greedy responses, transformers over ours: {ratio:.2f}; equal texts: {100 * same:.0f} %")
    benchmark.pedantic(ours, rounds=1)
