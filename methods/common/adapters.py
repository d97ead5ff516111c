"""Adapters: small layers inside of a transformer, which are trained in place of its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_WRITERS = ("output.dense", "out_lin", "lin2", "attn.o", "attention.dense", "ffn_output", "attn.Wo", "mlp.Wo")
"""What the layers are called that write into the residual stream, in BERT, RoBERTa, DeBERTa and ELECTRA, in DistilBERT,
for attention in MPNet, in ALBERT, and in ModernBERT.
"""


class Adapted(nn.Module):
    """h + W2 W1 h on the output h of `layer`: (..., D) -> (..., D), W1 (R, D) and W2 (D, R) without bias."""

    def __init__(self, layer: nn.Linear, rank: int) -> None:
        super().__init__()
        self.layer = layer
        weight = layer.weight
        self.down = nn.Parameter(torch.empty(rank, layer.out_features, dtype=weight.dtype, device=weight.device))
        self.up = nn.Parameter(torch.empty(layer.out_features, rank, dtype=weight.dtype, device=weight.device))

    def reset(self, std: float, generator: torch.Generator) -> None:
        """Normal weights of the standard deviation `std`."""
        with torch.no_grad():
            for parameter in (self.down, self.up):
                parameter.normal_(0.0, std, generator=generator)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.layer(inputs)
        return out + (out @ self.down.T) @ self.up.T


def add_adapters(model: nn.Module, rank: int) -> list[Adapted]:
    """Put an adapter behind each linear layer of a transformer that writes into the residual stream, in place.

    Then the adapters are trained, and those children of `model` that hold none of them (the classifier); nothing else
    requires a gradient. A model without such layers stays as it is: the list is empty.
    """
    found = [
        (name, layer)
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and name.endswith(_WRITERS)
    ]
    added = []
    for name, layer in found:
        owner, _, own_name = name.rpartition(".")
        adapted = Adapted(layer, rank)
        setattr(model.get_submodule(owner), own_name, adapted)
        added.append(adapted)
    holders = {name.partition(".")[0] for name, _ in found}
    for name, child in model.named_children():
        if name in holders:
            child.requires_grad_(False)
    for adapted in added:
        adapted.down.requires_grad_(True)
        adapted.up.requires_grad_(True)
    return added
