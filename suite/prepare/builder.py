"""The preparing process: fetches data and builds a bundle, or what lies beside one, and says how far it is."""

from __future__ import annotations

import contextlib
import json
import traceback
from pathlib import Path
from typing import Any

from .. import registry
from ..errors import SelfbenchError
from ..processes import ran_out_of_memory
from ..spec import RunSpec
from .bundles import build, data_of, fetch_missing
from .decoded import build_decoded
from .frozen import build_frozen

DECODED = "decoded"
"""The part of a task that is the cache of its decoded pictures."""
_MORE = "make room: end other programs, or take a machine, or a GPU, with more memory"


def write_request(task: registry.Entry, folder: Path, **more: Any) -> Path:
    """The file that tells a preparing process what to build of a task.

    That is its bundle; with `part` a part of its source, or what is kept of its decoded pictures; with `spec` and
    `part` what of the cache of frozen passes and first policies.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{task.name}.json"
    file.write_text(json.dumps({"task": task.name, "status": str(folder / f"{task.name}.status"), **more}))
    return file


def main(request: Path) -> int:
    """Build what `request` names; in the preparing process. Leaves progress, or error and status, in a status file."""
    asked: dict[str, Any] = json.loads(request.read_text())
    status = Path(asked["status"])

    def tell(text: str) -> None:
        with contextlib.suppress(OSError):
            status.write_text(json.dumps({"progress": text}))

    try:
        if "spec" in asked:
            keep = [Path(path) for path in asked["keep"]]
            build_frozen(RunSpec.model_validate(asked["spec"]), asked["part"], tell, keep)
        elif asked.get("part") == DECODED:
            build_decoded(registry.get("task", asked["task"]), [Path(path) for path in asked["keep"]], tell)
        else:
            task, part = registry.get("task", asked["task"]), asked.get("part", "")
            fetch_missing(data_of(task, part), tell)
            build(task, tell, part)
    except Exception as error:
        traceback.print_exc()
        text, oom = str(error), ran_out_of_memory(error)
        if not isinstance(error, SelfbenchError):
            text = f"{type(error).__name__}: {text}".removesuffix(": ") + (f"; {_MORE}" if oom else "")
            text += f" (log: {status.with_suffix('.log')})"
        status.write_text(json.dumps({"error": text, "status": "oom" if oom else "failed"}))
        return 1
    return 0
