"""The templates of `site/`, compiled, with the filters they use. Every value is escaped."""

from __future__ import annotations

import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from ..board import formats
from ..board.scores import UNGATED
from ..board.table import budget_text
from ..metrics import metric_of
from . import charts

SITE = Path(__file__).resolve().parents[2] / "site"


def prose(text: str) -> Markup:
    """The text of a docstring, what stands between backticks set as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def environment() -> Environment:
    env = Environment(
        loader=FileSystemLoader(SITE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    env.filters.update(
        number=formats.number,
        spread=formats.spread,
        signed=formats.signed,
        between=formats.between,
        unit=formats.unit,
        count=formats.count,
        compact=formats.compact,
        duration=formats.duration,
        plural=formats.plural,
        budget=budget_text,
        slug=formats.slug,
        prose=prose,
    )
    env.globals.update(
        metric_of=metric_of,
        forest=charts.forest,
        strip=charts.strip,
        scale=charts.scale,
        board_axis=charts.board_axis,
        paper_link=formats.paper_link,
        DASH=formats.DASH,
        UNGATED=UNGATED,
    )
    return env
