"""How long the command line takes to answer, beside a Typer program that does nothing. Measured, never asserted.

pytest tests/benchmarks/test_bench_startup.py -m benchmark_session -s
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from selfbench.suite import registry

pytestmark = pytest.mark.benchmark_session
ROUNDS = 15

EMPTY = """
import typer
app = typer.Typer()
@app.command("list")
def nothing(name: str = typer.Argument("")) -> None: ...
@app.command("info")
def nothing_else(name: str = typer.Argument("")) -> None: ...
app()
"""
OURS = "from selfbench.suite.cli import main\nmain()\n"
METHOD = registry.get("method", "fixmatch").file


@pytest.mark.parametrize("extra", [0, 200])
@pytest.mark.parametrize("words", [["--help"], ["list", "methods"], ["info", "tent"]], ids=" ".join)
def test_answer_beside_an_empty_program(
    benchmark: BenchmarkFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], extra: int
) -> None:
    """Whole processes by turns, so that a busy machine slows both alike; `ratio` is that of the medians.

    `extra` files of methods stand beside those of the package. They are older than what the registry keeps.
    """
    (tmp_path / "more").mkdir()
    for number in range(extra):
        text = METHOD.read_text().replace('"fixmatch"', f'"more-{number}"')
        (tmp_path / "more" / f"m{number}.py").write_text(text)
    monkeypatch.setenv("SELFBENCH_PATH", str(tmp_path / "more"))
    time.sleep(2.5 if extra else 0)
    empty, ours = tmp_path / "empty.py", tmp_path / "ours.py"
    empty.write_text(EMPTY)
    ours.write_text(OURS)
    seconds: dict[Path, list[float]] = {empty: [], ours: []}

    def both() -> None:
        for script, taken in seconds.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, str(script), *words], check=True, capture_output=True)
            taken.append(time.perf_counter() - start)

    benchmark.pedantic(both, rounds=ROUNDS, warmup_rounds=2)
    medians = {script: statistics.median(taken[2:]) for script, taken in seconds.items()}
    benchmark.extra_info["ratio"] = ratio = medians[ours] / medians[empty]
    what = f"selfbench {' '.join(words)}, {extra} more methods"
    print(f"\n{what}: {1e3 * medians[ours]:.0f} ms, {ratio:.2f} of an empty Typer program")
