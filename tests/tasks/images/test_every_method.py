"""Every registered method that fits runs on a miniature of a task with few labels: steps, then a score."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from selfbench.suite import registry
from selfbench.suite.bundle import BundleFolder, write_bundle
from selfbench.suite.data import Data
from selfbench.suite.suites import misfit
from selfbench.tasks.images.cifar10_jpeg import Cifar10Jpeg40
from selfbench.tasks.images.few_labels import FewLabels

LIMIT = 500.0
"""Passes; the hungriest step of four labelled examples takes less than half of it."""
SHORT: dict[str, dict[str, Any]] = {"swav": {"hidden": 16, "size": 8}}
"""Methods with layers that are wide for any network: narrower ones."""
ROOM = registry.PACKAGE / "methods"
FITTING = [
    method
    for method in registry.entries("method").values()
    if ROOM in method.file.parents and not misfit(method, registry.get("task", "cifar10-jpeg-40"))
]


class Few(Cifar10Jpeg40):
    """The registered task with two labels a class, in steps of four examples."""

    n_labels, n_validation = 20, 10
    recipe = dataclasses.replace(Cifar10Jpeg40.recipe, batch_size=4, points=1)


class Folder(Data):
    """A data folder whose files need not have the published sizes and digests."""

    def file(self, name: str, member: str) -> Path:
        return self.root / name / member


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> BundleFolder:
    """Six training and two test images a class, in the published layout."""
    import pyarrow
    from pyarrow import parquet

    root, draw = tmp_path_factory.mktemp("cifar10-jpeg"), np.random.default_rng(0)
    for name, n in (("train", 60), ("test", 20)):
        images = []
        for pixels in draw.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8):
            content = io.BytesIO()
            Image.fromarray(pixels).save(content, "JPEG")
            images.append({"bytes": content.getvalue(), "path": None})
        (root / "cifar10-jpeg").mkdir(exist_ok=True)
        table = pyarrow.table({"img": images, "label": draw.permutation(np.arange(n) % 10)})
        parquet.write_table(table, root / "cifar10-jpeg" / f"{name}.parquet")
    return write_bundle(root / "bundle", Few().build(Folder(root)))


@pytest.mark.parametrize("method", FITTING, ids=[method.name for method in FITTING])
def test_a_method_runs(
    bundle: BundleFolder, play: Callable[..., Any], heard: Callable[..., list[float]], method: registry.Entry
) -> None:
    task: FewLabels = Few()
    learner = method.load()(**method.params(SHORT.get(method.name), "cifar10"))
    losses = heard(learner)
    outcome = play(learner, task, bundle, limit=LIMIT, name=method.name)
    assert learner.view.meter.counts.backward > 0
    assert np.isfinite(losses).all()
    assert outcome.n == 20
    assert 0.0 <= outcome.metrics["error"] <= 1.0
    assert np.isfinite(outcome.metrics["nll"])


def test_all_methods_for_images_and_classes_are_there() -> None:
    """Left out are those that need what no task with few labels can give."""
    all_methods = [method for method in registry.entries("method").values() if method.protocol == "adaptation"]
    own = {method.name for method in all_methods if ROOM in method.file.parents}
    assert own - {method.name for method in FITTING} == {"coral", "dann", "masked-lm", "ppt", "transductive"}
