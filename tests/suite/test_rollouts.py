"""Long calls of a policy are kept while their round lasts: a result from disk is the computed one, charged alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from selfbench.suite.errors import BudgetExhausted
from selfbench.suite.meter import Meter
from selfbench.suite.protocols import rollouts
from selfbench.suite.protocols.rollouts import Rollouts
from selfbench.suite.spec import Budget

WEIGHTS = {"w": torch.arange(4.0)}


@pytest.fixture(autouse=True)
def keep_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollouts, "WORTH_SECONDS", 0.0)


def meter(limit: float = 100) -> Meter:
    return Meter(Budget(currency="tokens", limit=limit), "tested")


class Work:
    """Three steps of two sequences, 5, 4 and 1 tokens."""

    def __init__(self, result: Any = (["a", "b…"], [])) -> None:
        self.result, self.done = result, 0

    def __call__(self, charge: rollouts.Charge) -> Any:
        self.done += 1
        for sequences, tokens in ((2, 5), (0, 4), (0, 1)):
            charge(sequences, tokens)
        return self.result


def called(
    folder: Path, work: Work, counts: Meter, *, number: int = 1, weights: Any = WEIGHTS, about: Any = ("x", 1),
    kind: rollouts.Kind = "generated",
) -> Any:  # fmt: skip
    kept = Rollouts(folder)
    kept.begin(number)
    with counts.running():
        return kept.call(counts, kind, weights, about, work)


def test_what_was_computed_comes_back_and_is_charged(tmp_path: Path) -> None:
    first, second, work = meter(), meter(), Work([["a", "b…"], []])
    assert called(tmp_path / "r", work, first) == called(tmp_path / "r", work, second) == [["a", "b…"], []]
    assert work.done == 1
    assert (second.counts.tokens, second.counts.forward) == (first.counts.tokens, first.counts.forward) == (10, 2.0)


@pytest.mark.parametrize("kind", ["generated", "scored"])
def test_its_tokens_are_of_their_kind(tmp_path: Path, kind: rollouts.Kind) -> None:
    for counts in (meter(), meter()):
        called(tmp_path, Work(), counts, kind=kind)
        assert getattr(counts.counts, f"{kind}_tokens") == counts.counts.tokens == 10


def test_numbers_come_back_bit_by_bit(tmp_path: Path) -> None:
    values = (torch.rand(50, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 9).tolist()
    called(tmp_path, Work(values), meter())
    assert called(tmp_path, Work(), meter()) == values


@pytest.mark.parametrize("limit", [4, 8, 9])
def test_the_budget_ends_where_it_would_have_ended(tmp_path: Path, limit: float) -> None:
    called(tmp_path, Work(), meter())
    computed, replayed = meter(limit), meter(limit)
    with pytest.raises(BudgetExhausted):
        called(tmp_path / "elsewhere", Work(), computed)
    with pytest.raises(BudgetExhausted):
        called(tmp_path, Work(), replayed)
    assert computed.counts.tokens == replayed.counts.tokens


def test_time_is_counted_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([10.0, 13.5])
    monkeypatch.setattr(rollouts.time, "perf_counter", lambda: next(now, 0.0))
    Rollouts(tmp_path).call(meter(), "scored", WEIGHTS, ("x", 1), Work())
    monkeypatch.undo()
    replayed = meter()
    with replayed.running():
        Rollouts(tmp_path).call(replayed, "scored", WEIGHTS, ("x", 1), Work())
    assert 3.5 <= replayed.counts.seconds < 4.5


@pytest.mark.parametrize(
    "other", [{"weights": {"w": torch.arange(4.0) + 1e-6}}, {"about": ("x", 2)}, {"number": 2}], ids=str
)
def test_another_call_is_computed(tmp_path: Path, other: dict[str, Any]) -> None:
    work = Work()
    called(tmp_path, work, meter())
    called(tmp_path, work, meter(), **other)
    assert work.done == 2


def test_only_the_round_under_way_takes_room(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        called(tmp_path, Work(), meter(), number=number)
    assert [file.name for file in tmp_path.iterdir()] == ["3-1.json"]


def test_short_calls_and_torn_files_cost_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = Work()
    called(tmp_path, work, meter())
    (tmp_path / "1-1.json").write_text('{"digest": "')
    called(tmp_path, work, meter())
    assert work.done == 2
    monkeypatch.setattr(rollouts, "WORTH_SECONDS", 60.0)
    called(tmp_path / "short", work, meter())
    assert not (tmp_path / "short").exists()
