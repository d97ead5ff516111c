"""Virtual adversarial training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...suite.hyper import hyper
from ...suite.protocols.adaptation import Batch, LabeledBatch
from ...suite.protocols.adaptation_method import AdaptationMethod
from ...suite.registry import register_method
from ..common.inputs import check_real_inputs
from ..common.losses import entropy
from ..common.noise import without_noise
from ..common.ramps import linear

if TYPE_CHECKING:
    from ...suite.protocols.adaptation_view import View


@register_method(
    "vat",
    family="consistency",
    protocol="adaptation",
    paper="arXiv:1704.03976",
    needs=("real-inputs",),
)
@dataclass
class Vat(AdaptationMethod):
    """Equal predictions in the direction that changes them most (Miyato et al. 2018, arXiv:1704.03976, algorithm 1).

        p = softmax f(u),  no gradient
        d ~ N(0, I);  `steps` times:  d <- grad_r KL(p || softmax f(u + r)) at r = xi d / ||d||     power iteration
        L = CE(f(x), y) + alpha ( w(t) mean KL(p || softmax f(u + epsilon d / ||d||)) + e mean H(softmax f(u)) )

    x and u are weak views; norms are taken over all of an example's numbers, whatever its shape: what is perturbed is
    the input tensor as the task hands it out, so epsilon is in the units of the task's preprocessing, and inputs that
    are no images (vectors, features) are perturbed alike. Integers cannot be, and are refused; to perturb embeddings
    of tokens, as in later work, is not done here. alpha = `weight`, e = `entropy`: 0 is VAT, 1 the paper's VAT with
    entropy minimisation. w rises linearly over the first `ramp` of the budget; the paper has no ramp.

    Lengths are published in other units. Tasks on pictures hand them out in [0, 1]; so does the authors' release for
    SVHN (commit c5125d2), but for a constant, and its 3.5, or 2.5 without augmentation, is the preset's. CIFAR-10 it
    whitens, to a root mean square length of 55 (3,072 numbers of variance 1) where pictures in [0, 1] around their mean
    have 14: its 8, or 10 without augmentation, is 2 here, the same share of a picture. USB (semilearn, commit 1ef4cbe)
    takes 6 of pictures divided by deviations of 0.226 on average: 1.36 here, which is also the default.

    The passes over u use batch norm as in training but leave its running statistics alone, as in the authors' release.
    Chosen here: KL is averaged over the unlabelled batch alone, like there, where the paper counts labelled examples
    too; dropout is off in these passes, since between two masks the difference of f would be that of the masks, not
    that of r; and they are in full precision, since with less u + xi d / ||d|| is u. Even so the published xi of 1e-6,
    that of the presets, drowns in rounding: with 8x8 digits and a small trained network, the direction in 32 bits has
    a median cosine of 0.6 with the exact one, but of 1.000 with xi from 1e-4 to 1e-3. Hence the default here.

    Counted passes: 3 per labelled example, and per unlabelled one 1 for p (3 with entropy), 3 per power iteration (of
    which the gradient is taken by d alone, but counts as any) and 3 to train: 3 + 7 ratio with one iteration.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "cifar10": {"epsilon": 2.0, "xi": 1e-6, "ratio": 4},
        "svhn": {"epsilon": 3.5, "xi": 1e-6, "ratio": 4},
        "usb": {"epsilon": 1.36, "xi": 1e-6, "entropy": 0.06, "ramp": 0.4},
    }

    weight: float = hyper(1.0, low=0.0, high=10.0, help="weight alpha of all that is learnt from unlabelled examples")
    epsilon: float = hyper(1.36, low=0.05, high=20.0, log=True, help="length epsilon of the perturbation")
    xi: float = hyper(1e-3, low=1e-8, high=1.0, log=True, help="length xi of the step of finite differences")
    steps: int = hyper(1, low=1, high=10, help="power iterations")
    entropy: float = hyper(0.0, low=0.0, high=2.0, help="weight e of the entropy of predictions")
    ramp: float = hyper(0.0, low=0.0, high=1.0, help="share of the budget over which w rises")
    ratio: int = hyper(1, low=1, high=16, help="unlabelled examples per labelled one")

    def unlabeled_ratio(self) -> int:
        return self.ratio if self.weight > 0 else 0

    def setup(self, model: nn.Module, view: View) -> None:
        super().setup(model, view)
        if self.weight > 0:
            check_real_inputs("vat", "adds a perturbation to", view)

    def loss(self, labeled: LabeledBatch, unlabeled: Batch) -> Tensor:
        loss = F.cross_entropy(self.model(labeled.weak), labeled.y)
        if len(unlabeled) == 0:
            return loss
        u = unlabeled.weak
        with without_noise(self.model), torch.autocast(u.device.type, enabled=False):
            with torch.set_grad_enabled(self.entropy > 0):
                own = self.model(u)
            target = own.detach()
            own_loss = linear(self.view.progress, self.ramp) * divergence(
                target, self.model(u + self.perturbation(u, target))
            )
            if self.entropy > 0:
                own_loss = own_loss + self.entropy * entropy(own).mean()
        return loss + self.weight * own_loss

    def perturbation(self, u: Tensor, target: Tensor) -> Tensor:
        """r (B, ...), of length epsilon for each example of `u` (B, ...); `target` (B, K) are its logits."""
        d = torch.randn(u.shape, generator=self.view.generator, device=u.device, dtype=u.dtype)
        for _ in range(self.steps):
            r = (self.xi * unit(d)).requires_grad_(True)
            (d,) = torch.autograd.grad(divergence(target, self.model(u + r)), r)
        return self.epsilon * unit(d)


def divergence(target: Tensor, logits: Tensor) -> Tensor:
    """mean_b KL(softmax target_b || softmax logits_b): (B, K), (B, K) -> scalar, in nats."""
    log_p, log_q = F.log_softmax(logits, dim=1), F.log_softmax(target, dim=1)
    return F.kl_div(log_p, log_q, reduction="batchmean", log_target=True)


def unit(d: Tensor) -> Tensor:
    """Each example of d (B, ...) scaled to length 1; what is 0 stays 0."""
    rows = d.flatten(1)
    # By the largest number first: squares of a gradient this small would underflow.
    rows = rows / rows.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(d.dtype).tiny)
    return F.normalize(rows, dim=1).view_as(d)
