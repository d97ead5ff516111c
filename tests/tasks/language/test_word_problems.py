"""ASDiv and GSM8K: readers, parsers and splits, on small files of their forms and on the real ones."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from selfbench.suite.protocols.tokens import CUT_OFF
from selfbench.tasks.language.asdiv_smol import ASDivSmol, read_problems
from selfbench.tasks.language.gsm8k import GSM8K, flexible_answer, plain_number, strict_answer
from selfbench.tasks.language.gsm8k import read_problems as read_gsm8k
from selfbench.tasks.language.pretrained import split_by_seed

TEXTS = Path(os.environ.get("SELFBENCH_DATA", "nowhere")) / "text"


def present(path: str) -> Path:
    if not (TEXTS / path).is_file():
        pytest.skip(f"needs {path} below $SELFBENCH_DATA/text")
    return TEXTS / path


PROBLEMS = """<?xml version="1.0" encoding="UTF-8" ?>
<Machine-Reading-Corpus-File><ProblemSet>
{}
</ProblemSet></Machine-Reading-Corpus-File>"""


def problem(body: str, question: str, formula: str, answer: str) -> str:
    return (
        f"<Problem><Body>{body}</Body><Question>{question} </Question><Answer>{answer}</Answer>"
        f"<Formula>{formula}</Formula></Problem>"
    )


def test_problems_count_when_their_formula_gives_their_answer(tmp_path: Path) -> None:
    rows = [
        problem("Ann has 7 pears.", "How many are 2 more?", "7+2=9 ", "9 (pears)"),
        problem("Ann has 5 pears.", "How many are 4 more?", "5+4=9", "9 (pears)"),
        problem("A price.", "How much?", "1500*2=3000", "3,000 (dollars)"),
        problem("A half.", "Which part?", "1/2=0.5", "0.5"),
        problem("A rest.", "What is left?", "7/2=3 r1", "3 (bags)"),
        problem("Wrong.", "What?", "7+2=8", "8"),
        problem("No equation.", "What?", "9", "9"),
        problem("A divisor.", "What?", "GCD(4,6)=2", "2"),
        problem("Long. " + "word " * 50, "What?", "7+2=9", "9"),
    ]
    (tmp_path / "a.xml").write_text(PROBLEMS.format("\n".join(rows)))
    found = read_problems(tmp_path / "a.xml")
    # The second differs from the first in its numbers alone.
    assert [(one.text, one.equation, one.answer) for one in found] == [
        ("Ann has 7 pears. How many are 2 more?", "7+2", "9"),
        ("A price. How much?", "1500*2", "3000"),
        ("A half. Which part?", "1/2", "1/2"),
    ]
    assert [ASDivSmol().answer(one.equation) for one in found] == [one.answer for one in found]
    assert ASDivSmol().answer("2+7") == "9"
    assert ASDivSmol().answer("9") is None


def test_the_problems_of_asdiv() -> None:
    found = read_problems(present("asdiv/ASDiv.xml"))
    assert len(found) > 256 + 128 + 512
    assert len({one.text for one in found}) == len(found)
    assert all(len(one.equation) < ASDivSmol.max_new for one in found)


@pytest.mark.parametrize(("response", "strict", "flexible"), [
    ("2+2=4\n#### 4", "4", "4"), ("#### 1,200", "1200", "1200"), ("#### -3.50", "-3.5", "-3.5"), ("#### 4\n", "4", "4"),
    ("It is 4.", None, "4"), ("#### 4 eggs", None, "4"), ("#### $4", None, "4"),
    ("costs $1,234.00 in all", None, "1234"),
    ("#### 4\n#### 5", None, "5"), ("####4", None, "4"), ("no number", None, None), ("", None, None),
    ("2+2=4\n#### 4" + CUT_OFF, None, "4"), ("3 apples and 10" + CUT_OFF, None, "10"), ("#### 007", "7", "7"),
    ("#### -0", "0", "0"),
])  # fmt: skip
def test_answers_of_gsm8k(response: str, strict: str | None, flexible: str | None) -> None:
    assert strict_answer(response) == GSM8K().answer(response) == strict
    assert flexible_answer(response) == GSM8K().measures().lenient(response) == flexible


def test_numbers_have_one_form() -> None:
    assert [plain_number(text) for text in ("1,000", "$5", "-$5", "0.50", "10", "0", "-0.0")] == [
        "1000", "5", "-5", "0.5", "10", "0", "0",
    ]  # fmt: skip


def test_annotations_of_the_calculator_are_left_out(tmp_path: Path) -> None:
    row = {"question": " How many? ", "answer": "He has 2+3=<<2+3=5>>5.\n#### 5"}
    (tmp_path / "g.jsonl").write_text(json.dumps(row) + "\n")
    assert read_gsm8k(tmp_path / "g.jsonl") == [("How many?", "He has 2+3=5.\n#### 5")]


def test_every_solution_of_gsm8k_parses() -> None:
    for part, number in (("test", 1319), ("train", 7473)):
        found = read_gsm8k(present(f"gsm8k/{part}.jsonl"))
        assert len(found) == number
        assert all(strict_answer(answer) is not None for _, answer in found)


def test_parts_are_disjoint_and_grow() -> None:
    others = np.arange(100, 200)
    few, rest, pool = split_by_seed(others, np.random.default_rng(0), 10, 20, 30)
    many, none, same = split_by_seed(others, np.random.default_rng(0), 30, 0, 30)
    assert set(few) < set(many) == set(few) | set(rest)
    assert pool.tolist() == same.tolist()
    assert not set(many) & set(pool)
    assert len(none) == 0
    with pytest.raises(ValueError, match="cannot be divided"):
        split_by_seed(others, np.random.default_rng(0), 80, 30)
