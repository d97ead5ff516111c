from __future__ import annotations

import torch

from selfbench.methods.common.masking import IGNORED, mask_tokens

MASK, VOCABULARY, SPECIAL = 4, 50, (0, 2, 3)


def masked(seed: int, rate: float = 0.15, rows: int = 400) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    ids = torch.randint(5, VOCABULARY, (rows, 60), generator=torch.Generator().manual_seed(9))
    ids[:, 0], ids[:, 40], ids[:, 41:] = 2, 3, 0
    return ids, *mask_tokens(ids, torch.Generator().manual_seed(seed), MASK, VOCABULARY, SPECIAL, rate)


def test_shares_are_those_of_the_paper() -> None:
    ids, hidden, targets = masked(1)
    ordinary = ids > 3
    chosen = targets != IGNORED
    assert not (chosen & ~ordinary).any()
    assert torch.equal(targets[chosen], ids[chosen])
    assert torch.equal(hidden[~chosen], ids[~chosen])
    n = int(ordinary.sum())  # 15,600: a standard error of 0.3 points
    assert abs(int(chosen.sum()) / n - 0.15) < 0.012
    kinds = hidden[chosen]
    same, mask = kinds == ids[chosen], kinds == MASK
    assert abs(mask.float().mean() - 0.8) < 0.03
    # A token drawn evenly is itself once in fifty.
    assert abs(same.float().mean() - 0.102) < 0.025
    others = kinds[~same & ~mask]
    assert int(others.min()) < 5
    assert int(others.max()) < VOCABULARY
    assert len(others.unique()) > 40


def test_all_randomness_is_the_generator_s() -> None:
    first, same, other = masked(1), masked(1), masked(2)
    assert all(torch.equal(a, b) for a, b in zip(first, same, strict=True))
    assert not torch.equal(first[1], other[1])


def test_rates_of_nothing_and_all() -> None:
    ids, hidden, targets = masked(1, rate=0.0, rows=3)
    assert torch.equal(hidden, ids)
    assert (targets == IGNORED).all()
    ids, _, targets = masked(1, rate=1.0, rows=3)
    assert torch.equal(targets != IGNORED, ids > 3)


def test_no_token_becomes_a_special_one() -> None:
    """A token that became padding would have no place any more, and its target no logits."""
    ids, hidden, targets = masked(1, rate=1.0)
    for token in SPECIAL:
        assert torch.equal(hidden == token, ids == token)
    assert (targets != IGNORED).sum() == (ids > 3).sum()
