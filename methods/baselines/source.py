"""The source model as it is."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from ...suite.protocols.stream import Source, StreamMethod
from ...suite.registry import register_method


@register_method("source", family="baseline", protocol="stream", paper="-", frozen=("source",))
@dataclass
class SourceModel(StreamMethod):
    """The frozen source model without adaptation: y_t = f(x_t; theta_0)."""

    def setup(self, model: nn.Module, source: Source) -> None:
        self.model = model.eval().requires_grad_(False)
        self.frozen = source.frozen(self.model)

    def predict(self, images: Tensor) -> Tensor:
        return self.frozen(images)
