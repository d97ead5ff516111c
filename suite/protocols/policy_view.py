"""What a policy method is shown beside its policy, and the questions it may ask of the scorer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch

from .. import registry
from ..bundle import Array
from ..errors import MethodError
from ..meter import Meter
from ..sandbox import Ran
from ..seeds import derive
from .context import Context
from .interpreter import Interpreter
from .policy import PolicyTask
from .policy_examples import Example
from .texts import pack, unpack

if TYPE_CHECKING:
    from .policy_model import Policy

Judge = Callable[[Sequence[str], Sequence[str], Sequence[str]], Sequence[float]]
"""Prompts (N,), first and second responses (N,) -> numbers (N,), above 0 where the first one is the better one."""
_Object = TypeVar("_Object")


class PolicyView:
    """All that a method is shown beside its policy.

    `prompts`: the pool, without answers; `demonstrations`: prompts with worked responses. `answers`, `solutions` and
    `references` of the pool, one a prompt, are empty unless the method has declared the need of that name. `generator`
    is the method's own random stream on the CPU; `rounds` says how many there are, `progress` which share of the budget
    is used, `verdicts` how many different answers to one prompt the verifier judges in all.

    What stands in an object of the task (`policy_grants`) raises `MethodError` where the task does not grant it.
    """

    def __init__(
        self,
        task: PolicyTask,
        public: Mapping[str, Array],
        plan: Mapping[str, Array],
        meter: Meter,
        context: Context,
    ) -> None:
        self._task, self._meter, self._context = task, meter, context
        self._interpreter = Interpreter(task)
        self._grants = grants = task.grants()
        self.rounds, self.verdicts = task.rounds, grants.verifier.verdicts if grants.verifier else 0
        self.prompts = task.prompts(public, plan["pool"])
        self._probe = task.prompts(public, plan["probe"])
        self._probe_samples = int(plan["probe_samples"][0])
        self.probed = False
        self.feedback_read = self.judgements_read = (0, 0)
        shown = task.prompts(public, plan["demonstrations"])
        self.demonstrations = [Example(*pair) for pair in zip(shown, unpack(plan["responses"]), strict=True)]
        self.answers = unpack(plan["answers"])
        self.solutions = unpack(plan["solutions"])
        self.references = unpack(plan["references"])
        self.generator = torch.Generator().manual_seed(derive(context.spec.seed, "method", "generator"))

    @property
    def progress(self) -> float:
        """Used share of the budget, in [0, 1]."""
        return self._meter.progress

    def parse(self, response: str) -> str | None:
        """The final answer in a response, None where it has none of the task's strict form."""
        return self._interpreter.answers([response])[0]

    def program(self, response: str) -> str | None:
        """The code of a response, whole or cut off at the end of code; None where there is none of the task's form."""
        return self._of(self._grants.code, "code").program(response)

    def observed(self, response: str, output: str) -> str | None:
        """A response that was cut off at the end of code with the output behind it; None where it was not."""
        return self._of(self._grants.code, "code").observed(response, output)

    def run_code(self, snippets: Sequence[str]) -> list[Ran]:
        """How snippets of Python end in the sandbox, and what they print.

        For methods that have declared the need `code`. Snippets are counted, and know nothing of each other. Raises
        `SandboxError` where this system cannot hold them.
        """
        if "code" not in registry.get("method", self._context.spec.method.name).options["needs"]:
            raise MethodError(f"method '{self._meter.owner}' ran code without declaring `code` in `needs`")
        return self._interpreter.run(snippets)

    def steps(self, response: str) -> list[str]:
        """The steps of a whole response, which joined are the response."""
        return self._task.steps(response)

    def again(self, prompt: str, response: str, feedback: str = "") -> str:
        """The prompt of another attempt at `prompt` that shows the one before, and feedback on it."""
        return self._of(self._grants.attempts, "attempts").again(prompt, response, feedback)

    def actions(self, steps: Sequence[str]) -> list[str]:
        """Steps without what an environment wrote after them."""
        symbols = self._of(self._grants.environment, "environment").symbols
        return [step.rstrip(symbols) for step in steps]

    @property
    def revision(self) -> str:
        """The step by which a policy takes its last one back, for methods that need an `environment`."""
        return self._of(self._grants.environment, "environment").revision

    def critic(self, prompt: str, response: str) -> str:
        """The prompt that asks for feedback on a response."""
        return self._of(self._grants.critique, "attempts").critic(prompt, response)

    def feedback(self, right: Sequence[bool]) -> str:
        """Feedback that says of each step of a response whether it is right."""
        return self._of(self._grants.critique, "attempts").feedback(right)

    def approves(self, feedback: str) -> bool | None:
        """Whether feedback finds nothing wrong; None where it cannot be read."""
        found = self._of(self._grants.critique, "attempts").approves(feedback)
        self.feedback_read = (self.feedback_read[0] + 1, self.feedback_read[1] + (found is not None))
        return found

    def preceded(self, prompt: str, shots: Sequence[Example]) -> str:
        """`prompt` with worked problems before it, as the task puts them."""
        return self._of(self._grants.shots, "shots").preceded(prompt, shots)

    def hinted(self, prompt: str, answer: str) -> str:
        """`prompt` with `answer` given away, for rationales."""
        return self._of(self._grants.answers, "answers").hinted(prompt, answer)

    def judge(self, prompt: str, response: str) -> str:
        """The prompt that asks for points for a response."""
        return self._of(self._grants.judge, "judge").judge(prompt, response)

    def points(self, judgements: Sequence[str]) -> list[float | None]:
        """The points that each judgement gives, None for one that does not parse; the record counts both."""
        judge = self._of(self._grants.judge, "judge")
        found = [judge.points(text) for text in judgements]
        made, parsed = self.judgements_read
        self.judgements_read = (made + len(found), parsed + len(found) - found.count(None))
        return found

    def judgement(self, right: Sequence[bool]) -> str:
        """A worked judgement of a response of which each step is known to be right or wrong."""
        return self._of(self._grants.judge, "judge").judgement(right)

    @property
    def judgement_tokens(self) -> int:
        """After how many tokens a judgement is cut off."""
        return self._of(self._grants.judge, "judge").max_new

    def ratings(self, response: str) -> tuple[float, ...]:
        """What a judgement that parses gives each response that it judges, in [0, 1]."""
        return self._of(self._grants.references, "references").ratings(response)

    def referenced(self, prompt: str, reference: str) -> str:
        """`prompt` with a reference answer to its problem shown."""
        return self._of(self._grants.references, "references").referenced(prompt, reference)

    def similarities(self, prompt: str, reference: str) -> tuple[float, ...]:
        """A rough likeness, in [0, 1], of each response that `prompt` shows and the reference."""
        return self._of(self._grants.references, "references").similarities(prompt, reference)

    def verify(self, numbers: Sequence[int], responses: Sequence[str]) -> list[bool]:
        """Whether the answer in each response to pool prompt `numbers[i]` is right; one that does not parse is not.

        For methods that have declared the need `verifier`. The scorer answers, counts what it was asked, and refuses
        more than `verdicts` different answers a prompt.
        """
        if len(numbers) != len(responses):
            raise ValueError(f"{len(numbers)} numbers, but {len(responses)} responses")
        if not len(numbers):
            return []
        arrays = {"numbers": np.asarray(numbers, np.int64), "responses": pack(responses)}
        reply = self._ask("verify", arrays, "verdicts")
        return [bool(right) for right in reply["right"].tolist()]

    def gate(self, policy: Policy, judge: Judge) -> bool:
        """Whether preferences by `judge` may be used in this round; True on tasks whose judges have no gate.

        `judge(prompts, first, second)` gives a number a prompt: above 0 where the first response is held to be the
        better one, below 0 where the second one is. It is asked, in both orders, about responses of `policy` to
        labelled problems of the harness, of which one is right and one is wrong, and must beat a heuristic of length
        and position (`suite/run/gate.py`). May be asked once a round. What it takes is counted, the labels once a run.
        """
        if not self._probe:
            return True
        if not self.probed:
            self._meter.counts.labels += len(self._probe)
            self.probed = True
        made = policy.generate(self._probe, self._probe_samples, self._task.vote_temperature)
        texts = [text for group in made for text in group]
        pairs = self._ask("probe", {"responses": pack(texts)}, "pairs")["pairs"]
        prompts = [self._probe[at // self._probe_samples] for at in pairs[:, 0].tolist()]
        first, second = ([texts[at] for at in side] for side in pairs.T.tolist())
        verdicts = [judge(prompts, first, second), judge(prompts, second, first)] if prompts else [[], []]
        reply = self._ask("gate", {"verdicts": np.sign(np.asarray(verdicts, np.float64))}, "opened")
        return bool(reply["open"].all())

    def _of(self, granted: _Object | None, need: str) -> _Object:
        if granted is None:
            task = self._context.spec.task.name
            raise MethodError(
                f"method '{self._meter.owner}' uses what task '{task}' does not grant: declare `{need}` in its `needs`"
            )
        return granted

    def _ask(self, kind: str, arrays: Mapping[str, Array], answer: str) -> Mapping[str, Array]:
        """The scorer's answer to a question, off the meter."""
        with self._meter.paused():
            self._context.wire.send(kind, dict(arrays))
            reply = self._context.wire.receive()
        if reply is None or reply.kind != answer:
            raise MethodError("the scorer has gone")
        return reply.arrays
