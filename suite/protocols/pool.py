"""Examples that are made when they are asked for, where all of them together do not fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..bundle import Array


class LazyPool:
    """Stands where the tensor (N, ...) of a task's examples would: `pool[chosen]`, `len(pool)`, `pool.split(size)`.

    `inputs` makes the tensor (B, ...) of examples of the task from their numbers; `pool[chosen]` calls it at each
    request, with a tensor of indices (B,), a slice or a mask, and puts the result on `device`. Nothing is kept.
    `batch` is the largest number of examples that `split` hands out at once.
    """

    def __init__(
        self, inputs: Callable[[Array], Tensor], indices: Array, device: torch.device, batch: int = 1024
    ) -> None:
        self._inputs = inputs
        self._indices = indices
        self._batch = batch
        self.device = device

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, chosen: Tensor | slice) -> Tensor:
        """The examples `chosen`. Indices on another device are brought to the host, where examples are made."""
        rows = self._indices[chosen if isinstance(chosen, slice) else chosen.cpu().numpy()]
        return self._inputs(rows).to(self.device, non_blocking=True)

    def split(self, size: int, dim: int = 0) -> Iterator[Tensor]:
        """All examples in order, in parts of at most `size`; `torch.split(pool, size)` calls it too."""
        size = min(size, self._batch)
        for start in range(0, len(self), size):
            yield self[start : start + size]
