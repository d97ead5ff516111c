"""The need `references`: reference answers to the problems whose responses are judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ...bundle import Array


@dataclass(frozen=True)
class References:
    """For tasks of judging, whose prompts show responses and whose responses are judgements.

    `known(private, indices)`: reference answers to the problems `indices`, called by the scorer alone;
    `referenced(prompt, reference)`: the prompt with a reference shown; `similarities(prompt, reference)`: a rough
    likeness, in [0, 1], of each response that the prompt shows and the reference; `ratings(response)`: what a judgement
    that parses gives each response that it judges, in [0, 1].
    """

    known: Callable[[Mapping[str, Array], Array], Sequence[str]]
    referenced: Callable[[str, str], str]
    similarities: Callable[[str, str], tuple[float, ...]]
    ratings: Callable[[str], tuple[float, ...]]
