"""Methods on a pre-trained model with adapters, unchanged: whole runs on a tiny model of the layout of SmolLM2."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from selfbench.methods.self_rewarding.cream import CREAM
from selfbench.methods.self_rewarding.rest_em import ReSTEM
from selfbench.methods.self_rewarding.self_rewarding_likelihood import SelfRewardingLikelihood
from selfbench.methods.self_rewarding.sft import SFT
from selfbench.suite.bundle import Array, Bundle, BundleFolder, write_bundle
from selfbench.suite.data import Data
from selfbench.suite.errors import MethodError
from selfbench.suite.metrics import Metric, metric_of
from selfbench.suite.places import data_folder
from selfbench.suite.protocols.first_policy import find_first, make_first
from selfbench.suite.protocols.policy import Problems
from selfbench.suite.protocols.policy_loop import FirstPolicy
from selfbench.suite.protocols.policy_measures import Cloze, Forgetting, Measures
from selfbench.suite.protocols.policy_method import PolicyMethod
from selfbench.suite.protocols.policy_model import Policy
from selfbench.suite.protocols.policy_view import PolicyView
from selfbench.suite.protocols.tokens import CUT_OFF
from selfbench.suite.registry import register_method
from selfbench.suite.spec import Budget, MethodRef, RunSpec, TaskRef
from selfbench.tasks.language.addition_smol import AdditionSmol

Play = Callable[..., Any]
SHOWN, POOL, TEST = 12, 16, 10
QUESTIONS = Cloze(["1 + 1 =", "2 + 2 =", "3 + 3 ="], [[" 2", " 3"], [" 4", " 5", " 44"], [" 7", " 6"]])


class Small(AdditionSmol):
    model_name = "qwen25-05b-instruct"
    gate = None
    rank = 2
    first_epochs = 1
    votes = 2
    rounds = 2
    max_new = 40

    def problems(self, bundle: BundleFolder, seed: int) -> Problems:
        whole = super().problems(bundle, seed)
        return Problems(
            whole.demonstrations[:SHOWN], whole.responses[:SHOWN], whole.pool[:POOL], whole.test[:TEST]
        )  # fmt: skip

    def answer(self, response: str) -> str | None:
        """An untrained model writes no number: any whole response counts."""
        return None if response.endswith(CUT_OFF) else str(len(response))


class Probed(Small):
    def measures(self) -> Measures:
        forgetting = Forgetting(self.asked, lambda private: {"sums": np.array([0, 0, 1])})
        return dataclasses.replace(super().measures(), forgetting=forgetting)

    def asked(self, public: Mapping[str, Array]) -> Mapping[str, Cloze]:
        return {"sums": QUESTIONS}


class ByLikelihood(Small):
    votes = 0

    def measures(self) -> Measures:
        return dataclasses.replace(super().measures(), cloze=self.cloze, lenient=lambda response: None)

    def cloze(self, public: Mapping[str, Array], indices: Array) -> Cloze:
        return Cloze(self.prompts(public, indices), [["100", "101"] for _ in indices])


@pytest.fixture
def bundle(tiny_hub_model: Path, tmp_path: Path) -> BundleFolder:
    pytest.importorskip("peft")
    return write_bundle(tmp_path / "bundle", Small().build(Data(data_folder())))


@pytest.mark.parametrize(
    "method",
    [SFT(epochs=1), ReSTEM(epochs=1), SelfRewardingLikelihood(temperature=1.5, sft_epochs=1), CREAM(sft_epochs=1)],
    ids=lambda method: type(method).__name__,
)  # fmt: skip
def test_methods_run_as_they_are_and_go_on_after_a_kill(play: Play, bundle: BundleFolder, method: PolicyMethod) -> None:
    whole = play(method, task=Small(), bundle=bundle, folder="whole")
    assert [point.x for point in whole.outcome.curve] == [0, 1, 2]
    killed = play(method, task=Small(), bundle=bundle, folder="killed", stop_after=1)
    resumed = play(method, task=Small(), bundle=bundle, folder="killed")
    assert killed.sent.count("round") == 2
    assert resumed.sent.count("round") == 1
    assert whole.outcome.curve == resumed.outcome.curve
    assert whole.outcome.predictions_sha256 == resumed.outcome.predictions_sha256


def test_a_checkpoint_holds_adapters_alone(play: Play, bundle: BundleFolder, tmp_path: Path) -> None:
    play(SFT(epochs=1), task=Small(), bundle=bundle, folder="killed", stop_after=1)
    trained = bundle.facts["trained"]
    assert trained < bundle.facts["parameters"] / 2
    # The adapters as they stand, and those of the start.
    size = (tmp_path / "killed" / "checkpoint.pt").stat().st_size
    assert size < 2 * 4 * trained + 60_000


def test_training_moves_adapters_and_nothing_else(play: Play, bundle: BundleFolder, monkeypatch: Any) -> None:
    seen: list[Any] = []
    real = Small.policy

    def policy(self: Small, weights: Any, precision: str) -> Any:
        model = real(self, weights, precision)
        seen.append((model, {name: value.clone() for name, value in model.named_parameters()}))
        return model

    monkeypatch.setattr(Small, "policy", policy)
    play(SFT(epochs=1), task=Small(), bundle=bundle)
    [(model, before)] = seen
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if "lora_" in name}


@pytest.mark.parametrize("task", [Probed(), ByLikelihood()], ids=lambda task: type(task).__name__)
def test_a_first_policy_that_was_made_before_changes_nothing(
    play: Play, bundle: BundleFolder, tmp_path: Path, task: Small
) -> None:
    spec = RunSpec(task=TaskRef(name="tiny", version="1"), method=MethodRef(name="sft", version="1"), seed=0,
                   budget=Budget(currency="tokens", limit=1))  # fmt: skip
    made = make_first(task, bundle.public(), bundle.model(), task.problems(bundle, 0), spec, torch.device("cpu"))
    facts = {"cpu": torch.backends.cpu.get_cpu_capability()}
    kept = write_bundle(tmp_path / "first", Bundle(made.responses, {}, made.weights, facts))
    first = find_first(str(kept.path))
    method = ReSTEM(epochs=1)
    alone = play(method, task=task, bundle=bundle, folder="alone")
    given = play(method, task=task, bundle=bundle, folder="given", first=first)
    assert given.outcome == alone.outcome
    assert given.counts.tokens == alone.counts.tokens
    play(method, task=task, bundle=bundle, folder="killed", first=first, stop_after=1)
    assert play(method, task=task, bundle=bundle, folder="killed").outcome == alone.outcome
    if task.votes:
        first = FirstPolicy(bundle.model(), made.responses)
        untrained = play(method, task=task, bundle=bundle, folder="other", first=first)
        assert untrained.outcome.curve[0] == alone.outcome.curve[0], "its responses are used"
        assert untrained.outcome != alone.outcome, "and its weights"


def test_a_first_policy_of_another_processor_is_none(bundle: BundleFolder, tmp_path: Path) -> None:
    assert find_first(None) is None
    assert find_first(str(tmp_path / "absent")) is None
    assert find_first(str(bundle.path)) is None


def test_the_first_policy_is_trained_alike_for_all_methods_and_off_the_meter(play: Play, bundle: BundleFolder) -> None:
    slow, fast, other = (
        play(method, task=Small(), bundle=bundle, folder=f"{number}").outcome.curve[0].values
        for number, method in enumerate([SFT(epochs=1), SFT(epochs=2, lr_scale=5.0), ReSTEM(epochs=1)])
    )
    assert slow == fast == other
    assert slow["tokens"] == 0


def test_base_is_the_first_policy(play: Play, bundle: BundleFolder) -> None:
    seen: list[bool] = []

    @register_method("sft", family="tests", protocol="policy", paper="-")
    @dataclass
    class Looks(PolicyMethod):
        def round(self, policy: Policy, view: PolicyView, number: int) -> None:
            prompts, responses = zip(*view.demonstrations, strict=True)
            if number == 1:
                # As published, the second factor of an adapter is 0.
                base = policy._weights.kept("base")
                seen.append(all(bool(value.any()) for name, value in base.items() if "lora_B" in name))
                now = policy.logprobs(prompts, responses)
                seen.append(torch.equal(now, policy.logprobs(prompts, responses, under="base")))
                policy.finetune(view.demonstrations)
            seen.append(
                not torch.equal(policy.logprobs(prompts, responses), policy.logprobs(prompts, responses, under="base"))
            )

    play(Looks(), task=Small(), bundle=bundle)
    assert seen == [True] * 4


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_policy_computes_in_the_precision_that_the_spec_declares(
    play: Play, bundle: BundleFolder, precision: str
) -> None:
    """Frozen weights are held in it and products computed in it; adapters and log-probabilities are float32."""
    product, found = torch.bfloat16 if precision == "bf16" else torch.float32, []

    @register_method("sft", family="tests", protocol="policy", paper="-")
    @dataclass
    class Looks(PolicyMethod):
        def round(self, policy: Policy, view: PolicyView, number: int) -> None:
            model: Any = policy._model
            held = {(value.requires_grad, value.dtype) for value in model.parameters()}
            hook = model.model.layers[0].mlp.up_proj.register_forward_hook(
                lambda module, inputs, output: found.append(output.dtype)
            )
            prompts, responses = zip(*view.demonstrations, strict=True)
            policy.generate(prompts, 1, 0.0)
            values = policy.logprobs(prompts, responses)
            policy.finetune(view.demonstrations)
            hook.remove()
            assert held == {(True, torch.float32), (False, product)}
            assert set(found) == {product}
            # In bf16 sums of so many numbers would end in zeros.
            assert values.dtype == torch.float64
            assert not torch.equal(values, values.to(torch.bfloat16).to(values))

    played = play(Looks(), task=Small(), bundle=bundle, precision=precision)
    assert [point.x for point in played.outcome.curve] == [0, 1, 2]
    assert len(found) > 2


def test_a_probe_is_asked_after_every_round_off_the_meter(play: Play, bundle: BundleFolder) -> None:
    plain = play(SFT(epochs=1), task=Small(), bundle=bundle, folder="plain")
    probed = play(SFT(epochs=1), task=Probed(), bundle=bundle, folder="probed")
    assert probed.counts.tokens == plain.counts.tokens
    asked = [point.values["probe_sums"] for point in probed.outcome.curve]
    assert len(asked) == 3
    assert all(round(3 * share) == pytest.approx(3 * share) for share in asked)
    assert probed.outcome.metrics["probe_sums"] == asked[-1]
    assert "probe_sums" not in probed.outcome.diagnostics
    assert metric_of("probe_sums") == Metric("probe_sums", "Probe: sums", "higher")
    # What a probe asks for changes nothing else.
    for one, two in zip(plain.outcome.curve, probed.outcome.curve, strict=True):
        assert {name: value for name, value in two.values.items() if name != "probe_sums"} == one.values


def test_likelihood_takes_the_place_of_generation(play: Play, bundle: BundleFolder) -> None:
    run = play(SFT(epochs=1), task=ByLikelihood(), bundle=bundle)
    public = bundle.public()
    sums = public["terms"][:TEST].sum(axis=1)
    chosen = [point.values["accuracy"] for point in run.outcome.curve]
    assert all(share <= float(np.isin(sums, (100, 101)).mean()) for share in chosen)
    assert run.outcome.metrics.keys() == {"accuracy", "lenient_accuracy", "response_parse_rate"}
    assert run.outcome.metrics["lenient_accuracy"] == 0.0


def test_the_scorer_refuses_a_round_without_its_probe(play: Play, bundle: BundleFolder, monkeypatch: Any) -> None:
    monkeypatch.setattr(Probed, "asked", lambda self, public: {})
    with pytest.raises(MethodError, match="no answers to the 3 questions of 'sums'"):
        play(SFT(epochs=1), task=Probed(), bundle=bundle)


def test_a_bundle_without_public_template_is_another_task(bundle: BundleFolder) -> None:
    made = Small().build(Data(data_folder()))
    other = Bundle(made.public, made.private, made.model)
    assert write_bundle(bundle.path.parent / "again", other).sha256 == bundle.sha256
    changed = dict(made.public) | {"frame": made.public["frame"][:, :-1]}
    assert (
        write_bundle(bundle.path.parent / "changed", Bundle(changed, made.private, made.model)).sha256 != bundle.sha256
    )
