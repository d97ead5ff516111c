"""The language model of a policy method, behind a narrow interface and metered in tokens."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..bundle import Array
from ..errors import MethodError
from ..meter import Meter
from ..seeds import derive, rng
from ..spec import Budget
from . import language_model
from .context import Context, autocast
from .dropout import residual_dropout
from .language_model import Sampling, Sequences
from .optimisation import make_optimizer
from .policy import Example, Pair, PolicyMethod, PolicyTask, Referenced, Rollout
from .policy_measures import Cloze
from .rollouts import Charge, Kind, Rollouts
from .texts import pack, unpack
from .value_model import ValueModel

Reactions = Callable[[str, Sequence[int], Sequence[str]], Sequence[tuple[str, bool]]]
"""A part of the problems, their numbers in it (N,) and responses -> what is written after each, and whether it ends."""
BASE = "base"
"""The name under which the first policy is kept, always."""
UNLIMITED = 1e18
"""The limit of a budget that nothing uses up."""
_MOST_KEPT = 4


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
    ) -> None:
        self._model = model.eval()
        self._task, self._meter, self._context = task, meter, context
        self._tokenizer = task.tokenizer()
        symbols = list(task.step_ends)
        self._ends = self._tokenizer.encode(symbols)[0].ravel().tolist() if symbols else []
        self._seed, self._device = context.spec.seed, context.device
        self._lr = task.recipe.lr * lr_scale
        environment = task.grants().environment
        self._observed = self._tokenizer.encode(list(environment.symbols))[0].ravel().tolist() if environment else []
        self._react = reactions or self._reactions
        self._places: dict[str, tuple[str, int]] = {}
        self.place("pool", pool)
        self._numbers = {prompt: number for number, prompt in enumerate(pool)}
        self._kept: dict[str, dict[str, Tensor]] = {}
        self._round = self._calls = 0
        self._answers_for: int | None = None
        self._reference: dict[tuple[str, str, str], float] = {}
        self._rollouts = Rollouts(context.work / "rollouts")
        self._reader: Callable[[str], str | None] | None = None
        self.own = (0, 0)
        self.keep(BASE)

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
        made = self._generate(prompts, n, Sampling(temperature, top_p), under, max_new=max_new)
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
        return self._generate(prompts, n, Sampling(temperature, top_p), under, begun, self._ends)

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
        values = self._score(sequences, under)
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
        sequences = self._join(prompts, responses)
        self._tell("examples", prompts, responses)
        weight = self._weights(weights, len(examples))
        tokens = torch.from_numpy(sequences.scored()).to(self._device)

        def loss(chosen: Array) -> Tensor:
            at = torch.from_numpy(chosen).to(self._device)
            logprobs = sequences.logprobs(self._model, chosen, self._device)
            return language_model.sft_loss(logprobs, tokens[at], weight[at])

        return self._train(sequences, sequences.lengths, 1, loss, epochs, lr_scale)

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
        before = self._referenced(both, prompts * 2, chosen + rejected, reference).to(self._device).float()
        label = self._weights(labels, n)
        if bool((label > 1).any()):
            raise ValueError("labels are probabilities, in [0, 1]")
        weight = self._weights(weights, n)
        lengths = both.lengths.reshape(2, n)

        def loss(at: Array) -> Tensor:
            rows = np.concatenate([at, at + n])
            index = torch.from_numpy(rows).to(self._device)
            gained = both.logprobs(self._model, rows, self._device) - before[index]
            better, worse = gained.split(len(at))  # type: ignore[no-untyped-call]
            first = index[: len(at)]
            return language_model.dpo_loss(better, worse, label[first], weight[first], beta)

        longest = Sequences(both.ids[:n], both.starts[:n], lengths.max(axis=0))
        return self._train(longest, lengths.sum(axis=0), 2, loss, epochs, lr_scale)

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
        student = self._join(prompts, responses)
        teacher = self._join(referenced, responses)
        self._tell("examples", prompts, responses)

        def loss(chosen: Array) -> Tensor:
            taught, tokens = teacher.logits(self._model, chosen, self._device)
            own, _ = student.logits(self._model, chosen, self._device)
            return language_model.distillation_loss(taught, own, tokens, tokens != self._tokenizer.stop, alpha, weight)

        longest = teacher if teacher.lengths.sum() >= student.lengths.sum() else student
        return self._train(longest, teacher.lengths + student.lengths, 2, loss, epochs, lr_scale)

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
        sequences = self._join(prompts, responses)
        self._tell("examples", prompts, responses)
        generator = torch.Generator(self._device).manual_seed(self._next_seed("dropout"))

        def loss(chosen: Array) -> Tensor:
            with residual_dropout(self._model, dropout, generator):
                found = [sequences.logits(self._model, chosen, self._device) for _ in range(passes)]
            return F.cross_entropy(torch.stack([logits for logits, _ in found]).mean(dim=0), found[0][1])

        return self._train(sequences, passes * sequences.lengths, 1, loss, epochs, lr_scale, passes=passes)

    def reinforce(
        self, draw: Callable[[], Sequence[Rollout]], steps: int, reference: str = BASE, lr_scale: float = 1.0
    ) -> float:
        """`steps` steps of REINFORCE, each on the rollouts that `draw` samples for it; returns the last mean reward.

        The loss is `reinforce_loss` of one batch of all of them, log-probabilities summed over the tokens of a response
        and, where it is whole, its stop symbol. `reference` names the kept weights of pi_ref. All steps share an
        optimiser. Without steps or rollouts nothing happens, and the reward is NaN.
        """
        self._refuse_while_answering()
        parameters = [value for _, value in self._trained()]
        optimizer = make_optimizer(self._task.recipe, parameters)
        paid, loss = torch.tensor(float("nan")), torch.zeros(())
        for step in range(steps):
            rollouts = draw()
            if not rollouts:
                continue
            prompts, responses = [one.prompt for one in rollouts], [one.response for one in rollouts]
            sequences = self._join(prompts, responses, unfinished=True)
            paid = torch.tensor([one.reward for one in rollouts], dtype=torch.float32, device=self._device)
            kl = torch.tensor([one.kl for one in rollouts], dtype=torch.float32, device=self._device)
            group = torch.tensor([one.group for one in rollouts], device=self._device)
            before = torch.zeros_like(paid)
            pinned = np.flatnonzero([one.kl for one in rollouts])
            if len(pinned):
                part = sequences.part(pinned)
                before[torch.from_numpy(pinned)] = self._score(part, reference).to(before)
            everything = np.arange(len(sequences))
            self._meter.charge(forward=len(sequences), backward=len(sequences), trained=int(sequences.lengths.sum()))
            self._model.train()
            try:
                with autocast(self._context):
                    logprobs = sequences.logprobs(self._model, everything, self._device)
                    loss = language_model.reinforce_loss(logprobs, paid, kl, before, group)
                self._step(optimizer, parameters, loss, (step + 0.5) / steps, lr_scale)
            finally:
                self._model.eval()
        self._check(loss)
        return float(paid.mean())

    def answered(self, prompts: Sequence[str], responses: Sequence[str]) -> list[str]:
        """`responses` with the environment's answer to the action in which each ends; whole where the episode is over.

        For problems of the pool on tasks with an environment. What ends in no action is left as it is.
        """
        texts = [text.removesuffix(language_model.CUT_OFF) for text in responses]
        ended = set(self._task.step_ends)
        acted = [at for at, text in enumerate(texts) if text and text[-1] in ended]
        found = list(responses)
        for part in dict.fromkeys(self._places[prompts[at]][0] for at in acted):
            chosen = [at for at in acted if self._places[prompts[at]][0] == part]
            numbers = [self._places[prompts[at]][1] for at in chosen]
            answers = self._react(part, numbers, [texts[at] for at in chosen])
            for at, (answer, over) in zip(chosen, answers, strict=True):
                found[at] = texts[at] + answer + ("" if over else language_model.CUT_OFF)
        return found

    def keep(self, name: str) -> None:
        """Store the weights as they stand under `name`; at most three names beside `base`."""
        self._refuse_while_answering()
        if not name or (name == BASE and name in self._kept):
            raise ValueError(f"weights cannot be kept under {name!r}")
        if name not in self._kept and len(self._kept) >= _MOST_KEPT:
            raise MethodError(f"a policy keeps the weights of {_MOST_KEPT - 1} names beside '{BASE}'; forget one first")
        self._kept[name] = self._copied()
        self._reference.clear()

    def use(self, name: str) -> None:
        """Put back the weights that are kept under `name`."""
        self._refuse_while_answering()
        self._load(self._named(name))

    def forget(self, name: str) -> None:
        """Drop the weights that are kept under `name`."""
        self._refuse_while_answering()
        if name == BASE:
            raise ValueError(f"'{BASE}' is kept to the end")
        del self._kept[name]
        self._reference.clear()

    def value_model(self) -> ValueModel:
        """A new model of the values of responses, with the policy's weights as they stand; make it in `setup`."""
        return ValueModel(self)

    # What follows is for the harness.

    def prepare(self, examples: Sequence[Example], epochs: int) -> None:
        """Train the first policy, off the meter and by the recipe alone; its weights are `base` from here on."""
        own, self._lr = self._lr, self._task.recipe.lr
        with self._meter.paused():
            self.finetune(examples, epochs=epochs)
        self._lr = own
        self._begin_here()

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """Begin with the weights of a first policy that was prepared before; they are `base` from here on."""
        self._load(weights)
        self._begin_here()

    def place(self, part: str, prompts: Sequence[str]) -> None:
        """Say of which problems the prompts are, for an environment to know its world."""
        self._places |= {prompt: (part, number) for number, prompt in enumerate(prompts)}

    def read_with(self, parse: Callable[[str], str | None]) -> None:
        """Count from here on how many whole responses to the pool a round generates, and how many parse: `own`."""
        self._reader = parse

    def _read(self, prompts: Sequence[str], made: Sequence[Sequence[str]]) -> None:
        if self._reader is None or self._answers_for is not None:
            return
        texts = [text for prompt, group in zip(prompts, made, strict=True) if prompt in self._numbers for text in group]
        parsed = sum(self._reader(text) is not None for text in texts)
        self.own = (self.own[0] + len(texts), self.own[1] + parsed)

    def asks(
        self, method: PolicyMethod, prompts: Sequence[str], cloze: Cloze | None = None
    ) -> tuple[list[str], Cloze | None]:
        """What `method` asks in place of the test prompts, and of the questions of a `cloze` of them.

        Raises `MethodError` where a prompt leaves no room for a response, or an option, among the model's positions.
        """
        asked = method.asked(prompts)
        self.place("test", asked)
        self._fit(asked, prompts, self._task.max_new)
        if cloze is None:
            return asked, None
        questions = method.asked(cloze.prompts)
        _, lengths = self._tokenizer.encode([option for options in cloze.options for option in options])
        self._fit(questions, cloze.prompts, int(lengths.max(initial=0)))
        return asked, cloze._replace(prompts=questions)

    def _fit(self, asked: Sequence[str], prompts: Sequence[str], room: int) -> None:
        owner, config = self._meter.owner, getattr(self._model, "config", None)
        if len(asked) != len(prompts):
            raise MethodError(f"method '{owner}' asks {len(asked)} prompts in place of {len(prompts)}")
        positions = int(getattr(config, "max_position_embeddings", 0))
        longest = int(self._tokenizer.encode(asked)[1].max(initial=0))
        if positions and longest + room > positions:
            raise MethodError(
                f"method '{owner}' asks prompts of up to {longest} tokens, to which up to {room} are added, but the "
                f"model has {positions} positions: it has to show less"
            )

    def begin(self, number: int) -> None:
        """Begin a round: random streams, caches and counts depend on its number and the calls in it alone."""
        self._round, self._calls, self.own = number, 0, (0, 0)
        self._reference.clear()
        self._rollouts.begin(number)

    def _begin_here(self) -> None:
        del self._kept[BASE]
        self.keep(BASE)
        self._calls = 0

    def state(self) -> dict[str, Any]:
        """Weights, for a checkpoint."""
        return {"weights": {key: value.detach() for key, value in self._trained()}, "kept": self._kept}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._kept = {name: dict(weights) for name, weights in state["kept"].items()}
        self._load(state["weights"])

    def evaluate(
        self, prompts: Sequence[str], number: int, cloze: Cloze | None = None, probes: Mapping[str, Cloze] = {}
    ) -> dict[str, Array]:
        """Greedy responses (T) and `votes` samples each (T votes), as packed texts; off the meter.

        With a `cloze` of the prompts, the likeliest options (T) take the place of greedy responses. Of every probe, the
        numbers (Q,) of the likeliest options, under `probe:` and its name.
        """
        task = self._task
        generator = torch.Generator(self._device).manual_seed(derive(self._seed, "evaluation", number))
        found = {}
        with self._meter.paused(), autocast(self._context):
            play = functools.partial(self._sampled, generator=generator, charge=lambda sequences, tokens: None)
            for name, n, temperature in (("greedy", 1, 0.0), ("votes", task.votes, task.vote_temperature)):
                if not n or (cloze and name == "greedy"):
                    found[name] = pack([])
                    continue
                made = play(prompts, n, Sampling(temperature))
                found[name] = pack([response for group in made for response in group])
            if cloze:
                chosen = self._likeliest(cloze).tolist()
                found["greedy"] = pack([options[at] for options, at in zip(cloze.options, chosen, strict=True)])
            found |= {f"probe:{name}": self._likeliest(probe) for name, probe in probes.items()}
        return found

    def _likeliest(self, cloze: Cloze) -> Array:
        rows = self._task.scored_rows or self._task.rows
        return language_model.likeliest(self._model, self._tokenizer, cloze.prompts, cloze.options, rows, self._device)

    def answers(self, method: PolicyMethod, prompts: Sequence[str], number: int) -> tuple[list[str], int]:
        """What `method` answers to the prompts after round `number`, and the tokens that it takes; off the meter."""
        meter, calls = self._meter, self._calls
        counted = Meter(Budget(currency="tokens", limit=UNLIMITED), meter.owner, self._device)
        self._meter, self._calls, self._answers_for = counted, 0, number
        try:
            with meter.paused():
                made = method.respond(self, prompts)
        finally:
            self._meter, self._calls, self._answers_for = meter, calls, None
        if len(made) != len(prompts):
            raise MethodError(f"method '{meter.owner}' gave {len(made)} responses to {len(prompts)} prompts")
        return made, counted.counts.tokens

    def _refuse_while_answering(self) -> None:
        if self._answers_for is not None:
            raise MethodError(f"method '{self._meter.owner}' may not change its policy while it is evaluated")

    def _generate(
        self,
        prompts: Sequence[str],
        n: int,
        sampling: Sampling,
        under: str,
        begun: Sequence[str] = (),
        ends: Sequence[int] = (),
        max_new: int = 0,
    ) -> list[list[str]]:
        seed = self._next_seed("generate")

        def work(charge: Charge) -> list[list[str]]:
            generator = torch.Generator(self._device).manual_seed(seed)
            with self._under(under), autocast(self._context):
                return self._sampled(prompts, n, sampling, generator, charge, begun, ends, max_new)

        about = ("generate", seed, list(prompts), list(begun), list(ends), n, sampling.temperature, sampling.top_p,
                 max_new)  # fmt: skip
        made: list[list[str]] = self._kept_call("generated", under, about, work)
        return made

    def _sampled(
        self,
        prompts: Sequence[str],
        n: int,
        sampling: Sampling,
        generator: torch.Generator,
        charge: Charge,
        begun: Sequence[str] = (),
        ends: Sequence[int] = (),
        max_new: int = 0,
    ) -> list[list[str]]:
        """`n` responses to every prompt; to those of problems with an environment, episodes, or steps of them."""
        task = self._task
        played = bool(self._observed) and all(prompt in self._places for prompt in prompts)
        sample = functools.partial(
            language_model.generate, self._model, self._tokenizer, sampling=sampling, max_new=max_new or task.max_new,
            rows=task.rows, generator=generator, charge=charge,
            never=[*self._observed, self._tokenizer.stop] if played else self._observed,
        )  # fmt: skip
        if not played:
            return sample(prompts, n, begun=begun, ends=ends)
        if ends:
            made = sample(prompts, n, begun=begun, ends=ends)
            asked = [prompt for prompt, texts in zip(prompts, made, strict=True) for _ in texts]
            answered = iter(self.answered(asked, [text for texts in made for text in texts]))
            return [[next(answered) for _ in texts] for texts in made]
        asked = [prompt for prompt in prompts for _ in range(n)]
        texts = [language_model.CUT_OFF] * len(asked)
        going = list(range(len(asked)))
        while going:
            rows = [asked[at] for at in going]
            made = sample(rows, 1, begun=[texts[at] for at in going], ends=self._ends)
            # What leaves no room for another step stays cut off.
            grown = [at for at, found in zip(going, made, strict=True) if found]
            reached = self.answered([asked[at] for at in grown], [found[0] for found in made if found])
            for at, text in zip(grown, reached, strict=True):
                texts[at] = text
            going = [at for at in grown if texts[at].endswith(language_model.CUT_OFF)]
        return [texts[at * n : (at + 1) * n] for at in range(len(prompts))]

    def _reactions(self, part: str, numbers: Sequence[int], responses: Sequence[str]) -> list[tuple[str, bool]]:
        """What the environment, which runs in the scorer's process, writes after responses."""
        arrays = {"numbers": np.asarray(numbers, np.int64), "responses": pack(responses)}
        with self._meter.paused():
            self._context.wire.send("act", arrays, part=part)
            reply = self._context.wire.receive()
        if reply is None or reply.kind != "observed":
            raise MethodError("the scorer has gone")
        over = reply.arrays["over"].astype(bool).tolist()
        return list(zip(unpack(reply.arrays["texts"]), over, strict=True))

    def _join(self, prompts: Sequence[str], responses: Sequence[str], unfinished: bool = False) -> Sequences:
        return language_model.join(self._tokenizer, prompts, responses, unfinished, self._observed)

    def _kept_call(self, kind: Kind, under: str, about: Sequence[Any], work: Callable[[Charge], Any]) -> Any:
        """`work(charge)`, or what it gave in this round before the run was killed; not of evaluations."""
        if self._answers_for is not None or not self._round:
            return work(lambda sequences, tokens: self._meter.charge(forward=sequences, **{kind: tokens}))
        weights = self._named(under) if under else dict(self._trained())
        return self._rollouts.call(self._meter, kind, weights, about, work)

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        return [(key, value) for key, value in self._model.named_parameters() if value.requires_grad]

    def _copied(self) -> dict[str, Tensor]:
        return {key: value.detach().clone() for key, value in self._trained()}

    def _named(self, name: str) -> dict[str, Tensor]:
        if name not in self._kept:
            raise ValueError(f"no weights are kept under {name!r} (there are: {', '.join(self._kept)})")
        return self._kept[name]

    @contextlib.contextmanager
    def _under(self, name: str) -> Iterator[None]:
        """Inside, the weights are those kept under `name`; an empty name changes nothing."""
        if not name:
            yield
            return
        with self._holding(self._named(name)):
            yield

    @contextlib.contextmanager
    def _holding(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Inside, the weights are copies of `weights`."""
        own = self._copied()
        self._load(weights)
        try:
            yield
        finally:
            self._load(own)

    def _load(self, weights: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for key, value in self._trained():
                value.copy_(weights[key])

    def _next_seed(self, purpose: str) -> int:
        self._calls += 1
        if self._answers_for is not None:
            return derive(self._seed, "respond", purpose, self._answers_for, self._calls)
        return derive(self._seed, "policy", purpose, self._round, self._calls)

    def _weights(self, values: Sequence[float] | Tensor | None, n: int) -> Tensor:
        if values is None:
            return torch.ones(n, device=self._device)
        weights = torch.as_tensor(values, dtype=torch.float32, device=self._device)
        if weights.shape != (n,) or not bool((weights >= 0).all()):
            raise ValueError(f"labels and weights are {n} numbers of at least 0, got the shape {tuple(weights.shape)}")
        return weights

    def _score(self, sequences: Sequences, under: str) -> Tensor:
        def work(charge: Charge) -> list[float]:
            values = torch.empty(len(sequences), dtype=torch.float64)
            with self._under(under), torch.no_grad(), autocast(self._context):
                for chosen in sequences.batches(self._task.scored_rows or self._task.rows):
                    charge(len(chosen), int(sequences.lengths[chosen].sum()))
                    logprobs = sequences.logprobs(self._model, chosen, self._device)
                    values[torch.from_numpy(chosen)] = logprobs.double().cpu()
            return values.tolist()

        parts = (sequences.ids, sequences.starts, sequences.lengths)
        about = ("score", *(hashlib.sha256(part.tobytes()).hexdigest() for part in parts))
        return torch.tensor(self._kept_call("scored", under, about, work), dtype=torch.float64)

    def _referenced(self, both: Sequences, prompts: list[str], responses: list[str], under: str) -> Tensor:
        """The reference policy's log-probabilities (2 N,): those of this round's earlier calls come from a cache.

        A pass from the cache counts as if it were computed.
        """
        keys = [(under, prompt, response) for prompt, response in zip(prompts, responses, strict=True)]
        absent = np.array([at for at, key in enumerate(keys) if not under or key not in self._reference], np.int64)
        cached = np.setdiff1d(np.arange(len(both)), absent)
        self._meter.charge(forward=len(cached), scored=int(both.lengths[cached].sum()))
        values = torch.empty(len(both), dtype=torch.float64)
        if len(absent):
            part = both.part(absent)
            values[torch.from_numpy(absent)] = self._score(part, under)
        for at in cached.tolist():
            values[at] = self._reference[keys[at]]
        if under:
            self._reference.update(zip(keys, values.tolist(), strict=True))
        return values

    def _train(
        self,
        sequences: Sequences,
        tokens: Array,
        per_item: int,
        loss: Any,
        epochs: int,
        lr_scale: float,
        head: Sequence[nn.Parameter] = (),
        passes: int = 1,
    ) -> float:
        """Train with a new optimiser on `loss(indices)`; an item holds `per_item` sequences of `tokens` (N,) in all.

        Parameters of a `head` are trained along. Each sequence takes `passes` passes, whose tokens are among `tokens`.
        """
        self._refuse_while_answering()
        recipe = self._task.recipe
        parameters = [*(value for _, value in self._trained()), *head]
        optimizer = make_optimizer(recipe, parameters)
        draw = rng(self._next_seed("train"))
        size = max(1, recipe.batch_size // per_item)
        total, step = epochs * -(-len(sequences) // size), 0
        value = torch.tensor(float("nan"))
        self._model.train()
        try:
            for _ in range(epochs):
                for chosen in sequences.batches(size, draw):
                    work = passes * per_item * len(chosen)
                    self._meter.charge(forward=work, backward=work, trained=int(tokens[chosen].sum()))
                    with autocast(self._context):
                        value = loss(chosen)
                    self._step(optimizer, parameters, value, (step + 0.5) / total, lr_scale)
                    step += 1
        finally:
            self._model.eval()
        return self._check(value)

    def _step(
        self,
        optimizer: torch.optim.Optimizer,
        parameters: Sequence[nn.Parameter],
        loss: Tensor,
        share: float,
        lr_scale: float,
    ) -> None:
        """One step down the gradient of `loss`, at the share of a training that the schedule goes by."""
        recipe = self._task.recipe
        for group in optimizer.param_groups:
            group["lr"] = self._lr * lr_scale * recipe.schedule(share)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if recipe.max_norm:
            nn.utils.clip_grad_norm_(parameters, recipe.max_norm)
        optimizer.step()

    def _check(self, loss: Tensor) -> float:
        result = float(loss.detach())
        if not np.isfinite(result):
            raise MethodError(f"method '{self._meter.owner}': the training loss is {result}")
        return result

    def _tell(self, part: str, prompts: Sequence[str], responses: Sequence[str]) -> None:
        """Tell the scorer what is trained on, for its diagnostics; those of pool prompts alone."""
        known = [(self._numbers[prompt], response) for prompt, response in zip(prompts, responses, strict=True)
                 if prompt in self._numbers]  # fmt: skip
        if known:
            numbers, texts = zip(*known, strict=True)
            arrays = {"numbers": np.array(numbers, np.int64), "responses": pack(texts)}
            self._context.wire.send("trained", arrays, part=part)
