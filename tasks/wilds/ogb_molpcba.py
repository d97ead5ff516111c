"""OGB-MolPCBA: activities of molecules, new scaffolds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor, nn
from torch.nn import functional as F

from ...suite.bundle import Array, Bundle
from ...suite.data import Data
from ...suite.errors import DataMissing
from ...suite.protocols.adaptation import Recipe
from ...suite.protocols.optimisation import constant
from ...suite.registry import register_task
from ...suite.scoring import Scores
from .graphs import GinVirtual, padded_graphs, read_binary_graphs, read_graphs, read_numbers
from .tables import REMEDY
from .task import OFFICIAL, UNLABELED, WildsTask

_FOLDER, _POOL = "ogbg_molpcba", "molpcba_unlabeled"
_SPLITS = {"train": "train", "val": "valid", "test": "test"}
LABELS = 128


@register_task(
    "wilds-ogb-molpcba",
    protocol="adaptation",
    version="1",
    metric="average_precision",
    title="OGB-MolPCBA, without unlabelled molecules",
    budget={"currency": "passes", "limit": 105102900, "wall_seconds": 172800.0, "memory_mb": 32768},
    data=("wilds-ogb-molpcba",),
    grants=("norm-layers", "batch-norm", "domains"),
    tags=("gpu", "wilds"),
    selection="validation",
    preset="wilds-ogb-molpcba",
    outputs="labels",
    variants={
        "wilds-ogb-molpcba-unlabeled": {
            "title": "OGB-MolPCBA, unlabelled molecules of the test's scaffolds",
            "data": ("wilds-ogb-molpcba", "wilds-ogb-molpcba-unlabeled"),
            "bundle": "wilds-ogb-molpcba-unlabeled",
            "set": {"unlabeled_split": "test_unlabeled"},
        },
    },
)
class WildsOgbMolpcba(WildsTask):
    """Molecules as graphs, active or not in each of 128 assays, most of them unknown; tested on other scaffolds.

    350,343 labelled molecules. The variant with unlabelled ones, which the package fetches from the web whatever it is
    told, reads the files that OGB's own reader does; their archive is not to be had today, so that this was tried on
    miniatures alone. Published recipe: a graph isomorphism network with a virtual node, Adam at a constant rate; the
    budget is that of its hundred epochs. Domains are scaffolds. The metric is that of OGB: the mean of the average
    precision over the assays that have both active and inactive molecules.

    Files are OGB's, read without its package and without PyTorch Geometric (`graphs`). Nothing is augmented.

    Public arrays: `rows` int16 (S, 9) and `ends` int64 (N + 1,), the graphs one after the other. Private arrays as in
    all tasks of WILDS, but `labels` float32 (N, 128), NaN where unknown.
    """

    data_name: ClassVar[str] = "wilds-ogb-molpcba"
    dataset: ClassVar[str] = "ogb-molpcba"
    unlabeled_split: ClassVar[str | None] = None
    domain: ClassVar[str | None] = "scaffold"
    official_metrics: ClassVar[Mapping[str, str]] = {"ap": "average_precision"}
    n_classes: ClassVar[int] = LABELS
    label_free: ClassVar[bool] = False
    evaluation_batch: ClassVar[int] = 512
    recipe: ClassVar[Recipe] = Recipe(
        optimizer="adam", lr=1e-3, weight_decay=0.0, batch_size=32, ema=0.0, points=50, schedule=constant
    )

    def build(self, data: Data) -> Bundle:
        root = self._root(data) / _FOLDER
        self.tell("reading graphs")
        rows, ends = read_graphs(root / "raw")
        n = len(ends) - 1
        labels = read_numbers(root / "raw" / "graph-label.csv.gz", LABELS, [2] * LABELS, empty=True)
        scaffolds = _scaffolds(root / "raw" / "scaffold_group.npy")
        for what, array in (("graph-label.csv.gz", labels), ("scaffold_group.npy", scaffolds)):
            if len(array) != n:
                raise DataMissing(f"{root / 'raw' / what} has {len(array):,} rows, expected {n:,}. {REMEDY}")
        split = np.full(n, -1, np.int8)
        for number, part in enumerate(_SPLITS.values()):
            split[read_numbers(root / "split" / "scaffold" / f"{part}.csv.gz", 1, [n])[:, 0]] = number
        if (split < 0).any():
            raise DataMissing(f"{root / 'split' / 'scaffold'}: {(split < 0).sum():,} graphs are in no split. {REMEDY}")
        metadata = scaffolds[:, None]
        if self.unlabeled_split is not None:
            pool, pool_ends, pool_scaffolds = self._pool(self._root(data) / _POOL)
            rows, ends = np.concatenate([rows, pool]), np.concatenate([ends, ends[-1] + pool_ends[1:]])
            split = np.concatenate([split, np.full(len(pool_scaffolds), len(_SPLITS), np.int8)])
            scaffolds = np.concatenate([scaffolds, pool_scaffolds])
        return Bundle(
            public={"rows": rows, "ends": ends},
            private={"split": split, "metadata": metadata, "labels": labels.astype(np.float32), "domains": scaffolds},
            facts={"splits": [*_SPLITS, UNLABELED], "metadata_fields": ["scaffold"]},
        )

    def _pool(self, folder: Path) -> tuple[Array, Array, Array]:
        """Rows and ends of the graphs of the unlabelled test split, and their scaffolds."""
        part = read_numbers(folder / "split" / "scaffold" / "test.csv.gz", 1, [2**31])[:, 0]
        scaffolds = _scaffolds(folder / "processed" / "group_assignment.npy")
        rows, ends = read_binary_graphs(folder / "raw" / "data.npz", part)
        if part.max(initial=-1) >= len(scaffolds):
            raise DataMissing(f"{folder / 'processed' / 'group_assignment.npy'} has {len(scaffolds):,} rows. {REMEDY}")
        return rows, ends, scaffolds[part]

    def inputs(self, public: Mapping[str, Array], indices: Array) -> Tensor:
        """Graphs int64 (B, R, 9), R rows for the largest of all."""
        ends = public["ends"]
        return padded_graphs(public["rows"], ends, indices, int(np.diff(ends).max()))

    def labels(self, private: Mapping[str, Array], indices: Array) -> Array:
        """float32 (N, 128), NaN where unknown."""
        return np.asarray(private["labels"][indices])

    def model(self) -> nn.Module:
        return GinVirtual(self.n_classes)

    def loss(self, outputs: Any, targets: Tensor) -> Tensor:
        """The binary cross-entropy of the known labels: (B, 128), (B, 128)."""
        known = targets.isfinite()
        losses = F.binary_cross_entropy_with_logits(outputs, targets.nan_to_num().to(outputs.dtype), reduction="none")
        return (losses * known).sum() / known.sum().clamp_min(1)

    def targets(self, outputs: Tensor) -> Tensor:
        """Yes or no to each label: (B, 128)."""
        return (outputs > 0).to(outputs.dtype)

    def pseudo_label_loss(self, outputs: Tensor, teacher: Tensor, threshold: float) -> Tensor:
        """The binary cross-entropy of those labels of which the teacher is sure, as published; the mean is over all.

        A label is sure where max(p, 1 - p) >= threshold, p = sigmoid(teacher): (B, 128), (B, 128).
        """
        p = teacher.detach().sigmoid()
        losses = F.binary_cross_entropy_with_logits(outputs, self.targets(teacher), reduction="none")
        return (losses * (torch.maximum(p, 1 - p) >= threshold)).mean()

    def score(self, logits: Array, labels: Array) -> Scores:
        """OGB's average precision; 0 where no assay has both kinds of molecules."""
        found = []
        for column in range(labels.shape[1]):
            known = np.isfinite(labels[:, column])
            true = labels[known, column]
            if (true == 1).any() and (true == 0).any():
                found.append(average_precision_score(true, logits[known, column]))
        return Scores({"average_precision": float(np.mean(found)) if found else 0.0}, len(labels))

    def predicted(self, sealed: Array) -> Array:
        """The logits (N, 128)."""
        return sealed

    def unpredicted(self, predicted: Array) -> Array:
        return predicted

    def submission(self, seed: int, predicted: Mapping[str, Array]) -> dict[str, str]:
        """One file a set, the 128 logits of a molecule a line."""
        return {
            f"ogb-molpcba/ogb-molpcba_split:{OFFICIAL[part]}_seed:{seed}_pred.csv": "".join(
                ",".join(map(repr, row)) + "\n" for row in rows.astype(np.float64).tolist()
            )
            for part, rows in predicted.items()
        }


def _scaffolds(path: Path) -> Array:
    try:
        found: Array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataMissing(f"{path} cannot be read as an array: {error}. {REMEDY}") from None
    if found.ndim != 1 or not np.issubdtype(found.dtype, np.integer):
        raise DataMissing(f"{path} holds {found.dtype} {found.shape}, expected whole numbers (N,). {REMEDY}")
    return found.astype(np.int64)
