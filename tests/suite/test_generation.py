"""What a policy's samples come from is declared: in specs, refusals, records, on boards and pages."""

from __future__ import annotations

import importlib
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from selfbench.suite import generation, registry
from selfbench.suite.board.choose import load_suites
from selfbench.suite.board.export import board_rows
from selfbench.suite.board.scores import score_field
from selfbench.suite.board.table import fields_of
from selfbench.suite.command import repeat_command
from selfbench.suite.errors import UsageError
from selfbench.suite.prepare.frozen import frozen_folders
from selfbench.suite.record import Record, decode, encode
from selfbench.suite.render import build_site
from selfbench.suite.spec import RunSpec
from selfbench.suite.store import Store
from selfbench.suite.suites import Settings, expand, load_suite

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
generated = importlib.import_module("generated_records")

VLLM = Settings(generation="vllm")
RESULTS = Path(__file__).parents[2] / "results"


def spec_of(task: str = "addition-smol", settings: Settings = VLLM) -> RunSpec:
    [spec] = expand(tasks=[task], methods=["rest-em"], seeds=[0], settings=settings)
    return spec


def test_a_spec_says_nothing_of_what_is_native() -> None:
    native, other = spec_of(settings=Settings()), spec_of()
    assert "generation" not in native.model_dump(mode="json")
    assert b"generation" not in native.model_dump_json().encode()
    assert other.model_dump(mode="json")["generation"] == "vllm"
    assert native.run_id != other.run_id
    for spec in (native, other):
        assert RunSpec.model_validate(spec.model_dump(mode="json")) == spec
        assert RunSpec.model_validate_json(spec.model_dump_json()) == spec
    # A file that says it all the same is the same run.
    said = native.model_dump(mode="json") | {"generation": "native"}
    assert RunSpec.model_validate(said).run_id == native.run_id


def test_committed_records_of_policies_keep_their_names() -> None:
    files = sorted((RESULTS / "arithmetic-tiny").glob("*/*.json"))[:20]
    assert files
    for file in files:
        record = decode(file.read_bytes())
        assert record.spec.generation == "native"
        assert record.run_id == record.spec.run_id == file.stem
        assert json.loads(encode(record))["spec"] == json.loads(file.read_text())["spec"]


@pytest.mark.parametrize(("task", "method", "says"), [
    ("arithmetic-tiny", "rest-em", "its own small one"),
    ("judge-tiny", "self-judge", "-t addition-smol"),
    ("digits-c-continual", "tent", "no language model"),
])  # fmt: skip
def test_a_task_that_vllm_does_not_run_is_refused_with_what_to_type(task: str, method: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        expand(tasks=[task], methods=[method], seeds=[0], settings=VLLM)
    assert "leave out `--generation vllm`" in str(caught.value)


def test_every_task_with_a_public_model_is_accepted() -> None:
    tasks = [entry for entry in registry.entries("task").values() if "adapters" in entry.options["tags"]]
    assert len(tasks) > 5
    assert not any(generation.unfit(task, "vllm") for task in tasks)


def test_the_command_line_refuses_before_anything_is_prepared(cli: Callable[..., Any]) -> None:
    called = cli("run", "-t", "arithmetic-tiny", "-m", "sft", "--generation", "vllm")
    assert called.code == 2
    assert "leave out `--generation vllm`" in called.err
    called = cli("run", "-t", "addition-smol", "-m", "sft", "--generation", "other")
    assert called.code == 2
    assert "'native' or 'vllm'" in called.err
    called = cli("plan", "--suite", "quick", "--generation", "vllm")
    assert called.code == 2
    assert "`-t` names" in called.err
    called = cli("plan", "-t", "addition-smol", "-m", "rest-em", "--generation", "vllm", "--json")
    assert json.loads(called.out)["runs"][0]["run_id"] == spec_of().run_id


def test_the_command_that_repeats_a_run_names_it() -> None:
    words = shlex.split(repeat_command(spec_of()))
    assert words[words.index("--generation") + 1] == "vllm"
    assert "--generation" not in repeat_command(spec_of(settings=Settings()))


def test_a_pair_of_a_suite_may_ask_for_it(tmp_path: Path) -> None:
    file = tmp_path / "mixed.toml"
    head = 'name = "mixed"\ntitle = "Mixed"\ndescription = "-"\nseeds = [0]\n\n'
    pair = '[[pairs]]\ntasks = ["addition-smol"]\nmethods = ["sft"]\n'
    tiny = '[[pairs]]\ntasks = ["arithmetic-tiny"]\nmethods = ["sft"]\n'
    file.write_text(head + pair + 'generation = "vllm"\n\n' + tiny)
    assert [spec.generation for spec in load_suite(file).specs] == ["vllm", "native"]
    # Asked for a whole suite, it holds where it fits.
    file.write_text(head + pair + tiny)
    assert [spec.generation for spec in load_suite(file, VLLM).specs] == ["vllm", "native"]
    file.write_text(head + tiny + 'generation = "vllm"\n')
    with pytest.raises(UsageError, match=r"pairs 1: the language model of task 'arithmetic-tiny'"):
        load_suite(file)


def test_a_board_keeps_it_apart_and_says_so(tmp_path: Path) -> None:
    catalogue, store = generated.generated_catalogue(), Store(tmp_path / "results")
    for seed in range(3):
        native = generated.make_record("asdiv-formulas", "rest-em", 0, seed)
        spec = native.spec.model_copy(update={"generation": "vllm"})
        for record in (native, native.model_copy(update={"spec": spec, "run_id": spec.run_id})):
            store.write(record)
    with store.index() as index:
        own, other = fields_of(index.summaries(), catalogue)
        build_site(index, [generated.generated_suite("standard")], tmp_path / "site", catalogue=catalogue)
    assert (own.condition.generation, other.condition.generation) == ("native", "vllm")
    assert other.condition.text == own.condition.text + ", samples of vLLM"
    assert [row["generation"] for row in board_rows(score_field(other, catalogue))] == ["vllm"]
    page = (tmp_path / "site" / "runs" / f"{other.rows[0].outcomes[0].run.run_id}.html").read_text()
    assert "samples of vLLM" in page
    assert (
        "samples of vLLM" not in (tmp_path / "site" / "runs" / f"{own.rows[0].outcomes[0].run.run_id}.html").read_text()
    )
    assert (tmp_path / "site" / "tasks" / "asdiv-formulas.html").read_text().count("samples of vLLM") > 0


def test_a_board_of_a_suite_finds_its_runs(tmp_path: Path) -> None:
    store = Store(tmp_path / "results")
    file = tmp_path / "one.toml"
    file.write_text('name = "one"\ntitle = "One"\ndescription = "-"\nseeds = [0]\n\n'
                    '[[pairs]]\ntasks = ["addition-smol", "arithmetic-tiny"]\nmethods = ["sft"]\n')  # fmt: skip
    [spec] = [item for item in load_suite(file, VLLM).specs if item.generation == "vllm"]
    record: Record = generated.make_record("asdiv-formulas", "rest-em", 0, 0)
    store.write(record.model_copy(update={"spec": spec, "run_id": spec.run_id}))
    with store.index() as index:
        [suite] = load_suites([file], index.summaries())
    assert spec.run_id in {item.run_id for item in suite.specs}


def test_without_vllm_runs_leave_records_that_say_what_to_install(
    tiny_hub_model: Path, cli: Callable[..., Any], tmp_path: Path
) -> None:
    """And the first policy that vLLM would have evaluated lies apart from that of all other runs."""
    task = "toy-without-vllm"
    called = cli("run", "-t", task, "-m", "sft", "--generation", "vllm", "--results", "results", timeout=600)
    assert called.code == 1, called.err
    [file] = (tmp_path / "results" / task / "sft").glob("*.json")
    record = decode(file.read_bytes())
    assert (record.status, record.started, record.spec.generation) == ("failed", False, "vllm")
    assert record.reason.startswith(f"Task '{task}' could not be prepared: `--generation vllm` needs vLLM")
    assert "pip install 'selfbench[vllm]'" in record.reason
    assert "leave out `--generation vllm`" in record.reason
    assert record.provenance.command.endswith("--generation vllm")
    first = {
        settings.generation: frozen_folders(expand(tasks=[task], methods=["sft"], seeds=[0], settings=settings)[0])
        for settings in (Settings(), VLLM)
    }
    assert first["native"]["first"].path != first["vllm"]["first"].path
    assert not first["vllm"]["first"].exists


def test_a_model_without_a_folder_is_refused() -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from selfbench.suite.protocols.tokens import CharTokenizer
    from selfbench.suite.protocols.vllm_sampler import VllmSampler

    config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    with pytest.raises(UsageError, match="that of this task has none"):
        VllmSampler(LlamaForCausalLM(config), CharTokenizer("abcdefgh"), 4, spec_of(), torch.device("cpu"))
