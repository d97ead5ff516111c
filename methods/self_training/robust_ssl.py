"""Robust self-supervised training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...suite.hyper import hyper
from ...suite.protocols.adaptation import Batch, LabeledBatch
from ...suite.protocols.adaptation_method import AdaptationMethod
from ...suite.registry import register_method
from ..common.features import classifier_of
from ..common.inputs import check_real_inputs
from ..common.norm import frozen_running_statistics

if TYPE_CHECKING:
    from ...suite.protocols.adaptation_view import View


@register_method("robust-ssl", family="self-training", protocol="adaptation", paper="arXiv:2310.00027")
@dataclass
class RobustSSL(AdaptationMethod):
    """Distributionally robust self-training on out-of-domain unlabelled data (Saberi et al. 2024, arXiv:2310.00027).

        phi_g(x, y; theta) = sup_z l(z, y; theta) - g c(z, x)                                          robust loss
        L = (1/m) sum_i phi_gamma(x_i, y_i; theta) + (lambda/n) sum_j phi_gamma'(u_j, h_theta(u_j); theta)

    h_theta is the predicted class, c the transport cost: phi_g is the dual of the worst case over a Wasserstein ball,
    and a larger g is a smaller ball. x, u are weak views and pass in one forward; no gradient flows through h_theta.

    `inner` = 0: l is the 0-1 loss and c the Euclidean distance at the input of the classifier, so that the supremum has
    a closed form, in which d_y is the signed distance to the boundary of class y, negative outside of it:

        phi_g = clip(1 - g d_y(x), 0, 1),    d_y(x) = min_{k != y} (f_y(x) - f_k(x)) / ||w_y - w_k||

    With two classes and a linear model this is the loss of the authors' experiments; it is exact for any number of
    classes, where z is what the last linear layer reads. Below that layer nothing is perturbed.

    `inner` > 0: l is the cross-entropy of the whole network and c the squared Euclidean distance of the inputs. As many
    steps z <- x + grad_z l(z) / (2 g), that is gradient ascent with the step 1 / (2 g), come close to the supremum when
    l has a gradient of Lipschitz constant below 2 g. The gradient of phi_g is that of l at the last z.

    Chosen here: with `labeled_loss` "cross-entropy" the labelled term is the cross-entropy without perturbation, which
    stands for gamma -> infinity: the closed form has no gradient for a labelled example on the wrong side, so that bad
    initial weights may stay. "robust" is the paper's. The sources at hand (the authors' poster and its text) give
    neither lambda nor gamma: the defaults were chosen on two Gaussians drawn apart from those of `gaussian-shift`.

    Counted passes per step and labelled example, r = `ratio`: 3 (1 + r), and 3 `inner` more for each robust example.
    With lambda = 0 and the cross-entropy this is `supervised`.
    """

    weight: float = hyper(3.0, low=0.0, high=10.0, help="weight lambda of the unlabelled loss")
    gamma_unlabeled: float = hyper(0.25, low=0.01, high=10.0, log=True, help="gamma' of unlabelled examples")
    gamma: float = hyper(0.25, low=0.01, high=10.0, log=True, help="gamma of labelled examples, where robust")
    labeled_loss: str = hyper("cross-entropy", choices=("cross-entropy", "robust"))
    inner: int = hyper(
        0,
        low=0,
        high=15,
        asks=("real-inputs",),
        help="steps of the inner maximum; 0 is the closed form at the classifier",
    )
    ratio: int = hyper(7, low=1, high=16, help="unlabelled examples per labelled one")

    def unlabeled_ratio(self) -> int:
        return self.ratio if self.weight > 0 else 0

    def setup(self, model: nn.Module, view: View) -> None:
        super().setup(model, view)
        if self.inner and (self.weight > 0 or self.labeled_loss == "robust"):
            check_real_inputs("robust-ssl with inner > 0", "perturbs", view)

    def loss(self, labeled: LabeledBatch, unlabeled: Batch) -> Tensor:
        robust = self.labeled_loss == "robust"
        if len(unlabeled) == 0 and not robust:
            return F.cross_entropy(self.model(labeled.weak), labeled.y)
        x, u = labeled.weak, unlabeled.weak if len(unlabeled) else labeled.weak[:0]
        if self.inner and len(u):
            u, of_u = self._perturbed(u, None, self.gamma_unlabeled)
        if self.inner and robust:
            x, _ = self._perturbed(x, labeled.y, self.gamma)
        z, z_u = self.model(torch.cat([x, u])).split([len(x), len(u)])
        if not robust:
            loss = F.cross_entropy(z, labeled.y)
        elif self.inner:
            loss = F.cross_entropy(z, labeled.y) - self.gamma * _cost(x, labeled.weak)
        else:
            loss = ramp(z, labeled.y, classifier_of(self.model).weight, self.gamma)
        if len(u) == 0:
            return loss
        if self.inner:
            own = F.cross_entropy(z_u, of_u) - self.gamma_unlabeled * _cost(u, unlabeled.weak)
        else:
            own = ramp(z_u, z_u.argmax(dim=1), classifier_of(self.model).weight, self.gamma_unlabeled)
        return loss + self.weight * own

    def _perturbed(self, x: Tensor, y: Tensor | None, gamma: float) -> tuple[Tensor, Tensor]:
        """The worst inputs z (B, ...) of x and the classes (B,) for which they are: y, or those predicted for x."""
        z = x
        with frozen_running_statistics(self.model):
            for _ in range(self.inner):
                z = z.detach().requires_grad_()
                logits = self.model(z)
                y = logits.argmax(dim=1) if y is None else y
                (gradient,) = torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), z)
                z = x + gradient / (2.0 * gamma)
        assert y is not None
        return z.detach(), y


def _cost(z: Tensor, x: Tensor) -> Tensor:
    """The mean squared Euclidean distance of the examples of z and x (B, ...)."""
    return (z - x).square().sum() / len(x)


def ramp(logits: Tensor, y: Tensor, classifier: nn.Parameter | Tensor, gamma: float) -> Tensor:
    """(1/B) sum_b clip(1 - gamma d_b, 0, 1), d_b the signed distance of example b to the boundary of class y_b.

    `logits` (B, K) are the outputs of a linear layer with weights `classifier` (K, D), y (B,); gradients flow through
    both. This is the supremum over z of 1[z is not in class y] - gamma ||z - x||, x the inputs of the layer. Between
    classes of equal weights, as in a layer that begins at zero, there is no boundary: the gap of the logits itself
    stands for the distance.
    """
    classes = len(classifier)
    same = torch.eye(classes, dtype=torch.bool, device=logits.device)
    norms = torch.cdist(classifier, classifier, compute_mode="donot_use_mm_for_euclid_dist")
    norms = norms.masked_fill(same | (norms == 0), 1.0)
    gaps = logits.gather(1, y[:, None]) - logits
    distances = (gaps / norms[y]).masked_fill(same[y], float("inf")).amin(dim=1)
    return (1.0 - gamma * distances).clamp(0.0, 1.0).mean()
