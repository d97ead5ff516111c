"""What the WILDS 2.0 tasks share (Sagawa et al. 2022, arXiv:2112.05090; Koh et al. 2021, arXiv:2012.07421).

Data lies below `<data root>/wilds/` as WILDS publishes it; `wilds` itself reads the tables, makes the official splits
and computes the official metrics. The official out-of-domain validation set is `validation`, the in-domain one
`source_validation`, the out-of-domain test set `test` and the in-domain one `source_test`, where a data set has them.

The metadata of WILDS holds the classes, of the unlabelled examples too: in four sets these are the true ones. No
metadata gets into the public arrays; a method that needs domains is told their numbers and nothing else.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from ...suite.bundle import Array, Bundle, BundleFolder
from ...suite.data import Data
from ...suite.errors import DataMissing, UsageError
from ...suite.places import data_folder
from ...suite.protocols.adaptation import AdaptationTask, Split
from ...suite.scoring import Scores, score_classification
from .compat import usable
from .tables import REMEDY, Column, check_tables

OFFICIAL = {"test": "test", "validation": "val", "source_validation": "id_val", "source_test": "id_test"}
"""What WILDS calls the parts of a split."""
UNLABELED = "unlabeled"
NO_LABEL = -100
MOST_GROUPS = 100


class WildsTask(AdaptationTask):
    """A classification set of WILDS. A subclass adds how examples become arrays (`arrays`) and tensors (`inputs`).

    Examples are numbered: the labelled ones of all official splits in the order of the package's data set, then the
    unlabelled ones. Private arrays: `split` int8 (N + U,), numbers into the fact `splits`; `metadata` int64 (N, F), the
    official metadata, classes among them, from which metrics are computed; `labels` int64 (N + U,), -100 where none is
    known; `domains` int64 (N + U,).
    """

    data_name: ClassVar[str]
    """The data set's description in `tasks/datasets.toml`."""
    dataset: ClassVar[str]
    """The data set's name in `wilds`."""
    unlabeled_split: ClassVar[str | None]
    """The official unlabelled split that methods are shown."""
    domain: ClassVar[str | None] = None
    """The field of the metadata that numbers the domains, as in the published runs of CORAL and DANN."""
    official_metrics: ClassVar[Mapping[str, str]]
    """Official metric -> its name here, the one that ranks first."""
    replicates: ClassVar[int] = 3
    columns: ClassVar[tuple[Column, ...]]
    published_counts: ClassVar[bool] = True
    """False allows tables with fewer rows than published: miniatures."""
    lazy: ClassVar[bool] = True
    keep_predictions: ClassVar[bool] = True

    def build(self, data: Data) -> Bundle:
        root = self._root(data)
        self.check(root)
        self.tell("reading tables")
        labeled = self._load(root)
        if labeled.n_classes != self.n_classes:
            raise DataMissing(
                f"{labeled.data_dir} has {labeled.n_classes} classes, expected {self.n_classes}. {REMEDY}"
            )
        names = [name for name in ("train", *OFFICIAL.values()) if name in labeled.split_dict]
        rows, split = _rows(labeled, names)
        metadata = labeled.metadata_array.numpy()[rows].astype(np.int64)
        fields = list(labeled.metadata_fields)
        of_class, of_domain = [labeled.y_array.numpy()[rows]], [_column(metadata, fields, self.domain)]
        parts = [self.arrays(data, labeled, rows)]
        if self.unlabeled_split is not None:
            pool = self._load(root, unlabeled=True)
            if self.unlabeled_split not in pool.split_dict:
                raise UsageError(
                    f"WILDS' {self.dataset} has no unlabelled split '{self.unlabeled_split}'; it has "
                    f"{', '.join(pool.split_dict)}."
                )
            chosen, _ = _rows(pool, [self.unlabeled_split])
            of_class.append(_hidden(pool)[chosen])
            of_domain.append(_column(pool.metadata_array.numpy()[chosen], list(pool.metadata_fields), self.domain))
            split = np.concatenate([split, np.full(len(chosen), len(names), np.int8)])
            parts.append(self.arrays(data, pool, chosen))
        sizes = {name: int((split == number).sum()) for number, name in enumerate([*names, UNLABELED])}
        empty = [name for name in names if not sizes[name]]
        if empty:
            raise DataMissing(f"{labeled.data_dir} has no row in the official split '{empty[0]}'. {REMEDY}")
        return Bundle(
            public=self.joined(parts),
            private={
                "split": split,
                "metadata": metadata,
                "labels": np.concatenate(of_class).astype(np.int64),
                "domains": np.concatenate(of_domain),
            },
            facts={"splits": [*names, UNLABELED], "sizes": sizes, "metadata_fields": fields},
        )

    def check(self, root: Path) -> None:
        """Raise `DataMissing` naming file, row and remedy where a table below `root` is not as published."""
        check_tables(root, self.columns)

    def arrays(self, data: Data, dataset: Any, rows: Array) -> dict[str, Array]:
        """What the examples `rows` of a data set of `wilds` need in the public arrays; no label may be among it."""
        raise NotImplementedError

    def joined(self, parts: list[dict[str, Array]]) -> dict[str, Array]:
        """The public arrays from those of the labelled and, where there are some, of the unlabelled examples."""
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def split(self, bundle: BundleFolder, seed: int) -> Split:
        """The official split, the same for every seed; examples stand in official order."""
        private, names = bundle.private(), bundle.facts["splits"]
        where = {name: np.flatnonzero(private["split"] == number) for number, name in enumerate(names)}
        labeled, unlabeled, none = where["train"], where[UNLABELED], np.empty(0, np.int64)
        return Split(
            labeled=labeled,
            labels=np.asarray(private["labels"][labeled]),
            unlabeled=unlabeled,
            labeled_domains=np.asarray(private["domains"][labeled]) if self.domain else none,
            unlabeled_domains=np.asarray(private["domains"][unlabeled]) if self.domain else none,
            **{ours: where.get(theirs, none) for ours, theirs in OFFICIAL.items()},
        )

    def labels(self, private: Mapping[str, Array], indices: Array) -> Array:
        """The official metadata (N, F) of labelled examples, their classes among it."""
        return np.asarray(private["metadata"][indices])

    def score(self, logits: Array, labels: Array) -> Scores:
        """The official metrics through the data set's own `eval`, and those of every classification."""
        metadata = torch.from_numpy(labels)
        y = metadata[:, self._scoring.metadata_fields.index("y")]
        results = self.official(torch.from_numpy(logits.argmax(axis=1)), y, metadata)
        metrics = score_classification(logits, y.numpy()).metrics
        metrics |= {ours: float(results[theirs]) for theirs, ours in self.official_metrics.items()}
        groups = {
            name.removeprefix("acc_"): float(value)
            for name, value in results.items()
            if name.startswith("acc_") and results.get(f"count_{name.removeprefix('acc_')}", 0) > 0
        }
        shown = {"accuracy": groups} if 0 < len(groups) <= MOST_GROUPS else {}
        return Scores(metrics, len(y), shown)

    def official(self, predicted: Any, y: Any, metadata: torch.Tensor) -> dict[str, Any]:
        """What `eval` of the package's data set says of predicted classes (N,), or what it takes in their place."""
        with usable(self.published_counts), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            results: dict[str, Any] = self._scoring.eval(predicted, y, metadata)[0]
        return results

    def submission(self, seed: int, predicted: Mapping[str, Array]) -> Mapping[str, str | bytes]:
        """One file a set, a class a line in official order; the evaluator finds it by how its name begins."""
        return {
            f"{self.dataset}/{self.dataset}_split:{OFFICIAL[part]}_seed:{seed}_pred.csv": "".join(
                f"{number}\n" for number in classes
            )
            for part, classes in predicted.items()
        }

    @functools.cached_property
    def _scoring(self) -> Any:
        """The labelled data set, for its metrics: they group by fields whose ranges stand in its tables."""
        return self._load(self._root(Data(data_folder())))

    def _root(self, data: Data) -> Path:
        """The folder that holds the published folders; raises `DataMissing` naming the first that is not there."""
        for member in data.describe(self.data_name).members:
            data.file(self.data_name, member.name)
        return data.folder(self.data_name)

    def _load(self, root: Path, unlabeled: bool = False, **options: Any) -> Any:
        with usable(self.published_counts) as wilds, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return wilds.get_dataset(
                    self.dataset, root_dir=str(root), download=False, unlabeled=unlabeled, **options
                )
            except Exception as error:  # every way in which tables can fail a reader that does not look
                what = "unlabelled data" if unlabeled else "data"
                raise DataMissing(
                    f"wilds cannot read the {what} of {self.dataset} below {root} ({type(error).__name__}: {error}); "
                    f"rows or columns are not as published. {REMEDY}"
                ) from error


def _rows(dataset: Any, names: list[str]) -> tuple[Array, Array]:
    """The rows of the splits `names`, in the order of the data set, and the number of each one's split."""
    codes = np.asarray(dataset.split_array).astype(np.int64)
    split = np.full(len(codes), -1, np.int8)
    for number, name in enumerate(names):
        split[codes == dataset.split_dict[name]] = number
    rows = np.flatnonzero(split >= 0)
    return rows, split[rows]


def _hidden(pool: Any) -> Array:
    """The labels that the package keeps of unlabelled examples, for the private arrays alone."""
    # The property of this name refuses; what the package hands out on request is this array.
    known: Array = pool._y_array.numpy()
    return np.where(known < 0, NO_LABEL, known)


def _column(metadata: Array, fields: list[str], name: str | None) -> Array:
    """The column of the field `name`, zeros for None; classes are not a domain."""
    if name is None:
        return np.zeros(len(metadata), np.int64)
    if name == "y":
        raise ValueError("domains may not tell classes")
    return metadata[:, fields.index(name)].astype(np.int64)
