"""ARC-Easy by cloze likelihood (Clark et al., 2018, arXiv:1803.05457): the questions, and SmolLM2 that learns on them.

A question is answered by the option that is likeliest after `Question: ... Answer:`, summed over its tokens, which is
what lm-evaluation-harness calls `acc`; no letter is asked for, and no chat template is used, for small models know
options by their words, not by their letters.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np

from ...suite.bundle import Array, Bundle, BundleFolder
from ...suite.data import Data
from ...suite.errors import DataMissing
from ...suite.protocols.policy import Cloze, Problems
from ...suite.protocols.texts import pack, unpack
from ...suite.registry import register_task
from ...suite.seeds import rng
from .addition_smol import AdditionSmol
from .pretrained import PretrainedPolicy, split_by_seed

TEST, SHOWN, POOL, PROBED = 400, 128, 512, 200
DATA_SEED = 0
_ITEM = re.compile(
    r"Please choose the correct answer to the question: (.*)\n\nAnswer1: (.*)\n\nAnswer format: .*", re.S
)
_NEXT = re.compile(r" Answer[2-9]: ")
_RIGHT = re.compile(r"answer([1-9])")


class Question(NamedTuple):
    """A question, its options, and the number of the right one."""

    text: str
    options: tuple[str, ...]
    right: int


def read_questions(file: Path) -> list[Question]:
    """The questions of a file in the form of LLM-Adapters; raises `DataMissing` on another form."""
    found = []
    for number, item in enumerate(json.loads(file.read_text(encoding="utf-8"))):
        asked, right = _ITEM.fullmatch(item["instruction"]), _RIGHT.fullmatch(item["answer"])
        options = tuple(text.strip() for text in _NEXT.split(asked[2])) if asked else ()
        if asked is None or right is None or int(right[1]) > len(options):
            raise DataMissing(f"{file}, item {number}, is not a question with options: {item['instruction'][:80]!r}.")
        found.append(Question(" ".join(asked[1].split()), options, int(right[1]) - 1))
    return found


def cloze_prompt(question: str) -> str:
    return f"Question: {question}\nAnswer:"


def packed_questions(questions: list[Question], name: str) -> tuple[dict[str, Array], dict[str, Array]]:
    """Public arrays `<name>_questions`, `<name>_options` (end to end) and `<name>_counts`; private `<name>_right`."""
    public = {
        f"{name}_questions": pack([one.text for one in questions]),
        f"{name}_options": pack([option for one in questions for option in one.options]),
        f"{name}_counts": np.array([len(one.options) for one in questions], np.int64),
    }
    return public, {f"{name}_right": np.array([one.right for one in questions], np.int64)}


def options_of(public: Mapping[str, Array], name: str) -> list[list[str]]:
    """The options of all questions."""
    flat, counts = unpack(public[f"{name}_options"]), public[f"{name}_counts"]
    ends = np.cumsum(counts).tolist()
    return [flat[end - count : end] for end, count in zip(ends, counts.tolist(), strict=True)]


def cloze_of(public: Mapping[str, Array], name: str, indices: Array) -> Cloze:
    options, texts = options_of(public, name), unpack(public[f"{name}_questions"][indices])
    return Cloze([cloze_prompt(text) for text in texts], [[f" {one}" for one in options[at]] for at in indices])


@register_task(
    "arc-easy-smol",
    protocol="policy",
    version="1",
    metric="accuracy",
    title="ARC-Easy by likelihood, SmolLM2-135M with adapters, from 128 answered questions",
    budget={"currency": "tokens", "limit": 1000000, "wall_seconds": 7200.0, "memory_mb": 8192},
    data=("smollm2", "arc-easy"),
    grants=("verifier", "answers", "solutions"),
    tags=("adapters",),
)
class ArcEasySmol(PretrainedPolicy):
    """A prompt is `Question: ... Answer:`, its worked response the right option in words, after a blank.

    400 questions of the test part are answered by likelihood; demonstrations (128) and pool (512) come from the
    training part, drawn by the seed. What a method generates counts as an answer when it is one line; the verifier
    compares it with the right option, letter for letter.
    """

    frame: ClassVar[tuple[str, str]] = ("Question: ", "\nAnswer:")
    gate: ClassVar[tuple[float, float]] = (1.9, 2.2)
    rounds: ClassVar[int] = 2
    max_new: ClassVar[int] = 24
    votes: ClassVar[int] = 0
    verdicts: ClassVar[int] = 64

    def read(self, data: Data) -> Bundle:
        """Questions and options of the 400 test questions, then those of the training part."""
        draw = rng(DATA_SEED, "arc-easy-smol", "order")
        test = distinct(read_questions(data.file("arc-easy", "test.json")))
        known = {one.text for one in test}
        train = [one for one in distinct(read_questions(data.file("arc-easy", "train.json"))) if one.text not in known]
        chosen = [test[at] for at in draw.permutation(len(test))[:TEST].tolist()]
        public, private = packed_questions([*chosen, *train], "arc")
        private["arc_texts"] = pack([one.options[one.right] for one in [*chosen, *train]])
        return Bundle(public=public, private=private, facts={"training_questions": len(train)})

    def problems(self, bundle: BundleFolder, seed: int) -> Problems:
        others = np.arange(TEST, len(bundle.public()["arc_counts"]))
        shown, pool = split_by_seed(others, rng(seed, "arc-easy-smol", "split"), SHOWN, POOL)
        options, right = options_of(bundle.public(), "arc"), bundle.private()["arc_right"]
        return Problems(shown, [f" {options[at][right[at]]}" for at in shown.tolist()], pool, np.arange(TEST))

    def questions(self, public: Mapping[str, Array], indices: Array) -> list[str]:
        return unpack(public["arc_questions"][indices])

    def cloze(self, public: Mapping[str, Array], indices: Array) -> Cloze:
        return cloze_of(public, "arc", indices)

    def answer(self, response: str) -> str | None:
        text = response.strip()
        return text if text and "\n" not in text and not text.endswith("…") else None

    def hinted(self, prompt: str, answer: str) -> str:
        return prompt.replace("\nAnswer:", f" ({answer})\nAnswer:")

    def answers(self, private: Mapping[str, Array], indices: Array) -> list[str]:
        return [text.strip() for text in unpack(private["arc_texts"][indices])]

    def solutions(self, private: Mapping[str, Array], indices: Array) -> list[str]:
        return [f" {text}" for text in self.answers(private, indices)]


def distinct(questions: list[Question]) -> list[Question]:
    """The questions whose text has not come before."""
    found: dict[str, Question] = {}
    for one in questions:
        found.setdefault(one.text, one)
    return list(found.values())


@register_task(
    "addition-smol-forgetting",
    protocol="policy",
    version="1",
    metric="accuracy",
    title="Two-digit additions by SmolLM2-135M, from 64 worked ones, with ARC-Easy asked after every round",
    budget={"currency": "tokens", "limit": 600000, "wall_seconds": 3600.0, "memory_mb": 6144},
    data=("smollm2", "arc-easy"),
    grants=("verifier", "answers", "solutions"),
    tags=("adapters",),
)
class AdditionSmolForgetting(AdditionSmol):
    """`addition-smol`, and after every round, off the meter, the accuracy on 200 questions of ARC-Easy by likelihood:
    what of its knowledge a policy loses while it learns to add (`probe_arc_easy` in the record's curve)."""

    def read(self, data: Data) -> Bundle:
        bundle = super().read(data)
        questions = distinct(read_questions(data.file("arc-easy", "test.json")))
        order = rng(DATA_SEED, "arc-easy-smol", "order").permutation(len(questions))[:PROBED]
        public, private = packed_questions([questions[at] for at in order.tolist()], "arc")
        return Bundle(public={**bundle.public, **public}, private={**bundle.private, **private})

    def probes(self, public: Mapping[str, Array]) -> Mapping[str, Cloze]:
        return {"arc-easy": cloze_of(public, "arc", np.arange(len(public["arc_counts"])))}

    def probe_answers(self, private: Mapping[str, Array]) -> Mapping[str, Array]:
        return {"arc-easy": private["arc_right"]}
