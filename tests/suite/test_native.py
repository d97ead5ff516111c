"""bf16 where the processor has instructions for it; a suite that asks for it has specs that say what was taken."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfbench.suite import suites
from selfbench.suite.native import native_precision
from selfbench.suite.suites import Settings, expand, load_suite


@pytest.mark.parametrize(("text", "expected"), [
    ("processor : 0\nflags\t\t: fpu avx512f avx512_bf16 sse\n", "bf16"),
    ("flags : fpu amx_bf16\n", "bf16"),
    ("flags : fpu avx512f avx2\n", "fp32"),
    ("Features : fp asimd bf16 i8mm\n", "bf16"),
    ("Features : fp asimd\n", "fp32"),
    ("model name : a bf16 machine\n", "fp32"),
    ("", "fp32"),
])  # fmt: skip
def test_the_processors_instructions_decide(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert native_precision("cpu", tmp_path / "cpuinfo") == expected
    assert native_precision("cuda", tmp_path / "cpuinfo") == "bf16"


def test_without_a_list_of_instructions_it_is_fp32(tmp_path: Path) -> None:
    assert native_precision("cpu", tmp_path / "nowhere") == "fp32"


@pytest.mark.parametrize(("native", "given", "expected"), [
    ("bf16", "fp32", "bf16"), ("fp32", "fp32", "fp32"), ("bf16", "tf32", "tf32"), ("fp32", "bf16", "bf16"),
])  # fmt: skip
def test_a_suite_may_ask_for_the_native_precision(
    monkeypatch: pytest.MonkeyPatch, native: str, given: str, expected: str
) -> None:
    monkeypatch.setattr(suites, "native_precision", lambda device: native)
    specs = load_suite("language-small", Settings(precision=given)).specs
    assert {spec.precision for spec in specs} == {expected}
    other = load_suite("language-tiny", Settings(precision=given)).specs
    assert {spec.precision for spec in other} == {given}


def test_auto_is_never_in_a_spec(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suites, "native_precision", lambda device: "bf16")
    settings = Settings(precision="auto")
    [spec] = expand(tasks=["arithmetic-tiny"], methods=["sft"], seeds=[0], settings=settings)
    assert spec.precision == "bf16"
