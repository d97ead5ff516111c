"""The calls of a policy: what they are charged, their random streams, and what a killed round has left of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from ..errors import MethodError
from ..meter import Meter
from ..seeds import derive
from ..spec import Budget
from .context import Context
from .rollouts import Charge, Kind, Rollouts

UNLIMITED = 1e18
"""The limit of a budget that nothing uses up."""


class Calls:
    """What all calls of one policy share. A random stream depends on the number of the round and on that of the call.

    Tokens and sequences are charged to `meter`, which is another one while a method answers the evaluation.
    """

    def __init__(self, meter: Meter, context: Context) -> None:
        self.meter, self.context = meter, context
        self.device = context.device
        self._seed = context.spec.seed
        self._round = self._number = 0
        self._answers_for: int | None = None
        self._rollouts = Rollouts(context.work / "rollouts")

    def begin(self, number: int) -> None:
        """Begin a round."""
        self._round, self._number = number, 0
        self._rollouts.begin(number)

    def begin_anew(self) -> None:
        """Count the calls of this round from the first one again."""
        self._number = 0

    def next_seed(self, purpose: str) -> int:
        """The seed of the next call."""
        self._number += 1
        if self._answers_for is not None:
            return derive(self._seed, "respond", purpose, self._answers_for, self._number)
        return derive(self._seed, "policy", purpose, self._round, self._number)

    def evaluation_seed(self, number: int) -> int:
        """The seed of the evaluation after round `number`."""
        return derive(self._seed, "evaluation", number)

    def made(
        self, kind: Kind, weights: Mapping[str, Tensor], about: Sequence[Any], work: Callable[[Charge], Any]
    ) -> Any:
        """`work(charge)`, or what it gave in this round before the run was killed; not of evaluations.

        `weights` and `about` are all that it depends on; tokens are charged as those of a `kind`.
        """
        if self._answers_for is not None or not self._round:
            return work(lambda sequences, tokens: self.meter.charge(forward=sequences, **{kind: tokens}))
        return self._rollouts.call(self.meter, kind, weights, about, work)

    @property
    def answering(self) -> bool:
        """Whether a method answers the evaluation, so that the policy stays as it is."""
        return self._answers_for is not None

    def refuse_while_answering(self) -> None:
        if self.answering:
            raise MethodError(f"method '{self.meter.owner}' may not change its policy while it is evaluated")

    @contextlib.contextmanager
    def answers_after(self, number: int) -> Iterator[Meter]:
        """Inside, a method answers the evaluation after round `number`: off the meter, but on one that is given."""
        meter, calls = self.meter, self._number
        counted = Meter(Budget(currency="tokens", limit=UNLIMITED), meter.owner, self.device)
        self.meter, self._number, self._answers_for = counted, 0, number
        try:
            with meter.paused():
                yield counted
        finally:
            self.meter, self._number, self._answers_for = meter, calls, None
