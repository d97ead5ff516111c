"""`selfbench doctor`: is this machine ready, and if not, what to type."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from . import options

_MODULES = ("torch", "numpy", "scipy", "sklearn", "transformers", "safetensors", "jinja2", "pydantic", "psutil")
_MIN_FREE_MB = 1024


class Finding(NamedTuple):
    ok: bool
    what: str
    detail: str


def doctor(
    results: options.Results = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check Python, libraries, device, threads, folders and data; exit code 1 when something is amiss.

    \b
    Examples:
      selfbench doctor
      selfbench doctor --results /data/results --json
    """
    import json

    findings = [*_python(), *_libraries(), _vllm(), _device(), _sandbox(), *_folders(results), *_data(), *_registered()]
    if as_json:
        typer.echo(json.dumps([finding._asdict() for finding in findings], indent=1))
    else:
        for finding in findings:
            typer.echo(f"{'ok  ' if finding.ok else 'BAD '} {finding.what}: {finding.detail}")
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


def _python() -> list[Finding]:
    posix = os.name == "posix"
    return [
        Finding(True, "python", f"{platform.python_version()} on {platform.platform()}"),
        Finding(posix, "system", "forks processes" if posix else "runs need Linux or macOS (fork, process groups)"),
        Finding(True, "cores", str(os.cpu_count())),
    ]


def _libraries() -> list[Finding]:
    found = []
    for name in _MODULES:
        try:
            module = importlib.import_module(name)
        except Exception as error:
            found.append(Finding(False, name, f"{type(error).__name__}: {error}; python -m pip install -U selfbench"))
        else:
            found.append(Finding(True, name, str(getattr(module, "__version__", "installed"))))
    return found


def _vllm() -> Finding:
    from ..generation import installed

    found = ", ".join(f"{name} {version}" for name, version in installed().items())
    return Finding(True, "vllm", found or "absent, and needed for `--generation vllm` alone: 'selfbench[vllm]'")


def _device() -> Finding:
    try:
        import torch
    except Exception:
        return Finding(False, "device", "unknown without torch")
    if torch.cuda.is_available():
        return Finding(True, "device", f"cuda: {torch.cuda.get_device_name()}")
    return Finding(True, "device", "cpu (no CUDA device)")


def _sandbox() -> Finding:
    from ..sandbox import Sandbox, SandboxError

    with Sandbox() as sandbox:
        try:
            means, can_write = sandbox.means, sandbox.can_write
        except SandboxError as error:
            return Finding(True, "sandbox", f"none, tasks with code are refused: {error}")
    folder = "a folder in memory to write to" if can_write else "no folder to write to, for want of user namespaces"
    return Finding(True, "sandbox", f"code of models is held by {', '.join(means)}; it has {folder}")


def _folders(results: Path | None) -> list[Finding]:
    from ..errors import UsageError
    from ..places import cache_folder, data_folder, results_folder
    from ..store import Store

    found = []
    for what, folder in (("results", results_folder(results)), ("cache", cache_folder()), ("data", data_folder())):
        try:
            Store(folder).check_writable()
        except UsageError as error:
            found.append(Finding(False, what, str(error)))
            continue
        free = shutil.disk_usage(folder).free // 2**20
        detail = f"{folder}, {free} MB free"
        found.append(Finding(free >= _MIN_FREE_MB, what, detail if free >= _MIN_FREE_MB else f"{detail}: make room"))
    return found


def _data() -> list[Finding]:
    from ..data import Data
    from ..places import data_folder

    data = Data(data_folder())
    return [
        Finding(True, f"data {name}", "present" if data.present(name) else f"absent: selfbench data fetch {name}")
        for name in data.names()
    ]


def _registered() -> list[Finding]:
    from .. import registry
    from ..errors import SelfbenchError

    found = []
    for kind in ("method", "task"):
        try:
            names = registry.entries(kind)
            found.append(Finding(True, f"{kind}s", f"{len(names)} registered"))
        except SelfbenchError as error:
            found.append(Finding(False, f"{kind}s", str(error)))
    return found
