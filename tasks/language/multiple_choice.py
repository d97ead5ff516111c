"""Multiple-choice questions by likelihood, as tasks for models of a hub: ARC, OpenBookQA, Social IQa, CommonsenseQA.

The sets on which self-rewarding models are compared (CREAM, arXiv:2410.12735), each in its published form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar, NamedTuple

import numpy as np

from ...suite.bundle import Array, Bundle, BundleFolder
from ...suite.data import Data
from ...suite.protocols.optimisation import Recipe, half_cosine
from ...suite.protocols.policy import Problems
from ...suite.protocols.policy_grants import Grants, Hints, JudgePrompt, Shots, Solutions, Verifier
from ...suite.protocols.policy_measures import Cloze, Measures
from ...suite.protocols.texts import pack, unpack
from ...suite.registry import register_task
from ...suite.seeds import rng
from .pretrained import PretrainedPolicy, split_by_seed
from .questions import (
    Question,
    cloze_of,
    distinct,
    options_of,
    packed_questions,
    read_adapters_json,
    read_hub_parquet,
    read_social_iqa,
)

DATA_SEED = 0


class QuestionSet(NamedTuple):
    """The two parts of a set: questions for the evaluation, and those that demonstrations and pool come from."""

    test: list[Question]
    train: list[Question]


def _arc_easy(data: Data) -> QuestionSet:
    return QuestionSet(*(read_adapters_json(data.file("arc-easy", f"{part}.json")) for part in ("test", "train")))


def _arc_challenge(data: Data) -> QuestionSet:
    return QuestionSet(*(read_hub_parquet(data.file("arc-challenge", f"{part}.parquet")) for part in ("test", "train")))


def _openbookqa(data: Data) -> QuestionSet:
    files = (data.file("openbookqa", f"{part}.parquet") for part in ("test", "train"))
    return QuestionSet(*(read_hub_parquet(file, "question_stem") for file in files))


def _commonsense_qa(data: Data) -> QuestionSet:
    files = (data.file("commonsense-qa", f"{part}.parquet") for part in ("validation", "train"))
    return QuestionSet(*map(read_hub_parquet, files))


def _social_iqa(data: Data) -> QuestionSet:
    def part(name: str) -> list[Question]:
        folder = "socialiqa-train-dev"
        lines, labels = (data.file("social-iqa", f"{folder}/{name}{end}") for end in (".jsonl", "-labels.lst"))
        return read_social_iqa(lines, labels)

    return QuestionSet(part("dev"), part("train"))


SETS: Mapping[str, Callable[[Data], QuestionSet]] = {
    "arc-easy": _arc_easy,
    "arc-challenge": _arc_challenge,
    "openbookqa": _openbookqa,
    "commonsense-qa": _commonsense_qa,
    "social-iqa": _social_iqa,
}


@register_task(
    "arc-easy",
    protocol="policy",
    version="1",
    metric="accuracy",
    title="ARC-Easy by likelihood, Qwen2.5-0.5B-Instruct with adapters, from 128 answered questions",
    budget={"currency": "tokens", "limit": 6000000, "wall_seconds": 18000.0, "memory_mb": 32768},
    data=("arc-easy", "qwen25-05b-instruct"),
    grants=("verifier", "answers", "judge", "shots", "solutions"),
    tags=("adapters", "gpu"),
    variants={
        "arc-challenge": {
            "title": "ARC-Challenge by likelihood, Qwen2.5-0.5B-Instruct with adapters, from 128 answered questions",
            "data": ("arc-challenge", "qwen25-05b-instruct"),
            "bundle": "arc-challenge",
            "set": {"questions_of": "arc-challenge"},
        },
        "openbookqa": {
            "title": "OpenBookQA by likelihood, Qwen2.5-0.5B-Instruct with adapters, from 128 answered questions",
            "data": ("openbookqa", "qwen25-05b-instruct"),
            "bundle": "openbookqa",
            "set": {"questions_of": "openbookqa"},
        },
        "social-iqa": {
            "title": "Social IQa by likelihood, Qwen2.5-0.5B-Instruct with adapters, from 128 answered questions",
            "data": ("social-iqa", "qwen25-05b-instruct"),
            "bundle": "social-iqa",
            "set": {"questions_of": "social-iqa"},
        },
        "commonsense-qa": {
            "title": "CommonsenseQA by likelihood, Qwen2.5-0.5B-Instruct with adapters, from 128 answered questions",
            "data": ("commonsense-qa", "qwen25-05b-instruct"),
            "bundle": "commonsense-qa",
            "set": {"questions_of": "commonsense-qa"},
        },
    },
)
class MultipleChoice(PretrainedPolicy):
    """A prompt is `Question: ... Answer:` without a chat template, its worked response the right option in words.

    All questions of the test part are answered by likelihood (of Social IQa and CommonsenseQA, whose test answers are
    not public, those of the development part): 2,376 of ARC-Easy, 1,172 of ARC-Challenge, 500 of OpenBookQA, 1,954 of
    Social IQa, 1,221 of CommonsenseQA, less what a set holds twice. Demonstrations and pool come from the training
    part, drawn by the seed. What a method generates counts as an answer when it is one line; the verifier compares it
    with the right option, letter for letter. All sets are on the web: what a model has seen of them is unknown.
    """

    questions_of: ClassVar[str] = "arc-easy"
    """A name of `SETS`."""
    model_name: ClassVar[str] = "qwen25-05b-instruct"
    frame: ClassVar[tuple[str, str]] = ("Question: ", "\nAnswer:")
    attention: ClassVar[str] = "sdpa"
    recipe: ClassVar[Recipe] = Recipe(
        optimizer="adamw", lr=2e-4, weight_decay=0.0, batch_size=16, schedule=half_cosine(0.1), max_norm=1.0
    )
    rounds: ClassVar[int] = 2
    max_new: ClassVar[int] = 32
    votes: ClassVar[int] = 0
    shown: ClassVar[int] = 128
    pool: ClassVar[int] = 512
    tested: ClassVar[int | None] = None
    """How many of the test part are asked; all of them without a number."""

    def read(self, data: Data) -> Bundle:
        """Questions and options of the test questions, then those of the training part."""
        every = SETS[self.questions_of](data)
        test = distinct(every.test)
        train = distinct(every.train, known=test)
        order = rng(DATA_SEED, self.questions_of, "order").permutation(len(test))
        chosen = [test[at] for at in order[: self.tested].tolist()]
        public, private = packed_questions([*chosen, *train], "choice")
        public["tested"] = np.array([len(chosen)])
        private["choice_texts"] = pack([one.options[one.right] for one in [*chosen, *train]])
        return Bundle(public, private, facts={"test_questions": len(chosen), "training_questions": len(train)})

    def problems(self, bundle: BundleFolder, seed: int) -> Problems:
        public = bundle.public()
        tested = int(public["tested"][0])
        draw = rng(seed, self.questions_of, "split")
        shown, pool = split_by_seed(np.arange(tested, len(public["choice_counts"])), draw, self.shown, self.pool)
        options, right = options_of(public, "choice"), bundle.private()["choice_right"]
        return Problems(shown, [f" {options[at][right[at]]}" for at in shown.tolist()], pool, np.arange(tested))

    def questions(self, public: Mapping[str, Array], indices: Array) -> list[str]:
        return unpack(public["choice_questions"][indices])

    def answer(self, response: str) -> str | None:
        text = response.strip()
        return text if text and "\n" not in text and not text.endswith("…") else None

    def grants(self) -> Grants:
        return Grants(
            verifier=Verifier(),
            answers=Hints(self.hinted),
            judge=JudgePrompt(self.judge, self.points, self.judgement, self.judgement_tokens),
            shots=Shots(self.preceded),
            solutions=Solutions(self.solutions),
        )

    def measures(self) -> Measures:
        return Measures(cloze=self.cloze)

    def cloze(self, public: Mapping[str, Array], indices: Array) -> Cloze:
        return cloze_of(public, "choice", indices)

    def hinted(self, prompt: str, answer: str) -> str:
        return prompt.replace("\nAnswer:", f" ({answer})\nAnswer:")

    def answers(self, private: Mapping[str, Array], indices: Array) -> list[str]:
        return [text.strip() for text in unpack(private["choice_texts"][indices])]

    def solutions(self, private: Mapping[str, Array], indices: Array) -> list[str]:
        return [f" {text}" for text in self.answers(private, indices)]
