"""Device and precision are declared, part of a run's identity, and refused where they do not exist."""

from __future__ import annotations

import pytest
import torch

from selfbench.suite.suites import Settings, expand


def spec(**settings: object):
    return expand(tasks=["toy-stream"], methods=["tent"], seeds=[0], settings=Settings(**settings))[0]


def test_device_precision_and_threads_are_identity() -> None:
    ids = {
        spec(device=device, precision=precision, threads=threads).run_id
        for device in ("cpu", "cuda")
        for precision in ("fp32", "tf32", "bf16")
        for threads in (1, 2)
    }
    assert len(ids) == 12


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_without_a_device_is_explained(cli) -> None:
    called = cli("run", "-t", "toy-stream", "-m", "tent", "--device", "cuda")
    assert called.code == 2
    assert "no CUDA device" in called.err
    assert "--device cpu" in called.err


@pytest.mark.parametrize("words", [("--device", "tpu"), ("--precision", "fp8")])
def test_unknown_device_or_precision(cli, words: tuple[str, str]) -> None:
    called = cli("run", "-t", "toy-stream", "-m", "tent", *words)
    assert called.code == 2
    assert words[1] in called.err
    assert "Traceback" not in called.err


def test_bf16_on_the_cpu_is_recorded(campaign) -> None:
    [record] = campaign("toy-stream", "tent", settings=Settings(precision="bf16")).finished
    assert record.status == "ok", record.reason
    assert record.spec.precision == "bf16"
    [exact] = campaign("toy-stream", "tent", folder="fp32").finished
    assert record.predictions_sha256 != exact.predictions_sha256


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("task", "method"), [("toy-stream", "tent"), ("toy-stream", "norm"), ("toy-adaptation", "fixmatch")]
)
def test_gpu_runs_and_agrees_with_the_cpu(campaign, task: str, method: str) -> None:
    [gpu] = campaign(task, method, settings=Settings(device="cuda")).finished
    [cpu] = campaign(task, method, folder="cpu").finished
    assert gpu.status == "ok", gpu.reason
    assert gpu.cost.gpu_seconds > 0
    assert gpu.provenance.gpu
    assert gpu.cost.passes == cpu.cost.passes
    assert gpu.metrics["error"] == pytest.approx(cpu.metrics["error"], abs=0.05)
