"""Visual domain prompts."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...suite.errors import UsageError
from ...suite.hyper import hyper
from ...suite.protocols.stream import Source, StreamMethod
from ...suite.registry import register_method
from ..common.consistency import soft_cross_entropy
from ..common.ema import ema_update
from ..common.norm import use_batch_statistics
from ..common.optimizers import make_optimizer
from ..common.views import random_views


@register_method("visual-prompt", family="mean-teacher", protocol="stream", paper="arXiv:2212.04145", needs=("images",))
@dataclass
class VisualPrompt(StreamMethod):
    """A frozen model whose images are decorated with learned prompts (Gan et al., AAAI 2023).

    "Decorate the Newcomers: Visual Domain Prompt for Continual Test Time Adaptation", arXiv:2212.04145. A
    domain-specific prompt psi and a domain-agnostic prompt omega are added to the pixels of a part of the image; they
    are all that learns. The teacher's prompts psi', omega' are their moving averages. For each batch x_t, with the
    source model f, a random view a and the target q = softmax f(a(x) + psi' + omega'):

        y_t = f(x_t + psi + omega)                                         predicted before the update
        psi   <- psi   - lr grad L,            L = mean_b CE(q_b, y_tb)
        omega <- omega - lr grad (L + lambda sum_i Lambda_i (omega_i - omega*_i)^2)      homeostatic penalty
        (psi', omega') <- m (psi', omega') + (1 - m) (psi, omega)

    A new domain is taken to begin when the mean confidence max_k softmax(y_t) differs by more than S from that of
    the batch before. Then omega* <- omega, and the sensitivities of the domain that has ended are added to Lambda:

        Lambda_i <- Lambda_i + max(0, w_i) / (d_i^2 + xi),   w_i = -sum_t (dL/domega_i)_t delta_i(t)

    with the steps delta_i(t) = omega_i(t) - omega_i(t - 1) and d_i their sum, over the batches of that domain.

    There is no public code, and the paper's full text was not at hand. From its abstract, the captions of its
    figures and published reading notes come: two prompts summed point by point with a portion of the image; the
    frozen source model; student and teacher by EMA, one on images, one on augmented images; cross-entropy for psi,
    the same with a penalty around the last omega of the previous domain for omega; sensitivities made of the steps
    delta and renewed with each domain; domains told apart by a threshold on the change of confidence. Chosen here:

    - each prompt is a square patch of `side` pixels at a place of its own, drawn once and kept; both start at zero;
      nothing is clipped;
    - Lambda has the form of synaptic intelligence (Zenke et al. 2017, arXiv:1703.04200), whose quantities the notes
      name; the gradient in w is that of L alone;
    - the teacher sees the view of CoTTA, the student the image, and the student is what predicts;
    - batch norm layers use the statistics of the batch, without which no prompt could match the reported errors;
    - psi goes on from domain to domain; all numbers (`lr`, `side`, lambda, S, xi) are ours, so that there are no
      published presets but for the size of the images.

    Counted passes per image: 4 (student 3, teacher 1).
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "cifar10": {"side": 8},
        "cifar100": {"side": 8},
        "imagenet": {"side": 56},
        "domainnet126": {"side": 56},
    }

    lr: float = hyper(1e-3, low=1e-5, high=1.0, log=True, help="learning rate of both prompts")
    optimizer: str = hyper("adam", choices=("adam", "sgd"))
    side: int = hyper(8, low=1, high=224, help="side of a prompt in pixels")
    momentum: float = hyper(0.999, low=0.5, high=1.0, help="m, of the teacher's prompts")
    penalty: float = hyper(1.0, low=0.0, high=100.0, help="lambda")
    change: float = hyper(0.05, low=0.0, high=1.0, help="S: change of confidence at which a domain ends")
    damping: float = hyper(1e-3, low=1e-6, high=1.0, log=True, help="xi")

    def setup(self, model: nn.Module, source: Source) -> None:
        self.model = model.eval().requires_grad_(False)
        use_batch_statistics(self.model)
        self.generator = source.generator
        like = next(self.model.parameters())
        self.student = Prompts(_input_channels(self.model), self.side, like, self.generator)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.updater = make_optimizer(self.student.parameters(), self.optimizer, self.lr)
        agnostic = self.student.agnostic.detach()
        self.anchor = agnostic.clone()
        """omega*, which is also omega where the domain began."""
        self.sensitivity, self.work = torch.zeros_like(agnostic), torch.zeros_like(agnostic)
        """Lambda and w."""
        self.confidence = like.new_full((), -torch.inf)
        """Of the batch before; none yet."""

    def predict(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            target = self.model(self.teacher(random_views(images, self.generator)[0]))
        logits: Tensor = self.model(self.student(images))
        self._notice_new_domain(logits.detach())
        self.updater.zero_grad()
        soft_cross_entropy(logits, target).mean().backward()  # type: ignore[no-untyped-call]
        self._step()
        ema_update(self.teacher, self.student, self.momentum)
        return logits.detach()

    @torch.no_grad()
    def _notice_new_domain(self, logits: Tensor) -> None:
        """Renew omega* and Lambda if the confidence has changed; without waiting for the device to know."""
        confidence = logits.softmax(dim=1).amax(dim=1).mean()
        change = (confidence - self.confidence).abs()
        changed = (change > self.change) & change.isfinite()
        self.confidence = confidence
        agnostic = self.student.agnostic
        added = self.work.clamp(min=0.0) / ((agnostic - self.anchor).square() + self.damping)
        self.sensitivity = torch.where(changed, self.sensitivity + added, self.sensitivity)
        self.work = torch.where(changed, 0.0, self.work)
        self.anchor = torch.where(changed, agnostic, self.anchor)

    @torch.no_grad()
    def _step(self) -> None:
        """One step on L and the penalty, whose gradient is added by hand: w wants that of L alone."""
        agnostic = self.student.agnostic
        assert agnostic.grad is not None
        gradient, before = agnostic.grad.clone(), agnostic.clone()
        agnostic.grad += 2.0 * self.penalty * self.sensitivity * (agnostic - self.anchor)
        self.updater.step()
        self.work = self.work - gradient * (agnostic - before)

    def predictor(self) -> nn.Module:
        return nn.Sequential(self.student, self.model)


class Prompts(nn.Module):
    """Adds the prompts psi and omega, each (C, `side`, `side`), to images (B, C, H, W) at their places."""

    def __init__(self, channels: int, side: int, like: Tensor, generator: torch.Generator) -> None:
        super().__init__()
        self.specific = nn.Parameter(like.new_zeros(channels, side, side))
        self.agnostic = nn.Parameter(like.new_zeros(channels, side, side))
        # Shares of the room that is left above and left of each prompt: the size of the images is not known yet.
        self.places = torch.rand((2, 2), generator=generator, device=generator.device).tolist()

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        side = self.specific.size(1)
        if side > min(height, width):
            raise UsageError(
                f"a prompt of side {side} does not fit into images of {height} x {width} pixels. "
                "Choose a smaller `side`."
            )
        return images + sum(
            self._placed(prompt, place, height - side, width - side)
            for prompt, place in zip((self.specific, self.agnostic), self.places, strict=True)
        )

    @staticmethod
    def _placed(prompt: Tensor, place: list[float], down: int, right: int) -> Tensor:
        """The prompt (C, side, side) in an image (C, side + down, side + right) that is 0 elsewhere."""
        top, left = int(place[0] * (down + 1)), int(place[1] * (right + 1))
        return F.pad(prompt, (left, right - left, top, down - top))


def _input_channels(model: nn.Module) -> int:
    """The number of channels of the images that `model` reads: those of its first convolution, else 3."""
    return next((layer.in_channels for layer in model.modules() if isinstance(layer, nn.Conv2d)), 3)
