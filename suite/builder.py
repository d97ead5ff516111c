"""The preparing process: builds a bundle, or what lies beside one, and says how far it is."""

from __future__ import annotations

import contextlib
import json
import traceback
from pathlib import Path
from typing import Any

from . import registry
from .errors import SelfbenchError
from .frozen import build_frozen
from .prepare import build
from .spec import RunSpec


def write_request(task: registry.Entry, folder: Path, **more: Any) -> Path:
    """The file that tells a preparing process what to build of a task.

    That is its bundle; with `part` a part of its source; with `spec` and `part` what of the cache.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{task.name}.json"
    file.write_text(json.dumps({"task": task.name, "status": str(folder / f"{task.name}.status"), **more}))
    return file


def main(request: Path) -> int:
    """Build what `request` names; in the preparing process. Leaves progress and errors in a status file."""
    asked: dict[str, Any] = json.loads(request.read_text())
    status = Path(asked["status"])

    def tell(text: str) -> None:
        with contextlib.suppress(OSError):
            status.write_text(json.dumps({"progress": text}))

    try:
        if "spec" in asked:
            build_frozen(RunSpec.model_validate(asked["spec"]), asked["part"], tell)
        else:
            build(registry.get("task", asked["task"]), tell, asked.get("part", ""))
    except Exception as error:
        traceback.print_exc()
        prefix = "" if isinstance(error, SelfbenchError) else f"{type(error).__name__}: "
        status.write_text(json.dumps({"error": f"{prefix}{error}"}))
        return 1
    return 0
