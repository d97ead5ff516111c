"""A tiny policy task of one-digit additions, real runs of it with the real scorer, and scripted policies."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from selfbench.suite.bundle import Bundle, BundleFolder, write_bundle
from selfbench.suite.meter import Counts, Meter
from selfbench.suite.protocols import language_model
from selfbench.suite.protocols.context import Context
from selfbench.suite.protocols.optimisation import Recipe, half_cosine
from selfbench.suite.protocols.policy import PolicyTask, Problems
from selfbench.suite.protocols.policy_examples import Example, Pair
from selfbench.suite.protocols.policy_grants import Grants, Hints, Solutions, Verifier
from selfbench.suite.protocols.policy_loop import FirstPolicy, run_policy
from selfbench.suite.protocols.policy_measures import Measures
from selfbench.suite.protocols.policy_method import PolicyMethod
from selfbench.suite.protocols.sequences import join
from selfbench.suite.protocols.tokens import CharTokenizer
from selfbench.suite.run.outcome import Outcome
from selfbench.suite.run.policy_scorer import PolicyScorer
from selfbench.suite.spec import Budget, MethodRef, RunSpec, TaskRef
from selfbench.suite.wire import Wire

VOCABULARY = "\0\n0123456789+=?"
DEMONSTRATIONS, TEST = 24, 30


class TinyPolicyTask(PolicyTask):
    """`3+4=` -> `7`: 100 sums of two digits, a sum and its mirror image apart, for they are not held out here."""

    recipe = Recipe(
        optimizer="adamw", lr=3e-3, weight_decay=0.1, batch_size=16, schedule=half_cosine(0.1), max_norm=1.0
    )
    rounds = 3
    max_new = 3
    votes = 3
    rows = 64

    def model(self) -> nn.Module:
        config = LlamaConfig(
            vocab_size=len(VOCABULARY), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=32, tie_word_embeddings=False,
            pad_token_id=0, bos_token_id=None, eos_token_id=1,
        )  # fmt: skip
        return LlamaForCausalLM(config)

    def tokenizer(self) -> CharTokenizer:
        return CharTokenizer(VOCABULARY)

    def problems(self, bundle: BundleFolder, seed: int) -> Problems:
        shown = np.arange(DEMONSTRATIONS)
        return Problems(
            shown,
            self.answers(bundle.private(), shown),
            np.arange(DEMONSTRATIONS + TEST, 100),
            np.arange(DEMONSTRATIONS, DEMONSTRATIONS + TEST),
        )

    def prompts(self, public: Any, indices: Any) -> list[str]:
        return [f"{a}+{b}=" for a, b in public["terms"][indices].tolist()]

    def answer(self, response: str) -> str | None:
        return response if re.fullmatch(r"[0-9]{1,2}", response) else None

    def grants(self) -> Grants:
        return Grants(verifier=Verifier(30), answers=Hints(self.hinted), solutions=Solutions(self.solutions))

    def measures(self) -> Measures:
        return Measures(groups=self.groups)

    def hinted(self, prompt: str, answer: str) -> str:
        return f"{prompt[:-1]}?{answer}="

    def answers(self, private: Any, indices: Any) -> list[str]:
        return [str(total) for total in private["sums"][indices].tolist()]

    solutions = answers

    def groups(self, prompts: Sequence[str]) -> list[str]:
        return ["carry" if sum(map(int, prompt[:-1].split("+"))) > 9 else "no carry" for prompt in prompts]


@pytest.fixture
def tiny_task() -> type[TinyPolicyTask]:
    return TinyPolicyTask


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> BundleFolder:
    """The problems, and a first policy that has learned some of the demonstrations."""
    terms = np.random.default_rng(0).permutation([(a, b) for a in range(10) for b in range(10)])
    task = TinyPolicyTask()
    prompts, sums = task.prompts({"terms": terms}, np.arange(DEMONSTRATIONS)), terms.sum(axis=1)
    sequences = join(task.tokenizer(), prompts, [str(total) for total in sums[:DEMONSTRATIONS]])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = task.model().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    everything = sequences.batch(np.arange(DEMONSTRATIONS), torch.device("cpu"))
    for _ in range(60):
        loss = -language_model.response_logprobs(model, *everything).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    bundle = Bundle({"terms": terms.astype(np.uint8)}, {"sums": sums.astype(np.uint8)}, model.state_dict())
    return write_bundle(tmp_path_factory.mktemp("policy") / "tiny", bundle)


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
    """How a run ended."""

    outcome: Outcome | None
    counts: Counts
    meter: Meter
    scorer: PolicyScorer
    sent: list[str] = field(default_factory=list)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def play(tmp_path: Path, tiny_bundle: BundleFolder) -> Callable[..., Played]:
    """play(method, ...): a whole run of a registered method through the real loop and the real scorer."""

    def call(
        method: PolicyMethod, *, seed: int = 0, limit: float = 1e9, stop_after: int = 0, permute: int | None = None,
        selection: str = "last", folder: str = "run", task: PolicyTask | None = None,
        bundle: BundleFolder = tiny_bundle, precision: str = "fp32", first: FirstPolicy | None = None,
    ) -> Played:  # fmt: skip
        task = task or TinyPolicyTask()
        spec = RunSpec(
            task=TaskRef(name="tiny", version="1"),
            method=MethodRef(name=type(method).__selfbench__["name"], version="1"),
            seed=seed,
            budget=Budget(currency="tokens", limit=limit),
            selection=selection,
            precision=precision,
        )
        work = tmp_path / folder
        work.mkdir(exist_ok=True)
        scorer = PolicyScorer(task, bundle, spec, work, permute)
        ours, theirs = socket.socketpair()
        errors: list[Exception] = []
        sent: list[str] = []

        def listen() -> None:
            wire = Wire(ours)
            try:
                while (message := wire.receive()) is not None:
                    sent.append(message.kind)
                    scorer.handle(message, wire)
            except Exception as error:
                errors.append(error)
                ours.close()

        listener = threading.Thread(target=listen)
        listener.start()
        meter = Meter(spec.budget, "tested")
        context = StoppingContext(spec, torch.device("cpu"), Wire(theirs), work)
        context.stop_after = stop_after
        failed: Exception | None = None
        try:
            with torch.random.fork_rng(), contextlib.suppress(Stopped):
                run_policy(
                    method, task, bundle.public(), bundle.model(), scorer.plan(), meter, context, first
                )  # fmt: skip
        except Exception as error:
            failed = error
        finally:
            theirs.close()
            listener.join()
            ours.close()
        if errors:
            raise errors[0]
        if failed:
            raise failed
        return Played(None if stop_after else scorer.outcome(), meter.counts, meter, scorer, sent)

    return call


@dataclass
class ScriptedPolicy:
    """A policy whose responses and log-probabilities are given, and that remembers what it was told to do."""

    responses: list[Any] = field(default_factory=list)
    """What `generate` returns, call by call."""
    logp: Callable[[str, str, str], float] = lambda prompt, response, under: 0.0
    calls: list[tuple[Any, ...]] = field(default_factory=list)

    def generate(
        self, prompts: Sequence[str], n: int = 1, temperature: float = 1.0, top_p: float = 1.0, under: str = ""
    ) -> list[list[str]]:
        self.calls.append(("generate", list(prompts), n, temperature, top_p))
        made = self.responses.pop(0)
        assert len(made) == len(prompts)
        return made

    def logprobs(self, prompts: Sequence[str], responses: Sequence[str], mean: bool = False, under: str = "") -> Tensor:
        found = [
            self.logp(prompt, response, under) / (len(response) + 1 if mean else 1)
            for prompt, response in zip(prompts, responses, strict=True)
        ]
        return torch.tensor(found, dtype=torch.float64)

    def finetune(self, examples: Sequence[Example], epochs: int = 1, **rest: Any) -> float:
        self.calls.append(("finetune", [tuple(example) for example in examples], epochs))
        return 0.0

    def prefer(self, pairs: Sequence[Pair], labels: Any = None, **rest: Any) -> float:
        found = None if labels is None else [float(label) for label in labels]
        self.calls.append(("prefer", [tuple(pair) for pair in pairs], found, rest))
        return 0.0

    def keep(self, name: str) -> None:
        self.calls.append(("keep", name))

    def use(self, name: str) -> None:
        self.calls.append(("use", name))

    def called(self, name: str) -> list[tuple[Any, ...]]:
        return [call[1:] for call in self.calls if call[0] == name]


class ScriptedView:
    """Three prompts, one demonstration, and a verifier that knows the sums."""

    prompts = ("1+1=", "2+3=", "9+9=")
    demonstrations = (Example("4+4=", "8"),)
    answers = ("2", "5", "18")
    solutions = answers
    rounds = 3
    verdicts = 64

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.asked: list[tuple[int, str]] = []

    parse = staticmethod(TinyPolicyTask().answer)
    gate = staticmethod(lambda policy, judge: True)
    hinted = staticmethod(TinyPolicyTask().hinted)

    def verify(self, numbers: Sequence[int], responses: Sequence[str]) -> list[bool]:
        self.asked += zip(numbers, responses, strict=True)
        return [self.answers[at] == self.parse(text) for at, text in zip(numbers, responses, strict=True)]


@pytest.fixture
def view() -> ScriptedView:
    return ScriptedView()


@pytest.fixture
def scripted() -> Callable[..., ScriptedPolicy]:
    return ScriptedPolicy
