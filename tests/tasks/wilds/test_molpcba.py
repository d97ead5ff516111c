"""OGB-MolPCBA: graphs as tensors, labels that are known or not, the metric of OGB."""

from __future__ import annotations

import ast
import gzip
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional as F

from selfbench.methods.baselines.erm import Erm
from selfbench.suite.bundle import BundleFolder
from selfbench.suite.data import Data
from selfbench.suite.errors import DataMissing
from selfbench.tasks.wilds.graphs import ATOM, BOND, GinVirtual, read_binary_graphs
from selfbench.tasks.wilds.task import WildsTask

Bundles = Callable[[str], BundleFolder]
Miniature = Callable[[str], WildsTask]
NAME = "ogb-molpcba"


def table(root: Path, name: str) -> np.ndarray:
    return pd.read_csv(root / "wilds" / "ogbg_molpcba" / f"{name}.csv.gz", header=None).to_numpy()


def test_splits_and_labels_are_those_of_the_files(wilds_data: Path, bundles: Bundles, miniature: Miniature) -> None:
    task, bundle = miniature(NAME), bundles(NAME)
    split, labels = task.split(bundle, 0), table(wilds_data, "raw/graph-label")
    for ours, theirs in (("labeled", "train"), ("validation", "valid"), ("test", "test")):
        np.testing.assert_array_equal(getattr(split, ours), table(wilds_data, f"split/scaffold/{theirs}")[:, 0])
    np.testing.assert_array_equal(split.labels, labels[split.labeled])
    np.testing.assert_array_equal(task.labels(bundle.private(), split.test), labels[split.test])
    scaffolds = np.load(wilds_data / "wilds" / "ogbg_molpcba" / "raw" / "scaffold_group.npy")
    np.testing.assert_array_equal(split.labeled_domains, scaffolds[split.labeled])
    assert len(split.unlabeled) == len(split.source_test) == 0


def test_a_graph_holds_its_atoms_and_bonds(wilds_data: Path, bundles: Bundles, miniature: Miniature) -> None:
    task, public = miniature(NAME), bundles(NAME).public()
    graphs = task.inputs(public, np.array([0, 7, 39]))
    atoms, bonds = table(wilds_data, "raw/num-node-list")[:, 0], table(wilds_data, "raw/num-edge-list")[:, 0]
    for row, graph in zip((0, 7, 39), graphs.numpy(), strict=True):
        n, e = atoms[row], bonds[row]
        assert graph[0].tolist() == [n, e, *[0] * 7]
        first, bond = atoms[:row].sum(), bonds[:row].sum()
        np.testing.assert_array_equal(graph[1 : n + 1], table(wilds_data, "raw/node-feat")[first : first + n])
        np.testing.assert_array_equal(graph[n + 1 : n + e + 1, :2], table(wilds_data, "raw/edge")[bond : bond + e])
        features = table(wilds_data, "raw/edge-feat")[bond : bond + e]
        np.testing.assert_array_equal(graph[n + 1 : n + e + 1, 2:5], features)
        assert not graph[n + e + 1 :].any()


def test_hidden_labels_reach_no_method(
    miniatures: Any, miniature: Miniature, bundles: Bundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    miniatures.ogb_molpcba(tmp_path / "wilds", hidden=1)
    monkeypatch.setenv("SELFBENCH_DATA", str(tmp_path))
    first, second = bundles(NAME), miniature(NAME).build(Data(tmp_path))
    for name, array in first.public().items():
        np.testing.assert_array_equal(array, second.public[name])
    labeled = miniature(NAME).split(first, 0).labeled
    mine, theirs = first.private()["labels"], second.private["labels"]
    np.testing.assert_array_equal(mine[labeled], theirs[labeled])
    assert np.nansum(mine != theirs) > 0


def test_unlabelled_graphs_are_those_that_ogb_reads(wilds_data: Path, bundles: Bundles, miniature: Miniature) -> None:
    reader = pytest.importorskip("ogb.io.read_graph_raw")
    folder = wilds_data / "wilds" / "molpcba_unlabeled"
    graphs = reader.read_binary_graph_raw(str(folder / "raw"))
    task, bundle = miniature(f"{NAME}-unlabeled"), bundles(f"{NAME}-unlabeled")
    split, public = task.split(bundle, 0), bundle.public()
    part = pd.read_csv(folder / "split" / "scaffold" / "test.csv.gz", header=None).to_numpy()[:, 0]
    assert len(split.unlabeled) == len(part) == 15
    np.testing.assert_array_equal(split.unlabeled_domains, np.load(folder / "processed" / "group_assignment.npy")[part])
    shown = task.inputs(public, split.unlabeled).numpy()
    for row, number in zip(shown, part, strict=True):
        theirs, (n, e) = graphs[number], row[0, :2]
        assert (n, 2 * e) == (theirs["num_nodes"], theirs["edge_index"].shape[1])
        np.testing.assert_array_equal(row[1 : n + 1], theirs["node_feat"])
        bonds = row[n + 1 : n + e + 1]
        np.testing.assert_array_equal(bonds[:, :2].T, theirs["edge_index"][:, ::2])
        np.testing.assert_array_equal(bonds[:, 2:5], theirs["edge_feat"][::2])
    # The labelled molecules are what they are without the others.
    alone = bundles(NAME)
    np.testing.assert_array_equal(split.test, miniature(NAME).split(alone, 0).test)
    most = miniature(NAME).inputs(alone.public(), split.test).shape[1]
    padded = task.inputs(public, split.test)
    assert torch.equal(padded[:, :most], miniature(NAME).inputs(alone.public(), split.test))
    assert not padded[:, most:].any()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"edge_index": np.zeros((2, 3), np.int64)}, "are not those of"),
        ({"num_edges_list": None}, "cannot be read as arrays"),
        ({"node_feat": 200}, "node_feat: column 1 is 200"),
        ({"edge_feat": "shuffled"}, "bonds do not come in both directions"),
    ],
)
def test_unlabelled_graphs_amiss_are_named(miniatures: Any, tmp_path: Path, change: dict[str, Any], says: str) -> None:
    miniatures.molpcba_unlabeled(tmp_path)
    path = tmp_path / "molpcba_unlabeled" / "raw" / "data.npz"
    with np.load(path) as kept:
        arrays = dict(kept)
    for name, value in change.items():
        if value is None:
            del arrays[name]
        elif isinstance(value, int):
            arrays[name][:, 0] = value
        else:
            arrays[name] = value if isinstance(value, np.ndarray) else np.roll(arrays[name], 1, axis=0)
    np.savez(path, **arrays)
    with pytest.raises(DataMissing, match=says) as caught:
        read_binary_graphs(path, np.arange(30))
    assert str(path) in str(caught.value)


def evaluator() -> Any:
    """OGB's own; without the look-up of newer versions that its import does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "outdated", None)
        return pytest.importorskip("ogb.graphproppred.evaluate").Evaluator("ogbg-molpcba")


def test_average_precision_is_that_of_ogb(bundles: Bundles, miniature: Miniature) -> None:
    task, bundle = miniature(NAME), bundles(NAME)
    split, official = task.split(bundle, 0), evaluator()
    for part in ("validation", "test"):
        labels = task.labels(bundle.private(), getattr(split, part))
        logits = np.random.default_rng(0).normal(size=labels.shape).astype(np.float32) + np.nan_to_num(labels)
        expected = official.eval({"y_true": labels, "y_pred": logits})["ap"]
        assert task.score(logits, labels).metrics["average_precision"] == pytest.approx(expected, abs=1e-9)
    assert task.score(logits, np.ones_like(labels)).metrics == {"average_precision": 0.0}


def test_features_are_counted_as_ogb_does() -> None:
    evaluator()
    features = pytest.importorskip("ogb.utils.features")
    assert features.get_atom_feature_dims() == list(ATOM)
    assert features.get_bond_feature_dims() == list(BOND)


def test_unknown_labels_have_no_loss(miniature: Miniature) -> None:
    logits = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    targets = torch.tensor([[1.0, torch.nan], [torch.nan, torch.nan], [0.0, 1.0]])
    z = logits.detach()
    expected = (F.softplus(-z[0, 0]) + F.softplus(z[2, 0]) + F.softplus(-z[2, 1])) / 3
    loss = miniature(NAME).loss(logits, targets)
    assert float(loss.detach()) == pytest.approx(float(expected), abs=1e-12)
    [gradient] = torch.autograd.grad(loss, logits)
    assert gradient.isfinite().all()
    assert not gradient[1].any()


def slow(net: GinVirtual, graph: torch.Tensor) -> torch.Tensor:
    """One graph, atom by atom and bond by bond, in eval mode."""
    n, e = int(graph[0, 0]), int(graph[0, 1])
    h = [net.atoms(graph[1 + atom][None])[0] for atom in range(n)]
    virtual = net.virtual[0]
    for layer, update in enumerate(net.updates):
        h = [value + virtual for value in h]
        around = [torch.zeros_like(virtual) for _ in range(n)]
        for row in graph[n + 1 : n + e + 1]:
            a, b, bond = int(row[0]), int(row[1]), net.bonds[layer](row[None, 2:5])[0]
            around[b] = around[b] + F.relu(h[a] + bond)
            around[a] = around[a] + F.relu(h[b] + bond)
        new = [(1 + net.eps[layer]) * own + other for own, other in zip(h, around, strict=True)]
        new = [net.norms[layer](update(value[None]))[0] for value in new]
        if layer < len(net.updates) - 1:
            virtual = net.virtual_updates[layer]((sum(h) + virtual)[None])[0]
            new = [F.relu(value) for value in new]
        h = new
    return net.classifier(sum(h) / n)


def test_the_network_equals_a_loop_over_atoms_and_bonds(bundles: Bundles, miniature: Miniature) -> None:
    torch.manual_seed(0)
    net = GinVirtual(5, layers=3, size=6).double().eval()
    for name, value in net.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.rand_like(value) + 0.5 if "var" in name else torch.randn_like(value))
    graphs = miniature(NAME).inputs(bundles(NAME).public(), np.arange(6))
    with torch.no_grad():
        together = net(graphs)
        for row, graph in enumerate(graphs):
            torch.testing.assert_close(together[row], slow(net, graph), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(net(graphs[2:4, : int(graphs[2:4, 0, :2].sum(1).max()) + 1]), together[2:4])


def test_the_published_network() -> None:
    # OGB states 3,374,533 parameters; since then the chirality of an atom has a fifth value, with an embedding of 300.
    net = GinVirtual(128)
    assert sum(parameter.numel() for parameter in net.parameters()) == 3_374_533 + 300


def test_a_run_and_its_files(at_home: Path, bundles: Bundles, miniature: Miniature, play: Callable[..., Any]) -> None:
    task, bundle = miniature(NAME), bundles(NAME)
    outcome = play(Erm(), task, bundle, limit=150.0, seed=1)
    with np.load(outcome.predictions) as kept:
        logits = dict(kept)
    assert set(logits) == {"validation", "test"}
    files = task.submission(1, logits)
    assert set(files) == {f"{NAME}/{NAME}_split:{split}_seed:1_pred.csv" for split in ("val", "test")}
    given = np.array(
        [ast.literal_eval(line) for line in files[f"{NAME}/{NAME}_split:test_seed:1_pred.csv"].splitlines()]
    )
    labels = task.labels(bundle.private(), task.split(bundle, 1).test)
    expected = evaluator().eval({"y_true": labels, "y_pred": given})["ap"]
    assert outcome.metrics["average_precision"] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("raw/node-feat", lambda rows: [*rows[:3], "1,2,3,4,5,5,5,7,1", *rows[4:]], "row 4: column 8 is 7"),
        ("raw/node-feat", lambda rows: rows[:-1], "its graphs"),
        ("raw/edge", lambda rows: ["0,99", *rows[1:]], "row 1: its graph has"),
        ("raw/graph-label", lambda rows: [*rows[:2], rows[2].replace("1.0", "os", 1), *rows[3:]], "row 3: column"),
        ("raw/num-node-list", lambda rows: ["0", *rows[1:]], "row 1: column 1 is 0"),
        ("split/scaffold/test", lambda rows: ["40", *rows[1:]], "row 1: column 1 is 40"),
        ("split/scaffold/test", lambda rows: rows[1:], "1 graphs are in no split"),
    ],
)
def test_what_is_wrong_is_named(
    miniatures: Any, miniature: Miniature, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, change: Any,
    expected: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("SELFBENCH_DATA", str(tmp_path))
    miniatures.ogb_molpcba(tmp_path / "wilds")
    path = tmp_path / "wilds" / "ogbg_molpcba" / f"{name}.csv.gz"
    rows = gzip.decompress(path.read_bytes()).decode().splitlines()
    path.write_bytes(gzip.compress(("\n".join(change(rows)) + "\n").encode()))
    with pytest.raises(DataMissing) as caught:
        miniature(NAME).build(Data(tmp_path))
    assert str(path.parent) in str(caught.value)
    assert expected in str(caught.value)
    assert "Unpack the published archive again" in str(caught.value)


def test_pseudo_labels_of_several_labels_equal_a_loop(miniature: Miniature) -> None:
    """Each label by itself: kept where max(p, 1 - p) >= tau; the mean is over all labels of all molecules."""
    draw = torch.Generator().manual_seed(1)
    logits = (2 * torch.randn(4, 6, dtype=torch.float64, generator=draw)).requires_grad_()
    task = miniature(NAME)
    total, kept = torch.zeros((), dtype=torch.float64), 0
    for z in logits.flatten():
        p = 1 / (1 + float(torch.exp(-z.detach())))
        if max(p, 1 - p) >= 0.7:
            total, kept = total + (F.softplus(-z) if p > 0.5 else F.softplus(z)), kept + 1
    assert 0 < kept < 24
    loss = task.pseudo_label_loss(logits, logits, 0.7)
    assert loss.item() == pytest.approx(total.item() / 24, abs=1e-12)
    own, expected = (torch.autograd.grad(value, logits)[0] for value in (loss, total / 24))
    torch.testing.assert_close(own, expected, rtol=0, atol=1e-12)
    assert torch.equal(task.targets(logits.detach()), (logits > 0).double())
