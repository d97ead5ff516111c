"""The worked example of the rules page, computed by the board's own functions whenever the page is drawn."""

from __future__ import annotations

from ..index import Summary
from .catalogue import Catalogue
from .scores import TaskBoard, score_field
from .table import fields_of

ITEMS = 10_000
SCORES: dict[str, tuple[float | None, ...]] = {
    "alpha": (0.200, 0.204, 0.199, 0.202, 0.201),
    "beta": (0.212, 0.209, 0.214, 0.210, 0.211),
    "gamma": (0.240, 0.248, 0.236, 0.243, 0.241),
    "delta": (0.239, None, 0.237, 0.242, 0.240),
    "epsilon": (0.180, 0.181, None, None, None),
}
"""Errors by seed; None is a run that failed (delta) or was not made (epsilon)."""


def worked_example() -> TaskBoard:
    """Five made-up methods on one made-up task."""
    runs = [
        _run(method, seed, value)
        for method, values in SCORES.items()
        for seed, value in enumerate(values)
        if value is not None or method == "delta"
    ]
    return score_field(fields_of(runs, Catalogue())[0], Catalogue())


def _run(method: str, seed: int, value: float | None) -> Summary:
    return Summary(
        run_id=f"{method}-{seed}",
        task="example",
        task_version="1",
        method=method,
        method_version="1",
        params="{}",
        seed=seed,
        budget='{"currency":"passes","limit":1.0,"memory_mb":256,"wall_seconds":1.0}',
        selection="last",
        device="cpu",
        precision="fp32",
        threads=1,
        status="failed" if value is None else "ok",
        primary="error",
        value=value,
        n=ITEMS if value is not None else 0,
        budget_used_up=0,
        passes=0.0,
        tokens=0,
        seconds=0.0,
        gpu_seconds=0.0,
        memory_mb=0.0,
        gpu_memory_mb=0.0,
        bundle="made up",
    )
