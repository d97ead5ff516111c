"""ViDA: homeostatic visual domain adapters."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from ...suite.errors import UsageError
from ...suite.hyper import hyper
from ...suite.protocols.stream import Source, StreamMethod
from ...suite.registry import register_method
from ..common.consistency import soft_cross_entropy, symmetric_cross_entropy
from ..common.norm import use_batch_statistics
from ..common.optimizers import make_optimizer
from ..common.restore import restore_randomly
from ..common.view_norm import CHUNK_CPU, CHUNK_GPU, logits_of_views
from ..common.views import draw_views, render_views

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@register_method("vida", family="mean-teacher", protocol="stream", paper="arXiv:2306.04344", needs=("images",))
@dataclass
class Vida(StreamMethod):
    """Low-rank and high-rank adapters, weighted by the teacher's uncertainty (Liu et al., ICLR 2024).

    arXiv:2306.04344. Each linear and convolution layer W gets two adapters, added to its output:

        W x + lambda_l U_l D_l x + lambda_h U_h D_h x        D: to rank r (1 low, 128 high), U: back, 0 at the start

    so that the model starts as the source. For each batch x_t, with student theta and teacher theta' (adapters
    included), homeostatic knowledge allotment sets the same scales in both models:

        u = 0.1 mean_b,k Var_i f_k(view_i(x_tb); theta')     over the N views of CoTTA, the scales still the old ones
        lambda_h = 1 + u, lambda_l = 1 - u   if u >= Theta,   lambda_h = 1 - u, lambda_l = 1 + u   otherwise
        y_t = f(x_t; theta')                                 predicted before the update
        theta <- theta - lr grad_theta mean_b CE(y_tb, f(x_tb; theta))
        theta' <- alpha theta' + (1 - alpha) theta           with rates lr, alpha of their own for the adapters
        theta <- m theta_0 + (1 - m) theta, m ~ Bernoulli(`restore`)

    All weights learn; batch norm layers use the statistics of the batch. A convolution's adapters are 1 x 1
    convolutions that read the centre of each of its windows. As U D is added to W itself, adapters cost no pass
    over the activations; in a grouped convolution D is shared by the groups.

    Where the authors' release differs from the paper: its `set_scale` never reaches lambda_h; here both scales are
    set. Taken from it: u for a whole batch out of logits (the paper has a standard deviation of probabilities per
    image, but the thresholds belong to this u), restoration on CIFAR, the symmetric loss on ImageNet. It adapts only
    the linear layers of attention (`layers="attention"`) and leaves dropout on, which is off here. Its adapters are
    pre-trained on source data: see `vida-pretrained`. Nothing is published for DomainNet-126: its preset, that of
    ImageNet, is ours. Counted passes per image: 4 + `views` = 14.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "cifar10": {"lr": 1e-4, "adapter_lr": 1e-5},
        "cifar100": {"lr": 3e-4, "adapter_lr": 1e-6},
        "imagenet": {
            "lr": 5e-7, "adapter_lr": 2e-7, "optimizer": "sgd", "loss": "sce", "adapter_momentum": 0.8,
            "threshold": 0.2, "restore": 0.0,
        },
        "domainnet126": {
            "lr": 5e-7, "adapter_lr": 2e-7, "optimizer": "sgd", "loss": "sce", "adapter_momentum": 0.8,
            "threshold": 0.2, "restore": 0.0,
        },
    }  # fmt: skip

    lr: float = hyper(1e-4, low=1e-8, high=1e-1, log=True, help="learning rate of the source's weights")
    adapter_lr: float = hyper(1e-5, low=1e-8, high=1e-1, log=True, help="learning rate of the adapters")
    optimizer: str = hyper("adam", choices=("adam", "sgd"))
    loss: str = hyper("ce", choices=("ce", "sce"), help="cross-entropy or its symmetric form")
    momentum: float = hyper(0.999, low=0.5, high=1.0, help="alpha of the teacher's weights")
    adapter_momentum: float = hyper(0.999, low=0.5, high=1.0, help="alpha of the teacher's adapters")
    threshold: float = hyper(0.05, low=0.0, high=1.0, help="Theta")
    views: int = hyper(10, low=2, high=64, help="N")
    low_rank: int = hyper(1, low=1, high=16, help="r of the low-rank adapters")
    high_rank: int = hyper(128, low=16, high=512, help="r of the high-rank adapters")
    restore: float = hyper(0.1, low=0.0, high=1.0, help="probability of restoring a weight, per batch")
    layers: str = hyper("all", choices=("all", "attention"), help="which layers get adapters")

    def setup(self, model: nn.Module, source: Source) -> None:
        self.generator = source.generator
        self.model = model.eval().requires_grad_(True)
        use_batch_statistics(self.model)
        add_adapters(self.model, self.low_rank, self.high_rank, self.generator, self.layers == "attention")
        self.pretrain(source)
        self.anchor, self.teacher = (copy.deepcopy(self.model).requires_grad_(False) for _ in range(2))
        weights, adapters = split_parameters(self.model)
        groups = [{"params": weights, "lr": self.lr}, {"params": adapters, "lr": self.adapter_lr}]
        self.updater = make_optimizer(groups, self.optimizer, self.lr)

    def pretrain(self, source: Source) -> None:
        """Nothing: the adapters start at zero."""

    def predict(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            self._allot(images)
            target: Tensor = self.teacher(images)
        distance = symmetric_cross_entropy if self.loss == "sce" else soft_cross_entropy
        self.updater.zero_grad()
        distance(self.model(images), target).mean().backward()  # type: ignore[no-untyped-call]
        self.updater.step()
        self._move_teacher()
        restore_randomly(list(self.model.parameters()), list(self.anchor.parameters()), self.restore, self.generator)
        return target

    def _allot(self, images: Tensor) -> None:
        """Set lambda_l and lambda_h of both models by the uncertainty of the teacher."""
        u = 0.1 * self._logits_of_views(images).var(dim=0).mean()
        high = torch.where(u >= self.threshold, 1.0 + u, 1.0 - u)
        scales = [adapter.scale for model in (self.model, self.teacher) for adapter in adapters_of(model)]
        torch._foreach_copy_(scales, [torch.stack([2.0 - high, high])] * len(scales))

    def _logits_of_views(self, images: Tensor) -> Tensor:
        """Logits (N, B, K) of the teacher; any split into passes gives the same random numbers."""
        views = draw_views(self.views, images.size(2), images.size(3), self.generator)
        limit = CHUNK_CPU if images.device.type == "cpu" else CHUNK_GPU
        together = max(1, limit // images.numel())
        parts = [views[start : start + together] for start in range(0, self.views, together)]
        return torch.cat([logits_of_views(self.teacher, render_views(images, part, self.generator)) for part in parts])

    @torch.no_grad()
    def _move_teacher(self) -> None:
        teacher, student = split_parameters(self.teacher), split_parameters(self.model)
        for mine, theirs, momentum in zip(teacher, student, (self.momentum, self.adapter_momentum), strict=True):
            torch._foreach_lerp_(mine, theirs, 1.0 - momentum)

    def predictor(self) -> nn.Module:
        return self.teacher


@register_method(
    "vida-pretrained",
    family="mean-teacher",
    protocol="stream",
    paper="arXiv:2306.04344",
    needs=(
        "images",
        "source-data",
    ),
)
@dataclass
class VidaPretrained(Vida):
    """ViDA whose adapters are trained on labelled source images before the stream (Liu et al., ICLR 2024).

    As `vida`; before the stream the adapters alone learn by cross-entropy, `pretrain_steps` steps of Adam on source
    images drawn uniformly with replacement. The authors hand out pre-trained adapters; number of steps, learning
    rate and what else learns are not in the release, and are chosen here, and the preset for DomainNet-126 is that of
    ImageNet as in `vida`. Counted passes before the stream: 3 per image, `pretrain_steps` x `source_batch` images.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "cifar10": {"lr": 1e-4, "adapter_lr": 1e-5},
        "cifar100": {"lr": 3e-4, "adapter_lr": 1e-6},
        "imagenet": {
            "lr": 5e-7, "adapter_lr": 2e-7, "optimizer": "sgd", "loss": "sce", "adapter_momentum": 0.8,
            "threshold": 0.2, "restore": 0.0,
        },
        "domainnet126": {
            "lr": 5e-7, "adapter_lr": 2e-7, "optimizer": "sgd", "loss": "sce", "adapter_momentum": 0.8,
            "threshold": 0.2, "restore": 0.0,
        },
    }  # fmt: skip

    lr: float = hyper(1e-4, low=1e-8, high=1e-1, log=True, help="learning rate of the source's weights")
    adapter_lr: float = hyper(1e-5, low=1e-8, high=1e-1, log=True, help="learning rate of the adapters")
    optimizer: str = hyper("adam", choices=("adam", "sgd"))
    loss: str = hyper("ce", choices=("ce", "sce"), help="cross-entropy or its symmetric form")
    momentum: float = hyper(0.999, low=0.5, high=1.0, help="alpha of the teacher's weights")
    adapter_momentum: float = hyper(0.999, low=0.5, high=1.0, help="alpha of the teacher's adapters")
    threshold: float = hyper(0.05, low=0.0, high=1.0, help="Theta")
    views: int = hyper(10, low=2, high=64, help="N")
    low_rank: int = hyper(1, low=1, high=16, help="r of the low-rank adapters")
    high_rank: int = hyper(128, low=16, high=512, help="r of the high-rank adapters")
    restore: float = hyper(0.1, low=0.0, high=1.0, help="probability of restoring a weight, per batch")
    layers: str = hyper("all", choices=("all", "attention"), help="which layers get adapters")
    pretrain_steps: int = hyper(250, low=0, high=100000, help="source batches before the stream")
    pretrain_lr: float = hyper(1e-4, low=1e-7, high=1e-1, log=True, help="learning rate on them")
    source_batch: int = hyper(40, low=1, high=1024, help="source images per step")

    def pretrain(self, source: Source) -> None:
        """Train the adapters on source images."""
        assert source.images is not None
        assert source.labels is not None
        _, adapters = split_parameters(self.model.requires_grad_(False))
        for parameter in adapters:
            parameter.requires_grad_(True)
        updater = make_optimizer(adapters, "adam", self.pretrain_lr)
        for _ in range(self.pretrain_steps):
            chosen = torch.randint(
                len(source.images), (self.source_batch,), generator=self.generator, device=self.generator.device
            )
            updater.zero_grad()
            F.cross_entropy(self.model(source.images(chosen)), source.labels[chosen]).backward()  # type: ignore[no-untyped-call]
            updater.step()
        self.model.requires_grad_(True)


class Adapter(nn.Module):
    """W -> W + lambda_l U_l D_l + lambda_h U_h D_h, at the centre of the window if W belongs to a convolution."""

    low_down: nn.Parameter
    low_up: nn.Parameter
    high_down: nn.Parameter
    high_up: nn.Parameter
    scale: Tensor
    centre: Tensor

    def __init__(self, weight: Tensor, low_rank: int, high_rank: int, generator: torch.Generator) -> None:
        super().__init__()
        n_out, n_in, *window = weight.shape
        for name, rank in (("low", low_rank), ("high", high_rank)):
            down = nn.Parameter(weight.new_empty(rank, n_in))
            nn.init.normal_(down, std=1.0 / rank**2, generator=generator)
            self.register_parameter(f"{name}_down", down)
            self.register_parameter(f"{name}_up", nn.Parameter(weight.new_zeros(n_out, rank)))
        self.register_buffer("scale", weight.new_ones(2))
        centre = weight.new_zeros(window)
        centre[tuple((size - 1) // 2 for size in window)] = 1.0
        self.register_buffer("centre", centre, persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        low = self.low_up @ self.low_down
        high = self.high_up @ self.high_down
        change = self.scale[0] * low + self.scale[1] * high
        return weight + change.view(*change.shape, *[1] * self.centre.dim()) * self.centre


def add_adapters(
    model: nn.Module, low_rank: int, high_rank: int, generator: torch.Generator, in_attention: bool
) -> None:
    """Give the linear and convolution layers of `model` an `Adapter`, in place; its outputs stay the same.

    With `in_attention`, only the linear layers inside modules of a class called `Attention` or `CrossAttention`.
    Raises `UsageError` when there is no such layer.
    """
    layers = [module for module in model.modules() if isinstance(module, _LAYERS)]
    if in_attention:
        blocks = [block for block in model.modules() if type(block).__name__ in ("Attention", "CrossAttention")]
        inside = {id(module) for block in blocks for module in block.modules()}
        layers = [layer for layer in layers if isinstance(layer, nn.Linear) and id(layer) in inside]
    if not layers:
        wanted = "linear layer in attention" if in_attention else "linear or convolution layer"
        raise UsageError(
            f"{type(model).__name__} has no {wanted} that could take an adapter. "
            "Choose other `layers`, or another model."
        )
    for layer in layers:
        parametrize.register_parametrization(layer, "weight", Adapter(layer.weight, low_rank, high_rank, generator))


def adapters_of(model: nn.Module) -> list[Adapter]:
    """The adapters of `model` in module order."""
    return [module for module in model.modules() if isinstance(module, Adapter)]


def split_parameters(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """The parameters of the source, and those of the adapters."""
    adapters: list[Tensor] = [parameter for adapter in adapters_of(model) for parameter in adapter.parameters()]
    known = {id(parameter) for parameter in adapters}
    return [parameter for parameter in model.parameters() if id(parameter) not in known], adapters
