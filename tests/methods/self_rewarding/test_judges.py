"""Self-J and the EM annotator: what they keep of scripted judgements, the distillation, and whole runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from selfbench.methods.self_rewarding.em_annotator import EMAnnotator
from selfbench.methods.self_rewarding.self_judge import SelfJudge, nearest
from selfbench.methods.self_rewarding.sft import SFT
from selfbench.suite.protocols.policy_examples import Example, Referenced
from selfbench.suite.protocols.policy_grants import Grants, References
from selfbench.suite.protocols.policy_losses import distillation_loss
from selfbench.suite.protocols.policy_method import PolicyMethod
from selfbench.suite.protocols.sequences import join
from selfbench.suite.protocols.tokens import CUT_OFF
from selfbench.suite.registry import register_method

Play = Callable[..., Any]
SHOWN = ("4+4=", "8")


def add_references(task: type) -> type:
    """`3+4=` judges itself: a judgement is a sum of two digits, each one a rating; a reference is the sum."""

    class Judging(task):
        max_new = 4
        step_ends = "0123456789"

        def grants(self) -> Grants:
            references = References(self.answers, self.referenced, self.similarities, self.ratings)
            return dataclasses.replace(super().grants(), references=references)

        def ratings(self, response: str) -> tuple[float, ...]:
            return tuple(int(one) / 9 for one in response.zfill(2))

        def referenced(self, prompt: str, reference: str) -> str:
            return f"{prompt[:-1]}?{reference}="

        def similarities(self, prompt: str, reference: str) -> tuple[float, ...]:
            return tuple(int(one) / 9 for one in reference.zfill(2))

    return Judging


@pytest.fixture
def judging(tiny_task: type) -> Any:
    return add_references(tiny_task)()


@dataclass
class Scripted:
    """Responses call by call, and what was trained on."""

    made: list[Any] = field(default_factory=list)
    calls: list[tuple[Any, ...]] = field(default_factory=list)

    def generate(self, prompts: Sequence[str], n: int, temperature: float) -> list[list[str]]:
        self.calls.append(("generate", list(prompts), n, temperature))
        return self.made.pop(0)

    def step(self, prompts: Sequence[str], begun: Sequence[str], n: int, temperature: float) -> list[list[str]]:
        self.calls.append(("step", list(prompts), list(begun), n, temperature))
        return self.made.pop(0)

    def use(self, name: str) -> None:
        self.calls.append(("use", name))

    def finetune(self, examples: Sequence[Example], epochs: int) -> float:
        self.calls.append(("finetune", [tuple(one) for one in examples], epochs))
        return 0.0

    def distill(self, examples: Sequence[Referenced], alpha: float, weight: float, epochs: int) -> float:
        self.calls.append(("distill", [tuple(one) for one in examples], alpha, weight, epochs))
        return 0.0


def test_self_judge_trains_on_the_judgement_nearest_to_the_recalibrated_rating(view: Any, judging: Any) -> None:
    view.references = ["2", "5", "18"]
    view.ratings, view.referenced, view.similarities = judging.ratings, judging.referenced, judging.similarities
    # The ratings of "18" are 1 and 8: the means (1 + 5 + 3) / 3 = 3 and (8 + 2 + 8) / 3 = 6, the likenesses 1 and 8, so
    # that q = (2, 7): 18 is off by 2, 52 by 8, 38 by 2; of the two nearest the first one stands.
    policy = Scripted([[["2", "7", "3"], ["x", "5…", ""], ["18", "52", "38"]]])
    SelfJudge(samples=3, alpha=0.2, kd=1.5, epochs=3).round(policy, view, 2)
    assert policy.calls == [
        ("generate", ["1+1?2=", "2+3?5=", "9+9?18="], 3, 0.7),
        ("use", "base"),
        # Of 2, 7, 3 the mean is 4, recalibrated by 2 it is 3. Nothing parses for the second prompt.
        (
            "distill",
            [("4+4=", "4+4=", "8"), ("1+1=", "1+1?2=", "3"), ("9+9=", "9+9?18=", "18")],
            0.2, 1.5, 3,
        ),
    ]  # fmt: skip
    policy = Scripted([[["2", "7", "3"], ["5"], ["18", "52", "38"]]])
    SelfJudge(samples=3, mix=0.0).round(policy, view, 2)
    # By self-evaluation alone: 4 is nearest to 3, (3, 6) to 38 by 2.
    assert policy.calls[2][1][1:] == [("1+1=", "1+1?2=", "3"), ("2+3=", "2+3?5=", "5"), ("9+9=", "9+9?18=", "38")]
    assert not view.asked


def test_the_nearest_ratings_by_hand() -> None:
    assert nearest([(0.0, 1.0), (0.5, 0.5), (0.4, 0.6)], (0.3, 0.6)) == 2
    assert nearest([(0.0,), (1.0,)], (0.5,)) == 0


def test_the_annotator_agrees_phase_by_phase_on_a_growing_share(view: Any) -> None:
    view.parse = lambda text: text if text.isdigit() and len(text) == 2 else None
    method = EMAnnotator(samples=3, epochs=5)
    method.setup(Scripted(), view)
    assert sorted(method.order) == [0, 1, 2]
    method.order = [2, 0, 1]
    policy = Scripted([[["1…", "2…", "2…"]], [["21", "28", "28"]]])
    method.round(policy, view, 1)
    assert policy.calls == [
        ("step", ["9+9="], [CUT_OFF], 3, 0.7),
        ("step", ["9+9="], ["2…"], 3, 0.7),
        ("use", "base"),
        ("finetune", [SHOWN, ("9+9=", "28")], 5),
    ]
    # The first phase outvotes what whole responses would agree on: 1x leads twice, 2x once, to the same end.
    policy = Scripted([[["3", "3", "4"], ["1…", "2…", "1…"]], [["18", "19", "17"]]])
    method.round(policy, view, 2)
    assert policy.calls[1] == ("step", ["1+1="], ["1…"], 3, 0.7)
    assert policy.calls[-1] == ("finetune", [SHOWN, ("1+1=", "18")], 5)
    # Where there is no room for another phase, there is no annotation.
    policy = Scripted([[["10", "10", "10"], ["2…", "2…", "2…"], ["1…", "1…", "1…"]], [[], ["11", "11", "12"]]])
    method.round(policy, view, 3)
    assert policy.calls[-1] == ("finetune", [SHOWN, ("9+9=", "10"), ("2+3=", "11")], 5)


def test_the_distillation_loss_is_that_of_a_slow_loop_with_its_gradients() -> None:
    draw = torch.Generator().manual_seed(0)
    teacher, student = (torch.randn(5, 7, generator=draw, dtype=torch.float64).requires_grad_() for _ in range(2))
    tokens, inner = torch.tensor([3, 1, 6, 2, 1]), torch.tensor([True, False, True, True, False])
    loss = distillation_loss(teacher, student, tokens, inner, 0.3, 2.0)
    expected = torch.zeros((), dtype=torch.float64)
    for row in range(5):
        p, q = teacher[row].softmax(0), student[row].softmax(0)
        expected = expected - p[tokens[row]].log() / 5 - 0.3 * q[tokens[row]].log() / 5
        if inner[row]:
            fixed = p.detach()
            expected = expected + 2.0 * sum(fixed[k] * (fixed[k].log() - q[k].log()) for k in range(7)) / 3
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-12)
    found = torch.autograd.grad(loss, [teacher, student])
    wanted = torch.autograd.grad(expected, [teacher, student])
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    # The teacher learns by its cross-entropy alone.
    alone = torch.autograd.grad(F.cross_entropy(teacher, tokens), teacher)
    torch.testing.assert_close(found[0], alone[0], rtol=0, atol=1e-12)


def test_logits_at_the_places_of_responses_are_those_of_each_alone(judging: Any) -> None:
    torch.manual_seed(3)
    model = judging.model().double().eval()
    prompts, responses = ["3+4=", "9+9?18=", "1+2="], ["7", "18", "1"]
    sequences = join(judging.tokenizer(), prompts, responses)
    logits, tokens = sequences.logits(model, np.array([1, 0, 2]), torch.device("cpu"))
    rows = []
    for at in (1, 0, 2):
        ids, _ = judging.tokenizer().encode([prompts[at] + responses[at]])
        rows.append(model(input_ids=torch.from_numpy(ids)).logits[0, len(prompts[at]) - 1 :])
    torch.testing.assert_close(logits, torch.cat(rows).float(), rtol=0, atol=1e-6)
    assert judging.tokenizer().decode(tokens.numpy()[None])[0] == "18"
    assert tokens.tolist().count(judging.tokenizer().stop) == 3


@register_method("self-judge", family="tests", protocol="policy", paper="-", needs=("references",))
@dataclass
class Distils(PolicyMethod):
    """Distils once, and keeps what it moved."""

    kd: float = 2.0
    alpha: float = 0.3

    def round(self, policy: Any, view: Any, number: int) -> None:
        if number > 1:
            return
        asked = [view.referenced(*pair) for pair in zip(view.prompts, view.references, strict=True)]
        before = policy.logprobs(view.prompts, view.references)
        policy.distill(
            [Referenced(*one) for one in zip(view.prompts, asked, view.references, strict=True)], self.alpha, self.kd, 6
        )
        self.moved = float((policy.logprobs(view.prompts, view.references) - before).mean())
        self.tokens = policy._calls.meter.counts.tokens


def test_distillation_moves_judgements_without_references(play: Play, judging: Any) -> None:
    taught, alone = Distils(), Distils(kd=0.0, alpha=0.0)
    play(taught, task=judging, folder="taught")
    played = play(alone, task=judging, folder="alone")
    assert taught.moved > alone.moved
    assert taught.tokens == alone.tokens
    # Half of the passes see the reference, 12 of them a sequence, and scoring twice sees none.
    n = len(played.scorer._references)
    lengths = [4 + len(text) + 1 for text in played.scorer._references]
    shown = [length + 1 + len(text) for length, text in zip(lengths, played.scorer._references, strict=True)]
    assert taught.tokens == 6 * (sum(lengths) + sum(shown)) + 2 * sum(lengths)
    assert played.counts.labels == 24 + n


def test_references_are_for_methods_that_declare_them(play: Play, judging: Any) -> None:
    assert play(SFT(), task=judging).scorer.plan()["references"].size == 0


METHODS = [SelfJudge(samples=2, epochs=1), EMAnnotator(samples=3, epochs=1)]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_equal_seeds_give_equal_runs_and_killed_ones_go_on(play: Play, judging: Any, method: PolicyMethod) -> None:
    make = type(method)
    whole = play(make(**vars(method)), task=judging, folder="whole")
    for stop in (1, 2):
        play(make(**vars(method)), task=judging, folder=f"killed{stop}", stop_after=stop)
        resumed = play(make(**vars(method)), task=judging, folder=f"killed{stop}")
        assert resumed.outcome.curve == whole.outcome.curve
        assert resumed.outcome.predictions_sha256 == whole.outcome.predictions_sha256
    assert play(make(**vars(method)), task=judging, folder="other", seed=1).outcome.curve != whole.outcome.curve


@register_method("sft", family="tests", protocol="policy", paper="-")
@dataclass
class Demonstrations(PolicyMethod):
    """Fine-tuning on the demonstrations from the first policy, every round."""

    def round(self, policy: Any, view: Any, number: int) -> None:
        policy.use("base")
        policy.finetune(view.demonstrations, epochs=3)


@pytest.mark.parametrize("make", [SelfJudge, EMAnnotator])
def test_without_samples_it_is_the_baseline(play: Play, judging: Any, make: type) -> None:
    found = play(make(samples=0, epochs=3), task=judging, folder="none").outcome
    baseline = play(Demonstrations(), task=judging, folder="baseline").outcome
    assert found.predictions_sha256 == baseline.predictions_sha256
    assert [point.values for point in found.curve] == [point.values for point in baseline.curve]
