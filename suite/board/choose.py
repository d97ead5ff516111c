"""Which suites a board shows: the named ones, under every setting that has records."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..index import Summary
from ..suites import Settings, Suite, load_suite


def load_suites(names: Iterable[str | Path], runs: Sequence[Summary]) -> list[Suite]:
    """The suites called `names`, each with the specs of all settings it has records of.

    A setting is device, precision, threads and generation.

    A suite without any record has the specs of the standard setting. Raises `UsageError` for an unknown suite.
    """
    known = {run.run_id for run in runs}
    settings = sorted({(run.device, run.precision, run.threads, run.generation) for run in runs})
    suites = []
    for name in names:
        variants = [load_suite(name, Settings(*setting)) for setting in settings]
        recorded = [suite for suite in variants if any(spec.run_id in known for spec in suite.specs)]
        chosen = recorded or [load_suite(name)]
        # A suite that names its own precision has equal specs under several settings.
        specs = tuple({spec.run_id: spec for suite in chosen for spec in suite.specs}.values())
        suites.append(dataclasses.replace(chosen[0], specs=specs))
    return suites
