"""How numbers, names and links appear on pages and in the terminal."""

from __future__ import annotations

import hashlib
import re
from urllib.parse import quote

from ..metrics import Metric
from .intervals import Interval

MINUS = "\N{MINUS SIGN}"
DASH = "\N{EN DASH}"
_GLUE = "\N{NO-BREAK SPACE}"
_PLAIN = re.compile(r"[a-z0-9][a-z0-9._-]{0,80}")
_ARXIV = re.compile(r"arxiv:\s*([a-z-]+(?:\.[a-z]{2})?/\d{7}|\d{4}\.\d{4,5})(v\d+)?", re.IGNORECASE)
_DOI = re.compile(r"(?:doi:\s*)?(10\.\d{4,9}/\S+)", re.IGNORECASE)


def number(value: float | None, metric: Metric) -> str:
    """A score without its unit: per cent with one decimal for shares, else three decimals."""
    if value is None:
        return DASH
    text = f"{100 * value:.1f}" if metric.percent else f"{value:.3f}"
    return text.replace("-", MINUS)


def spread(value: float | None, metric: Metric) -> str:
    """A standard deviation in the unit of `number`, with one more digit where it is small."""
    if value is None:
        return DASH
    return f"{100 * value:.1f}" if metric.percent else f"{value:.3f}"


def signed(value: float | None, metric: Metric) -> str:
    if value is None:
        return DASH
    text = number(value, metric)
    return text if text.startswith(MINUS) or not text.strip("0.") else f"+{text}"


def between(interval: Interval | None, metric: Metric, plus: bool = False) -> str:
    """An interval as `low to high`."""
    if interval is None:
        return DASH
    show = signed if plus else number
    return f"{show(interval.low, metric)} to {show(interval.high, metric)}"


def unit(metric: Metric) -> str:
    return "%" if metric.percent else ""


def count(value: float) -> str:
    """A whole number with separated thousands."""
    return f"{value:,.0f}".replace("-", MINUS)


def compact(value: float) -> str:
    """A count in three digits: 1.2 k, 35 M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            scaled = value / size
            return f"{scaled:.1f}{_GLUE}{letter}" if scaled < 10 else f"{scaled:.0f}{_GLUE}{letter}"
    return f"{value:.0f}"


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 10:
        return f"{seconds:.1f}{_GLUE}s"
    if seconds < 120:
        return f"{seconds:.0f}{_GLUE}s"
    if seconds < 7200:
        return f"{seconds / 60:.0f}{_GLUE}min"
    return f"{seconds / 3600:.1f}{_GLUE}h"


def plural(value: int, one: str, many: str | None = None) -> str:
    return f"{count(value)} {one if value == 1 else many or one + 's'}"


def slug(name: str) -> str:
    """A file name for the page of `name`, equal for equal names and distinct for distinct ones on any file system."""
    if _PLAIN.fullmatch(name) and name != "index":
        return name
    tame = re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-.")[:60]
    return f"{tame or 'name'}~{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def paper_link(paper: str) -> str | None:
    """The address of a declared paper (arXiv id, DOI or http(s) address), None for anything else."""
    paper = paper.strip()
    if match := _ARXIV.fullmatch(paper):
        return f"https://arxiv.org/abs/{match[1]}{match[2] or ''}"
    if match := _DOI.fullmatch(paper):
        return f"https://doi.org/{quote(match[1], safe='/')}"
    return paper if re.fullmatch(r"https?://[^\s<>\"']+", paper) else None
