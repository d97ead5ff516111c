"""SwAV pre-training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...suite.hyper import hyper
from ...suite.protocols.adaptation import AdaptationTask, Batch, LabeledBatch
from ...suite.protocols.adaptation_method import AdaptationMethod
from ...suite.registry import register_method
from ..common.augment import check_augment, chosen_view
from ..common.contrastive_views import strong_views
from ..common.features import classifier_of, with_features
from ..common.phases import can_pretrain, pretrain_then_finetune

if TYPE_CHECKING:
    from ...suite.protocols.adaptation_view import View

ASSIGNED = 2
"""Crops whose assignments the others predict."""
LARGE_AREA, SMALL_AREA = (0.14, 1.0), (0.05, 0.14)
COLOURS = 2.0
"""Strength of the colour changes, as a multiple of those of MoCo."""
STEP = 8
"""Sides of small crops are multiples of it."""


@register_method(
    "swav",
    family="pretraining",
    protocol="adaptation",
    paper="arXiv:2006.09882",
    needs=("images",),
    outputs=("classes", "numbers"),
)
@dataclass
class Swav(AdaptationMethod):
    """Swapped cluster assignments of the crops of unlabelled pictures first, classes afterwards (Caron et al. 2020).

        z = p(h(u)) / ||p(h(u))||      h features of the model, p a projection: linear, batch norm, ReLU, linear
        C = prototypes (K, D), rows of length 1, brought back to it before each step
        q_s = Sinkhorn(z_s C')         of the batch, for each of two large crops s; no gradient
        L = (1/2) sum_s 1/(V - 1) sum_{v != s} -(1/B) sum_b q_s . log softmax(z_v C' / tau)      over all V crops
        afterwards: L = CE(f(a(x)), y), as `supervised`, from the weights that h has then

    Sinkhorn: exp(. / epsilon), scaled `iterations` times so that all prototypes have equal shares and each example has
    1 (arXiv:2006.09882, public code). Prototypes stay as drawn for the first `frozen` steps. Constants are those of
    WILDS 2.0 (arXiv:2112.05090, public code): epsilon 0.03 and about ten prototypes a class; its queue begins after the
    training's end, so that there is none. Crops: `large` ones of 14 to 100 % of the area at the size of the inputs,
    `small` ones of 5 to 14 % at `small_side` of it; colours, blur and mirroring as in SimCLR (`strong_views`), or the
    crops of the task's own where its pictures are not coloured (`crop_view`). Where outputs are numbers the prototypes
    are counted in all.

    Chosen here: SwAV's LARC, made for batches of thousands, is left out: pre-training takes the task's optimiser and
    schedule at `pretrain_scale` times its rate, and the share `pretrain` of the budget.

    Counted passes: 3 ratio (large + small) per labelled example of the recipe's batch and step of the pre-training,
    whatever the size of a crop, 3 afterwards. With `pretrain` 0 this is `supervised` with the same `augment`, bit by
    bit.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "wilds-camelyon17": {"large": 6, "small": 0, "augment": "strong"},
        "wilds-domainnet": {"augment": "strong"},
        "wilds-fmow": {"augment": "strong"},
        "wilds-iwildcam": {"small": 2, "small_side": 0.2143, "augment": "strong"},
        "wilds-poverty": {"prototypes": 1000, "augment": "strong"},
    }

    pretrain: float = hyper(0.5, low=0.0, high=0.9, help="share of the budget for assignments")
    pretrain_scale: float = hyper(1.0, low=0.1, high=100.0, log=True, help="its rate as a multiple of the recipe's")
    ratio: int = hyper(1, low=1, high=16, help="pictures in its step per example of the recipe's batch")
    large: int = hyper(2, low=2, high=8, help="large crops of a picture")
    small: int = hyper(6, low=0, high=8, help="small crops of a picture")
    small_side: float = hyper(0.4286, low=0.1, high=1.0, help="side of a small crop as a share of the inputs'")
    prototypes: int = hyper(10, low=1, high=1000, log=True, help="prototypes a class")
    temperature: float = hyper(0.1, low=0.01, high=1.0, log=True, help="temperature tau")
    epsilon: float = hyper(0.03, low=0.01, high=0.2, log=True, help="smoothness of the assignments")
    iterations: int = hyper(3, low=1, high=10, help="scalings of the assignments")
    frozen: int = hyper(313, low=0, high=5000, help="steps after which prototypes begin to learn")
    hidden: int = hyper(2048, low=16, high=4096, help="width of the projection")
    size: int = hyper(128, low=8, high=512, help="size D of what is compared")
    augment: str = hyper(
        "weak",
        choices=("none", "weak", "strong"),
        asks={"strong": ("strong-augmentation",)},
        help="view of the labelled examples",
    )

    def setup(self, model: nn.Module, view: View) -> None:
        super().setup(model, view)
        check_augment("swav", self.augment, view)
        self.pretraining, self.steps = can_pretrain(view, self.pretrain), 0
        if self.pretraining:
            like = classifier_of(model).weight
            seed = torch.randint(2**31, (), generator=view.generator, device=view.device).item()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(seed))
                self.projection = projection(like.size(1), self.hidden, self.size).to(like)
                self.clusters = nn.Linear(self.size, self.prototypes * view.n_classes, bias=False).to(like)

    def unlabeled_ratio(self) -> int:
        return self.ratio if self.pretraining else 0

    def parameter_groups(self) -> list[tuple[list[nn.Parameter], float]]:
        if not self.pretraining:
            return super().parameter_groups()
        known = {id(parameter) for parameter in classifier_of(self.model).parameters()}
        body = [p for p in self.model.parameters() if p.requires_grad and id(p) not in known]
        head = [*self.projection.parameters(), *self.clusters.parameters()]
        return [([*body, *head], self.pretrain_scale)]

    def loss(self, labeled: LabeledBatch, unlabeled: Batch) -> Tensor:
        if not self.pretraining:
            return self.view.task.supervised(self.model, chosen_view(labeled, self.augment), labeled.y)
        with torch.no_grad():
            self.clusters.weight.copy_(F.normalize(self.clusters.weight, dim=1))
        self.clusters.weight.requires_grad_(self.steps >= self.frozen)
        x = unlabeled.x
        side = max(STEP, STEP * round(self.small_side * x.size(3) / STEP))
        crops = [
            [self._crop(x, LARGE_AREA, 0) for _ in range(self.large)],
            [self._crop(x, SMALL_AREA, side) for _ in range(self.small)],
        ]
        # One forward a size: pictures of two sizes make no batch.
        features = torch.cat([with_features(self.model, torch.cat(part))[1] for part in crops if part])
        scores = self.clusters(F.normalize(self.projection(features), dim=1))
        return swapped_prediction(
            scores.view(-1, len(x), scores.size(1)), self.temperature, self.epsilon, self.iterations
        )

    def _crop(self, x: Tensor, area: tuple[float, float], side: int) -> Tensor:
        task, generator = self.view.task, self.view.generator
        if type(task).crop_view is not AdaptationTask.crop_view:
            return task.crop_view(x, generator, area, side)
        return strong_views(x, generator, *area, side, COLOURS)

    def after_step(self) -> None:
        self.steps += 1

    def fit(self, view: View) -> None:
        pretrain_then_finetune(self, self, view, self.pretrain)


def projection(features: int, hidden: int, size: int) -> nn.Module:
    """Features (B, F) -> (B, size)."""
    return nn.Sequential(nn.Linear(features, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, size))


def swapped_prediction(scores: Tensor, temperature: float, epsilon: float, iterations: int) -> Tensor:
    """The loss of scores (V, B, K) of V crops: each predicts the assignments of the first two that are not its own."""
    log_p = F.log_softmax(scores / temperature, dim=2)
    loss = scores.new_zeros(())
    for crop in range(ASSIGNED):
        q = assignments(scores[crop].detach(), epsilon, iterations)
        agreement = (q * log_p).sum(dim=2).mean(dim=1)
        loss = loss - (agreement.sum() - agreement[crop]) / (len(scores) - 1)
    return loss / ASSIGNED


@torch.no_grad()
def assignments(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Scores (B, K) -> shares (B, K) that sum to 1 an example, prototypes having equal sums as far as `iterations` go.

    Computed in logarithms: exp(scores / epsilon) leaves single precision where epsilon is small.
    """
    q = scores / epsilon
    n, k = q.shape
    for _ in range(iterations):
        q = q - q.logsumexp(dim=0, keepdim=True) - math.log(k)
        q = q - q.logsumexp(dim=1, keepdim=True) - math.log(n)
    return (q + math.log(n)).exp()
