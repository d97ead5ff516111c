"""ReST-MCTS*: value-guided tree search finds traces, its outcomes teach policy and value (Zhang et al., 2024,
arXiv:2406.03816)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...suite.hyper import hyper
from ...suite.protocols.policy_examples import Example
from ...suite.protocols.policy_method import PolicyMethod
from ...suite.protocols.tokens import CUT_OFF
from ...suite.registry import register_method
from ..common.mcts import Node, back_propagate, best_child, demonstrated, inferred_values, select, simulated
from ..common.responses import refit

if TYPE_CHECKING:
    from ...suite.protocols.policy_model import Policy
    from ...suite.protocols.policy_view import PolicyView


@register_method(
    "rest-mcts", family="self-training", protocol="policy", paper="arXiv:2406.03816", needs=("verifier", "steps")
)
@dataclass
class ReSTMCTS(PolicyMethod):
    """Self-training on the traces of MCTS*, and of its value model on the step values that their outcomes imply.

        V_0:          regression on the steps of the demonstrations, and on wrong ones
        search:       `iterations` times for every prompt, guided by V:
          selection         from the root to a leaf, by the largest V_c + c sqrt(2 ln N / N_c)
          expansion         `branch` next steps from the policy, valued by V; no two equal ones
          simulation        from the best child, `roll` greedy steps: V_c <- (1 - alpha) V_c + alpha max V
          back-propagation  V <- sum_c N_c V_c / sum_c N_c
        verification: of the finished responses in the tree
        inference:    v_k = max(v_{k-1} + w_k, 0), w_k = (1 - v_{k-1}) / (m_k + 1) (1 - 2 r_k)
        policy:       fine-tuned on accepted responses of at least the value `gate`
        value:        regression on the v_k of all verified branches of trees that found an accepted response

    c = 0.7, alpha = 0.5, three branches, a simulation of three steps with one sample each, temperature 0.7 and the gate
    0.2 are those of the authors' code, as are the values of unvisited children and of the steps of wrong branches
    (`methods/common/mcts.py`). There a value model scores partial solutions by a linear head on the last token's
    logits, trained by the mean squared error: here too. Instructed models are also asked whether a problem is solved
    (the "self-critic"); here the stop symbol says so. A search there ends at a value of 0.9, but not where it collects
    samples, as here.

    Chosen here: `iterations` is what the budget of a run allows (50 there). The wrong steps in V_0's data, which the
    paper makes with a language model, are steps at the same place of other demonstrations, and `value_sft_epochs`
    passes over it (2 or 3 there). Of equal bounds the first sampled child is taken, not a random one. The verifier
    judges at most an equal share of its verdicts a round, those of the highest values. At most `cutoff` responses a
    prompt are kept, those of the highest values. The policy starts from the first one in every round, with the
    demonstrations, as in `rest-em`; the value model goes on from the round before. With 0 iterations nothing is
    searched or valued, and a round is one of fine-tuning on the demonstrations from the first policy.
    """

    iterations: int = hyper(12, low=0, high=64)
    branch: int = hyper(3, low=1, high=8)
    roll: int = hyper(3, low=0, high=8)
    explore: float = hyper(0.7, low=0.0, high=2.0)
    alpha: float = hyper(0.5, low=0.0, high=1.0)
    temperature: float = hyper(0.7, low=0.2, high=1.5)
    gate: float = hyper(0.2, low=0.0, high=1.0)
    cutoff: int = hyper(2, low=1, high=10)
    epochs: int = hyper(4, low=1, high=16)
    value_epochs: int = hyper(1, low=1, high=4)
    value_sft_epochs: int = hyper(3, low=1, high=16)
    value_lr: float = hyper(1.0, low=0.1, high=10.0, log=True, help="as a multiple of the policy's learning rate")

    def setup(self, policy: Policy, view: PolicyView) -> None:
        self.value = policy.value_model()

    def round(self, policy: Policy, view: PolicyView, number: int) -> None:
        if not self.iterations:
            refit(policy, view, [], self.epochs)
            return
        if number == 1:
            shown = [example.prompt for example in view.demonstrations]
            trees = demonstrated([view.steps(example.response) for example in view.demonstrations], view.generator)
            self.fit_value(shown, trees, self.value_sft_epochs)
        trees = self.search(policy, view.prompts)
        self.verify(view, trees)
        kept = [
            Example(prompt, node.text) for prompt, tree in zip(view.prompts, trees, strict=True)
            for node in self.accepted(tree)
        ]  # fmt: skip
        refit(policy, view, kept, self.epochs)
        self.fit_value(view.prompts, trees, self.value_epochs)

    def search(self, policy: Policy, prompts: Sequence[str]) -> list[Node]:
        """The trees of MCTS*, one a prompt, all grown at a time."""
        trees = [Node() for _ in prompts]
        values: list[dict[str, float]] = [{} for _ in prompts]

        def valued(wanted: Sequence[tuple[int, str]]) -> None:
            """Value what has no value yet; a partial solution is valued once a search, as in the authors' code."""
            new = list(dict.fromkeys((at, text) for at, text in wanted if text not in values[at]))
            found = self.value.values([prompts[at] for at, _ in new], [text for _, text in new])
            for (at, text), value in zip(new, found.tolist(), strict=True):
                values[at][text] = value

        for _ in range(self.iterations):
            leaves = [select(tree, self.explore) for tree in trees]
            growing = [at for at, leaf in enumerate(leaves) if not leaf.ended]
            made = policy.step(
                [prompts[at] for at in growing], [leaves[at].text for at in growing], self.branch, self.temperature
            )
            steps = [list(dict.fromkeys(texts)) for texts in made]
            valued([(at, text) for at, texts in zip(growing, steps, strict=True) for text in texts])
            for at, texts in zip(growing, steps, strict=True):
                leaves[at].ended = not texts
                for text in texts:
                    leaves[at].add(text, values[at][text])
            rolled = {at: best_child(leaves[at], self.explore) for at in growing if leaves[at].children}
            self.simulate(policy, prompts, rolled, values, valued)
            for leaf in leaves:
                back_propagate(leaf)
        return trees

    def simulate(
        self,
        policy: Policy,
        prompts: Sequence[str],
        rolled: dict[int, Node],
        values: list[dict[str, float]],
        valued: Callable[[Sequence[tuple[int, str]]], None],
    ) -> None:
        """Go on from the nodes `rolled`, by prompt, for `roll` steps; what has ended is visited with its own value."""
        reached = {at: node.value if node.ended else 0.0 for at, node in rolled.items()}
        going = {at: node.text for at, node in rolled.items() if not node.ended}
        for _ in range(self.roll):
            made = policy.step([prompts[at] for at in going], list(going.values()), 1, self.temperature)
            going = {at: texts[0] for at, texts in zip(going, made, strict=True) if texts}
            valued(list(going.items()))
            for at, text in going.items():
                reached[at] = max(reached[at], values[at][text])
            going = {at: text for at, text in going.items() if text.endswith(CUT_OFF)}
        for at, node in rolled.items():
            simulated(node, reached[at], self.alpha)

    def verify(self, view: PolicyView, trees: Sequence[Node]) -> None:
        """Ask the verifier for what has ended in the trees; what does not parse is wrong."""
        most = view.verdicts // view.rounds
        asked: list[tuple[int, Node]] = []
        for at, tree in enumerate(trees):
            finished = [node for node in tree.walk() if node.ended]
            finished.sort(key=lambda node: -node.value)
            answers: set[str] = set()
            for node in finished:
                answer = view.parse(node.text)
                if answer is None:
                    node.verdict = False
                elif answer in answers or len(answers) < most:
                    answers.add(answer)
                    asked.append((at, node))
        right = view.verify([at for at, _ in asked], [node.text for _, node in asked])
        for (_, node), good in zip(asked, right, strict=True):
            node.verdict = good

    def accepted(self, tree: Node) -> list[Node]:
        """The accepted responses that are kept, the highest values first."""
        good = [node for node in tree.walk() if node.verdict and node.value >= self.gate]
        return sorted(good, key=lambda node: -node.value)[: self.cutoff]

    def fit_value(self, prompts: Sequence[str], trees: Sequence[Node], epochs: int) -> None:
        """Train the value model on the values inferred from the trees of `prompts`."""
        data = [
            (prompt, node.text, value) for prompt, tree in zip(prompts, trees, strict=True)
            for node, value in inferred_values(tree)
        ]  # fmt: skip
        if data:
            asked, texts, targets = zip(*data, strict=True)
            self.value.fit(asked, texts, targets, epochs, self.value_lr)
