"""What an epoch's pictures take, decoded at each access and from the cache; a ratio within one run, in processor time.

pytest tests/benchmarks/test_bench_decoded.py -m benchmark_session -s

Photographs of CIFAR-10, enlarged to 256 x 256 pixels and coded as JPEG in the layout of PACS.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pytest_benchmark.fixture import BenchmarkFixture

from selfbench.suite.bundle import BundleFolder, write_bundle
from selfbench.suite.data import Data
from selfbench.suite.places import data_folder
from selfbench.suite.prepare.decoded import DecodedFolder, fill, read_decoded
from selfbench.suite.prepare.decoded_option import Decoded
from selfbench.tasks.images.pacs import PacsToPhoto
from selfbench.tasks.streams.layouts.parquet import read_parquet

pytestmark = pytest.mark.benchmark_session

PICTURES, SIDE, BATCH, TURNS = 300, 256, 32, 5


class Miniature(PacsToPhoto):
    """Three classes; pictures come to 224 x 224 as in the task itself."""

    n_classes = 3
    sizes = ()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> BundleFolder:
    shared = Data(data_folder())
    if not shared.present("cifar10-jpeg"):
        pytest.skip("needs data that is not here: cifar10-jpeg")
    small, _ = read_parquet(shared.file("cifar10-jpeg", "test.parquet"), limit=PICTURES)
    root = tmp_path_factory.mktemp("data")
    for number, pixels in enumerate(small.transpose(0, 2, 3, 1)):
        folder = root / "pacs" / PacsToPhoto.domains[number % 4] / "abc"[number // 4 % 3]
        folder.mkdir(parents=True, exist_ok=True)
        large = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        large.save(folder / f"{number}.jpg", quality=90)
    return write_bundle(root / "bundle", Miniature().build(Data(root)))


def test_an_epoch_of_pictures(benchmark: BenchmarkFixture, bundle: BundleFolder, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    task, public = Miniature(), bundle.public()
    folder = DecodedFolder(tmp_path / "decoded", Decoded(PICTURES, (3, task.side, task.side)))
    filling = _seconds(lambda: fill(folder, lambda rows: task.decoded(public, rows), PICTURES))
    kept = public | read_decoded(folder.path)

    def epoch(arrays: Any) -> None:
        order = np.random.default_rng(0).permutation(PICTURES)
        for start in range(0, PICTURES, BATCH):
            task.inputs(arrays, order[start : start + BATCH])

    rows = np.random.default_rng(1).permutation(PICTURES)[:BATCH]
    assert torch.equal(task.inputs(kept, rows), task.inputs(public, rows))
    pairs = [(_seconds(lambda: epoch(public)), _seconds(lambda: epoch(kept))) for _ in range(TURNS)]
    before, after = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(slow / fast for slow, fast in pairs)
    benchmark.extra_info["decoded at each access over from the cache"] = round(ratio, 1)
    print(
        f"\n{PICTURES} JPEG pictures: {before:.2f} s an epoch decoded at each access, {after:.2f} s from the cache, "
        f"ratio {ratio:.1f}; {filling:.2f} s to fill the cache once"
    )
    benchmark.pedantic(lambda: epoch(kept), rounds=3)


def _seconds(work: Callable[[], Any]) -> float:
    """Of the processor, in all threads."""
    started = time.process_time()
    work()
    return time.process_time() - started
