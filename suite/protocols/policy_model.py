"""The language model of a policy method, behind a narrow interface and metered in tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..meter import Meter
from . import policy_objectives
from .context import Context
from .generation import OwnSampler, Sampler
from .policy import PolicyTask
from .policy_calls import Calls
from .policy_episodes import Episodes, Reactions, by_the_scorer
from .policy_evaluation import Evaluation
from .policy_examples import Example, Pair, Referenced, Rollout
from .policy_generation import Generation
from .policy_objectives import Objective
from .policy_scoring import Scoring
from .policy_training import Training
from .policy_weights import BASE, Weights
from .sampling import Sampling
from .sequences import Sequences, join
from .texts import pack
from .value_model import ValueModel


class Policy:
    """A language model behind a narrow interface, metered in tokens.

    Counted are generated tokens, the stop symbol included, and every token of prompts, responses and stop symbols that
    passes through the model to be trained on or scored, once a pass. In example passes a sequence counts 1 forward, and
    2 more backward where it is trained on. What would exceed the budget raises `BudgetExhausted` before it is done.

    `keep` stores the weights under a name, `use` puts them back; `base` are those of the start. Responses are texts
    without the stop symbol; one that was cut off ends in `CUT_OFF` and can be neither scored nor trained on.
    """

    def __init__(
        self,
        model: nn.Module,
        task: PolicyTask,
        meter: Meter,
        context: Context,
        pool: Sequence[str] = (),
        lr_scale: float = 1.0,
        reactions: Reactions | None = None,
        sampler: Sampler | None = None,
    ) -> None:
        self._model, self._task = model.eval(), task
        self._tokenizer = tokenizer = task.tokenizer()
        self._calls = calls = Calls(meter, context)
        self._weights = weights = Weights(model)
        self._episodes = Episodes(task, tokenizer, reactions or by_the_scorer(calls))
        sampler = sampler or OwnSampler(model, tokenizer, task.rows)
        self._generation = Generation(sampler, task, tokenizer, weights, self._episodes, calls)
        self._scoring = Scoring(model, task, tokenizer, weights, calls)
        self._training = Training(model, task.recipe, weights, calls, task.recipe.lr * lr_scale)
        self.evaluation = Evaluation(model, task, tokenizer, self._generation, self._scoring, self._episodes, calls)
        self.place("pool", pool)
        self._numbers = {prompt: number for number, prompt in enumerate(pool)}
        self._reader: Callable[[str], str | None] | None = None
        self.own = (0, 0)

    def generate(
        self,
        prompts: Sequence[str],
        n: int = 1,
        temperature: float = 1.0,
        top_p: float = 1.0,
        under: str = "",
        max_new: int = 0,
    ) -> list[list[str]]:
        """`n` responses to every prompt; temperature 0 is greedy. `under` names kept weights to use instead.

        They are cut off after `max_new` tokens, without it after as many as the task allows.
        """
        made = self._generation.responses(prompts, n, Sampling(temperature, top_p), under, max_new=max_new)
        self._read(prompts, made)
        return made

    def step(
        self,
        prompts: Sequence[str],
        begun: Sequence[str],
        n: int = 1,
        temperature: float = 1.0,
        top_p: float = 1.0,
        under: str = "",
    ) -> list[list[str]]:
        """`n` responses to every prompt that go one step further than `begun`, one a prompt.

        What is unfinished, among the given ones and the returned ones, ends in `CUT_OFF`, which alone is a response of
        which nothing is there yet. One that is as long as the task allows goes on in none.
        """
        if not len(prompts):
            return []
        return self._generation.responses(prompts, n, Sampling(temperature, top_p), under, begun, self._generation.ends)

    def logprobs(
        self,
        prompts: Sequence[str],
        responses: Sequence[str],
        mean: bool = False,
        under: str = "",
        unfinished: bool = False,
    ) -> Tensor:
        """log pi(response | prompt) (N,), float64 on the CPU: over the tokens of the response and its stop symbol,
        summed, or their mean. `under` names kept weights to use instead. `unfinished` responses, which end in
        `CUT_OFF` and have no stop symbol, are refused unless they are said to be welcome.
        """
        if not len(prompts):
            return torch.zeros(0, dtype=torch.float64)
        sequences = self._join(prompts, responses, unfinished)
        values = self._scoring.logprobs(sequences, under)
        if mean:
            values = values / torch.from_numpy(sequences.scored())
        return values

    def finetune(
        self,
        examples: Sequence[Example],
        weights: Sequence[float] | Tensor | None = None,
        epochs: int = 1,
        lr_scale: float = 1.0,
    ) -> float:
        """Supervised fine-tuning on responses alone (prompts are not trained on); returns the last batch's loss.

        `weights` (N,), at least 0, weigh the examples' tokens. Without examples nothing happens, and the loss is NaN.
        """
        if not len(examples):
            return float("nan")
        prompts, responses = ([example[at] for example in examples] for at in (0, 1))
        sequences = self._taught(prompts, responses)
        objective = policy_objectives.fine_tuning(self._model, sequences, self._numbered(weights, len(examples)))
        return self._training.train(objective, epochs, lr_scale)

    def prefer(
        self,
        pairs: Sequence[Pair],
        labels: Sequence[float] | Tensor | None = None,
        weights: Sequence[float] | Tensor | None = None,
        beta: float = 0.1,
        reference: str = "",
        epochs: int = 1,
        lr_scale: float = 1.0,
    ) -> float:
        """DPO on pairs; returns the last batch's loss, NaN without pairs.

        `labels` (N,) in [0, 1] say how probable it is that `chosen` is the better one (1 by default), `weights` (N,)
        weigh pairs. `reference` names the kept weights of the reference policy; by default it is the policy as it
        stands. Its log-probabilities are computed once, before the training, and kept for the rest of the round.
        """
        if not len(pairs):
            return float("nan")
        prompts, chosen, rejected = ([pair[at] for pair in pairs] for at in (0, 1, 2))
        n = len(pairs)
        both = self._join(prompts * 2, chosen + rejected)
        self._tell("chosen", prompts, chosen)
        self._tell("rejected", prompts, rejected)
        before = self._scoring.by_reference(both, prompts * 2, chosen + rejected, reference)
        before = before.to(self._calls.device).float()
        label = self._numbered(labels, n)
        if bool((label > 1).any()):
            raise ValueError("labels are probabilities, in [0, 1]")
        weight = self._numbered(weights, n)
        objective = policy_objectives.preference(self._model, both, before, label, weight, beta)
        return self._training.train(objective, epochs, lr_scale)

    def distill(
        self,
        examples: Sequence[Referenced],
        alpha: float = 0.3,
        weight: float = 2.0,
        epochs: int = 1,
        lr_scale: float = 1.0,
    ) -> float:
        """Fine-tuning on responses after prompts with a reference, whose distributions teach those without one.

        The loss is `distillation_loss`, of the policy with itself; returns the last batch's, NaN without examples.
        """
        if not len(examples):
            return float("nan")
        prompts, referenced, responses = ([example[at] for example in examples] for at in (0, 1, 2))
        teacher = self._join(referenced, responses)
        student = self._taught(prompts, responses)
        objective = policy_objectives.distillation(
            self._model, teacher, student, self._tokenizer.stop, alpha, weight, self._calls.device
        )
        return self._training.train(objective, epochs, lr_scale)

    def finetune_voted(
        self, examples: Sequence[Example], passes: int, dropout: float, epochs: int = 1, lr_scale: float = 1.0
    ) -> float:
        """Fine-tuning on responses whose tokens are predicted by a vote: the mean of the logits of `passes` passes,
        with `dropout` on what attention and feed-forward layers add (MC-CoT, arXiv:2311.14109).

        Returns the last batch's loss, NaN without examples. Without dropout it is `finetune`, `passes` times as dear.
        """
        if not len(examples):
            return float("nan")
        prompts, responses = ([example[at] for example in examples] for at in (0, 1))
        sequences = self._taught(prompts, responses)
        generator = torch.Generator(self._calls.device).manual_seed(self._calls.next_seed("dropout"))
        objective = policy_objectives.voted(self._model, sequences, passes, dropout, generator)
        return self._training.train(objective, epochs, lr_scale)

    def reinforce(
        self, draw: Callable[[], Sequence[Rollout]], steps: int, reference: str = BASE, lr_scale: float = 1.0
    ) -> float:
        """`steps` steps of REINFORCE, each on the rollouts that `draw` samples for it; returns the last mean reward.

        The loss is `reinforce_loss` of one batch of all of them, log-probabilities summed over the tokens of a response
        and, where it is whole, its stop symbol. `reference` names the kept weights of pi_ref. All steps share an
        optimiser. Without steps or rollouts nothing happens, and the reward is NaN.
        """
        device, paid = self._calls.device, torch.tensor(float("nan"))

        def batch() -> Objective | None:
            nonlocal paid
            rollouts = draw()
            if not rollouts:
                return None
            prompts, responses = [one.prompt for one in rollouts], [one.response for one in rollouts]
            sequences = self._join(prompts, responses, unfinished=True)
            paid = torch.tensor([one.reward for one in rollouts], dtype=torch.float32, device=device)
            before = torch.zeros_like(paid)
            pinned = np.flatnonzero([one.kl for one in rollouts])
            if len(pinned):
                values = self._scoring.logprobs(sequences.part(pinned), reference)
                before[torch.from_numpy(pinned)] = values.to(before)
            return policy_objectives.reinforcement(self._model, sequences, rollouts, paid, before)

        self._training.follow(batch, steps, lr_scale)
        return float(paid.mean())

    def answered(self, prompts: Sequence[str], responses: Sequence[str]) -> list[str]:
        """`responses` with the environment's answer to the action in which each ends; whole where the episode is over.

        For problems of the pool on tasks with an environment. What ends in no action is left as it is.
        """
        return self._episodes.answered(prompts, responses)

    def keep(self, name: str) -> None:
        """Store the weights as they stand under `name`; at most three names beside `base`."""
        self._calls.refuse_while_answering()
        self._weights.keep(name)
        self._scoring.forget_references()

    def use(self, name: str) -> None:
        """Put back the weights that are kept under `name`."""
        self._calls.refuse_while_answering()
        self._weights.use(name)

    def forget(self, name: str) -> None:
        """Drop the weights that are kept under `name`."""
        self._calls.refuse_while_answering()
        self._weights.forget(name)
        self._scoring.forget_references()

    def value_model(self) -> ValueModel:
        """A new model of the values of responses, with the policy's weights as they stand; make it in `setup`."""
        return ValueModel(self._model, self._tokenizer, self._task.rows, self._weights, self._training, self._calls)

    # What follows is for the harness.

    def prepare(self, examples: Sequence[Example], epochs: int) -> None:
        """Train the first policy, off the meter and by the recipe alone; its weights are `base` from here on."""
        own, self._training.lr = self._training.lr, self._task.recipe.lr
        with self._calls.meter.paused():
            self.finetune(examples, epochs=epochs)
        self._training.lr = own
        self._begin_here()

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """Begin with the weights of a first policy that was prepared before; they are `base` from here on."""
        self._weights.load(weights)
        self._begin_here()

    def place(self, part: str, prompts: Sequence[str]) -> None:
        """Say of which problems the prompts are, for an environment to know its world."""
        self._episodes.place(part, prompts)

    def read_with(self, parse: Callable[[str], str | None]) -> None:
        """Count from here on how many whole responses to the pool a round generates, and how many parse: `own`."""
        self._reader = parse

    def begin(self, number: int) -> None:
        """Begin a round: random streams, caches and counts depend on its number and the calls in it alone."""
        self.own = (0, 0)
        self._calls.begin(number)
        self._scoring.forget_references()

    def state(self) -> dict[str, Any]:
        """Weights, for a checkpoint."""
        return self._weights.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        self._weights.restore(state)

    def _begin_here(self) -> None:
        self._weights.begin_here()
        self._scoring.forget_references()
        self._calls.begin_anew()

    def _read(self, prompts: Sequence[str], made: Sequence[Sequence[str]]) -> None:
        if self._reader is None or self._calls.answering:
            return
        texts = [text for prompt, group in zip(prompts, made, strict=True) if prompt in self._numbers for text in group]
        parsed = sum(self._reader(text) is not None for text in texts)
        self.own = (self.own[0] + len(texts), self.own[1] + parsed)

    def _join(self, prompts: Sequence[str], responses: Sequence[str], unfinished: bool = False) -> Sequences:
        return join(self._tokenizer, prompts, responses, unfinished, self._episodes.observed)

    def _taught(self, prompts: Sequence[str], responses: Sequence[str]) -> Sequences:
        """The token sequences of examples, of which the scorer is told."""
        sequences = self._join(prompts, responses)
        self._tell("examples", prompts, responses)
        return sequences

    def _numbered(self, values: Sequence[float] | Tensor | None, n: int) -> Tensor:
        device = self._calls.device
        if values is None:
            return torch.ones(n, device=device)
        numbers = torch.as_tensor(values, dtype=torch.float32, device=device)
        if numbers.shape != (n,) or not bool((numbers >= 0).all()):
            raise ValueError(f"labels and weights are {n} numbers of at least 0, got the shape {tuple(numbers.shape)}")
        return numbers

    def _tell(self, part: str, prompts: Sequence[str], responses: Sequence[str]) -> None:
        """Tell the scorer what is trained on, for its diagnostics; those of pool prompts alone."""
        known = [(self._numbers[prompt], response) for prompt, response in zip(prompts, responses, strict=True)
                 if prompt in self._numbers]  # fmt: skip
        if known:
            numbers, texts = zip(*known, strict=True)
            arrays = {"numbers": np.array(numbers, np.int64), "responses": pack(texts)}
            self._calls.context.wire.send("trained", arrays, part=part)
