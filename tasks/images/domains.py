"""Domain adaptation on images in folders `<domain>/<class>/<image>`: labelled source, unlabelled target domains."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ...suite.bundle import Array, Bundle, BundleFolder
from ...suite.errors import DataMissing
from ...suite.prepare.decoded import rows_of
from ...suite.protocols.adaptation import AdaptationTask, Recipe, Split
from ...suite.protocols.optimisation import constant
from ...suite.scoring import Scores, score_classification
from ...suite.seeds import rng
from ..streams.layouts.decode import decode
from ..streams.layouts.files import written
from ..streams.layouts.folders import THREADS, domain_folders
from ..wilds.augmentations import fixmatch_augment
from ..wilds.networks import imagenet_normalized, pretrained
from .domain_views import photograph_view

if TYPE_CHECKING:
    from ...suite.data import Data

SIDE = 224
SOURCE_HELD = 0.2
TARGET_TEST = 0.5
TARGET_VALIDATION = 0.2
MOST_GROUPS = 100


class DomainAdaptation(AdaptationTask):
    """What these tasks share: all images of the source domains have classes, those of the target domains have none.

    A subclass names its `target_domains`; `source_domains` are all other domains unless it names them. Half of each
    target domain is the test set, drawn once and equal for all seeds and tasks of the data set; of the other half the
    seed draws a fifth for the validation, whose classes only the scorer knows, and the rest is unlabelled. A fifth of
    each source domain, drawn by the seed, is the source validation, as in DomainBed (Gulrajani & Lopez-Paz 2021,
    arXiv:2007.01434); it also is the standard selection, so that no class of a target is spent.

    Recipe of DomainBed's defaults: ResNet-50 with ImageNet weights, whose batch norm is trained, Adam at 5e-5, 32
    images of each source domain a step, 5,000 steps of the baseline as budget. Pictures come to 224 x 224 pixels as
    there. Weak view: `photograph_view`, DomainBed's augmentation; strong view: the same, then two operations of
    FixMatch's pool and a grey square, as WILDS 2.0 has it. Domains are numbered as in `domains`.

    `worst_group_error` is the error of the worst target domain; with a single target, of its worst class.

    Paths name classes, and so does their order: methods see neither. Public arrays: `encoded` uint8, the content of all
    image files end to end, shuffled within each domain, and `offsets` int64 (N + 1,). Every file is decoded once when
    the bundle is built, so that a torn one is found before a run. Private arrays, all (N,): `labels`, `domains` and
    `held`, whether an image is in the test half of its domain.
    """

    data_name: ClassVar[str]
    domains: ClassVar[tuple[str, ...]]
    sizes: ClassVar[tuple[int, ...]] = ()
    """The published number of images of each domain; empty where copies differ."""
    target_domains: ClassVar[tuple[str, ...]]
    source_domains: ClassVar[tuple[str, ...]] = ()
    side: ClassVar[int] = SIDE
    lazy: ClassVar[bool] = True
    evaluation_batch: ClassVar[int] = 128
    recipe: ClassVar[Recipe] = Recipe(
        optimizer="adam", lr=5e-5, weight_decay=0.0, batch_size=96, ema=0.0, schedule=constant
    )

    def build(self, data: Data) -> Bundle:
        for domain in self.domains:
            data.file(self.data_name, domain)
        root = data.folder(self.data_name)
        found = domain_folders(root, self.domains)
        classes = found[self.domains[0]].classes
        if len(classes) != self.n_classes:
            raise DataMissing(
                f"{root / self.domains[0]} has {len(classes)} class folders, expected {self.n_classes}. "
                "Unpack the archive again, and leave nothing else beside the classes."
            )
        for domain, published in zip(self.domains, self.sizes or [0] * len(self.domains), strict=True):
            if published and len(found[domain].paths) != published:
                raise DataMissing(
                    f"{root / domain} holds {len(found[domain].paths):,} images, expected {published:,}. "
                    "Unpack the archive again."
                )
        order = {domain: rng(0, self.data_name, domain).permutation(len(found[domain].paths)) for domain in found}
        paths = [files.paths[row] for domain, files in found.items() for row in order[domain]]
        labels = np.concatenate([files.labels[order[domain]] for domain, files in found.items()])
        domains = np.repeat(np.arange(len(found)), [len(files.paths) for files in found.values()])
        offsets = np.concatenate([[0], np.cumsum([path.stat().st_size for path in paths])])
        return Bundle(
            public={
                "encoded": written((int(offsets[-1]),), lambda out: self._read(paths, offsets, out)),
                "offsets": offsets,
            },
            private={"labels": labels.astype(np.int64), "domains": domains, "held": self._held(labels, domains)},
            facts={
                "classes": list(classes),
                "domains": {domain: len(files.paths) for domain, files in found.items()},
                "pictures": len(paths),
            },
        )

    def _read(self, paths: Sequence[Path], offsets: Array, out: Array) -> None:
        """Copy the files into `out`; raises `DataMissing` naming one that is no whole image."""

        def content(path: Path) -> bytes:
            found = path.read_bytes()
            decode(found, str(path))
            return found

        with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as threads:
            for start in range(0, len(paths), 512):
                self.tell(f"reading {start:,} of {len(paths):,} images")
                for row, found in enumerate(threads.map(content, paths[start : start + 512]), start):
                    out[offsets[row] : offsets[row + 1]] = np.frombuffer(found, np.uint8)

    def _held(self, labels: Array, domains: Array) -> Array:
        """Half of each domain, by class, so that a small class is on both sides."""
        draw = rng(0, self.data_name, "test")
        held = np.zeros(len(labels), bool)
        for domain in range(len(self.domains)):
            for number in range(self.n_classes):
                members = draw.permutation(np.flatnonzero((domains == domain) & (labels == number)))
                held[members[: round(TARGET_TEST * len(members))]] = True
        return held

    def model(self) -> nn.Module:
        return imagenet_normalized(
            pretrained("resnet50", self.n_classes, "torchvision-models", "resnet50-0676ba61.pth")
        )

    def split(self, bundle: BundleFolder, seed: int) -> Split:
        private = bundle.private()
        labels, domains, held = (np.asarray(private[name]) for name in ("labels", "domains", "held"))
        draw = rng(seed, self.data_name, "split")
        parts: dict[str, list[Array]] = {name: [] for name in ("labeled", "source_held", "unlabeled", "held", "test")}
        for number, domain in enumerate(self.domains):
            members = draw.permutation(np.flatnonzero(domains == number))
            if domain in self.target_domains:
                parts["test"].append(np.sort(members[held[members]]))
                rest, names, share = members[~held[members]], ("held", "unlabeled"), TARGET_VALIDATION
            elif domain in (self.source_domains or self.domains):
                rest, names, share = members, ("source_held", "labeled"), SOURCE_HELD
            else:
                continue
            cut = round(share * len(rest))
            for name, part in zip(names, (rest[:cut], rest[cut:]), strict=True):
                parts[name].append(np.sort(part))
        chosen = {name: np.concatenate(found) for name, found in parts.items()}
        labeled, unlabeled = chosen["labeled"], chosen["unlabeled"]
        return Split(
            labeled=labeled,
            labels=labels[labeled],
            unlabeled=unlabeled,
            validation=chosen["held"],
            test=chosen["test"],
            source_validation=chosen["source_held"],
            labeled_domains=domains[labeled],
            unlabeled_domains=domains[unlabeled],
        )

    def inputs(self, public: Mapping[str, Array], indices: Array) -> Tensor:
        """Images float32 (B, 3, side, side) in [0, 1]."""
        pixels = rows_of(public, indices, lambda rows: self.decoded(public, rows))
        return torch.from_numpy(pixels).float().div_(255.0)

    def decoded(self, public: Mapping[str, Array], indices: Array) -> Array:
        """Images uint8 (B, 3, side, side) from the contents of their files."""
        encoded, offsets, resize = public["encoded"], public["offsets"], (self.side, self.side)

        def image(row: int) -> Array:
            return decode(encoded[offsets[row] : offsets[row + 1]].tobytes(), f"image {row}", resize=resize)

        pixels = np.empty((len(indices), 3, *resize), np.uint8)
        # Pillow decodes without the interpreter's lock.
        with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as threads:
            for row, decoded in enumerate(threads.map(image, indices)):
                pixels[row] = decoded
        return pixels

    def labels(self, private: Mapping[str, Array], indices: Array) -> Array:
        """Class and domain (N, 2)."""
        return np.stack([private["labels"][indices], private["domains"][indices]], axis=1)

    def weak(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        return photograph_view(inputs, generator)

    def strong(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        return fixmatch_augment(photograph_view(inputs, generator), generator)

    def score(self, logits: Array, labels: Array) -> Scores:
        """The usual metrics by domain, or by class (numbers into the sorted folders) where all is of one domain."""
        classes, domains = labels[:, 0], labels[:, 1]
        if len(np.unique(domains)) > 1:
            return score_classification(logits, classes, domains, self.domains)
        numbers = tuple(str(number) for number in range(self.n_classes))
        scores = score_classification(logits, classes, classes, numbers)
        return Scores(scores.metrics, scores.n, scores.groups if self.n_classes <= MOST_GROUPS else {})
