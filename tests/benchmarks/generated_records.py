"""Plausible records in any number, for tests, benchmarks and looking at the site before real ones exist.

    python tests/benchmarks/generated_records.py FOLDER [COUNT]

The first records fill the suite of `generated_suite`; further ones vary the methods' learning rate. Equal calls write
equal bytes. Nothing here is a measurement.
"""

from __future__ import annotations

import dataclasses
import math
import multiprocessing
import os
import sys
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from selfbench.suite.board.catalogue import Catalogue
from selfbench.suite.record import Cost, Point, Provenance, Record, encode
from selfbench.suite.registry import Entry
from selfbench.suite.registry.entry import Hyper
from selfbench.suite.spec import Budget, MethodRef, RunSpec, TaskRef

SEEDS = (0, 1, 2, 3, 4)
CORRUPTIONS = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow",
    "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip
DIGIT_CORRUPTIONS = ("gaussian_noise", "blur", "contrast", "rotation", "shift", "occlusion")


@dataclasses.dataclass(frozen=True)
class Task:
    """`difficulty` scales every method's score, `n` counts evaluated items, `seed_sd` is the spread over seeds."""

    title: str
    protocol: str
    metric: str
    n: int
    difficulty: float
    seed_sd: float
    domains: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Method:
    """`score` is the error (stream, adaptation) or accuracy (policy) on a task of difficulty 1, `cost` in passes."""

    family: str
    protocol: str
    paper: str
    score: float
    cost: float
    doc: str
    needs: tuple[str, ...] = ()


TASKS = {
    "cifar10-jpeg-c-continual": Task(
        "CIFAR-10 (JPEG) corruptions, one after the other", "stream", "error", 15000, 1.0, 0.0025, CORRUPTIONS
    ),
    "cifar10-jpeg-c-mixed": Task(
        "CIFAR-10 (JPEG) corruptions, shuffled together", "stream", "error", 15000, 1.4, 0.003, CORRUPTIONS
    ),
    "digits-c-continual": Task(
        "Digits under six corruptions, one after the other", "stream", "error", 5364, 0.8, 0.006, DIGIT_CORRUPTIONS
    ),
    "digits-c-correlated": Task(
        "Digits under six corruptions, classes arriving in runs", "stream", "error", 5364, 1.9, 0.012, DIGIT_CORRUPTIONS
    ),
    "newsgroups-5": Task("20 Newsgroups, 5 labels a class", "adaptation", "accuracy", 7528, 1.0, 0.012),
    "r8-5": Task("Reuters R8, 5 labels a class", "adaptation", "accuracy", 2189, 0.35, 0.016),
    "trec-10": Task("TREC question types, 10 labels a class", "adaptation", "accuracy", 500, 1.1, 0.03),
    "asdiv-formulas": Task("ASDiv word problems, formulas checked by value", "policy", "accuracy", 461, 1.0, 0.012),
}
METHODS = {
    "source": Method("control", "stream", "-", 0.435, 1, "The source model, unchanged: what adaptation must beat."),
    "bn-1": Method(
        "normalisation", "stream", "arXiv:2006.16971", 0.204, 1,
        "Batch statistics in place of the source's (Schneider et al., 2020).", ("batch-norm",),
    ),
    "tent": Method(
        "self-training", "stream", "arXiv:2006.10726", 0.2, 3,
        "Entropy minimisation on the norm layers' affine parameters (Wang et al., 2021).", ("norm-layers",),
    ),
    "pseudo-label": Method(
        "self-training", "stream", "-", 0.198, 3, "Cross-entropy on the model's own confident predictions.",
        ("norm-layers",),
    ),
    "eata": Method(
        "self-training", "stream", "arXiv:2204.02610", 0.179, 3,
        "Entropy minimisation on reliable, non-redundant samples (Niu et al., 2022).",
        ("norm-layers", "source-unlabeled"),
    ),
    "cotta": Method(
        "mean-teacher", "stream", "arXiv:2203.13591", 0.165, 37,
        "A weight-averaged, augmentation-averaged teacher with stochastic restoration (Wang et al., 2022).",
    ),
    "rmt": Method(
        "mean-teacher", "stream", "arXiv:2211.13081", 0.145, 12,
        "A robust mean teacher with symmetric cross-entropy and source replay (Doebler et al., 2023).",
        ("source-data",),
    ),
    "rotta": Method(
        "mean-teacher", "stream", "arXiv:2303.13899", 0.193, 5,
        "Robust batch normalisation and a category-balanced memory (Yuan et al., 2023).", ("batch-norm",),
    ),
    "supervised": Method("control", "adaptation", "-", 0.586, 40, "The labelled examples alone."),
    "self-training": Method(
        "self-training", "adaptation", "-", 0.646, 60, "Rounds of confident pseudo-labels, the model re-fitted on each."
    ),
    "fixmatch": Method(
        "self-training", "adaptation", "arXiv:2001.07685", 0.66, 120,
        "Confident pseudo-labels of weak views supervise strong views (Sohn et al., 2020).", ("strong-augmentation",),
    ),
    "mean-teacher-ssl": Method(
        "mean-teacher", "adaptation", "arXiv:1703.01780", 0.622, 110,
        "Consistency with an exponential moving average of the weights (Tarvainen and Valpola, 2017).",
    ),
    "hast": Method(
        "self-training", "adaptation", "arXiv:2406.10041", 0.662, 90,
        "Hard-label self-training with a guard against early mistakes.",
    ),
    "oracle-labels": Method(
        "upper-bound", "adaptation", "-", 0.78, 90, "True labels as pseudo-labels: an upper bound, not a method."
    ),
    "supervised-lm": Method("control", "policy", "-", 0.25, 300, "Fine-tuning on the worked examples alone."),
    "rest-em": Method(
        "self-rewarding", "policy", "arXiv:2312.06585", 0.262, 2500,
        "Sample, keep what the verifier accepts, fine-tune, repeat (Singh et al., 2023).",
    ),
    "cream": Method(
        "self-rewarding", "policy", "arXiv:2410.12735", 0.257, 4000,
        "Self-rewarding with a consistency-regularised preference loss (Wang et al., 2024).",
    ),
}  # fmt: skip
_HYPERS = (
    Hyper("lr", 1e-3, low=1e-6, high=1.0, log=True, help="learning rate of the adapted parameters"),
    Hyper("momentum", 0.9, low=0.0, high=0.999, help="first-moment decay"),
    Hyper("threshold", 0.9, low=0.0, high=1.0, help="least confidence of a pseudo-label"),
)


@dataclasses.dataclass(frozen=True)
class GeneratedSuite:
    name: str
    title: str
    description: str
    seeds: tuple[int, ...]
    specs: tuple[RunSpec, ...]


def generated_catalogue() -> Catalogue:
    """The catalogue these records name, as the registry would give it."""
    methods = {
        name: Entry(
            "method", name, name.title(), Path(__file__), None,
            f"{item.doc}\n\nSymbols follow the paper. Written for the generated records.",
            {
                "family": item.family, "protocol": item.protocol, "paper": item.paper, "needs": item.needs,
                "version": "1",
            },
            () if item.family == "control" else _HYPERS,
        )
        for name, item in METHODS.items()
    }  # fmt: skip
    tasks = {
        name: Entry(
            "task", name, name.title(), Path(__file__), None, f"{item.title}.\n\nA generated task.",
            {
                "protocol": item.protocol, "version": "1", "metric": item.metric, "title": item.title,
                "budget": _budget(item).model_dump(), "data": (name.split("-")[0],), "grants": (), "tags": (),
                "selection": "last",
            },
        )
        for name, item in TASKS.items()
    }  # fmt: skip
    return Catalogue(methods, tasks)


def generated_suite(name: str = "standard", seeds: tuple[int, ...] = SEEDS, tasks: int = len(TASKS)) -> GeneratedSuite:
    """Every method on every one of the first `tasks` tasks it fits, for `seeds`."""
    specs = [
        _spec(task, method, 0, seed)
        for task in list(TASKS)[:tasks]
        for seed in seeds
        for method in METHODS
        if METHODS[method].protocol == TASKS[task].protocol
    ]
    return GeneratedSuite(
        name, name.title(), "Every method on every task it fits, under the standard budget.", seeds, tuple(specs)
    )


def plan(count: int) -> Iterator[tuple[str, str, int, int]]:
    """(task, method, variant, seed) of the first `count` records."""
    pairs = [(task, method) for task in TASKS for method in METHODS if METHODS[method].protocol == TASKS[task].protocol]
    made = 0
    variant = 0
    while True:
        for task, method in pairs:
            if variant and METHODS[method].family == "control":
                continue
            for seed in SEEDS:
                if made == count:
                    return
                yield task, method, variant, seed
                made += 1
        variant += 1


def make_record(task: str, method: str, variant: int, seed: int) -> Record:
    """One record; a function of its arguments alone."""
    item, how = TASKS[task], METHODS[method]
    spec = _spec(task, method, variant, seed)
    rng = np.random.default_rng(zlib.crc32(f"{task}|{method}|{variant}|{seed}".encode()))
    pair = np.random.default_rng(zlib.crc32(f"{task}|{method}|{variant}".encode()))
    shared = np.random.default_rng(zlib.crc32(f"{task}|{seed}".encode()))
    shift = 0.06 * pair.standard_normal() - (0.02 * min(variant, 8) if variant else 0.0)
    error = how.score if item.metric == "error" else 1.0 - how.score
    error = error * item.difficulty * (1 - shift * (how.family != "control"))
    error += item.seed_sd * (1.5 * shared.standard_normal() + rng.standard_normal())
    error = float(np.clip(error, 0.01, 0.97))
    draw = rng.random()
    status, reason = "ok", ""
    if how.cost > 5 and draw < 0.03:
        status, reason = "timeout", "The run passed its hard limit of 600 s and was stopped."
    elif "source-data" in how.needs and draw > 0.94:
        status, reason = "oom", "The method's processes held 4,131 MiB, over the limit of 4,096 MiB."
    elif variant and draw > 0.992:
        status, reason = "failed", "MethodError: predict returned logits that are not finite (batch 41)."
    passes = how.cost * item.n
    cost = Cost(
        forward=passes / 3,
        backward=passes / 3,
        passes=passes,
        tokens=int(passes * 40) if item.protocol == "policy" else 0,
        seconds=round(float(passes * 4e-4 * (1 + 0.1 * rng.random())), 3),
        setup_seconds=round(2 + float(rng.random()), 3),
        peak_memory_mb=round(700 + 20 * how.cost + 30 * float(rng.random()), 1),
    )
    done: dict[str, Any] = {}
    if status == "ok":
        done = _scores(item, error, rng)
    return Record(
        run_id=spec.run_id,
        spec=spec,
        status=status,  # type: ignore[arg-type]
        reason=reason,
        primary=item.metric,
        n=item.n if status == "ok" else 0,
        cost=cost,
        budget_used_up=bool(how.cost > 30),
        provenance=Provenance(
            created=f"2026-01-{1 + seed:02d}T09:00:00+00:00",
            selfbench="0.1.0",
            git_commit="0" * 40,
            git_dirty=False,
            method_sha256="1" * 64,
            task_sha256="2" * 64,
            bundle_sha256="3" * 64,
            python="3.11.7",
            packages={"numpy": "2.1.0", "torch": "2.5.1", "scikit-learn": "1.5.2"},
            platform="Linux-6.1-x86_64",
            processor="x86_64",
            command=f"selfbench run -m {method} -t {task} -s {seed}",
        ),
        **done,
    )


def write_records(root: Path, count: int, workers: int | None = None) -> None:
    """Write the first `count` records below `root`, in the store's layout; not synced to the disk, unlike the store."""
    jobs = list(plan(count))
    for task, method in {(task, method) for task, method, _, _ in jobs}:
        (root / task / method).mkdir(parents=True, exist_ok=True)
    chunks = [jobs[start : start + 500] for start in range(0, count, 500)]
    if count <= 2000:
        for chunk in chunks:
            _write_chunk(root, chunk)
        return
    with ProcessPoolExecutor(workers or os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        list(pool.map(_write_chunk, [root] * len(chunks), chunks))


def _write_chunk(root: Path, jobs: list[tuple[str, str, int, int]]) -> None:
    for task, method, variant, seed in jobs:
        record = make_record(task, method, variant, seed)
        (root / task / method / f"{record.run_id}.json").write_bytes(encode(record))


def _budget(item: Task) -> Budget:
    return Budget(currency="tokens" if item.protocol == "policy" else "passes", limit=40.0 * item.n)


def _spec(task: str, method: str, variant: int, seed: int) -> RunSpec:
    params: dict[str, Any] = {}
    if METHODS[method].family != "control":
        params = {item.name: item.default for item in _HYPERS}
    if variant:
        params["lr"] = float(f"{1e-3 * 1.01**variant:.6g}")
    return RunSpec(
        task=TaskRef(name=task, version="1"),
        method=MethodRef(name=method, version="1", params=params),
        seed=seed,
        budget=_budget(TASKS[task]),
    )


def _scores(item: Task, error: float, rng: np.random.Generator) -> dict[str, Any]:
    metrics = {
        "error": error,
        "accuracy": 1.0 - error,
        "nll": float(2.2 * error + 0.02 * rng.random()),
        "brier": float(1.3 * error),
        "ece": float(0.3 * error + 0.01 * rng.random()),
    }
    if item.protocol == "stream":
        weights = np.random.default_rng(7).uniform(0.45, 1.55, len(item.domains)) + 0.03 * rng.standard_normal(
            len(item.domains)
        )
        groups = {
            name: round(float(np.clip(error * w, 0, 1)), 6) for name, w in zip(item.domains, weights, strict=True)
        }
        metrics["worst_group_error"] = max(groups.values())
        steps = np.linspace(0, len(item.domains), 40, endpoint=False).astype(int)
        noise = 1 + 0.04 * rng.standard_normal(40)
        curve = [
            Point(
                x=float(item.n * (i + 1) / 40), values={"error": round(float(np.clip(error * weights[s] * z, 0, 1)), 6)}
            )
            for i, (s, z) in enumerate(zip(steps, noise, strict=True))
        ]
        return {"metrics": metrics, "groups": {"error": groups}, "curve": curve}
    curve = []
    for i in range(12):
        now = error + (0.9 - error) * math.exp(-0.45 * i) + 0.004 * float(rng.standard_normal()) * (i < 11)
        values = {"accuracy": round(1 - min(now, 0.99), 6), "validation": round(1 - min(now + 0.01, 0.99), 6)}
        curve.append(Point(x=float((i + 1) * item.n), values=values))
    return {"metrics": metrics, "curve": curve, "diagnostics": {"pseudo_label_precision": round(1 - 0.6 * error, 4)}}


if __name__ == "__main__":
    write_records(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 400)
