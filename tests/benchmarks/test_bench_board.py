"""How long the board takes at scale: index, one query, scores, the whole site. Measured, never asserted.

pytest tests/benchmarks/test_bench_board.py -m benchmark_session
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from selfbench.suite.board.ranking import compare
from selfbench.suite.board.suites import score_suite
from selfbench.suite.index import Index
from selfbench.suite.render import build_site
from selfbench.suite.store import Store

sys.path.append(str(Path(__file__).parent))
generated = importlib.import_module("generated_records")

RECORDS = 100_000
pytestmark = pytest.mark.benchmark_session


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("results")
    generated.write_records(root, RECORDS)
    return root


@pytest.fixture(scope="module")
def index(results: Path) -> Iterator[Index]:
    with Store(results).index() as opened:
        yield opened


def test_index_from_nothing(
    benchmark: BenchmarkFixture, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SELFBENCH_CACHE", str(tmp_path))

    def build() -> int:
        with Store(results).index() as fresh:
            return len(fresh)

    assert benchmark.pedantic(build, rounds=1) == RECORDS


def test_index_opened_again(benchmark: BenchmarkFixture, results: Path, index: Index) -> None:
    benchmark.pedantic(lambda: Store(results).index().close(), rounds=3)


def test_query_of_one_task(benchmark: BenchmarkFixture, index: Index) -> None:
    assert benchmark(lambda: index.summaries(task="digits-c-continual"))


def test_query_of_all_runs(benchmark: BenchmarkFixture, index: Index) -> None:
    assert len(benchmark(index.summaries)) == RECORDS


def test_board_of_a_suite(benchmark: BenchmarkFixture, index: Index) -> None:
    runs, catalogue = index.summaries(), generated.generated_catalogue()
    suite = generated.generated_suite()
    assert benchmark(lambda: score_suite(suite, runs, catalogue)).finished


def test_all_pairs_of_two_hundred_methods(benchmark: BenchmarkFixture) -> None:
    rng = np.random.default_rng(0)
    table = rng.random((200, 1)) + 0.01 * rng.standard_normal((200, 5))
    assert benchmark(lambda: compare(table)).separated.any()


def test_whole_site(benchmark: BenchmarkFixture, index: Index, tmp_path: Path) -> None:
    suites = [generated.generated_suite()]
    catalogue = generated.generated_catalogue()
    built = benchmark.pedantic(lambda: build_site(index, suites, tmp_path / "site", catalogue=catalogue), rounds=1)
    assert built.runs == RECORDS
