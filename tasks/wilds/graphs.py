"""Molecules as graphs: OGB's files as arrays, a batch of graphs as one tensor, and the network of WILDS on it.

A batch is (B, R, 9) of whole numbers. Of each graph, row 0 holds its numbers n of atoms and e of bonds, rows 1 to n the
nine features of the atoms, rows n + 1 to n + e the bonds: two atoms and three features; the rest is 0. So nothing of
PyTorch Geometric is needed, and batches are joined like those of any other task.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...suite.bundle import Array
from ...suite.errors import DataMissing
from .tables import REMEDY

ATOM = (119, 5, 12, 12, 10, 6, 6, 2, 2)
BOND = (5, 6, 2)
"""Values of each feature, as OGB counts them."""
WIDTH = len(ATOM)


def read_numbers(path: Path, columns: int, high: Sequence[float], low: float = 0, empty: bool = False) -> Array:
    """A table (N, `columns`) without a header, each column from `low` to below its `high`; float64 with NaN if `empty`.

    Raises `DataMissing` naming file, row and remedy.
    """
    import pandas

    try:
        table = pandas.read_csv(path, header=None, keep_default_na=False, na_values=[""], low_memory=False)
        values = table.to_numpy()
    except (OSError, ValueError, EOFError, pandas.errors.ParserError) as error:
        raise DataMissing(f"{path} cannot be read as a table: {error}. {REMEDY}") from None
    if values.shape[1] != columns:
        raise DataMissing(f"{path} has {values.shape[1]} columns, expected {columns}. {REMEDY}")
    numbers = np.column_stack([pandas.to_numeric(table[column], errors="coerce") for column in table])
    missing = table.isna().to_numpy()
    with np.errstate(invalid="ignore"):
        good = (numbers >= low) & (numbers < np.asarray(high)) & (numbers == np.floor(numbers))
    bad = np.argwhere(~(good | (missing & empty)))
    if len(bad):
        row, column = bad[0]
        cell = values[row, column]
        raise DataMissing(
            f"{path}, row {row + 1}: column {column + 1} is {cell}, expected a whole number from "
            f"{low:g} to {np.asarray(high)[column] - 1:g} ({len(bad):,} cells in all). {REMEDY}"
        )
    return numbers if empty else numbers.astype(np.int64)


def read_graphs(folder: Path) -> tuple[Array, Array]:
    """OGB's `raw` folder as rows int16 (S, 9), graph after graph, and their ends int64 (N + 1,)."""
    nodes = read_numbers(folder / "num-node-list.csv.gz", 1, [2**15], low=1)[:, 0]
    bonds = read_numbers(folder / "num-edge-list.csv.gz", 1, [2**15])[:, 0]
    atoms = read_numbers(folder / "node-feat.csv.gz", WIDTH, ATOM)
    features = read_numbers(folder / "edge-feat.csv.gz", len(BOND), BOND)
    edges = read_numbers(folder / "edge.csv.gz", 2, [2**15] * 2)
    for what, rows, counts in (("node-feat", atoms, nodes), ("edge-feat", features, bonds), ("edge", edges, bonds)):
        if len(rows) != counts.sum():
            raise DataMissing(f"{folder / what}.csv.gz has {len(rows):,} rows, its graphs {counts.sum():,}. {REMEDY}")
    if len(nodes) != len(bonds):
        raise DataMissing(f"{folder}: {len(nodes):,} graphs by their atoms, {len(bonds):,} by their bonds. {REMEDY}")
    return _graph_after_graph(nodes, bonds, atoms, edges, features, folder / "edge.csv.gz")


def read_binary_graphs(path: Path, chosen: Array) -> tuple[Array, Array]:
    """The graphs `chosen` (N,) of OGB's `data.npz`, as rows int16 (S, 9), graph after graph, and their ends (N + 1,).

    OGB writes each bond of such a file in both directions, one after the other (`smiles2graph`); one is kept. Raises
    `DataMissing` naming file and remedy.
    """
    names = ("num_nodes_list", "num_edges_list", "node_feat", "edge_feat", "edge_index")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            nodes, directed, atoms, features, edges = (arrays[name] for name in names)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataMissing(f"{path} cannot be read as arrays {', '.join(names)}: {error}. {REMEDY}") from None
    n, a, e = len(nodes), int(nodes.sum()), int(directed.sum())
    found = (len(directed), atoms.shape, features.shape, edges.shape)
    if found != (n, (a, WIDTH), (e, len(BOND)), (2, e)):
        raise DataMissing(f"{path}: the shapes {found} are not those of {n:,} graphs of {a:,} atoms. {REMEDY}")
    if chosen.max(initial=-1) >= n:
        raise DataMissing(f"{path} has {n:,} graphs, and number {chosen.max():,} is asked for. {REMEDY}")
    first_atom, first_edge = np.cumsum(nodes) - nodes, np.cumsum(directed) - directed
    nodes, directed = nodes[chosen].astype(np.int64), directed[chosen].astype(np.int64)
    atoms, at = atoms[_places(first_atom[chosen], nodes)], _places(first_edge[chosen], directed)
    edges, features = edges[:, at].T, features[at]
    if (directed % 2).any() or (edges[::2] != edges[1::2, ::-1]).any() or (features[::2] != features[1::2]).any():
        raise DataMissing(f"{path}: bonds do not come in both directions, one after the other. {REMEDY}")
    for what, values, limits in (("node_feat", atoms, ATOM), ("edge_feat", features, BOND)):
        outside = np.argwhere((values < 0) | (values >= np.array(limits)))
        if len(outside):
            raise DataMissing(f"{path}, {what}: column {outside[0][1] + 1} is {values[tuple(outside[0])]}. {REMEDY}")
    return _graph_after_graph(nodes, directed // 2, atoms, edges[::2], features[::2], path)


def _graph_after_graph(
    nodes: Array, bonds: Array, atoms: Array, edges: Array, features: Array, path: Path
) -> tuple[Array, Array]:
    """Counts (N,), (N,), features of atoms (A, 9), ends (E, 2) and features (E, 3) of bonds as rows and ends."""
    of_bond = np.repeat(np.arange(len(bonds)), bonds)
    outside = np.flatnonzero((edges >= nodes[of_bond][:, None]).any(axis=1))
    if len(outside):
        row, atoms_there = outside[0] + 1, nodes[of_bond[outside[0]]]
        raise DataMissing(f"{path}, row {row}: its graph has {atoms_there} atoms. {REMEDY}")
    ends = np.concatenate([[0], np.cumsum(1 + nodes + bonds)])
    rows = np.zeros((ends[-1], WIDTH), np.int16)
    rows[ends[:-1], 0], rows[ends[:-1], 1] = nodes, bonds
    rows[_places(ends[:-1] + 1, nodes)] = atoms
    at = _places(ends[:-1] + 1 + nodes, bonds)
    rows[at, :2], rows[at, 2:5] = edges, features
    return rows, ends


def _places(begin: Array, counts: Array) -> Array:
    """begin_i, begin_i + 1, ..., begin_i + counts_i - 1 for all i, one after the other."""
    steps = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    places: Array = np.repeat(begin, counts) + steps
    return places


def padded_graphs(rows: Array, ends: Array, indices: Array, most: int) -> Tensor:
    """The graphs `indices` as int64 (B, `most`, 9)."""
    begin, end = ends[indices][:, None], ends[indices + 1][:, None]
    where = begin + np.arange(most)
    inside = where < end
    return torch.from_numpy(rows[np.where(inside, where, 0)].astype(np.int64) * inside[:, :, None])


class GinVirtual(nn.Module):
    """A graph isomorphism network with a virtual node (Hu et al. 2020, arXiv:2005.00687): graphs (B, R, 9) -> (B, K).

        v^0 = 0
        h^0 = sum of the embeddings of an atom's features
        h' = h^l + v^l of its graph
        h^{l+1} = BN(MLP_l((1 + eps_l) h' + sum over bonds (a, b) of ReLU(h'_a + bond embedding)))
        v^{l+1} = MLP'_l(v^l + sum of h' over the graph)

    with ReLU and dropout after each layer, the last one without ReLU; the mean over a graph's atoms is classified.
    """

    def __init__(self, n_labels: int, layers: int = 5, size: int = 300, dropout: float = 0.5) -> None:
        super().__init__()
        self.dropout = dropout
        self.atoms = Embeddings(ATOM, size)
        self.virtual = nn.Parameter(torch.zeros(1, size))
        self.bonds = nn.ModuleList(Embeddings(BOND, size) for _ in range(layers))
        self.eps = nn.ParameterList(nn.Parameter(torch.zeros(1)) for _ in range(layers))
        self.updates = nn.ModuleList(
            nn.Sequential(nn.Linear(size, 2 * size), nn.BatchNorm1d(2 * size), nn.ReLU(), nn.Linear(2 * size, size))
            for _ in range(layers)
        )
        self.norms = nn.ModuleList(nn.BatchNorm1d(size) for _ in range(layers))
        self.virtual_updates = nn.ModuleList(
            nn.Sequential(
                nn.Linear(size, 2 * size), nn.BatchNorm1d(2 * size), nn.ReLU(),
                nn.Linear(2 * size, size), nn.BatchNorm1d(size), nn.ReLU(),
            )
            for _ in range(layers - 1)
        )  # fmt: skip
        self.classifier = nn.Linear(size, n_labels)

    def forward(self, graphs: Tensor) -> Tensor:
        n, e = graphs[:, 0, 0], graphs[:, 0, 1]
        place = torch.arange(graphs.size(1), device=graphs.device)
        is_atom = (place >= 1) & (place <= n[:, None])
        is_bond = (place > n[:, None]) & (place <= (n + e)[:, None])
        numbers = torch.arange(len(graphs), device=graphs.device)
        of_atom, first = torch.repeat_interleave(numbers, n), torch.cumsum(n, 0) - n
        bonds = graphs[is_bond]
        ends = bonds[:, :2] + torch.repeat_interleave(first, e)[:, None]
        # A bond leads both ways.
        start, stop = torch.cat([ends[:, 0], ends[:, 1]]), torch.cat([ends[:, 1], ends[:, 0]])
        features = bonds[:, 2:5].repeat(2, 1)
        h, virtual = self.atoms(graphs[is_atom]), self.virtual.expand(len(graphs), -1)
        for layer, update in enumerate(self.updates):
            h = h + virtual[of_atom]
            message = F.relu(h[start] + self.bonds[layer](features))
            around = torch.zeros_like(h).index_add_(0, stop, message)
            new = self.norms[layer](update((1 + self.eps[layer]) * h + around))
            last = layer == len(self.updates) - 1
            if not last:
                whole = torch.zeros_like(virtual).index_add(0, of_atom, h) + virtual
                virtual = F.dropout(self.virtual_updates[layer](whole), self.dropout, self.training)
            h = F.dropout(new if last else F.relu(new), self.dropout, self.training)
        mean = h.new_zeros(len(graphs), h.size(1)).index_add_(0, of_atom, h) / n.clamp_min(1)[:, None]
        logits: Tensor = self.classifier(mean)
        return logits


class Embeddings(nn.Module):
    """The sum of an embedding of each feature: (N, F) -> (N, size)."""

    def __init__(self, values: Sequence[int], size: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(number, size) for number in values)
        for table in self.tables:
            nn.init.xavier_uniform_(table.weight)  # type: ignore[arg-type]

    def forward(self, features: Tensor) -> Tensor:
        total: Tensor = sum(table(features[:, column]) for column, table in enumerate(self.tables))
        return total
