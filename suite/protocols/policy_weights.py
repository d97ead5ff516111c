"""The weights of a policy that are trained, and copies of them that are kept under names."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import MethodError

BASE = "base"
"""The name under which the first policy is kept, always."""
_MOST_KEPT = 4


class Weights:
    """The weights of `model` that require a gradient. Those of the start are kept under `base`."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._kept: dict[str, dict[str, Tensor]] = {}
        self.keep(BASE)

    def trained(self) -> list[tuple[str, nn.Parameter]]:
        """The parameters themselves, by name."""
        return [(key, value) for key, value in self._model.named_parameters() if value.requires_grad]

    def copied(self) -> dict[str, Tensor]:
        """Copies of them as they stand."""
        return {key: value.detach().clone() for key, value in self.trained()}

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Copy `weights` into the model."""
        with torch.no_grad():
            for key, value in self.trained():
                value.copy_(weights[key])

    def named(self, name: str) -> Mapping[str, Tensor]:
        """Those kept under `name`, those of the model itself under an empty one; raises `ValueError` on others."""
        return self.kept(name) if name else dict(self.trained())

    def kept(self, name: str) -> Mapping[str, Tensor]:
        """Those kept under `name`; raises `ValueError` where there are none."""
        if name not in self._kept:
            raise ValueError(f"no weights are kept under {name!r} (there are: {', '.join(self._kept)})")
        return self._kept[name]

    @contextlib.contextmanager
    def under(self, name: str) -> Iterator[None]:
        """Inside, the weights are those kept under `name`; an empty name changes nothing."""
        if not name:
            yield
            return
        with self.holding(self.kept(name)):
            yield

    @contextlib.contextmanager
    def holding(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Inside, the weights are copies of `weights`."""
        own = self.copied()
        self.load(weights)
        try:
            yield
        finally:
            self.load(own)

    def keep(self, name: str) -> None:
        """Store the weights as they stand under `name`; at most three names beside `base`."""
        if not name or (name == BASE and name in self._kept):
            raise ValueError(f"weights cannot be kept under {name!r}")
        if name not in self._kept and len(self._kept) >= _MOST_KEPT:
            raise MethodError(f"a policy keeps the weights of {_MOST_KEPT - 1} names beside '{BASE}'; forget one first")
        self._kept[name] = self.copied()

    def use(self, name: str) -> None:
        """Put back the weights that are kept under `name`."""
        self.load(self.kept(name))

    def forget(self, name: str) -> None:
        """Drop the weights that are kept under `name`."""
        if name == BASE:
            raise ValueError(f"'{BASE}' is kept to the end")
        del self._kept[name]

    def begin_here(self) -> None:
        """From here on, `base` are the weights as they stand."""
        self._kept[BASE] = self.copied()

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"weights": {key: value.detach() for key, value in self.trained()}, "kept": self._kept}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._kept = {name: dict(weights) for name, weights in state["kept"].items()}
        self.load(state["weights"])
