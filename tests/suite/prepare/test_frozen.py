"""Frozen passes: what comes from the cache is what would be computed, counted alike, and only where it belongs."""

from __future__ import annotations

import io
import itertools
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from selfbench.suite import registry
from selfbench.suite.bundle import Bundle, BundleFolder, write_bundle
from selfbench.suite.engine.local import LocalExecutor
from selfbench.suite.engine.preparation import prepare
from selfbench.suite.engine.runner import run
from selfbench.suite.errors import BudgetExhausted
from selfbench.suite.files import locked
from selfbench.suite.meter import Meter
from selfbench.suite.prepare import frozen
from selfbench.suite.prepare.bundles import build, bundle_folder
from selfbench.suite.prepare.frozen import build_frozen, frozen_folders, prune, source_digest
from selfbench.suite.protocols.features import forward_with_features
from selfbench.suite.protocols.frozen_passes import FrozenCache, FrozenPasses, order_digest
from selfbench.suite.spec import Budget
from selfbench.suite.store import Store
from selfbench.suite.suites import expand

from ...conftest import Events

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
    assert all(built.exists for built in frozen_folders(cached.spec).values())
    monkeypatch.setenv("SELFBENCH_FROZEN_MB", "0")
    [computed] = campaign("toy-stream", method, folder="computed").finished
    assert cached.status == computed.status == "ok"
    assert cached.results() == computed.results()
    assert cached.cost.passes == computed.cost.passes == 1200


def test_a_branch_that_is_decided_from_the_cache_is_the_same_without_it(
    campaign, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CoTTA's three views, which it takes of the batches whose source confidence is low."""
    cotta = {"name": "cotta", "params": {"p_th": 0.99, "views": 3}}
    [cached] = campaign("toy-image-stream", cotta, folder="cached").finished
    assert frozen_folders(cached.spec)["batch"].exists
    monkeypatch.setenv("SELFBENCH_FROZEN_MB", "0")
    [computed] = campaign("toy-image-stream", cotta, folder="computed").finished
    assert cached.status == computed.status == "ok"
    assert cached.results() == computed.results()
    assert cached.cost.passes == computed.cost.passes
    assert 5 * 120 < cached.cost.passes < 7 * 120, "both branches are taken"


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


def specs_of(*methods: str, seed: int = 0) -> list[Any]:
    build(registry.get("task", "toy-stream"))
    return expand(tasks=["toy-stream"], methods=methods, seeds=[seed])


def bound(monkeypatch: pytest.MonkeyPatch, *counts: int) -> None:
    """The cache holds the rows of `counts` numbers for each of the 1,200 images, and a little more."""
    monkeypatch.setattr(frozen, "limit_mb", lambda: (sum(1200 * 4 * count + 1500 for count in counts)) / 2**20)


def test_rows_on_disk_are_those_of_one_array_in_memory(own_cache: None) -> None:
    """Byte by byte, header included, for both arrays and both kinds of statistics."""
    [spec] = specs_of("lame")
    task, bundle = registry.get("task", "toy-stream").load()(), bundle_folder(registry.get("task", "toy-stream"))
    stream = task.stream(bundle, 0)
    model = task.model().eval()
    model.load_state_dict(bundle.model())
    rows = []
    with torch.no_grad():
        for start, stop in itertools.pairwise(stream.cuts):
            rows.append(forward_with_features(model, task.images(bundle.public(), stream.indices[start:stop])))
    build_frozen(spec, "source")
    for number, (part, array) in enumerate((("source", "logits"), ("source-features", "features"))):
        file = io.BytesIO()
        np.save(file, torch.cat([row[number] for row in rows]).numpy())
        assert (frozen_folders(spec)[part].path / "public" / f"{array}.npy").read_bytes() == file.getvalue()


def test_features_are_kept_only_where_a_method_asks_for_them(own_cache: None) -> None:
    [source, lame] = specs_of("source", "lame")
    assert list(build_frozen(source, "source").public()) == ["logits"]
    assert set(frozen_folders(source)) == {"source"}
    assert not frozen_folders(lame)["source-features"].exists
    before = frozen_folders(lame)["source"].path.stat().st_ino
    assert list(build_frozen(lame, "source-features").public()) == ["features"]
    assert frozen_folders(lame)["source"].path.stat().st_ino == before, "what is whole is not written again"


def test_one_step_of_a_campaign_makes_what_all_its_methods_ask_of_the_same_passes(
    own_cache: None, tmp_path: Path
) -> None:
    specs = [*specs_of("source", "lame", "norm"), *specs_of("source", seed=1)]
    told: list[str] = []
    with LocalExecutor(1) as executor:
        prepare(specs, executor, Store(tmp_path), told.append)
    assert all(folder.exists for spec in specs for folder in frozen_folders(spec).values())
    assert [text for text in told if "passes" not in text] == ["preparing toy-stream"] * 3


def test_what_does_not_fit_is_left_out_and_said(own_cache: None, monkeypatch: pytest.MonkeyPatch) -> None:
    [spec] = specs_of("lame")
    told: list[str] = []
    bound(monkeypatch, 3)
    assert build_frozen(spec, "source", told.append).exists, "1,200 rows of three logits"
    assert not build_frozen(spec, "source-features", told.append).exists, "those of 16 features"
    assert "every run computes them itself (SELFBENCH_FROZEN_MB raises the bound)" in told[-1]
    assert "frozen passes (source-features, 1,200 rows) would take" in told[-1]
    names = {path.name for path in frozen_folders(spec)["source"].path.parent.iterdir() if path.is_dir()}
    assert names == {frozen_folders(spec)["source"].path.name}, "no half of anything stays"


def test_a_cache_that_has_no_room_changes_no_record(
    own_cache: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs, told, records = specs_of("source", "lame"), [], []
    for limit in (1.0, 0.017):
        shutil.rmtree(frozen_folders(specs[0])["source"].path.parent, ignore_errors=True)
        monkeypatch.setenv("SELFBENCH_FROZEN_MB", str(limit))
        store = Store(tmp_path / str(limit))
        with LocalExecutor(1) as executor:
            prepare(specs, executor, store, told.append)
            records.append(run(specs, store, executor, Events()).finished)
        # Logits take 0.014 MB, features 0.073.
        assert [folder.exists for folder in frozen_folders(specs[1]).values()] == [True, limit == 1.0]
    assert sum("every run computes them itself" in text for text in told) == 1
    for fitted, left_out in zip(*records, strict=True):
        assert fitted.status == left_out.status == "ok"
        assert fitted.results() == left_out.results()
        assert fitted.cost.passes == left_out.cost.passes == 1200


def test_room_is_made_of_what_the_runs_at_hand_do_not_need(own_cache: None, monkeypatch: pytest.MonkeyPatch) -> None:
    [first], [second], [third] = (specs_of("source", seed=seed) for seed in range(3))
    bound(monkeypatch, 3, 3)
    paths = [frozen_folders(spec)["source"].path for spec in (first, second, third)]
    assert build_frozen(first, "source").exists
    assert build_frozen(second, "source").exists
    os.utime(paths[0], (1, 1))
    assert not build_frozen(third, "source", keep=paths[:2]).exists
    assert [path.exists() for path in paths] == [True, True, False], "nothing is removed in vain"
    assert build_frozen(third, "source", keep=paths[1:]).exists
    assert [path.exists() for path in paths] == [False, True, True]


def test_what_a_killed_builder_has_left_is_counted_and_removed(
    own_cache: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    [spec] = specs_of("source")
    place = frozen_folders(spec)["source"].path
    torn = place.with_name(f".{place.name}.abcdef")
    torn.mkdir(parents=True)
    (torn / "rows.npy").write_bytes(bytes(100_000))
    lock = place.with_name(f".{place.name}.lock")
    monkeypatch.setattr(frozen, "limit_mb", lambda: 0.05)
    with locked(lock):
        assert not prune([])
        assert torn.exists(), "its builder lives"
    assert prune([])
    assert not torn.exists(), "its builder is dead"
    torn.mkdir()
    bound(monkeypatch, 3)
    assert build_frozen(spec, "source").exists
    assert [path.name for path in place.parent.iterdir() if path.is_dir()] == [place.name]


def test_a_first_policy_that_does_not_fit_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Bundle({"ids": np.zeros((100, 10))}, {}, {"w": torch.zeros(1000)}, {})
    told: list[str] = []
    monkeypatch.setenv("SELFBENCH_CACHE", str(tmp_path))
    for limit, there in ((11_000, False), (13_000, True)):
        monkeypatch.setattr(frozen, "limit_mb", lambda limit=limit: limit / 2**20)
        folder = BundleFolder(tmp_path / "frozen" / "first")
        frozen._write_first(folder, made, [], told.append)
        assert folder.exists == there
    assert len(told) == 1


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
