"""Answers in texts of another language than the question's: MLQA, learned from SQuAD and a few parallel questions."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...suite.bundle import Array, Bundle, BundleFolder
from ...suite.data import Data
from ...suite.protocols.adaptation import Recipe, Split
from ...suite.protocols.optimisation import linear
from ...suite.registry import register_task
from ...suite.scoring import Scores
from ...suite.seeds import rng
from .answers import score_answer
from .encoders import TextEncoder, Tokens, padded
from .rows import row_error
from .squad import Question, read_squad
from .token_states import TokenStates, TokenStatesTask, checked, offsets_of

HIDDEN = -1e4
"""The logit of a place where no answer can begin or end: its probability is 0, and its gradient a number."""
DECODINGS = ("greedy", "exact_extract")
_SQUAD, _PARALLEL, _DEV, _TEST = range(4)


@register_task(
    "mlqa-gxlt",
    protocol="adaptation",
    version="1",
    metric="f1_exact_extract",
    title="MLQA, question and text of different languages, from SQuAD and XQuAD",
    budget={"currency": "passes", "limit": 1800000, "wall_seconds": 172800.0, "memory_mb": 65536},
    data=("squad", "xquad", "mlqa", "bert-base-multilingual-cased"),
    grants=("norm-layers",),
    tags=("question-answering", "cross-lingual", "gpu"),
    outputs="spans",
    bundle="mlqa-gxlt",
    variants={
        "mlqa-gxlt-zero-shot": {
            "title": "MLQA, question and text of different languages, from SQuAD alone",
            "budget": {"currency": "passes", "limit": 1000000, "wall_seconds": 172800.0, "memory_mb": 65536},
            "bundle": "mlqa-gxlt",
            "set": {"target_languages": 0},
        },
    },
)
class MlqaGeneralised(TokenStatesTask):
    """Multilingual BERT that finds the answer in a text: 49 pairs of languages, each for questions and for texts.

    Generalised cross-lingual transfer (Lewis et al. 2020, arXiv:1910.07475) in the setting of Carrino et al. 2023
    (arXiv:2309.17134). Labelled are the English questions of SQuAD 1.1 and those of XQuAD, which are parallel: for each
    question `target_languages` languages beside English are drawn by the seed, and every pair of these is an example,
    as in the sampling of the public code. The paper trains on SQuAD first and on XQuAD after; here both are labelled
    examples of one run, and a method's first training sees both. `mlqa-gxlt-zero-shot` has SQuAD alone. `validation` is
    MLQA's development part, `test` its test part, each in all pairs. There are no unlabelled examples.

    An example is a window: [begin] question [end] piece of the text [end], of at most `length` tokens, one every
    `stride` tokens of a longer text; questions are cut at 64 tokens. Where a window lacks the answer, it begins and
    ends at [begin]. Only there and in the text can an answer stand; a logit elsewhere is -10,000, also at the
    question's tokens, which the papers' code leaves as they are.

    Both decodings are columns, for spans of at most `longest` tokens of the text. *greedy*: the most probable first
    token, then the most probable last one that it allows. *exact extract*: the span with the largest product of both
    probabilities. The names are those of Castel et al. 2021 (arXiv:2108.05857), who compare the two for readers that
    generate; here they are carried over to readers that point. Of a text's windows the one whose span has the largest
    sum of logits counts, as in BERT. EM and F1 are MLQA's, in the language of the text; they are means over pairs of
    languages, which are groups (`question-text`), and `f1_same_language` is the mean over pairs of one language.

    The recipe is that of the public code: AdamW at 3e-5 that falls along a line, no decay, 24 windows a step. The
    budget holds two epochs of a first training and two of students.

    Public arrays: `tokens` (T,), `offsets` int64 (N + 1,) of windows. Private arrays: `targets` int16 (N, 2), `part`
    int8 (N,), `question` int32 (N,), of each window; `begins` and `ends` int32 (T,), of each token, where in its text
    it stands, -1 where it is of no text; `context`, `pair`, `parallel` int32 (Q,), of each question its text, its pair
    of languages and which question of XQuAD it is, or -1; texts and answers as characters end to end, uint32.
    """

    languages: ClassVar[tuple[str, ...]] = ("en", "es", "de", "ar", "hi", "vi", "zh")
    target_languages: ClassVar[int] = 5
    """Beside English, drawn for each parallel question; 0 leaves the parallel questions out."""
    n_classes: ClassVar[int] = 2
    length: ClassVar[int] = 384
    stride: ClassVar[int] = 128
    question_length: ClassVar[int] = 64
    longest: ClassVar[int] = 30
    recipe: ClassVar[Recipe] = Recipe(
        optimizer="adamw", lr=3e-5, weight_decay=0.0, batch_size=24, ema=0.0, points=3, schedule=linear, max_norm=1.0
    )

    def build(self, data: Data) -> Bundle:
        windows = Windows(Tokens(data, self.encoder), self.length, self.stride, self.question_length)
        english = self.languages.index("en")
        self.tell("reading questions")
        trained = read_squad(data.file("squad", "train-v1.1.json"))
        windows.add(trained, _SQUAD, english * len(self.languages) + english)
        parallel = [
            {one.id: one for one in read_squad(data.file("xquad", f"xquad.{of}.json"))} for of in self.languages
        ]
        for asked, text, pair in self._pairs():
            # The question of one language on the text, and with the answers, of another.
            windows.add(
                [parallel[text][id]._replace(question=one.question) for id, one in parallel[asked].items()
                 if id in parallel[text]],
                _PARALLEL, pair, {id: number for number, id in enumerate(parallel[english])},
            )  # fmt: skip
        learned = {one.id for one in (*trained, *(one for of in parallel for one in of.values()))}
        for part, folder in ((_DEV, "dev"), (_TEST, "test")):
            where = data.file("mlqa", f"MLQA_V1/{folder}")
            for asked, text, pair in self._pairs():
                self.tell(f"tokenising {folder}, question {self.languages[asked]}, text {self.languages[text]}")
                name = f"{folder}-context-{self.languages[text]}-question-{self.languages[asked]}.json"
                windows.add(unlearned(where / name, learned), part, pair)
        seen = {one.context for one in trained} | {one.context for of in parallel for one in of.values()}
        bundle = windows.bundle()
        return Bundle(
            bundle.public,
            bundle.private,
            facts={
                "languages": list(self.languages),
                "test_contexts_in_train": len(seen & windows.contexts_of(_TEST)),
                **bundle.facts,
            },
        )

    def _pairs(self) -> list[tuple[int, int, int]]:
        """(language of the question, that of the text, number) of each pair."""
        n = len(self.languages)
        return [(asked, text, asked * n + text) for asked in range(n) for text in range(n)]

    def split(self, bundle: BundleFolder, seed: int) -> Split:
        """The published parts; the languages of the parallel questions are drawn by the seed."""
        private = bundle.private()
        labeled = self._labelled(private, seed)
        where = [np.flatnonzero(private["part"] == number) for number in (_DEV, _TEST)]
        return Split(
            labeled=labeled,
            labels=np.asarray(private["targets"][labeled]),
            unlabeled=np.empty(0, np.int64),
            validation=where[0],
            test=where[1],
        )

    def _labelled(self, private: Mapping[str, Array], seed: int) -> Array:
        n, question = len(self.languages), private["question"]
        parallel, pair = private["parallel"][question], private["pair"][question]
        draw, others = rng(seed, "mlqa-gxlt", "languages"), np.arange(n) != self.languages.index("en")
        chosen = np.zeros((max(int(parallel.max(initial=-1)) + 1, 1), n), bool)
        if self.target_languages:
            order = draw.permuted(np.tile(np.flatnonzero(others), (len(chosen), 1)), axis=1)
            np.put_along_axis(chosen, order[:, : self.target_languages], True, axis=1)
            chosen[:, ~others] = True
        drawn = chosen[parallel, pair // n] & chosen[parallel, pair % n]
        part = private["part"]
        return np.flatnonzero((part == _SQUAD) | ((part == _PARALLEL) & drawn))

    def inputs(self, public: Mapping[str, Array], indices: Array) -> Tensor:
        """Token ids int64 (B, length)."""
        return padded(public["tokens"], public["offsets"], indices, self.length, self.marks.pad)

    def labels(self, private: Mapping[str, Array], indices: Array) -> Array:
        """int32 (N, 2): the window and its question. What `score` reads of them stays with the scorer."""
        self._private = private
        return np.stack([indices, private["question"][indices]], axis=1).astype(np.int32)

    def model(self) -> nn.Module:
        return SpanReader(self.pretrained_encoder())

    def loss(self, outputs: Any, targets: Tensor) -> Tensor:
        """The mean cross-entropy of first and last token: (B, 2, T), (B, 2)."""
        return F.cross_entropy(outputs.flatten(0, 1), targets.flatten().long())

    def sealed(self, outputs: Any, n: int, owner: str) -> Tensor:
        """The span of each decoding and its score (n, 6): see `decode`."""
        return decode(checked(outputs, (n, 2, self.length), owner, "windows").float(), self.longest)

    def score(self, logits: Array, labels: Array) -> Scores:
        """EM and F1 of both decodings, over pairs of languages, from spans (N, 6)."""
        texts, n = _Texts(self._private), len(self.languages)
        names = [f"{a}-{b}" for a in self.languages for b in self.languages]
        questions = np.unique(labels[:, 1])
        pairs = self._private["pair"][questions]
        metrics: dict[str, float] = {}
        groups: dict[str, dict[str, float]] = {}
        for at, decoding in enumerate(DECODINGS):
            best = _best_windows(logits[:, 3 * at + 2], labels[:, 1])
            spans = logits[best, 3 * at : 3 * at + 2].astype(np.int64).tolist()
            rows = zip(labels[best].tolist(), spans, pairs.tolist(), strict=True)
            found = np.array(
                [
                    score_answer(texts.span(window, *span), texts.answers(question), self.languages[pair % n])
                    for (window, question), span, pair in rows
                ]
            )
            for name, values in zip((f"em_{decoding}", f"f1_{decoding}"), found.T, strict=True):
                by_pair = {int(pair): float(values[pairs == pair].mean()) for pair in np.unique(pairs)}
                groups[name] = {names[pair]: value for pair, value in by_pair.items()}
                metrics[name] = float(np.mean(list(by_pair.values())))
        same = [value for name, value in groups["f1_exact_extract"].items() if len(set(name.split("-"))) == 1]
        return Scores(metrics | {"f1_same_language": float(np.mean(same)) if same else 0.0}, len(questions), groups)


class SpanReader(TokenStates):
    """Ids (B, T) -> logits (B, 2, T) of an answer's first and last token.

    An answer stands in the second of the two texts of ids, or at the first token where there is none; all else is
    `HIDDEN`.
    """

    def __init__(self, encoder: TextEncoder) -> None:
        super().__init__(encoder, 2)

    def forward(self, ids: Tensor) -> Tensor:
        ends = ids == self.encoder.marks.end
        places = (ends.cumsum(dim=1) == 1) & ~ends & (ids != self.encoder.marks.pad)
        places[:, 0] = True
        return self.at(ids, places, HIDDEN).transpose(1, 2)


def unlearned(path: Path, learned: Collection[str]) -> list[Question]:
    """The questions of a file to be answered; raises `DataMissing` where the id of one is in `learned`, of others."""
    found = read_squad(path, learned=False)
    for number, one in enumerate(found, 1):
        if one.id in learned:
            raise row_error(path, number, f"its id '{one.id}' is that of a question of SQuAD or XQuAD")
    return found


def decode(logits: Tensor, longest: int) -> Tensor:
    """Logits (N, 2, T) -> (N, 6): first place, last place and sum of logits of the greedy span, then of the best one.

    Spans have at most `longest` places, none of them the first, nor one that is `HIDDEN`. Of equal ones the first, then
    the shortest is taken.
    """
    n, _, size = logits.shape
    first, last = (part.clone() for part in logits.unbind(1))
    first[:, 0] = last[:, 0] = 2 * HIDDEN
    place = torch.arange(size, device=logits.device)
    rows = torch.arange(n, device=logits.device)
    begin = first.argmax(dim=1)
    allowed = (place >= begin[:, None]) & (place < begin[:, None] + longest)
    end = last.masked_fill(~allowed, -torch.inf).argmax(dim=1)
    greedy = torch.stack([begin, end, first[rows, begin] + last[rows, end]], dim=1)
    best = torch.full((n,), -torch.inf, device=logits.device, dtype=logits.dtype)
    begin, end = torch.zeros_like(begin), torch.zeros_like(end)
    for more in range(min(longest, size)):
        sums, at = (first[:, : size - more] + last[:, more:]).max(dim=1)
        better = (sums > best) | ((sums == best) & (at < begin))
        best = torch.where(better, sums, best)
        begin, end = torch.where(better, at, begin), torch.where(better, at + more, end)
    return torch.cat([greedy, torch.stack([begin, end, best], dim=1)], dim=1).float()


def _best_windows(scores: Array, questions: Array) -> Array:
    """Of each question, in the order of their numbers, the window with the largest score, the first of equal ones."""
    order = np.lexsort((np.arange(len(scores)), -scores, questions))
    ordered = questions[order]
    best: Array = order[np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))]
    return best


@dataclass
class _Texts:
    """The texts and answers of a bundle."""

    private: Mapping[str, Array]

    def span(self, window: int, first: int, last: int) -> str:
        """The characters from one token of a window to another; none where one is of no text."""
        private = self.private
        start, stop = private["token_offsets"][window : window + 2].tolist()
        if start + max(first, last) >= stop:
            return ""
        begin, end = int(private["begins"][start + first]), int(private["ends"][start + last])
        context = self._piece("context", int(private["context"][private["question"][window]]))
        return context[begin:end] if begin >= 0 else ""

    def answers(self, question: int) -> list[str]:
        first, stop = self.private["question_answers"][question : question + 2].tolist()
        return [self._piece("answer", number) for number in range(first, stop)]

    def _piece(self, of: str, number: int) -> str:
        begin, end = self.private[f"{of}_offsets"][number : number + 2].tolist()
        return np.ascontiguousarray(self.private[f"{of}_characters"][begin:end]).tobytes().decode("utf-32-le")


class Windows:
    """Collects windows of questions and texts, and makes the arrays of a bundle of them."""

    def __init__(self, tokens: Tokens, length: int, stride: int, question_length: int) -> None:
        self._tokens, self._length, self._stride = tokens, length, stride
        self._question_length = question_length
        self._contexts: dict[str, int] = {}
        self._located: list[tuple[Array, Array]] = []
        self._of_token: list[Array] = []
        """(3, t) a window: ids, and where in its text each token begins and ends."""
        self._of_window: list[tuple[int, int, int, int]] = []
        """Question, part, and the first and last token of the answer."""
        self._of_question: list[tuple[int, int, int]] = []
        """Text, pair of languages, number among the parallel questions."""
        self._answers: list[list[str]] = []

    def add(
        self, questions: Sequence[Question], part: int, pair: int, parallel: Mapping[str, int] | None = None
    ) -> None:
        """Add all windows of `questions`; `parallel` numbers questions by their ids."""
        self._locate({one.context for one in questions})
        asked = self._tokens.plain([one.question for one in questions])
        for one, ids in zip(questions, asked, strict=True):
            context, number = self._contexts[one.context], len(self._of_question)
            self._of_question.append((context, pair, -1 if parallel is None else parallel.get(one.id, -1)))
            self._answers.append([text for text, _ in one.answers])
            text, start = one.answers[0]
            self._add_windows(
                number, part, ids[: self._question_length], self._located[context], start, start + len(text)
            )

    def _locate(self, contexts: Iterable[str]) -> None:
        new = sorted(context for context in contexts if context not in self._contexts)
        for context, (ids, where) in zip(new, self._tokens.located(new), strict=True):
            self._contexts[context] = len(self._located)
            self._located.append((np.array(ids, np.int32), np.array(where, np.int32).reshape(-1, 2)))

    def _add_windows(
        self, number: int, part: int, question: Sequence[int], located: tuple[Array, Array], begin: int, end: int
    ) -> None:
        marks, (ids, where) = self._tokens.marks, located
        before = [marks.begin, *question, marks.end]
        room = self._length - len(before) - 1
        inside = np.flatnonzero((where[:, 1] > begin) & (where[:, 0] < end))
        for start in range(0, max(1, len(ids)), max(1, min(self._stride, room))):
            own = ids[start : start + room]
            window = np.full((3, len(before) + len(own) + 1), -1, np.int32)
            window[0] = [*before, *own, marks.end]
            window[1:, len(before) : -1] = where[start : start + room].T
            self._of_token.append(window)
            whole = len(inside) and start <= inside[0] and inside[-1] < start + room
            first, last = (len(before) + inside[[0, -1]] - start).tolist() if whole else (0, 0)
            self._of_window.append((number, part, first, last))
            if start + room >= len(ids):
                break

    def contexts_of(self, part: int) -> set[str]:
        texts = list(self._contexts)
        return {texts[self._of_question[number][0]] for number, own, *_ in self._of_window if own == part}

    def bundle(self) -> Bundle:
        joined = np.concatenate(self._of_token, axis=1)
        offsets = offsets_of(window.shape[1] for window in self._of_token)
        of_window, of_question = np.array(self._of_window), np.array(self._of_question, np.int32)
        answers = [text for texts in self._answers for text in texts]
        private = {
            "targets": of_window[:, 2:].astype(np.int16),
            "part": of_window[:, 1].astype(np.int8),
            "question": of_window[:, 0].astype(np.int32),
            "begins": joined[1],
            "ends": joined[2],
            "token_offsets": offsets,
            **{name: of_question[:, at] for at, name in enumerate(("context", "pair", "parallel"))},
            "question_answers": offsets_of(map(len, self._answers)),
        }
        for name, texts in (("context", list(self._contexts)), ("answer", answers)):
            private[f"{name}_characters"] = np.frombuffer("".join(texts).encode("utf-32-le"), np.uint32)
            private[f"{name}_offsets"] = offsets_of(map(len, texts))
        lost = int((~np.isin(np.arange(len(of_question)), of_window[of_window[:, 2] > 0, 0])).sum())
        facts = {
            "windows": [int((of_window[:, 1] == part).sum()) for part in range(4)],
            "questions": len(of_question),
            "questions_without_a_whole_answer": lost,
        }
        return Bundle({"tokens": joined[0], "offsets": offsets}, private, facts=facts)
