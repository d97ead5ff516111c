"""Where things lie on this machine: results, data, cache."""

from __future__ import annotations

import os
from pathlib import Path


def results_folder(given: Path | None = None) -> Path:
    """`--results`, else `$SELFBENCH_RESULTS`, else `results` in the current folder."""
    return given or Path(os.environ.get("SELFBENCH_RESULTS") or "results")


def data_folder() -> Path:
    """Downloaded data sets: `$SELFBENCH_DATA`, else a folder of the user's cache."""
    return Path(os.environ.get("SELFBENCH_DATA") or cache_folder() / "data")


def cache_folder() -> Path:
    """What can be thrown away and made again: `$SELFBENCH_CACHE`, else the platform's cache folder."""
    if given := os.environ.get("SELFBENCH_CACHE"):
        return Path(given)
    # Imported here because it is slow, and asking for help needs no folder.
    import platformdirs

    return platformdirs.user_cache_path("selfbench")
