"""Comparisons, Holm's procedure, rank intervals and tie letters on small tables with known answers."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ttest_rel

from selfbench.suite.board.ranking import Rank, compare, holm, tie_letters


def test_separated_methods_have_single_ranks() -> None:
    comparison = compare(np.array([[0.3] * 3, [0.1] * 3, [0.2] * 3]))
    assert comparison.ranks() == [Rank(3, 3), Rank(1, 1), Rank(2, 2)]
    assert comparison.gap[0, 1] == pytest.approx(0.2)
    assert tie_letters(comparison.separated, [1, 2, 0]) == ["", "", ""]


def test_equal_methods_share_their_ranks() -> None:
    comparison = compare(np.array([[0.1, 0.2, 0.3], [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]]))
    assert [str(rank) for rank in comparison.ranks()] == ["1–2", "1–2", "3"]
    assert tie_letters(comparison.separated, [0, 1, 2]) == ["a", "a", ""]


def test_the_p_value_of_three_seeds_is_that_of_the_paired_t_test() -> None:
    """Three differences of one sign say nothing by bootstrap alone, so Student's t decides."""
    one, other = np.array([0.11, 0.13, 0.16]), np.array([0.10, 0.11, 0.13])
    comparison = compare(np.array([one, other]))
    assert comparison.p[0, 1] == pytest.approx(ttest_rel(one, other).pvalue) == pytest.approx(0.0742, abs=1e-4)
    assert comparison.p[1, 0] == comparison.p[0, 1]
    assert not comparison.separated.any()
    assert comparison.ranks() == [Rank(1, 2), Rank(1, 2)]


def test_pairing_by_seed_removes_what_seeds_share() -> None:
    shared = np.array([0.0, 0.1, 0.2, 0.3, 0.4])
    paired = compare(np.array([shared, shared + np.array([0.010, 0.011, 0.009, 0.010, 0.010])]))
    crossed = compare(np.array([shared, shared[::-1] + 0.01]))
    assert paired.separated[0, 1]
    assert not crossed.separated[0, 1]


def test_a_gap_below_the_smallest_detectable_one_is_not_ranked() -> None:
    table = np.array([[0.100] * 4, [0.109] * 4])
    assert compare(table, smallest_gap=0.0).ranks() == [Rank(1, 1), Rank(2, 2)]
    assert compare(table, smallest_gap=0.01).ranks() == [Rank(1, 2), Rank(1, 2)]


def test_fewer_than_three_common_seeds_are_not_compared() -> None:
    nan = np.nan
    table = np.array([[0.1, 0.1, 0.1, 0.1, nan], [nan, nan, 0.9, 0.9, 0.9], [0.5, 0.5, 0.5, 0.5, 0.5]])
    comparison = compare(table)
    assert comparison.common.tolist() == [[4, 2, 4], [2, 3, 3], [4, 3, 5]]
    assert comparison.p[0, 1] == 1
    # Each is told apart from the third, but not from the other.
    assert comparison.ranks() == [Rank(1, 2), Rank(2, 3), Rank(2, 2)]


def test_holm_by_hand() -> None:
    """Thresholds 0.05 / (4, 3, 2, 1): 0.010 passes, 0.020 > 0.0167 stops everything after it."""
    assert holm(np.array([0.04, 0.010, 0.03, 0.020]), 4).tolist() == [False, True, False, False]
    assert holm(np.array([0.01, 0.012, 0.02, 0.04]), 4).tolist() == [True, True, True, True]


def test_tied_with_both_neighbours_but_not_transitively() -> None:
    separated = np.zeros((3, 3), dtype=bool)
    separated[0, 2] = separated[2, 0] = True
    assert tie_letters(separated, [0, 1, 2]) == ["a", "ab", "b"]


def test_letters_mean_exactly_not_told_apart() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        upper = np.triu(rng.random((6, 6)) < 0.5, 1)
        separated = upper | upper.T
        letters = tie_letters(separated, list(rng.permutation(6)))
        for i in range(6):
            for j in range(i + 1, 6):
                assert bool(set(letters[i]) & set(letters[j])) != separated[i, j]


@pytest.mark.parametrize("seeds", [3, 10])
def test_equal_methods_are_rarely_told_apart(seeds: int) -> None:
    """The familywise error: in at most 5 % of boards of equal methods does any pair come out separated."""
    rng = np.random.default_rng(seeds)
    wrong = 0
    for _ in range(400):
        wrong += bool(compare(rng.standard_normal((6, seeds)) + rng.standard_normal(seeds)).separated.any())
    assert wrong / 400 <= 0.065


def test_large_boards_agree_with_pairs_of_their_rows() -> None:
    rng = np.random.default_rng(5)
    table = rng.random((7, 1)) + 0.05 * rng.standard_normal((7, 9))
    table[2, 3] = table[4, :2] = np.nan
    whole = compare(table)
    for i in range(7):
        for j in range(i + 1, 7):
            pair = compare(table[[i, j]])
            assert whole.gap[i, j] == pytest.approx(pair.gap[0, 1])
            assert whole.common[i, j] == pair.common[0, 1]
            if whole.separated[i, j]:
                assert whole.p[i, j] == pytest.approx(pair.p[0, 1])
