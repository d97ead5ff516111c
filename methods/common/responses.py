"""What methods of the protocol `policy` share: responses that parse, rewards by prompt, rankings, and the M-step."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...suite.protocols.policy_examples import Example, Pair

if TYPE_CHECKING:
    from ...suite.protocols.policy_model import Policy
    from ...suite.protocols.policy_view import PolicyView


def distinct_parsed(view: PolicyView, responses: Sequence[str]) -> list[str]:
    """The different responses that parse, in their order; what does not parse is never trained on."""
    return [text for text in dict.fromkeys(responses) if view.parse(text) is not None]


def vote(answers: Sequence[str | None]) -> tuple[str | None, float]:
    """The most frequent answer, the first of equally frequent ones, and its share of all; (None, 0) without one.

    What did not parse (None) has no vote, but counts among all.
    """
    counted = Counter(answer for answer in answers if answer is not None)
    if not counted:
        return None, 0.0
    answer, votes = counted.most_common(1)[0]
    return answer, votes / len(answers)


def agreeing(view: PolicyView, made: Sequence[Sequence[str]], share: float, cutoff: int) -> list[Example]:
    """The different responses that lead to the majority's answer, at most `cutoff` for each prompt of the pool; none
    where less than `share` of its samples agree."""
    kept = []
    for prompt, responses in zip(view.prompts, made, strict=True):
        answer, agree = vote([view.parse(text) for text in responses])
        if answer is not None and agree >= share:
            same = [text for text in distinct_parsed(view, responses) if view.parse(text) == answer]
            kept += [Example(prompt, text) for text in same[:cutoff]]
    return kept


def judged(
    view: PolicyView,
    known: dict[int, dict[str, bool]],
    numbers: Sequence[int],
    responses: Sequence[str],
    answers: Sequence[str | None] | None = None,
) -> list[bool]:
    """The verifier's verdicts on responses to pool prompts `numbers`, asked for once an answer: `known` remembers them.

    No more answers to a prompt are asked for than the verifier judges; the others count as wrong, as does what does
    not parse. `answers` are those of the responses, where they have been parsed before.
    """
    if answers is None:
        answers = [view.parse(response) for response in responses]
    asked: list[int] = []
    for at, (number, answer) in enumerate(zip(numbers, answers, strict=True)):
        own = known.setdefault(number, {})
        if answer is not None and answer not in own and len(own) < view.verdicts:
            own[answer] = False
            asked.append(at)
    right = view.verify([numbers[at] for at in asked], [responses[at] for at in asked])
    for at, good in zip(asked, right, strict=True):
        known[numbers[at]][str(answers[at])] = good
    return [
        answer is not None and known[number].get(answer, False) for number, answer in zip(numbers, answers, strict=True)
    ]


def best_and_worst(
    prompts: Sequence[str], groups: Sequence[Sequence[str]], rewards: Sequence[float | None]
) -> list[Pair]:
    """The best and the worst response of each prompt, the first of equally good ones, by the rewards of all responses
    end to end. A response without a reward is neither; a prompt whose rewards are all equal gives no pair."""
    pairs, ends = [], itertools.accumulate(map(len, groups))
    for prompt, texts, end in zip(prompts, groups, ends, strict=True):
        own = zip(texts, rewards[end - len(texts) : end], strict=True)
        known = [(reward, text) for text, reward in own if reward is not None]
        if known:
            best, worst = (pick(known, key=lambda one: one[0]) for pick in (max, min))
            if best[0] > worst[0]:
                pairs.append(Pair(prompt, best[1], worst[1]))
    return pairs


def refit(policy: Policy, view: PolicyView, kept: Sequence[Example], epochs: int) -> None:
    """Fine-tune the first policy, not the one that answered, on the demonstrations and what was kept."""
    policy.use("base")
    policy.finetune([*view.demonstrations, *kept], epochs=epochs)


def padded(groups: Sequence[Sequence[float]]) -> tuple[Tensor, Tensor]:
    """Groups of numbers as float64 (P, N) and which of its places are filled, bool (P, N)."""
    longest = max((len(group) for group in groups), default=0)
    values = torch.zeros(len(groups), longest, dtype=torch.float64)
    filled = torch.zeros(len(groups), longest, dtype=torch.bool)
    for row, group in enumerate(groups):
        values[row, : len(group)] = torch.as_tensor(group, dtype=torch.float64)
        filled[row, : len(group)] = True
    return values, filled


def kendall_tau(first: Tensor, second: Tensor, filled: Tensor) -> Tensor:
    """Kendall's tau-a (P,) between two rewards (P, N) of the same N responses, of which `filled` (P, N) exist.

    (concordant - discordant pairs) / pairs; a pair that is tied in either ranking is neither. NaN with fewer than two.
    """
    agree = _order(first) * _order(second)
    pairs = (filled[:, :, None] & filled[:, None, :]).triu(diagonal=1)
    return (agree * pairs).sum(dim=(1, 2)) / pairs.sum(dim=(1, 2))


def _order(values: Tensor) -> Tensor:
    return (values[:, :, None] - values[:, None, :]).sign()


def by_group(values: Tensor, sizes: Sequence[int]) -> list[list[float]]:
    """Values (sum of sizes,) as one list a group."""
    return [part.tolist() for part in values.split(list(sizes))]  # type: ignore[no-untyped-call]
