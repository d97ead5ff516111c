"""Domains in folders: DomainNet-126, PACS and VLCS. A model trained on one domain meets the others in turn.

For DomainNet-126 the source model is published; for PACS and VLCS none is, and `build` trains one on the first domain:
torchvision's ResNet-18 with ImageNet weights, 5 epochs over 80 % of the images, the rest open its gate. That takes a
quarter of an hour on a processor. Source data, for the methods that need them, are images of the first domain that are
not shown after the stream, at most 10,000.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ...suite.bundle import Array, Bundle, BundleFolder
from ...suite.errors import GateError
from ...suite.pretrain import error_rate, train_classifier
from ...suite.protocols.stream import Stream, StreamTask
from ...suite.registry import register_task
from ...suite.seeds import rng
from ..augmentations import shift
from .layouts.files import written
from .layouts.folders import Files, decode_all, domain_folders, image_list
from .models.libraries import torchvision_net
from .models.normalize import Normalized
from .orders import Domain, continual, then
from .pixels import as_images, labelled_batches
from .posterior import sampled_posterior
from .published_models import DOMAINNET126_REAL
from .source_models import IMAGENET_MEAN, IMAGENET_STD, check_digest, read_weights

if TYPE_CHECKING:
    from ...suite.data import Data

SIDE, RESIZE = 224, (256, 256)
GATE = 5000
"""Clean images of the source domain that open the gate and come after the stream, at most."""
SOURCE = 10_000
POSTERIOR_SHOWN, POSTERIOR_BATCH = 4000, 32


class DomainFolders(StreamTask):
    """What these tasks share. Public array `images`, uint8 (N, 3, 224, 224): the target domains, then held-out images
    of the source domain.
    """

    source_domain: ClassVar[str]
    targets: ClassVar[tuple[str, ...]]
    batch_size: ClassVar[int] = 64

    def files(self, data: Data) -> dict[str, Files]:
        """The image files of every domain."""
        raise NotImplementedError

    def source_model(self, data: Data, files: Files, held: Array) -> tuple[nn.Module, float, Array]:
        """The model, its error on the images `held` of its own domain, and their pixels uint8 (M, 3, 224, 224)."""
        raise NotImplementedError

    def build(self, data: Data) -> Bundle:
        domains = self.files(data)
        own = domains.pop(self.source_domain)
        held, _ = self._parts(own)
        model, clean_error, pixels = self.source_model(data, own, held)
        sizes = [(name, len(files.paths)) for name, files in domains.items()]

        def fill(images: Array) -> None:
            start = 0
            for name, files in domains.items():
                self.tell(f"decoding {name}")
                stop = start + len(files.paths)
                decode_all(files.paths, images[start:stop], SIDE, RESIZE)
                start = stop
            images[start:] = pixels

        labels = [files.labels for files in domains.values()] + [own.labels[held]]
        return Bundle(
            public={"images": written((sum(size for _, size in sizes) + len(held), 3, SIDE, SIDE), fill)},
            private={"labels": np.concatenate(labels)},
            model=model.state_dict(),
            facts={"clean_error": clean_error, "domains": sizes, "classes": list(own.classes), **self.weights(data)},
        )

    def weights(self, data: Data) -> dict[str, str]:
        """The digest of a published source model's file, as `weights_sha256`."""
        return {}

    def _parts(self, own: Files) -> tuple[Array, Array]:
        """The images of the source domain that are held out, and those that are source data; in an order drawn once."""
        order = rng(0, type(self).__name__, "held").permutation(len(own.paths))
        held = min(GATE, len(order) // 5)
        return order[:held], order[held : held + SOURCE]

    def build_source(self, data: Data) -> Bundle:
        own = self.files(data)[self.source_domain]
        _, chosen = self._parts(own)
        self.tell(f"decoding {len(chosen):,} images of {self.source_domain}")
        paths = [own.paths[index] for index in chosen]
        images = written((len(paths), 3, SIDE, SIDE), lambda out: decode_all(paths, out, SIDE, RESIZE))
        return Bundle({"source_images": images, "source_labels": own.labels[chosen]}, {})

    def build_posterior(self, bundle: BundleFolder, source: BundleFolder) -> Bundle:
        return sampled_posterior(self, bundle, source, POSTERIOR_SHOWN, POSTERIOR_BATCH)

    def images(self, public: Mapping[str, Array], indices: Array) -> Tensor:
        return as_images(public["images"][indices])

    def source_images(self, public: Mapping[str, Array], indices: Array) -> Tensor:
        return as_images(public["source_images"][indices])

    def stream(self, bundle: BundleFolder, seed: int) -> Stream:
        domains, start = [], 0
        for name, size in bundle.facts["domains"]:
            domains.append(Domain(name, start + np.arange(size)))
            start += size
        stream = continual(domains, rng(seed, type(self).__name__), self.batch_size)
        return then(stream, np.arange(start, len(bundle.private()["labels"])))


class _Trained(DomainFolders):
    """The source model is trained on the source domain."""

    data: ClassVar[str]
    epochs: ClassVar[int] = 5

    def files(self, data: Data) -> dict[str, Files]:
        for domain in (self.source_domain, *self.targets):
            data.file(self.data, domain)
        return domain_folders(data.folder(self.data), (self.source_domain, *self.targets))

    def source_model(self, data: Data, files: Files, held: Array) -> tuple[nn.Module, float, Array]:
        pixels = np.empty((len(files.paths), 3, SIDE, SIDE), np.uint8)
        decode_all(files.paths, pixels, SIDE, RESIZE)
        weights = self.start(data)
        trained = np.setdiff1d(np.arange(len(pixels)), held)
        self.tell(f"training the source model on {len(trained):,} images")

        def make() -> nn.Module:
            model = self.model()
            model.load_state_dict(weights, strict=False)
            return model

        model = train_classifier(
            make, as_images(pixels[trained]), torch.from_numpy(files.labels[trained]), seed=0, epochs=self.epochs,
            augment=_flipped, batch_size=32, lr=5e-3,
        )  # fmt: skip
        error = error_rate(model, as_images(pixels[held]), torch.from_numpy(files.labels[held]), batch_size=64)
        return model, error, pixels[held]

    def start(self, data: Data) -> dict[str, Tensor]:
        """ImageNet weights of all layers but the classifier."""
        path = data.file("torchvision-models", "resnet18-f37072fd.pth")
        check_digest(path, "f37072fd")
        weights = {f"net.{key}": value for key, value in read_weights(path).items() if not key.startswith("fc.")}
        unknown = weights.keys() - self.model().state_dict().keys()
        if unknown:
            raise GateError(
                f"{path} does not hold a ResNet-18: it has {', '.join(sorted(unknown)[:3])}. Get the file again."
            )
        return weights

    def model(self) -> nn.Module:
        return Normalized(torchvision_net("resnet18", self.n_classes), IMAGENET_MEAN, IMAGENET_STD)


def _flipped(images: Tensor, generator: torch.Generator) -> Tensor:
    flip = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
    return shift(torch.where(flip, images.flip(3), images), generator, pixels=16)


@register_task(
    "domainnet-126-continual",
    protocol="stream",
    version="2",
    metric="error",
    title="DomainNet-126, from photographs to clipart, painting and sketch",
    budget={"currency": "passes", "limit": 15100000, "wall_seconds": 172800.0, "memory_mb": 32768},
    data=("domainnet-126", "source-models"),
    grants=("images", "norm-layers", "batch-norm", "source-unlabeled", "source-data", "source-posterior"),
    source={"bundle": "domainnet-126", "data": ("domainnet-126", "source-models")},
    bundle="domainnet-126",
    preset="domainnet126",
)
class DomainNet126(DomainFolders):
    """The three domains one after the other, each shuffled, in batches of 128."""

    n_classes: ClassVar[int] = 126
    source_domain: ClassVar[str] = "real"
    targets: ClassVar[tuple[str, ...]] = ("clipart", "painting", "sketch")
    clean_error: ClassVar[tuple[float, float]] = DOMAINNET126_REAL.clean_error
    batch_size: ClassVar[int] = 128

    def files(self, data: Data) -> dict[str, Files]:
        root = data.folder("domainnet-126")
        found = {}
        for domain in (self.source_domain, *self.targets):
            data.file("domainnet-126", domain)
            found[domain] = image_list(root, data.file("domainnet-126", f"{domain}_list.txt"), self.n_classes)
        return found

    def source_model(self, data: Data, files: Files, held: Array) -> tuple[nn.Module, float, Array]:
        pixels = np.empty((len(held), 3, SIDE, SIDE), np.uint8)
        decode_all([files.paths[index] for index in held], pixels, SIDE, RESIZE)
        model = DOMAINNET126_REAL.load(data)
        return model, DOMAINNET126_REAL.gate(model, labelled_batches(pixels, files.labels[held], 64), data), pixels

    def weights(self, data: Data) -> dict[str, str]:
        return {"weights_sha256": DOMAINNET126_REAL.digest(data)}

    def model(self) -> nn.Module:
        return DOMAINNET126_REAL.make()


@register_task(
    "pacs-continual",
    protocol="stream",
    version="2",
    metric="error",
    title="PACS, from photographs to art paintings, cartoons and sketches",
    budget={"currency": "passes", "limit": 2200000, "wall_seconds": 86400.0, "memory_mb": 16384},
    data=("pacs", "torchvision-models"),
    grants=("images", "norm-layers", "batch-norm", "source-unlabeled", "source-data", "source-posterior"),
    source={"bundle": "pacs", "data": ("pacs", "torchvision-models")},
    bundle="pacs",
    preset="imagenet",
)
class PACS(_Trained):
    """The three domains one after the other, 8,321 images, each shuffled, in batches of 64."""

    n_classes: ClassVar[int] = 7
    data: ClassVar[str] = "pacs"
    source_domain: ClassVar[str] = "photo"
    targets: ClassVar[tuple[str, ...]] = ("art_painting", "cartoon", "sketch")
    clean_error: ClassVar[tuple[float, float]] = (0.0, 0.1)


@register_task(
    "vlcs-continual",
    protocol="stream",
    version="2",
    metric="error",
    title="VLCS, from VOC2007 to LabelMe, Caltech101 and SUN09",
    budget={"currency": "passes", "limit": 2200000, "wall_seconds": 86400.0, "memory_mb": 16384},
    data=("vlcs", "torchvision-models"),
    grants=("images", "norm-layers", "batch-norm", "source-unlabeled", "source-data", "source-posterior"),
    source={"bundle": "vlcs", "data": ("vlcs", "torchvision-models")},
    bundle="vlcs",
    preset="imagenet",
)
class VLCS(_Trained):
    """The three collections one after the other, 7,353 images, each shuffled, in batches of 64."""

    n_classes: ClassVar[int] = 5
    data: ClassVar[str] = "vlcs"
    source_domain: ClassVar[str] = "VOC2007"
    targets: ClassVar[tuple[str, ...]] = ("LabelMe", "Caltech101", "SUN09")
    clean_error: ClassVar[tuple[float, float]] = (0.0, 0.25)
