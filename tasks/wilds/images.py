"""WILDS tasks whose examples are pictures, decoded when they are asked for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ...suite.bundle import Array
from ...suite.data import Data
from ...suite.places import data_folder
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
        root = Data(data_folder()).folder(self.data_name)
        paths = [root / name.decode() for name in public["paths"][indices]]
        pixels = np.empty((len(paths), 3, self.side, self.side), np.uint8)
        # Pillow decodes without the interpreter's lock; threads cost less to make than one picture to decode.
        with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as threads:
            resize = (self.side, self.side)
            for row, image in enumerate(threads.map(lambda path: decode_file(path, resize=resize), paths)):
                pixels[row] = image
        return torch.from_numpy(pixels).float().div_(255.0)

    def weak(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        return flip(inputs, generator)

    def strong(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        return fixmatch_augment(flip(inputs, generator), generator)
