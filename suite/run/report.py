"""The record of a run: what the method's process counted, what the scorer found, and what it ran on."""

from __future__ import annotations

import contextlib
import platform
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch
from pydantic import Field

from .. import registry
from ..bundle import BundleFolder, source_key
from ..data_facts import data_facts
from ..errors import BudgetExhausted, SelfbenchError
from ..generation import engines
from ..job import Job
from ..prepare.decoded import decoded_seconds
from ..processes import ran_out_of_memory
from ..record import Cost, Provenance, Record, Status
from ..spec import RunSpec
from .outcome import Outcome
from .policy_scorer import PolicyScorer
from .scorer import Scorer, StreamScorer

MORE = "allow more with `--budget memory_mb=N`, or take a smaller model or task"
_MORE_ON_A_GPU = "take a GPU with more memory, fewer runs at once (`-j 1`), or a smaller model or task"
_ENCODERS = frozenset({"fine-tuning", "token-tagging", "question-answering"})
"""Tags of tasks whose runs train an encoder of `transformers` on its own tokens."""


class Tally(Cost):
    """What the method's process counted, as it comes over the line."""

    ended: bool = False
    resumed: int = Field(default=0, ge=0)
    gpu: str | None = None


@dataclass
class Result:
    """What came over the line: how the run ended, what it counted."""

    status: Status = "ok"
    reason: str = ""
    tally: Tally = field(default_factory=Tally)
    outcome: Outcome | None = None


def make_record(
    job: Job,
    spec: RunSpec,
    result: Result,
    scorer: Scorer | None,
    bundle: BundleFolder | None,
    seconds: float,
) -> Record:
    """The record of a run; `bundle` is None where it never began, for want of what it needs."""
    tally, outcome = result.tally, result.outcome
    cost = tally.model_dump(include=set(Cost.model_fields))
    cost["labels"] += outcome.extra_labels if outcome else 0
    cost["setup_seconds"] = max(0.0, seconds - tally.seconds)
    facts = bundle.facts if bundle else {}
    source = source_of(job)
    prepared = [facts, *(folder.facts for folder in source.values())]
    built = sum(float(each.get("preparation_seconds", 0.0)) for each in prepared)
    cost["preparation_seconds"] = built + decoded_seconds(job.decoded)
    method_entry, task_entry = registry.get("method", spec.method.name), registry.get("task", spec.task.name)
    return Record(
        run_id=spec.run_id,
        spec=spec,
        status=result.status,
        reason=result.reason,
        primary=str(task_entry.options["metric"]),
        metrics=outcome.metrics if outcome else {},
        n=outcome.n if outcome else 0,
        groups=outcome.groups if outcome else {},
        curve=outcome.curve if outcome else [],
        diagnostics=outcome.diagnostics if outcome else {},
        data_facts=data_facts(facts),
        budget_used_up=tally.ended,
        predictions_sha256=outcome.predictions_sha256 if outcome else None,
        cost=Cost.model_validate(cost),
        provenance=Provenance(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            selfbench=metadata.version("selfbench"),
            git_commit=job.code.get("commit"),
            git_dirty=job.code.get("dirty"),
            method_sha256=method_entry.source_sha256,
            task_sha256=source_key(task_entry.file, registry.PACKAGE),
            bundle_sha256=bundle.sha256 if bundle else "",
            source_sha256={part: folder.sha256 for part, folder in source.items()},
            stream_sha256=scorer.stream.sha256 if isinstance(scorer, StreamScorer) else None,
            python=platform.python_version(),
            packages=packages_of(
                task_entry.protocol,
                task_entry.options["tags"],
                [*(scorer.packages if isinstance(scorer, PolicyScorer) else ()), *engines(spec.generation)],
            ),
            platform=f"{platform.system()} {platform.machine()}",
            processor=_processor(),
            gpu=tally.gpu,
            command=job.command,
            attempt=job.attempt,
            resumed=tally.resumed,
        ),
    )


def status_and_reason(error: BaseException) -> tuple[Status, str]:
    """Status and reason of an exception in one of the two processes."""
    text = f"{type(error).__name__}: {error}".strip().removeprefix("MethodError: ")
    if ran_out_of_memory(error):
        # The budget's limit is one of the host's memory.
        remedy = _MORE_ON_A_GPU if isinstance(error, torch.OutOfMemoryError) else MORE
        return "oom", f"{text.removesuffix(':')}; {remedy}"
    if isinstance(error, BudgetExhausted):
        text = "the budget ended outside of training"
    frames = traceback.extract_tb(error.__traceback__)
    if frames and not isinstance(error, SelfbenchError):
        text += f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})"
    return "failed", text


def source_of(job: Job) -> dict[str, BundleFolder]:
    """The parts of the source that lie apart from the task's bundle."""
    return {part: BundleFolder(Path(path)) for part, path in job.source.items()}


def packages_of(protocol: str, tags: Sequence[str], more: Sequence[str] = ()) -> dict[str, str]:
    """The versions of the packages that can move results; `more` are what code of models imports, and engines.

    Vectors of a frozen encoder are part of the bundle, whose digest the record holds, whatever has made them.
    """
    names = list(dict.fromkeys(["numpy", "torch", *more]))
    if protocol == "policy" or _ENCODERS & set(tags):
        names.append("transformers")
    if "adapters" in tags:
        names.append("peft")
    if "adapters" in tags or _ENCODERS & set(tags):
        names.append("tokenizers")
    found = {}
    for name in names:
        # Whether a missing one matters, the method's process has said.
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _processor() -> str:
    """The processor and the instructions that torch uses on it; other ones round sums differently."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"
