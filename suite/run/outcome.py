"""What a scorer has to say of a finished run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..record import Point


@dataclass(frozen=True)
class Outcome:
    """Metrics, scores by group, number of evaluated items, curve, digest of the predictions, diagnostics."""

    metrics: dict[str, float]
    groups: dict[str, dict[str, float]]
    n: int
    curve: list[Point]
    predictions_sha256: str
    diagnostics: dict[str, float] = field(default_factory=dict)
    extra_labels: int = 0
    predictions: Path | None = None
    """A file of the predicted classes that count, where the task wants them kept."""
    given_labels: int | None = None
    """How many labels were given out, where the scorer keeps that account."""
