"""Worked examples of feedback and refinement, made of demonstrations, for methods that criticise and correct."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from ...suite.protocols.policy_examples import Example
from ...suite.protocols.tokens import CUT_OFF
from .mcts import demonstrated

if TYPE_CHECKING:
    from ...suite.protocols.policy_model import Policy
    from ...suite.protocols.policy_view import PolicyView


class Marked(NamedTuple):
    """A response to the prompt of a demonstration, which of its steps are the demonstration's, and its own response."""

    prompt: str
    response: str
    right: list[bool]
    refined: str


class Critique(NamedTuple):
    """A response to the prompt of a demonstration, feedback on it, and the demonstration's own response."""

    prompt: str
    response: str
    feedback: str
    refined: str


def completed(policy: Policy, prompts: Sequence[str], begun: Sequence[str], temperature: float) -> list[str]:
    """One whole response for each that has begun, or what it came to where there was no room for more."""
    texts = list(begun)
    going = [at for at, text in enumerate(texts) if text.endswith(CUT_OFF)]
    while going:
        made = policy.step([prompts[at] for at in going], [texts[at] for at in going], 1, temperature)
        grown = [at for at, found in zip(going, made, strict=True) if found]
        for at, found in zip(going, made, strict=True):
            texts[at] = found[0] if found else texts[at]
        going = [at for at in grown if texts[at].endswith(CUT_OFF)]
    return texts


def marked_demonstrations(policy: Policy, view: PolicyView, temperature: float) -> list[Marked]:
    """Of every demonstration its own response, and, where one can be had, a flawed one that the policy completes.

    The flaw is a step of another demonstration in the place of one of its own, at a place drawn at random.
    """
    solutions = [view.steps(example.response) for example in view.demonstrations]
    wrong: list[tuple[int, str]] = []
    for at, tree in enumerate(demonstrated(solutions, view.generator)):
        flaws = [node.text for node in tree.walk() if node.verdict is False]
        if flaws:
            wrong.append((at, flaws[int(torch.randint(len(flaws), (), generator=view.generator))]))
    shown = view.demonstrations
    flawed = completed(policy, [shown[at].prompt for at, _ in wrong], [text for _, text in wrong], temperature)
    pairs = [*enumerate(example.response for example in shown)]
    pairs += [(at, text) for (at, _), text in zip(wrong, flawed, strict=True) if not text.endswith(CUT_OFF)]
    found = []
    for at, text in pairs:
        own = solutions[at]
        right = [place < len(own) and step == own[place] for place, step in enumerate(view.steps(text))]
        found.append(Marked(shown[at].prompt, text, right, shown[at].response))
    return found


def demonstrated_critiques(policy: Policy, view: PolicyView, temperature: float) -> list[Critique]:
    """Feedback on the responses of `marked_demonstrations`: it says of each step whether it is the demonstration's."""
    marked = marked_demonstrations(policy, view, temperature)
    return [Critique(one.prompt, one.response, view.feedback(one.right), one.refined) for one in marked]


def feedback_examples(view: PolicyView, critiques: Sequence[Critique]) -> list[Example]:
    """What a critic learns: the feedback on each response."""
    return [Example(view.critic(one.prompt, one.response), one.feedback) for one in critiques]


def refinement_examples(view: PolicyView, critiques: Sequence[Critique]) -> list[Example]:
    """What an actor learns: the demonstration's response where one with feedback is shown."""
    return [Example(view.again(one.prompt, one.response, one.feedback), one.refined) for one in critiques]
