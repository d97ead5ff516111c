"""Frozen passes: what comes from the cache is what would be computed, counted alike, and only where it belongs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from selfbench.suite import registry
from selfbench.suite.bundle import Bundle, write_bundle
from selfbench.suite.errors import BudgetExhausted
from selfbench.suite.meter import Meter
from selfbench.suite.prepare import frozen
from selfbench.suite.prepare.bundles import build
from selfbench.suite.prepare.frozen import build_frozen, frozen_folders, prune, source_digest
from selfbench.suite.protocols.frozen_passes import FrozenCache, FrozenPasses, order_digest
from selfbench.suite.spec import Budget
from selfbench.suite.suites import expand

CPU = torch.device("cpu")
PLAN = {"indices": np.array([4, 2, 0, 1, 3]), "cuts": np.array([0, 2, 5])}


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SELFBENCH_CACHE", str(tmp_path / "cache"))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).eval().requires_grad_(False)


def images(batch: int) -> Tensor:
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(1))[PLAN["cuts"][batch] : PLAN["cuts"][batch + 1]]


def folder(path: Path, **facts: Any) -> dict[str, str]:
    """Passes of a model that is not `network()`, so that one sees where a value comes from."""
    arrays = {"logits": np.arange(10, dtype=np.float32).reshape(5, 2), "features": np.ones((5, 4), np.float32)}
    usual = {"order": order_digest(PLAN["indices"], PLAN["cuts"]), "cpu": torch.backends.cpu.get_cpu_capability()}
    write_bundle(path, Bundle(arrays, {}, facts=usual | facts))
    return {"source": str(path)}


def meter_of(model: nn.Module, limit: float = 100) -> Meter:
    meter = Meter(Budget(limit=limit), "tested")
    meter.attach(model)
    return meter


def test_the_batch_that_is_shown_comes_from_the_cache_and_is_counted(tmp_path: Path) -> None:
    model = network()
    meter = meter_of(model)
    cache = FrozenCache(folder(tmp_path / "f"), PLAN, meter, CPU)
    passes = FrozenPasses(model, "source", cache)
    for batch in range(2):
        cache.show(batch, shown := images(batch))
        assert (
            passes(shown).tolist()
            == np.arange(10).reshape(5, 2)[PLAN["cuts"][batch] : PLAN["cuts"][batch + 1]].tolist()
        )
        logits, features = passes.with_features(shown)
        assert torch.equal(logits, passes(shown))
        assert features is not None
        assert features.shape == (len(shown), 4)
        logits.zero_()
        assert passes(shown).any(), "what a method does to a result stays with it" if batch else ""
    assert meter.counts.forward == 4 * 5
    assert meter.counts.backward == 0


def test_all_else_is_computed_and_counted(tmp_path: Path) -> None:
    model = network()
    meter = meter_of(model)
    cache = FrozenCache(folder(tmp_path / "f"), PLAN, meter, CPU)
    cache.show(0, images(0))
    other = images(0)
    with torch.no_grad(), meter.paused():
        expected, features = model(other), model[:2](other)
    assert torch.equal(FrozenPasses(model, "source", cache)(other), expected), "equal images, but not those shown"
    assert torch.equal(FrozenPasses(model, "batch", cache)(cache._shown), expected)
    assert torch.equal(FrozenPasses(model, "source", None).with_features(other)[1], features)
    assert not FrozenPasses(model.requires_grad_(True), "source", None)(other).requires_grad
    assert meter.counts.forward == 4 * 2


@pytest.mark.parametrize("facts", [{"order": "0" * 64}, {"cpu": "another"}])
def test_a_cache_of_another_order_or_processor_is_not_used(tmp_path: Path, facts: dict[str, str]) -> None:
    model = network()
    cache = FrozenCache(folder(tmp_path / "f", **facts), PLAN, meter_of(model), CPU)
    cache.show(0, shown := images(0))
    assert torch.equal(FrozenPasses(model, "source", cache)(shown), model(shown))


def test_the_budget_ends_at_a_cached_pass_too(tmp_path: Path) -> None:
    model = network()
    meter = meter_of(model, limit=3)
    cache = FrozenCache(folder(tmp_path / "f"), PLAN, meter, CPU)
    passes = FrozenPasses(model, "source", cache)
    cache.show(0, shown := images(0))
    passes(shown)
    with pytest.raises(BudgetExhausted):
        passes(shown)
    with meter.paused():
        passes(shown)
    assert meter.counts.forward == 2


def test_unknown_statistics_are_refused() -> None:
    with pytest.raises(ValueError, match="one of"):
        FrozenPasses(network(), "running", None)


@pytest.mark.parametrize("method", ["source", "norm", "lame"])
def test_runs_with_and_without_the_cache_have_equal_results(
    campaign, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    [cached] = campaign("toy-stream", method, folder="cached").finished
    [built] = frozen_folders(cached.spec).values()
    assert built.exists
    monkeypatch.setenv("SELFBENCH_FROZEN_MB", "0")
    [computed] = campaign("toy-stream", method, folder="computed").finished
    assert cached.status == computed.status == "ok"
    assert cached.results() == computed.results()
    assert cached.cost.passes == computed.cost.passes == 1200


def test_the_cache_is_used_indeed(campaign) -> None:
    """Passes that were changed on disk, with their digests, show in the predictions."""
    [before] = campaign("toy-stream", "source", folder="before").finished
    kept = frozen_folders(before.spec)["source"]
    path = kept.path
    arrays = {name: np.array(array) for name, array in kept.public().items()}
    arrays["logits"] = -arrays["logits"]
    write_bundle(path, Bundle(arrays, {}, facts=kept.facts))
    [after] = campaign("toy-stream", "source", folder="after").finished
    shutil.rmtree(path)
    assert after.predictions_sha256 != before.predictions_sha256


def test_a_damaged_cache_is_built_again(campaign) -> None:
    [before] = campaign("toy-stream", "source", folder="before").finished
    path = frozen_folders(before.spec)["source"].path
    (path / "public" / "logits.npy").write_bytes(b"torn")
    [after] = campaign("toy-stream", "source", folder="after").finished
    assert after.results() == before.results()


def test_every_order_and_setting_has_passes_of_its_own() -> None:
    build(registry.get("task", "toy-stream"))
    specs = expand(tasks=["toy-stream"], methods=["source", "lame"], seeds=[0, 1])
    specs += [spec.model_copy(update={"threads": 2}) for spec in specs]
    paths = {(spec.method.name, spec.seed, spec.threads): frozen_folders(spec)["source"].path for spec in specs}
    assert paths["source", 0, 1] == paths["lame", 0, 1], "whatever the method"
    assert len(set(paths.values())) == 4
    assert frozen_folders(specs[0].model_copy(update={"precision": "bf16"})) == {}
    [tent] = expand(tasks=["toy-stream"], methods=["tent"], seeds=[0])
    assert frozen_folders(tent) == {}


def test_the_oldest_passes_leave_first(own_cache: None, monkeypatch: pytest.MonkeyPatch) -> None:
    build(registry.get("task", "toy-stream"))
    specs = expand(tasks=["toy-stream"], methods=["source"], seeds=[0, 1, 2])
    paths = [build_frozen(spec, "source").path for spec in specs]
    for age, path in zip((300, 200, 100), paths, strict=True):
        os.utime(path, (1e9 - age, 1e9 - age))
    size = sum(file.stat().st_size for file in paths[0].rglob("*") if file.is_file())
    monkeypatch.setattr(frozen, "limit_mb", lambda: 2.5 * size / 2**20)
    prune([])
    assert [path.exists() for path in paths] == [False, True, True]
    monkeypatch.setattr(frozen, "limit_mb", lambda: 1.5 * size / 2**20)
    prune([paths[1]])
    assert [path.exists() for path in paths] == [False, True, False]
    monkeypatch.setattr(frozen, "limit_mb", lambda: 0.5 * size / 2**20)
    prune([paths[1]])
    assert paths[1].exists(), "what the runs at hand need stays"


def test_a_digest_of_code_covers_all_that_is_imported_beside_it(tmp_path: Path) -> None:
    first, second, third, other = (tmp_path / f"{name}.py" for name in ("first", "second", "third", "other"))
    first.write_text("import os\nfrom ..far import thing\nfrom . import second\n")
    second.write_text("def late():\n    from .third import value\n    from .first import late\n")
    third.write_text("value = 1\n")
    other.write_text("value = 1\n")

    def digest() -> str:
        source_digest.cache_clear()
        return source_digest(first)

    before = digest()
    other.write_text("value = 2\n")
    assert digest() == before
    for file in (first, second, third):
        file.write_text(file.read_text() + "more = 1\n")
        assert digest() != before, file.name
        before = digest()
