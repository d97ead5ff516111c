"""LiST."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...suite.hyper import hyper
from ...suite.protocols.adaptation import Batch, LabeledBatch
from ...suite.protocols.adaptation_method import AdaptationMethod
from ...suite.registry import register_method
from ..common.adapters import add_adapters
from ..common.rounds import train_in_rounds

if TYPE_CHECKING:
    from ...suite.protocols.adaptation_view import View


@register_method("list", family="self-training", protocol="adaptation", paper="arXiv:2110.06274")
@dataclass
class List(AdaptationMethod):
    """Lite prompted self-training (Wang et al., Findings of NAACL 2022, arXiv:2110.06274).

        teacher:   L = CE(f(x), y)
        session s = 1, ..., S:   the teacher g is the model, the student f begins anew
            q_j = softmax g(u_j),  l_j = KL(q_j || softmax f(u_j))
            first part:   L = sum_j w_j l_j,   then:   L = CE(f(x), y)
            w_j = 1/B over the first `warmup` of the first part, then in proportion to
                  max(0, -d/d eps_j CE(f_eps(x), y)),  f_eps = f after a step of sum_j eps_j l_j,  at eps = 0

    The last line is meta-learned re-weighting by a look-ahead of one step (Ren et al. 2018, arXiv:1803.09050). At
    eps = 0 it is <grad CE(f(x), y), grad l_j> times the step's length, taken in eval mode: the slope of l_j along one
    gradient, which forward-mode differentiation gives for all j in one pass, where the authors' code differentiates
    through the step. Trained are adapters alone (h + W2 W1 h of rank `rank`, without non-linearity, behind the layers
    that write into the residual stream, begun with a deviation of 0.0002) and the classifier; the rest of the encoder
    is frozen. Six sessions, the warm-up of 0.6, soft labels, a student from the start in each session and one optimiser
    over both parts of it are those of the authors' code, as are the lack of views of u and of labels in the first part.

    The classifier is the task's: label words in the place of [MASK] where its encoder has an output layer over words
    and the task names a prompt, as in the paper; a linear head on the text's vector where not, which is then LiST
    without its prompt. A model without transformer layers is trained whole.

    Differences: the weights add up to 1, where the authors' code divides by their sum plus 1e-6, which is as large as
    the sum itself at its step of 5e-6; the labelled examples of the look-ahead are those of the step's batch, not four;
    parts are shares of the budget, of which the first takes `pseudo` of a session (1,000 steps of 16 and 50 epochs of
    the labels there); adapters learn `adapter_lr` times as fast as the recipe says, for budgets here are a tenth.

    Counted passes: 3 per labelled example and step of the teacher and of the second parts; in first parts 4 per
    unlabelled example, and after the warm-up 2 more, and 3 per labelled one. With `weight` 0 there are no sessions:
    with rank 0 as well, this is `supervised`.
    """

    weight: float = hyper(1.0, low=0.0, high=10.0, help="factor of the pseudo-labelled loss")
    rank: int = hyper(128, low=0, high=1024, help="rank of the adapters; 0 trains the whole model")
    adapter_lr: float = hyper(10.0, low=1.0, high=100.0, log=True, help="learning rate of adapters, as a multiple")
    sessions: int = hyper(6, low=1, high=20, help="number S of students")
    teacher: float = hyper(0.2, low=0.05, high=0.9, help="share of the budget of the first teacher")
    pseudo: float = hyper(0.6, low=0.1, high=1.0, help="share of a session that trains on the teacher's labels")
    warmup: float = hyper(0.6, low=0.0, high=1.0, help="share of that without re-weighting")
    ratio: int = hyper(1, low=1, high=16, help="unlabelled examples per labelled one in a step")

    def setup(self, model: nn.Module, view: View) -> None:
        super().setup(model, view)
        self.round, self.labelled_in = 0, 0
        self.adapters = nn.ModuleList(add_adapters(model, self.rank) if self.rank else [])
        self._reset_adapters()
        self.first = copy.deepcopy(model).requires_grad_(False)
        self.guide = copy.deepcopy(self.first).eval()

    def parameter_groups(self) -> list[tuple[list[nn.Parameter], float]]:
        of_adapters = [parameter for parameter in self.adapters.parameters() if parameter.requires_grad]
        known = {id(parameter) for parameter in of_adapters}
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        others = [parameter for parameter in trained if id(parameter) not in known]
        return [(others, 1.0), (of_adapters, self.adapter_lr)] if of_adapters else [(others, 1.0)]

    def fit(self, view: View) -> None:
        sessions = self.sessions if self.weight > 0 and len(view.unlabeled) else 0
        train_in_rounds(self, self, sessions, self.teacher, self._begin)

    def unlabeled_ratio(self) -> int:
        return self.ratio if self.round > 0 and self._done() < self.pseudo else 0

    def loss(self, labeled: LabeledBatch, unlabeled: Batch) -> Tensor:
        if len(unlabeled) == 0:
            return F.cross_entropy(self.model(labeled.weak), labeled.y)
        with torch.no_grad():
            q = self.guide(unlabeled.x).softmax(dim=1)
        if self._done() < self.warmup * self.pseudo:
            weights = torch.full_like(q[:, 0], 1.0 / len(q))
        else:
            weights = self._look_ahead(labeled, unlabeled.x, q)
            self.model.train()
        return self.weight * (weights * divergence(q, self.model(unlabeled.x))).sum()

    def _done(self) -> float:
        """The used share of this session."""
        length = (1.0 - self.teacher) / self.sessions
        return (self.view.progress - self.teacher - length * (self.round - 1)) / length

    def _begin(self) -> None:
        """The model becomes the teacher, and the student begins anew."""
        self.guide.load_state_dict(self.model.state_dict())
        self.model.load_state_dict(self.first.state_dict())
        self._reset_adapters()

    def _reset_adapters(self) -> None:
        for adapter in self.adapters:
            adapter.reset(0.0002, self.view.generator)  # type: ignore[operator]

    def _look_ahead(self, labeled: LabeledBatch, u: Tensor, q: Tensor) -> Tensor:
        """The weights (B,) of examples `u` (B, ...) with targets `q` (B, K); they add up to 1, or all are 0."""
        self.model.eval()
        trained = {name: item for name, item in self.model.named_parameters() if item.requires_grad}
        of_labels = F.cross_entropy(self.model(labeled.weak), labeled.y)
        gradients = torch.autograd.grad(of_labels, list(trained.values()), allow_unused=True, materialize_grads=True)
        # The tangent costs as much as the pass that it accompanies, which the hooks count.
        self.view.meter.charge(forward=len(u))
        # Fused attention has no forward-mode derivative; torch warns of its own way to load the others, at first use.
        with (
            warnings.catch_warnings(action="ignore", category=FutureWarning),
            torch.no_grad(),
            sdpa_kernel(SDPBackend.MATH),
            forward_ad.dual_level(),
        ):
            pairs = zip(trained.items(), gradients, strict=True)
            dual: Any = forward_ad
            moved = {name: dual.make_dual(item.detach(), gradient) for (name, item), gradient in pairs}
            slopes: Tensor = dual.unpack_dual(divergence(q, functional_call(self.model, moved, (u,)))).tangent
        weights = slopes.clamp_min(0.0)
        return weights / weights.sum().clamp_min(torch.finfo(weights.dtype).tiny)


def divergence(targets: Tensor, logits: Tensor) -> Tensor:
    """KL(targets || softmax(logits)) of each row: (B, K), (B, K) -> (B,), in nats."""
    cross: Tensor = -(targets * F.log_softmax(logits, dim=1)).sum(dim=1)
    entropy: Tensor = torch.special.entr(targets).sum(dim=1)
    return cross - entropy
