"""How answers in words are compared: the rules of MLQA's evaluation (Lewis et al. 2020, arXiv:1910.07475).

Facts of its public script: case, punctuation and articles of the language go; words are what space separates, and in
Chinese each character is one.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

_ARTICLES = {
    "en": r"\b(a|an|the)\b",
    "es": r"\b(un|una|unos|unas|el|la|los|las)\b",
    "vi": r"\b(của|là|cái|chiếc|những)\b",
    "de": r"\b(ein|eine|einen|einem|eines|einer|der|die|das|den|dem|des)\b",
    # As published: the first half never matches, so that the article goes wherever it stands.
    "ar": r"\sال^|ال",
}
_SYMBOLS = frozenset("$+<=>^`|~")
"""ASCII punctuation that Unicode does not call so."""
_CHINESE = re.compile(r"[\u4e00-\u9fa5]")


@functools.lru_cache(maxsize=1 << 16)
def _is_punctuation(character: str) -> bool:
    return character in _SYMBOLS or unicodedata.category(character).startswith("P")


def answer_words(text: str, language: str) -> list[str]:
    """The words of an answer that count. Of an unknown language (ISO 639-1) no articles are taken away."""
    text = "".join(character for character in text.lower() if not _is_punctuation(character))
    if language in _ARTICLES:
        text = re.sub(_ARTICLES[language], " ", text)
    if language == "zh":
        text = _CHINESE.sub(lambda found: f" {found[0]} ", text)
    return text.split()


def score_answer(text: str, answers: Sequence[str], language: str) -> tuple[float, float]:
    """Exact match and F1 of `text` with the nearest of the `answers`, over the words that count.

    Texts without such words are equal, and have no F1, as published.
    """
    own = answer_words(text, language)
    scores = [(float(own == true), _f1(own, true)) for true in (answer_words(answer, language) for answer in answers)]
    return max(exact for exact, _ in scores), max(f1 for _, f1 in scores)


def _f1(own: Sequence[str], true: Sequence[str]) -> float:
    same = sum((Counter(own) & Counter(true)).values())
    return 2.0 * same / (len(own) + len(true)) if same else 0.0
