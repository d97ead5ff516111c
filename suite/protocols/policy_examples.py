"""What a policy is trained on: examples, pairs, responses to two prompts, and paid samples."""

from __future__ import annotations

from typing import NamedTuple


class Example(NamedTuple):
    """A prompt and a response to train on; the stop symbol is added by the harness."""

    prompt: str
    response: str


class Pair(NamedTuple):
    """Two responses to a prompt, of which `chosen` is held to be the better one."""

    prompt: str
    chosen: str
    rejected: str


class Referenced(NamedTuple):
    """A response to two prompts, of which `referenced` also shows a reference; the one learns from the other."""

    prompt: str
    referenced: str
    response: str


class Rollout(NamedTuple):
    """A sampled response and what it is paid; `kl` weighs its log pi / pi_ref, which is taken off the reward.

    The baseline of a reward is the mean of its `group`. A response that was cut off is welcome.
    """

    prompt: str
    response: str
    reward: float
    kl: float = 0.0
    group: int = 0
