"""PovertyMap-WILDS: wealth of villages from satellite pictures, new countries."""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...suite.bundle import Array, Bundle, BundleFolder
from ...suite.data import Data
from ...suite.errors import DataMissing, MethodError
from ...suite.places import data_folder
from ...suite.prepare.decoded import rows_of
from ...suite.protocols.adaptation import Recipe, Split
from ...suite.protocols.optimisation import steps
from ...suite.registry import register_task
from ...suite.scoring import Scores
from ...suite.seed_ranges import fold_of
from ..streams.models.libraries import torchvision_net
from .images import THREADS, with_sizes
from .multispectral_views import BANDS, crop_view, strong_view, weak_view
from .tables import REMEDY, Column, check_files
from .task import OFFICIAL, UNLABELED, WildsTask

FOLDS = "ABCDE"
_LABELED, _UNLABELED = "poverty_v1.1", "poverty_unlabeled_v1.0"
_COUNTRIES = (
    "angola", "benin", "burkina_faso", "cameroon", "cote_d_ivoire", "democratic_republic_of_congo", "ethiopia", "ghana",
    "guinea", "kenya", "lesotho", "malawi", "mali", "mozambique", "nigeria", "rwanda", "senegal", "sierra_leone",
    "tanzania", "togo", "uganda", "zambia", "zimbabwe",
)  # fmt: skip
_EPOCHS = 200


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataMissing(f"{path} cannot be read: {error.strerror}. {REMEDY}") from None


@register_task(
    "wilds-poverty",
    protocol="adaptation",
    version="1",
    metric="worst_group_correlation",
    title="PovertyMap-WILDS, unlabelled pictures of the test countries",
    budget={"currency": "passes", "limit": 5878200, "wall_seconds": 172800.0, "memory_mb": 16384},
    data=("wilds-poverty",),
    grants=("images", "norm-layers", "batch-norm", "convolutions", "strong-augmentation", "domains"),
    tags=("gpu", "wilds"),
    selection="validation",
    preset="wilds-poverty",
    outputs="numbers",
    folds=5,
    decoded={"pictures": 281065, "shape": (8, 224, 224), "dtype": "float32"},
)
class WildsPoverty(WildsTask):
    """Eight bands of 224 x 224 pixels to an index of wealth; the worse of Pearson's r in town and country counts.

    19,669 labelled pictures of 23 countries and 261,396 unlabelled ones. The seeds 0 to 4 stand for the official folds
    A to E, which put other countries into the test: there is no other seed but those of tuning, which repeat the folds.
    Of the unlabelled pictures those of the fold's test countries are shown. Published recipe: ResNet-18 from scratch
    with eight channels, squared error, Adam whose rate falls by 4 % after each epoch; the budget is that of 200 epochs
    of fold A. Domains are countries.

    Predictions that do not vary have no correlation; it counts as 0 here, where the package fails.

    Private arrays as in all tasks of WILDS, but `split` int8 (5, N + U), one row a fold, and `metadata` float64.
    """

    data_name: ClassVar[str] = "wilds-poverty"
    dataset: ClassVar[str] = "poverty"
    unlabeled_split: ClassVar[str | None] = "test_unlabeled"
    domain: ClassVar[str | None] = "country"
    official_metrics: ClassVar[Mapping[str, str]] = {
        "r_wg": "worst_group_correlation",
        "r_all": "correlation",
        "mse_avg": "mean_squared_error",
    }
    replicates: ClassVar[int] = len(FOLDS)
    n_classes: ClassVar[int] = 1
    label_free: ClassVar[bool] = False
    side: ClassVar[int] = 224
    evaluation_batch: ClassVar[int] = 128
    recipe: ClassVar[Recipe] = Recipe(
        optimizer="adam", lr=1e-3, weight_decay=0.0, batch_size=64, ema=0.0, points=50, schedule=steps(_EPOCHS, 0.96)
    )
    columns: ClassVar[tuple[Column, ...]] = (
        Column(f"{_LABELED}/dhs_metadata.csv", "country", values=_COUNTRIES),
        Column(f"{_LABELED}/dhs_metadata.csv", "wealthpooled", low=-100, high=100),
        Column(f"{_LABELED}/dhs_metadata.csv", "urban", values=(True, False, "True", "False")),
        Column(f"{_UNLABELED}/unlabeled_metadata.csv", "country", values=_COUNTRIES),
    )

    def build(self, data: Data) -> Bundle:
        root = self._root(data)
        self.check(root)
        self.tell("reading tables")
        labeled, pool = self._load(root), self._load(root, unlabeled=True)
        names = ["train", *OFFICIAL.values()]
        split = np.full((len(FOLDS), len(labeled) + len(pool)), -1, np.int8)
        for row, fold in enumerate(FOLDS):
            codes = self._load(root, fold=fold).split_array
            for number, name in enumerate(names):
                split[row, : len(labeled)][codes == labeled.split_dict[name]] = number
                if not (codes == labeled.split_dict[name]).any():
                    raise DataMissing(f"{labeled.data_dir} has no row in '{name}' of fold {fold}. {REMEDY}")
            shown = self._load(root, unlabeled=True, fold=fold).split_array == pool.split_dict[self.unlabeled_split]
            split[row, len(labeled) :][shown] = len(names)
        # The last field, whether an example is of a training country, is another one in each fold; no metric needs it.
        metadata, fields = labeled.metadata_array.numpy()[:, :-1].astype(np.float64), labeled.metadata_fields[:-1]
        country, y = fields.index("country"), fields.index("y")
        domains = np.concatenate([metadata[:, country], pool.metadata_array.numpy()[:, country]])
        bundle = Bundle(
            public={"paths": self._paths(root, ((_LABELED, len(labeled)), (_UNLABELED, len(pool))))},
            private={
                "split": split,
                "metadata": metadata,
                "labels": metadata[:, y].astype(np.float32)[:, None],
                "domains": domains.astype(np.int64),
            },
            facts={"splits": [*names, UNLABELED], "metadata_fields": list(fields)},
        )
        return with_sizes(bundle, root)

    def _paths(self, root: Path, parts: tuple[tuple[str, int], ...]) -> Array:
        names = [f"{part}/images/landsat_poverty_img_{row}.npz" for part, rows in parts for row in range(rows)]
        check_files(root, names, f"{root / _LABELED} or {_UNLABELED}", self.tell)
        return np.array([name.encode() for name in names], dtype=np.bytes_)

    def split(self, bundle: BundleFolder, seed: int) -> Split:
        """The official split of a fold; examples stand in official order.

        The seeds 0 to 4 are the folds A to E, those of tuning, from 100, the same in turn.
        """
        fold = fold_of(seed, len(FOLDS))
        if fold is None:
            raise MethodError(
                f"wilds-poverty has the seeds 0 to 4, its folds A to E, and no seed {seed}. Type -s 0-4, or for tuning "
                "one of 100 to 104."
            )
        private, names = bundle.private(), bundle.facts["splits"]
        codes = private["split"][fold]
        where = {name: np.flatnonzero(codes == number) for number, name in enumerate(names)}
        labeled, unlabeled = where["train"], where[UNLABELED]
        return Split(
            labeled=labeled,
            labels=np.asarray(private["labels"][labeled]),
            unlabeled=unlabeled,
            labeled_domains=np.asarray(private["domains"][labeled]),
            unlabeled_domains=np.asarray(private["domains"][unlabeled]),
            **{ours: where[theirs] for ours, theirs in OFFICIAL.items()},
        )

    def inputs(self, public: Mapping[str, Array], indices: Array) -> Tensor:
        """Pictures float32 (B, 8, side, side), standardised as published; `DataMissing` names a file that is torn."""
        return torch.from_numpy(rows_of(public, indices, lambda rows: self.decoded(public, rows)))

    def decoded(self, public: Mapping[str, Array], indices: Array) -> Array:
        """The same as an array, from their files."""
        root = Data(data_folder()).folder(self.data_name)
        paths = [root / name.decode() for name in public["paths"][indices]]
        pixels = np.empty((len(paths), len(BANDS), self.side, self.side), np.float32)
        with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as threads:
            for row, raw in enumerate(threads.map(_bytes, paths)):
                pixels[row] = self._unpacked(raw, paths[row])
        return pixels

    def _unpacked(self, raw: bytes, path: Path) -> Array:
        """Not in the threads: NumPy parses headers by `ast`, which Python 3.11 cannot in two threads at once."""
        expected = (len(BANDS), self.side, self.side)
        try:
            with np.load(io.BytesIO(raw), allow_pickle=False) as arrays:
                picture: Array = arrays["x"]
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise DataMissing(f"{path} is no whole picture: {error}. {REMEDY}") from None
        if picture.shape != expected or not np.isfinite(picture).all():
            raise DataMissing(f"{path} holds {picture.shape}, expected {expected} of finite numbers. {REMEDY}")
        return picture

    def model(self) -> nn.Module:
        net: Any = torchvision_net("resnet18", self.n_classes)
        net.conv1 = nn.Conv2d(len(BANDS), 64, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
        return net  # type: ignore[no-any-return]

    def weak(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        return weak_view(inputs, generator)

    def strong(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        return strong_view(inputs, generator)

    def loss(self, outputs: Any, targets: Tensor) -> Tensor:
        """The mean squared error of (B, 1)."""
        return F.mse_loss(outputs, targets)

    def targets(self, outputs: Tensor) -> Tensor:
        """A teacher's numbers are what its student is to say."""
        return outputs

    def pseudo_label_loss(self, outputs: Tensor, teacher: Tensor, threshold: float) -> Tensor:
        """The squared error of all, as published: numbers come with no confidence, and no threshold applies."""
        return F.mse_loss(outputs, teacher.detach())

    def crop_view(self, inputs: Tensor, generator: torch.Generator, area: tuple[float, float], side: int = 0) -> Tensor:
        return crop_view(inputs, generator, area, side)

    def score(self, logits: Array, labels: Array) -> Scores:
        """The official metrics of predictions (N, 1), and r by group."""
        fields = self._scoring.metadata_fields
        y, urban = labels[:, fields.index("y")], labels[:, fields.index("urban")]
        numbers = np.asarray(logits[:, 0], np.float32)
        groups = {
            f"urban:{group:.0f}": pearson(numbers[urban == group], y[urban == group]) for group in np.unique(urban)
        }
        if all(np.ptp(numbers[urban == group]) > 0 for group in np.unique(urban)):
            y_true = torch.from_numpy(y.astype(np.float32)[:, None])
            results = self.official(torch.from_numpy(numbers[:, None]), y_true, torch.from_numpy(labels))
            metrics = {ours: float(results[theirs]) for theirs, ours in self.official_metrics.items()}
        else:
            metrics = {
                "worst_group_correlation": min(groups.values()),
                "correlation": pearson(numbers, y),
                "mean_squared_error": float(np.mean((numbers - y) ** 2)),
            }
        return Scores(metrics, len(y), {"correlation": groups})

    def predicted(self, sealed: Array) -> Array:
        """The numbers (N,)."""
        return sealed[:, 0]

    def unpredicted(self, predicted: Array) -> Array:
        return predicted[:, None]

    def submission(self, seed: int, predicted: Mapping[str, Array]) -> dict[str, str]:
        """One file a set, a number a line in official order."""
        return {
            f"poverty/poverty_split:{OFFICIAL[part]}_fold:{FOLDS[seed]}_pred.csv": "".join(
                f"{float(number)!r}\n" for number in numbers
            )
            for part, numbers in predicted.items()
        }


def pearson(a: Array, b: Array) -> float:
    """Pearson's r of a and b (N,); 0 where one of them does not vary."""
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(np.corrcoef(a.astype(np.float64), b.astype(np.float64))[0, 1])
