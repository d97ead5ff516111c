"""Equations of word problems: a strict parser that computes with fractions, and never hands a text to Python."""

from __future__ import annotations

import re
from fractions import Fraction

LONGEST = 64
"""Characters of an expression; longer ones have no value."""
_TOKEN = re.compile(r"\d+(?:\.\d+)?|[-+*/()]")
_FORM = re.compile(r"(?:\d+(?:\.\d+)?|[-+*/()]|(?<=[-+*/()0-9]) (?=[-+*/()0-9]))+")


def value(text: str) -> Fraction | None:
    """The value of an expression of numbers, + - * / and brackets with at least one operation, else None.

    Single blanks may stand between its parts; the sign of a number is no operation, and there is none.
    """
    if len(text) > LONGEST or not text.isascii() or not _FORM.fullmatch(text):
        return None
    tokens = _TOKEN.findall(text)
    if not set(tokens) & set("+-*/"):
        return None
    try:
        found, rest = _sum(tokens, 0)
    except (ValueError, ZeroDivisionError):
        return None
    return found if rest == len(tokens) else None


def _sum(tokens: list[str], at: int) -> tuple[Fraction, int]:
    total, at = _product(tokens, at)
    while at < len(tokens) and tokens[at] in "+-":
        sign = 1 if tokens[at] == "+" else -1
        term, at = _product(tokens, at + 1)
        total += sign * term
    return total, at


def _product(tokens: list[str], at: int) -> tuple[Fraction, int]:
    total, at = _factor(tokens, at)
    while at < len(tokens) and tokens[at] in "*/":
        times = tokens[at] == "*"
        factor, at = _factor(tokens, at + 1)
        total = total * factor if times else total / factor
    return total, at


def _factor(tokens: list[str], at: int) -> tuple[Fraction, int]:
    if at == len(tokens):
        raise ValueError("it ends too early")
    if tokens[at] == "(":
        found, at = _sum(tokens, at + 1)
        if at == len(tokens) or tokens[at] != ")":
            raise ValueError("a bracket stays open")
        return found, at + 1
    return Fraction(tokens[at]), at + 1
