"""What a method of the protocol `adaptation` is: the base class that a method author writes `loss` or `fit` for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from ..hyper import hyper
from .adaptation import Batch, LabeledBatch

if TYPE_CHECKING:
    from .adaptation_view import View


@dataclass
class AdaptationMethod:
    """A method for few labels and many unlabelled examples: a dataclass whose fields are its hyper-parameters.

    Most methods write `loss` alone. `unlabeled_ratio` says how many unlabelled examples a step takes per labelled
    one; 0 means none are drawn. A method with rounds of its own overrides `fit`. A method that trains more than its
    model (a discriminator, a second network) says so in `parameter_groups`.
    """

    lr_scale: float = hyper(1.0, low=0.1, high=10.0, log=True, help="learning rate as a multiple of the task's recipe")

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def unlabeled_ratio(self) -> int:
        """Unlabelled examples per labelled one in a step."""
        return 0

    def setup(self, model: nn.Module, view: View) -> None:
        """Prepare for training; keep the model as `self.model`."""
        self.model = model
        self.view = view

    def domains_per_batch(self) -> int:
        """Of how many domains a batch holds equal shares; 0 (default) draws over all examples alike.

        For methods that need `domains`; each is met with the same chance, whatever its size.
        """
        return 0

    def parameter_groups(self) -> list[tuple[list[nn.Parameter], float]]:
        """What the optimiser trains: lists of parameters, each with a multiple of the learning rate."""
        return [([parameter for parameter in self.model.parameters() if parameter.requires_grad], 1.0)]

    def loss(self, labeled: LabeledBatch, unlabeled: Batch) -> Tensor:
        """The scalar loss of one step. `unlabeled` is empty (length 0) when `unlabeled_ratio` is 0."""
        raise NotImplementedError

    def after_step(self) -> None:
        """Called after every optimiser step; a teacher follows its student here."""

    def predictor(self) -> nn.Module | None:
        """The module to evaluate; None stands for the harness's averaged weights of `self.model`."""
        return None

    def fit(self, view: View) -> None:
        """Use the budget; by default the harness's training loop over `loss`.

        A method with rounds calls `view.train(self, until=share)` once a round. When a killed run is resumed, `fit` is
        called again with all attributes as they were in the middle of that round, and the call of `view.train` of
        that round goes on where it was: keep the number of the round as an attribute, and begin with it.
        """
        view.train(self)
