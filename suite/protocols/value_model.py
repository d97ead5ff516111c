"""A model of the values of responses, whole and begun, beside the policy and metered as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..bundle import Array
from . import language_model
from .context import autocast
from .policy_calls import Calls
from .policy_objectives import Objective
from .policy_training import Training
from .policy_weights import Weights
from .sequences import Sequences, join
from .tokens import Tokenizer


class ValueModel:
    """The policy's architecture with weights of its own, and a linear head on the logits after the last token: that of
    the code of ReST-MCTS* (arXiv:2406.03816).

    An unfinished response ends in `CUT_OFF`; a whole one is valued after its stop symbol. Values lie in [0, 1]; a new
    model's are 0. Tokens of prompts, responses and stop symbols are counted once a pass. A checkpoint holds the weights
    where the model is an attribute of the method, made in `setup`.
    """

    def __init__(
        self, model: nn.Module, tokenizer: Tokenizer, rows: int, weights: Weights, training: Training, calls: Calls
    ) -> None:
        self._model, self._tokenizer, self._rows = model, tokenizer, rows
        self._of_policy, self._training, self._calls = weights, training, calls
        self._weights = weights.copied()
        output: Any = model.get_output_embeddings()  # type: ignore[operator]
        self._slope = nn.Parameter(torch.zeros(output.weight.shape[0], device=calls.device))
        self._offset = nn.Parameter(torch.zeros((), device=calls.device))

    def values(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        """The values (N,) of responses, float64 on the CPU."""
        if not len(prompts):
            return torch.zeros(0, dtype=torch.float64)
        sequences = join(self._tokenizer, prompts, responses, unfinished=True)
        values = torch.empty(len(sequences), dtype=torch.float64)
        with self._of_policy.holding(self._weights), torch.no_grad(), autocast(self._calls.context):
            for chosen in sequences.batches(self._rows):
                self._calls.meter.charge(forward=len(chosen), scored=int(sequences.lengths[chosen].sum()))
                values[torch.from_numpy(chosen)] = self._predict(sequences, chosen).double().cpu()
        return values.clamp(0.0, 1.0)

    def fit(
        self,
        prompts: Sequence[str],
        responses: Sequence[str],
        targets: Sequence[float],
        epochs: int = 1,
        lr_scale: float = 1.0,
    ) -> float:
        """Regression on `targets` (N,) by the mean squared error; returns the last batch's, NaN without responses."""
        if not len(prompts):
            return float("nan")
        device = self._calls.device
        sequences = join(self._tokenizer, prompts, responses, unfinished=True)
        target = torch.as_tensor(targets, dtype=torch.float32, device=device)

        def loss(chosen: Array) -> Tensor:
            at = torch.from_numpy(chosen).to(device)
            return (self._predict(sequences, chosen) - target[at]).square().mean()

        with self._of_policy.holding(self._weights):
            objective = Objective(sequences, sequences.lengths, loss)
            result = self._training.train(objective, epochs, lr_scale, (self._slope, self._offset))
            self._weights = self._of_policy.copied()
        return result

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self._weights, "slope": self._slope.detach(), "offset": self._offset.detach()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._weights = {key: value.clone() for key, value in state["weights"].items()}
        with torch.no_grad():
            self._slope.copy_(state["slope"])
            self._offset.copy_(state["offset"])

    def _predict(self, sequences: Sequences, chosen: Array) -> Tensor:
        ids, lengths = sequences.ids[chosen], sequences.lengths[chosen]
        logits = language_model.last_logits(self._model, ids, lengths, self._tokenizer.pad, self._calls.device)
        # Autocast would multiply in bf16, in which values next to 1 lie 1 / 256 apart.
        with torch.autocast(self._calls.device.type, enabled=False):
            return logits @ self._slope + self._offset
