"""WILDS tasks whose examples are pictures in files, decoded when they are asked for or taken from the cache."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ...suite.bundle import Array, Bundle
from ...suite.data import Data
from ...suite.places import data_folder
from ...suite.prepare.decoded import rows_of
from ..streams.layouts.decode import decode_file
from .augmentations import fixmatch_augment, flip
from .tables import check_files
from .task import WildsTask

THREADS = 8


class WildsImages(WildsTask):
    """Public array `paths`, bytes (N + U,): the pictures' paths below `<data root>/wilds/`.

    Weak view: a flip from left to right with probability 1/2. The published one also cuts a square of the size that the
    picture has already, which does nothing. Strong view: the same, then two operations of FixMatch's pool, then a
    blackened square (`fixmatch_augment`).
    """

    side: ClassVar[int]
    """Pixels of a side, to which pictures are resized as published."""
    evaluation_batch: ClassVar[int] = 128

    def build(self, data: Data) -> Bundle:
        return self.sized(super().build(data), data)

    def sized(self, bundle: Bundle, data: Data) -> Bundle:
        """The bundle with facts that say how many pictures there are, and which: their sizes beside their names."""
        return with_sizes(bundle, data.folder(self.data_name))

    def arrays(self, data: Data, dataset: Any, rows: Array) -> dict[str, Array]:
        root = data.folder(self.data_name)
        folder = os.path.relpath(dataset.data_dir, root)
        names = [os.path.join(folder, name) for name in self.file_names(dataset, rows)]  # noqa: PTH118
        check_files(root, names, str(dataset.data_dir), self.tell)
        return {"paths": np.array([name.encode() for name in names], dtype=np.bytes_)}

    def file_names(self, dataset: Any, rows: Array) -> list[str]:
        """The pictures of the examples `rows`, below the data set's folder."""
        raise NotImplementedError

    def joined(self, parts: list[dict[str, Array]]) -> dict[str, Array]:
        return {"paths": np.concatenate([part["paths"] for part in parts])}

    def inputs(self, public: Mapping[str, Array], indices: Array) -> Tensor:
        """Images float32 (B, 3, side, side) in [0, 1]; raises `DataMissing` naming a picture that is torn or gone."""
        pixels = rows_of(public, indices, lambda rows: self.decoded(public, rows))
        return torch.from_numpy(pixels).float().div_(255.0)

    def decoded(self, public: Mapping[str, Array], indices: Array) -> Array:
        """Pictures uint8 (B, 3, side, side) from their files."""
        root = Data(data_folder()).folder(self.data_name)
        paths = [root / name.decode() for name in public["paths"][indices]]
        pixels = np.empty((len(paths), 3, self.side, self.side), np.uint8)
        # Pillow decodes without the interpreter's lock; threads cost less to make than one picture to decode.
        with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as threads:
            resize = (self.side, self.side)
            for row, image in enumerate(threads.map(lambda path: decode_file(path, resize=resize), paths)):
                pixels[row] = image
        return pixels

    def weak(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        return flip(inputs, generator)

    def strong(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        return fixmatch_augment(flip(inputs, generator), generator)


def with_sizes(bundle: Bundle, root: Path) -> Bundle:
    """`bundle` with the facts `pictures`, the length of its public `paths`, and `pictures_sha256`, of their sizes.

    The cache of decoded pictures is keyed by them: a file of another size is another picture.
    """
    paths = bundle.public["paths"]
    sizes = [(root / name.decode()).stat().st_size for name in paths]
    digest = hashlib.sha256(np.array(sizes, np.int64).tobytes()).hexdigest()
    bundle.facts = {**bundle.facts, "pictures": len(sizes), "pictures_sha256": digest}
    return bundle
