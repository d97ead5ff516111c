"""The parser of equations, against Python on equations it knows and against texts that are none."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest

from selfbench.tasks.language.equations import LONGEST, value


def written(depth: int, draw: random.Random) -> str:
    if depth == 0:
        return str(draw.randint(0, 99))
    left, right = written(depth - 1, draw), written(draw.randint(0, depth - 1), draw)
    text = f"{left}{draw.choice(['+', '-', '*', '/', ' + '])}{right}"
    return f"({text})" if draw.random() < 0.5 else text


def test_values_are_those_of_python_with_fractions() -> None:
    draw = random.Random(0)
    seen = 0
    for _ in range(400):
        text = written(draw.randint(1, 3), draw)
        if len(text) > LONGEST:
            continue
        exact = "".join(f"Fraction({part})" if part.isdigit() else part for part in _parts(text))
        try:
            expected = eval(exact, {"Fraction": Fraction})
        except ZeroDivisionError:
            expected = None
        assert value(text) == expected, text
        seen += expected is not None
    assert seen > 200


def _parts(text: str) -> list[str]:
    parts = [""]
    for symbol in text:
        if symbol.isdigit() and parts[-1].isdigit():
            parts[-1] += symbol
        else:
            parts.append(symbol)
    return parts


@pytest.mark.parametrize(("text", "expected"), [
    ("7+2", 9), ("(13-4)/3", 3), ("2*3-4/8", Fraction(11, 2)), ("8-3-2", 3), ("16/4/2", 2), ("0.5*3", Fraction(3, 2)),
    ("2 + 3", 5), ("((2+3))", 5), ("1/3", Fraction(1, 3)),
])  # fmt: skip
def test_values_by_hand(text: str, expected: Fraction | int) -> None:
    assert value(text) == expected


@pytest.mark.parametrize("text", [
    "", "9", "7+2=9", "7+", "+7", "-7", "7-(-2)", "7//2", "7**2", "(7+2", "7+2)", "()", "7 2", "1+1/0", " 7+2", "7+2 ",
    "7+  2", "7+2\n", "７+2", "x+1", "__import__('os')", "1e3+1", "1_0+1", ".5+1", "5.+1", "1+1" * 30, "7+2…",
    "(" * 20 + "1+1" + ")" * 20 + "+1" * 30,
])  # fmt: skip
def test_what_is_no_equation_has_no_value(text: str) -> None:
    assert value(text) is None
