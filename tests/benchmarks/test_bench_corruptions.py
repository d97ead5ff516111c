"""Images a second of our corruptions beside the public per-image package `imagecorruptions`, on one thread each.

pytest tests/benchmarks/test_bench_corruptions.py -m benchmark_session -s
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from selfbench.suite.data import Data
from selfbench.suite.places import data_folder
from selfbench.tasks.streams import common_corruptions as cc

pytestmark = pytest.mark.benchmark_session
ALL = cc.NAMES + cc.EXTRA
BATCH = {32: 200, 64: 50, 224: 8}
WANTED = 10.0


@pytest.fixture(scope="module")
def public() -> Iterator[ModuleType]:
    """The public package, with two names put back that NumPy 2 and scikit-image 0.19 took away under it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import cv2
            import imagecorruptions
            from imagecorruptions import corruptions
    except Exception as error:  # an import of an old package fails in many ways
        pytest.skip(f"needs `imagecorruptions`, which does not import here: {error}")
    gaussian = corruptions.gaussian

    def blurred(image: np.ndarray, *given: object, multichannel: bool = False, **options: object) -> np.ndarray:
        return gaussian(image, *given, channel_axis=-1 if multichannel else None, **options)

    threads = cv2.getNumThreads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "float_", np.float64, raising=False)
        patch.setattr(corruptions, "gaussian", blurred)
        cv2.setNumThreads(1)
        yield imagecorruptions
        cv2.setNumThreads(threads)


@pytest.fixture(scope="module")
def frost() -> list[torch.Tensor]:
    data = Data(data_folder())
    if not data.present("frost-pictures"):
        pytest.skip("needs `selfbench data fetch frost-pictures` (2.1 MB)")
    return cc.read_frost([data.file("frost-pictures", name) for name in cc.FROST_PICTURES])


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def photographs(side: int) -> torch.Tensor:
    """Overlapping pieces of a real photograph, uint8 (B, 3, H, H)."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    picture = Image.fromarray(load_sample_images().images[0])
    pieces = [picture.resize((side, side), box=(left, 0, left + 420, 420)) for left in range(BATCH[side])]
    return torch.from_numpy(np.stack([np.asarray(piece) for piece in pieces])).permute(0, 3, 1, 2).contiguous()


def seconds(call: Callable[[], object], rounds: int) -> float:
    """The fastest of `rounds` calls, after one to warm up."""
    call()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


@pytest.mark.parametrize("side", [32, 224])
def test_images_a_second(benchmark: BenchmarkFixture, side: int, public: ModuleType, frost: list[torch.Tensor]) -> None:
    """All 19 corruptions at all severities: at least ten times the images a second of the public package."""
    images = photographs(side)
    ids = torch.arange(len(images))
    picture = images[0].permute(1, 2, 0).contiguous().numpy()
    theirs, ours = dict.fromkeys(ALL, 0.0), dict.fromkeys(ALL, 0.0)
    for name in ALL:
        for severity in cc.SEVERITIES:
            rounds = 1 if name == "glass_blur" else 5
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                theirs[name] += seconds(lambda n=name, s=severity: public.corrupt(picture, s, n), rounds)
            batch = seconds(lambda n=name, s=severity: cc.corrupt(images, ids, n, s, frost=frost), 3)
            ours[name] += batch / len(images)

    def everything() -> None:
        for name in ALL:
            for severity in cc.SEVERITIES:
                cc.corrupt(images, ids, name, severity, frost=frost)

    benchmark.pedantic(everything, rounds=1)
    print(f"\n{side} pixels, images a second, mean of severities 1 to 5")
    for name in ALL:
        print(f"  {name:18s} {5 / theirs[name]:9.1f} {5 / ours[name]:9.1f}  x {theirs[name] / ours[name]:7.1f}")
    ratios = np.array([theirs[name] / ours[name] for name in ALL])
    total = sum(theirs.values()) / sum(ours.values())
    common = sum(theirs[name] for name in cc.NAMES) / sum(ours[name] for name in cc.NAMES)
    mean = float(np.exp(np.log(ratios).mean()))
    print(f"  time for all 19: x {total:.1f}; for the 15: x {common:.1f}; geometric mean of the 19: x {mean:.1f}")
    benchmark.extra_info.update(total=total, common=common, geometric_mean=mean)
    assert total >= WANTED
    assert common >= WANTED
