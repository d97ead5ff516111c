"""The protocol `adaptation`: few labels, an unlabelled pool, and a budget; the last (or selected) predictor is scored.

`AdaptationTask` is what a task author writes, `AdaptationMethod` (`adaptation_method.py`) what a method author writes:
mostly one function, `loss(labeled, unlabeled)`. The training loop of `View` (`adaptation_view.py`) does optimiser,
schedule, precision, weight averaging, evaluation and checkpoints, the same for every method. Hidden labels stay with
the scorer, in another process.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..bundle import Array, Bundle, BundleFolder
from ..scoring import Scores, score_classification
from ..seeds import rng
from .context import as_logits
from .optimisation import Recipe as Recipe

if TYPE_CHECKING:
    from ..data import Data

Augmentation = Callable[[Tensor, torch.Generator], Tensor]
EVALUATED = ("test", "validation", "source_validation", "source_test")
"""The parts of a split on which predictions are made."""
_SAMPLED = 1000
"""Examples of a pool on which predictors are looked at, at most."""


def _none() -> Array:
    return np.empty(0, np.int64)


@dataclass(frozen=True)
class Split:
    """Which examples are which in one run: index arrays into the public arrays, and the classes that may be seen.

    `validation` comes from where the test examples come from, `source_validation` from where the labelled ones do,
    where the two differ; `source_test` is a second test set from there, scored beside `test`. `labeled_domains` (L,)
    and `unlabeled_domains` (U,) are domain numbers, for tasks that grant `domains`.
    """

    labeled: Array
    labels: Array
    unlabeled: Array
    validation: Array
    test: Array
    source_validation: Array = field(default_factory=_none)
    labeled_domains: Array = field(default_factory=_none)
    unlabeled_domains: Array = field(default_factory=_none)
    source_test: Array = field(default_factory=_none)

    def __post_init__(self) -> None:
        if len(self.labeled) != len(self.labels):
            raise ValueError("every labelled example needs its label")
        for domains, examples in ((self.labeled_domains, self.labeled), (self.unlabeled_domains, self.unlabeled)):
            if len(domains) not in (0, len(examples)):
                raise ValueError("either every example has a domain or none")
        seen = np.concatenate([self.labeled, self.unlabeled, self.validation, self.source_validation])
        if np.intersect1d(seen, np.concatenate([self.test, self.source_test])).size:
            raise ValueError("test examples may not be among those a method is shown")


def pool_sample(seed: int, size: int) -> Array:
    """Places of the examples of a pool of `size` on which every predictor of a run is looked at: at most 1,000."""
    return np.sort(rng(seed, "label-free").permutation(size)[:_SAMPLED])


@dataclass(frozen=True)
class Vocabulary:
    """What hides a token: ids of `mask` and of the `special` tokens that are never hidden, and the `size` of all."""

    size: int
    mask: int
    special: tuple[int, ...]


class AdaptationTask:
    """An adaptation task: data, split, model, augmentations, recipe, metric."""

    n_classes: ClassVar[int]
    tell: Callable[[str], None] = staticmethod(lambda text: None)
    """Where a long `build` says how far it is; the harness listens."""
    recipe: ClassVar[Recipe] = Recipe()
    cached_passes: ClassVar[float] = 0.0
    """Example passes that one handed-out example stands for when its features come from a cache of a frozen model."""
    lazy: ClassVar[bool] = False
    """Whether examples are made when they are asked for (`LazyPool`), not all at once at the start of a run."""
    evaluation_batch: ClassVar[int] = 1024
    """How many examples are evaluated at a time."""
    label_free: ClassVar[bool] = True
    """Whether scores that need no label are taken; they are made of logits (B, K) of exclusive classes."""
    own_loss: ClassVar[bool] = False
    """Whether the model computes its loss itself, given targets: `supervised` is all that there is, and no `loss`."""
    keep_predictions: ClassVar[bool] = False
    """Whether the predicted classes of the point that counts are kept beside the records, for export."""
    replicates: ClassVar[int] = 0
    """How many seeds, from 0, a submission to the task's public leaderboard needs; 0 where there is none."""

    def build(self, data: Data) -> Bundle:
        """Decode the data; runs once, in a process of its own."""
        raise NotImplementedError

    def model(self) -> nn.Module:
        """A freshly initialised model, inputs (B, ...) -> logits (B, K), or other `outputs`; the harness seeds it."""
        raise NotImplementedError

    def split(self, bundle: BundleFolder, seed: int) -> Split:
        """The split of one run, equal for all methods. Called by the scorer; it may read labels, to balance."""
        raise NotImplementedError

    def inputs(self, public: Mapping[str, Array], indices: Array) -> Tensor:
        """The examples `indices` as a preprocessed tensor (B, ...); must be a pure function."""
        raise NotImplementedError

    def labels(self, private: Mapping[str, Array], indices: Array) -> Array:
        """The true classes (N,) of the examples `indices`, or rows (N, ...) of what `score` needs of them.

        Called by the scorer alone.
        """
        return private["labels"][indices]

    def oracle(self, private: Mapping[str, Array], indices: Array) -> Array:
        """The true classes (N,) of unlabelled examples, -1 where none is known, for a task that grants `oracle-labels`.

        Called by the scorer alone, for a method that is an upper bound.
        """
        return np.asarray(private["labels"][indices])

    def weak(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """The weak augmentation of a batch, on its device; all randomness from `generator`."""
        return inputs

    def strong(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """The strong augmentation of a batch; a task that has one grants `strong-augmentation`."""
        raise NotImplementedError

    def strong_inputs(self, public: Mapping[str, Array], indices: Array) -> Tensor:
        """What `strong` is given of labelled or unlabelled examples, (B, ...): by default their inputs.

        A task whose strong views were made beforehand, such as translations, hands them out here; a pure function.
        """
        return self.inputs(public, indices)

    def vocabulary(self) -> Vocabulary:
        """The token ids of a task that grants `masked-tokens`."""
        raise NotImplementedError

    def language_model(self, model: nn.Module) -> nn.Module:
        """Ids (B, T), and bool (B, T) of M chosen places -> logits (M, V) of the tokens there, by a head on `model`.

        It shares the body of `model`: what trains the one trains the other. For tasks that grant `masked-tokens`.
        """
        raise NotImplementedError

    def loss(self, outputs: Any, targets: Tensor) -> Tensor:
        """The supervised loss of what the model returns for a batch: the cross-entropy of logits (B, K).

        A task whose `outputs` are something else has its own; methods that are registered for it call this one.
        """
        return F.cross_entropy(outputs, targets)

    def supervised(self, model: nn.Module, inputs: Any, targets: Tensor) -> Tensor:
        """The supervised loss of a batch; a task whose model computes its own loss overrides it."""
        return self.loss(model(inputs), targets)

    def places(self, inputs: Tensor) -> Tensor:
        """Which tokens of a batch have a class, bool (B, T), for a task whose `outputs` are tokens.

        The last linear layer of its model reads the states (n, D) of these alone, row by row.
        """
        raise NotImplementedError

    def targets(self, outputs: Tensor) -> Tensor:
        """A teacher's outputs (B, K) as targets of `loss`: the classes (B,)."""
        return outputs.argmax(dim=1)

    def pseudo_label_loss(self, outputs: Tensor, teacher: Tensor, threshold: float) -> Tensor:
        """The loss of `outputs` (B, K) on what `teacher` (B, K) is sure of:

            (1/B) sum_b 1[max_k q_bk >= threshold] CE(outputs_b, argmax q_b),    q = softmax(teacher)

        The mean is over all B examples, kept or not; no gradient flows into `teacher`. Tasks with other outputs have
        their own.
        """
        confidence, labels = teacher.detach().softmax(dim=1).max(dim=1)
        losses = F.cross_entropy(outputs, labels, reduction="none")
        return (losses * (confidence >= threshold)).mean()

    def self_supervised(self, model: nn.Module, inputs: Tensor, threshold: float) -> Tensor:
        """The loss of `model` on its own sure predictions for `inputs` (B, ...), which pass once."""
        outputs = model(inputs)
        return self.pseudo_label_loss(outputs, outputs, threshold)

    def crop_view(self, inputs: Tensor, generator: torch.Generator, area: tuple[float, float], side: int = 0) -> Tensor:
        """A view for contrastive pre-training where inputs are pictures, but none in three colours from 0 to 1.

        (B, C, H, W) -> a crop of a share of `area` of each, with its own changes, resized back or to `side` x `side`.
        """
        raise NotImplementedError

    def sealed(self, outputs: Any, n: int, owner: str) -> Tensor:
        """What of the model's outputs for `n` examples is sent to the scorer, and kept: logits (n, K).

        A task whose outputs are too large, or no tensor, makes a tensor (n, ...) of finite numbers of them. Raises
        `MethodError` with the method's name `owner` for outputs of another form.
        """
        return as_logits(outputs, n, self.n_classes, owner, "the evaluation set")

    def score(self, logits: Array, labels: Array) -> Scores:
        """Metrics from what is `sealed`, (N, K), and what `labels` returned of the same examples."""
        return score_classification(logits, labels)

    def predicted(self, sealed: Array) -> Array:
        """What a submission needs of what is `sealed` of N examples: the classes (N,)."""
        classes: Array = sealed.argmax(axis=1)
        return classes

    def unpredicted(self, predicted: Array) -> Array:
        """Outputs whose metrics, but those of probabilities, are those of `predicted`: one-hot rows (N, K)."""
        return np.eye(self.n_classes, dtype=np.float32)[predicted]

    def submission(self, seed: int, predicted: Mapping[str, Array]) -> Mapping[str, str | bytes]:
        """Files of the task's public leaderboard, by their paths, from what was `predicted` on each evaluated set."""
        raise NotImplementedError


class Batch:
    """A batch of inputs with its views; each view is computed at most once, when it is asked for.

    `x` (B, ...) are the inputs as they are, `weak` and `strong` their augmentations. Random numbers of a view depend
    on the run's seed, the step and the view alone, so that asking for one view cannot disturb another. `index` (B,)
    says where in the pool each example stands, `domains` (B,) where it comes from; the latter is empty (length 0)
    unless the method has declared the need `domains`.
    """

    def __init__(
        self,
        x: Tensor,
        weak: Augmentation,
        strong: Augmentation,
        generators: Callable[[str], Any],
        index: Tensor | None = None,
        domains: Tensor | None = None,
    ) -> None:
        self.x = x
        self.index = torch.arange(len(x), device=x.device) if index is None else index
        self.domains = torch.empty(0, dtype=torch.int64, device=x.device) if domains is None else domains
        self._weak = weak
        self._strong = strong
        self._generators = generators

    def __len__(self) -> int:
        return len(self.x)

    @functools.cached_property
    def weak(self) -> Tensor:
        return self._weak(self.x, self._generators("weak"))

    @functools.cached_property
    def weak2(self) -> Tensor:
        """A second, independent weak view."""
        return self._weak(self.x, self._generators("weak2"))

    @functools.cached_property
    def strong(self) -> Tensor:
        return self._strong(self.x, self._generators("strong"))

    @functools.cached_property
    def strong2(self) -> Tensor:
        """A second, independent strong view."""
        return self._strong(self.x, self._generators("strong2"))


class LabeledBatch(Batch):
    """A batch with its classes `y` (B,)."""

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        weak: Augmentation,
        strong: Augmentation,
        generators: Callable[[str], Any],
        index: Tensor | None = None,
        domains: Tensor | None = None,
    ) -> None:
        super().__init__(x, weak, strong, generators, index, domains)
        self.y = y
