"""The need `environment`: an environment that answers a policy's steps, and words for revising them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ...bundle import Array
from .critique import Critique


@dataclass(frozen=True)
class Environment:
    """A response is an episode, whatever the method: each step is followed by what the environment writes, which also
    ends it.

    `symbols`: those that it writes into responses, each one token, which are never generated, scored or trained on;
    `worlds(private, indices)`: what it has to know of the problems `indices`, and `react(world, response)`: what it
    writes after a response, of one symbol or more, and whether the episode is over, both called by the scorer alone;
    `react` is a pure function, for what came before is in the response. `revision`: the step by which a policy takes
    its last one back.
    """

    symbols: str
    worlds: Callable[[Mapping[str, Array], Array], Sequence[str]]
    react: Callable[[str, str], tuple[str, bool]]
    revision: str
    critique: Critique
