"""The scorer of the protocol `policy`: it holds the true answers, verifies, and scores every round's responses."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from ..bundle import Array, BundleFolder
from ..errors import MethodError
from ..files import write_atomic
from ..metrics import PROBE
from ..protocols.interpreter import Interpreter
from ..protocols.policy import PolicyTask
from ..protocols.texts import pack, unpack
from ..record import Point
from ..sandbox import SandboxError
from ..seeds import rng
from ..selection import chosen_point
from ..spec import RunSpec
from ..wire import Message, Wire
from .gate import Gate
from .outcome import Outcome

METRIC = "accuracy"
_TRUTHS = frozenset({"verifier", "answers", "solutions"})
"""Needs by which a method is told what is right in the pool."""
SCORED = (
    "accuracy", "majority_accuracy", "pass_at_k", "response_parse_rate", "parse_rate", "lenient_accuracy",
    "swap_consistency", "correlation", "rank_correlation",
)  # fmt: skip
"""The values of a round that are metrics of the record, as are those of probes; the others stand in its curve."""


class PolicyScorer:
    """Scores the responses of every round, answers for the verifier, and watches what is trained on.

    What it needs to go on after a kill lies in one file: the points of the finished rounds, and the answers judged so
    far.
    """

    def __init__(self, task: PolicyTask, bundle: BundleFolder, spec: RunSpec, work: Path, permute: int | None) -> None:
        self._task, self._spec = task, spec
        self._file = work / "scorer.json"
        self._needs = _needs(spec)
        self._interpreter = Interpreter(task)
        self._problems = problems = task.problems(bundle, spec.seed)
        public, private = bundle.public(), bundle.private()
        self._prompts = task.prompts(public, problems.test)
        pool = task.prompts(public, problems.pool)
        shown = {*pool, *task.prompts(public, problems.demonstrations)}
        if len(set(pool)) != len(pool) or len(set(self._prompts)) != len(self._prompts):
            self._refuse("a prompt stands twice among the pool or the test problems")
        if twice := shown.intersection(self._prompts):
            self._refuse(f"the test problem {min(twice)!r} is also shown to methods")
        self._test = task.answers(private, problems.test)
        self._pool = task.answers(private, problems.pool)
        self._gate = Gate(task.answers(private, problems.probe), self._answers, problems.probe_samples, spec.seed)
        probed = task.prompts(public, problems.probe)
        if len({*probed, *shown, *self._prompts}) != len(probed) + len(shown) + len(self._prompts):
            self._refuse("a prompt of the judge's gate stands twice, or among the others")
        grants, measures = task.grants(), task.measures()
        self.packages = grants.code.packages if grants.code else ()
        self._verifier = grants.verifier if "verifier" in self._needs else None
        solutions = grants.solutions if "solutions" in self._needs else None
        self._solutions = solutions.worked(private, problems.pool) if solutions else []
        references = grants.references if "references" in self._needs else None
        self._references = references.known(private, problems.pool) if references else []
        if permute is not None:
            self._test = _shuffled(self._test, permute)
            # Where nothing tells a method of the pool's answers, they may not move it either.
            if not self._needs & _TRUTHS:
                self._pool = _shuffled(self._pool, permute)
        self._environment = environment = grants.environment
        parts = {"pool": problems.pool, "test": problems.test}
        # What the environment does is no label: it is the same where labels are permuted.
        self._worlds = (
            {part: environment.worlds(private, indices) for part, indices in parts.items()} if environment else {}
        )
        self._groups = measures.groups(self._prompts) if measures.groups else None
        self._probes = measures.forgetting.right(private) if measures.forgetting else {}
        self._lenient = measures.lenient
        state = json.loads(self._file.read_text()) if self._file.exists() else {"points": [], "judged": []}
        self._points: list[dict[str, Any]] = state["points"]
        self._judged = {(int(number), str(answer)) for number, answer in state["judged"]}
        self._asked = Counter(number for number, _ in self._judged)
        self._trained: dict[str, list[int]] = {}
        self._began = False

    def plan(self) -> dict[str, Array]:
        problems = self._problems
        return {
            "demonstrations": problems.demonstrations,
            "responses": pack(problems.responses),
            "pool": problems.pool,
            "test": problems.test,
            "answers": pack(self._pool if "answers" in self._needs else []),
            "solutions": pack(self._solutions),
            "references": pack(self._references),
            "probe": problems.probe,
            "probe_samples": np.array([problems.probe_samples]),
        }

    def handle(self, message: Message, wire: Wire) -> None:
        if message.kind == "round":
            self._round(message.fields, message.arrays)
        elif message.kind == "verify":
            wire.send("verdicts", {"right": self._verify(message.arrays)})
        elif message.kind == "act":
            wire.send("observed", self._react(str(message.fields["part"]), message.arrays))
        elif message.kind == "probe":
            wire.send("pairs", {"pairs": self._gate.pairs(unpack(message.arrays["responses"]), len(self._points))})
        elif message.kind == "gate":
            wire.send("opened", {"open": np.array([self._gate.judged(message.arrays["verdicts"])])})
        elif message.kind == "trained":
            self._watch(str(message.fields["part"]), message.arrays)
        elif message.kind == "checkpoint":
            state = {"points": self._points[: int(message.fields["step"])], "judged": sorted(self._judged)}
            write_atomic(self._file, json.dumps(state).encode())
            wire.send("saved")
        else:
            raise MethodError(f"the method's process sent an unknown message '{message.kind}'")

    def _verify(self, arrays: dict[str, Array]) -> Array:
        if self._verifier is None:
            raise MethodError(f"method '{self._spec.method.name}' asked a verifier that it has not declared in `needs`")
        numbers, responses = self._texts(arrays)
        right = np.zeros(len(numbers), np.uint8)
        for at, (number, answer) in enumerate(zip(numbers, self._answers(responses), strict=True)):
            if answer is None:
                continue
            if (number, answer) not in self._judged:
                if self._asked[number] >= self._verifier.verdicts:
                    raise MethodError(
                        f"method '{self._spec.method.name}' asked for more than {self._verifier.verdicts} answers to "
                        "one prompt: the verifier judges responses, it does not search for answers"
                    )
                self._judged.add((number, answer))
                self._asked[number] += 1
            right[at] = self._task.accepts(answer, self._pool[number])
        return right

    def _react(self, part: str, arrays: dict[str, Array]) -> dict[str, Array]:
        """What the environment writes after responses to problems of `part`, and which episodes are over."""
        worlds, numbers, responses = self._worlds.get(part, []), arrays["numbers"].tolist(), unpack(arrays["responses"])
        if len(numbers) != len(responses) or not all(0 <= number < len(worlds) for number in numbers):
            raise ValueError(f"the environment has no such problems of {part!r}")
        if self._environment is None:
            raise ValueError("the task has no environment")
        found = [self._environment.react(worlds[at], text) for at, text in zip(numbers, responses, strict=True)]
        return {"texts": pack([text for text, _ in found]), "over": np.array([over for _, over in found], np.uint8)}

    def _is_right(self, answer: str | None, truth: str) -> bool:
        return answer is not None and self._task.accepts(answer, truth)

    def _watch(self, part: str, arrays: dict[str, Array]) -> None:
        numbers, responses = self._texts(arrays)
        answers = self._answers(responses)
        right = [int(self._is_right(answer, self._pool[n])) for n, answer in zip(numbers, answers, strict=True)]
        if part not in ("examples", "chosen", "rejected"):
            raise ValueError(f"no part is called {part!r}")
        if part == "chosen" and not self._gate.allows and not self._needs & _TRUTHS:
            raise MethodError(
                f"method '{self._spec.method.name}' trained on preferences of a judge whose gate is shut: it asks "
                "`view.gate` in each round, and leaves them out where the answer is no"
            )
        self._trained.setdefault(part, []).extend(right)

    def _answers(self, responses: Sequence[str]) -> list[str | None]:
        try:
            return self._interpreter.answers(responses)
        except SandboxError as error:
            self._refuse(str(error))

    def _texts(self, arrays: dict[str, Array]) -> tuple[list[int], list[str]]:
        numbers = arrays["numbers"].tolist()
        responses = unpack(arrays["responses"])
        if len(numbers) != len(responses) or not all(0 <= number < len(self._pool) for number in numbers):
            raise ValueError("its numbers are none of the pool, or not one a response")
        return numbers, responses

    def _round(self, fields: dict[str, Any], arrays: dict[str, Array]) -> None:
        index, tokens = int(fields["index"]), int(fields["tokens"])
        if index > len(self._points) or (self._began and index != len(self._points)):
            raise MethodError(f"round {index} came out of order")
        del self._points[index:]
        self._began = True
        greedy, votes = self._read(arrays, "greedy", 1), self._read(arrays, "votes", self._task.votes)
        k = self._task.votes
        means = self._answers(greedy)
        right = np.array([self._is_right(answer, truth) for answer, truth in zip(means, self._test, strict=True)])
        answers = self._answers(votes)
        by_prompt = [answers[at : at + k] for at in range(0, len(answers), k)] if k else []
        majority = [majority_answer(group) for group in by_prompt]
        values = {**self._task.scores(means, self._test), "tokens": float(tokens)}
        values["response_parse_rate"] = float(np.mean([answer is not None for answer in means]))
        if k:
            values |= {
                "majority_accuracy": float(
                    np.mean([self._is_right(a, truth) for a, truth in zip(majority, self._test, strict=True)])
                ),
                "pass_at_k": float(
                    np.mean(
                        [
                            any(self._is_right(a, truth) for a in group)
                            for group, truth in zip(by_prompt, self._test, strict=True)
                        ]
                    )
                ),
                "parse_rate": float(np.mean([answer is not None for answer in answers])),
                "mean_length": float(np.mean([len(text) for text in votes])),
                "distinct": float(np.mean([len(set(votes[at : at + k])) / k for at in range(0, len(votes), k)])),
            }
        if self._lenient:
            found = [self._lenient(text) for text in greedy]
            values["lenient_accuracy"] = float(np.mean([a == b for a, b in zip(found, self._test, strict=True)]))
        for name, truths in self._probes.items():
            chosen = arrays.get(f"probe:{name}")
            if chosen is None or chosen.shape != truths.shape:
                raise MethodError(f"the method's process sent no answers to the {len(truths)} questions of '{name}'")
            values[f"{PROBE}{name.replace('-', '_')}"] = float(np.mean(chosen == truths))
        if "plain" in arrays:
            plain = self._read(arrays, "plain", 1)
            found = self._answers(plain)
            values["plain_accuracy"] = float(
                np.mean([self._is_right(a, b) for a, b in zip(found, self._test, strict=True)])
            )
            values["answer_tokens"] = float(fields["answer_tokens"]) / len(plain)
            if "answer_code_runs" in fields:
                values["answer_code_runs"] = float(fields["answer_code_runs"]) / len(plain)
        if "code_runs" in fields:
            values["code_runs"] = float(fields["code_runs"])
        for name in ("own", "feedback", "judgement"):
            made, parsed = fields.get(f"{name}_parsed", (0, 0))
            if made:
                values[f"{name}_parse_rate"] = float(parsed) / float(made)
        values |= self._gate.figures()
        trained, self._trained = self._trained, {}
        labels = trained.get("examples", []) + trained.get("chosen", [])
        values["labels"] = float(len(labels))
        if labels:
            values["label_precision"] = float(np.mean(labels))
        if trained.get("rejected"):
            values["rejected_precision"] = float(np.mean(trained["rejected"]))
        groups: dict[str, float] = {}
        if self._groups is not None:
            kinds = np.array(self._groups)
            groups = {str(kind): float(right[kinds == kind].mean()) for kind in dict.fromkeys(self._groups)}
        digest = hashlib.sha256(b"".join(np.ascontiguousarray(arrays[name]).tobytes() for name in ("greedy", "votes")))
        self._points.append({"values": values, "groups": groups, "sha256": digest.hexdigest()})

    def _read(self, arrays: dict[str, Array], name: str, each: int) -> list[str]:
        if name not in arrays or len(arrays[name]) != each * len(self._test):
            raise MethodError(f"the method's process sent no '{name}' responses to the {len(self._test)} test problems")
        return unpack(arrays[name])

    def outcome(self) -> Outcome:
        if not self._points:
            raise MethodError(f"method '{self._spec.method.name}' ended before its first policy was evaluated")
        values = [point["values"] for point in self._points]
        try:
            index = chosen_point(self._spec.selection, METRIC, [item | {"test": item[METRIC]} for item in values])
        except ValueError as error:
            self._refuse(str(error))
        chosen = self._points[index]
        curve = [Point(x=float(number), values=item) for number, item in enumerate(values)]
        diagnostics = {"selected_at": float(index), "verdicts": float(len(self._judged))}
        scored = [*SCORED, *sorted(name for name in chosen["values"] if name.startswith(PROBE))]
        diagnostics |= {name: value for name, value in chosen["values"].items() if name not in scored}
        metrics = {name: chosen["values"][name] for name in scored if name in chosen["values"]}
        groups = {METRIC: chosen["groups"]} if chosen["groups"] else {}
        return Outcome(metrics, groups, len(self._test), curve, chosen["sha256"], diagnostics)

    def _refuse(self, reason: str) -> NoReturn:
        raise MethodError(f"task '{self._spec.task.name}' does not fit: {reason}") from None


def majority_answer(answers: Sequence[str | None]) -> str | None:
    """The most frequent answer, the first of equally frequent ones; what did not parse has no vote."""
    counted = Counter(answer for answer in answers if answer is not None)
    return counted.most_common(1)[0][0] if counted else None


def _shuffled(answers: list[str], seed: int) -> list[str]:
    return [answers[at] for at in rng(seed, "permute").permutation(len(answers))]


def _needs(spec: RunSpec) -> set[str]:
    from .. import registry

    return set(registry.get("method", spec.method.name).options["needs"])
