"""Agent-R: an agent learns to turn back in time, from failures spliced with successes of the same search tree (Yuan et
al., 2025, arXiv:2501.11425)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ...suite.hyper import hyper
from ...suite.protocols.policy_examples import Example
from ...suite.protocols.policy_method import PolicyMethod
from ...suite.protocols.tokens import CUT_OFF
from ...suite.registry import register_method
from ..common.mcts import Node, demonstrated
from ..common.responses import judged

if TYPE_CHECKING:
    from ...suite.protocols.policy_model import Policy
    from ...suite.protocols.policy_view import PolicyView


_JUDGE = "judge"
"""The name under which the judge of steps is kept: the policy's architecture with weights of its own."""


@register_method(
    "agent-r",
    family="self-training",
    protocol="policy",
    paper="arXiv:2501.11425",
    needs=("verifier", "environment"),
)
@dataclass
class AgentR(PolicyMethod):
    """Iterative self-training on good episodes and on revised ones: a bad beginning, a signal, a good end.

        search:    `iterations` times for every problem, from the root to the end of an episode:
          expansion         `branch` next steps from the policy, no two equal ones; an end pays r in {0, 1} up the tree
          selection         an unvisited child, or the largest Q_c + c sqrt(ln N / N_c), of those that are not done
        pairs:     ends of one tree with r(good) > alpha, r(good) - r(bad) > beta
        revision:  the policy judges the steps of the bad episode, one after the other; the first wrong one ends tau_bad
        splice:    tau_bad + revision signal + what the good episode does from where they part
        M <- fine-tuning on signals and ends of spliced episodes (not on tau_bad), good episodes, demonstrations

    c = 0.25, four iterations, the rules of search and pairs, the loss on signal and good end alone are those of the
    authors' code; four children there, three here. There, rewards are graded, alpha rises and beta = 0.2, the signal is
    one of ten sentences and an action that waits, and the good end is appended whether the world allows it or not. Here
    the signal is the world's step back, as often as it takes to where both episodes part, so that what is trained on
    can be played; an episode that has become too long to reach the goal is left out, by the verifier. There, a model
    that follows instructions is asked whether a step is good, bad or uncertain. A policy that cannot be asked learns it
    from the demonstrations, of which a step is good and another one in its place is bad, for `judge_epochs` and with
    weights of its own: judging and acting disturb each other in a policy of two layers. Steps that both episodes share
    are not judged, for they lead to a success; where none is found wrong, tau_bad is the whole episode, as there.

    Chosen here: of each tree at most `cutoff` good episodes and pairs, drawn at random; every round trains anew from
    the first policy, and the judge stays as it is. With 0 iterations nothing is searched, and a round is one of
    fine-tuning on the demonstrations from the first policy. `revise` off leaves the good episodes alone.
    """

    iterations: int = hyper(4, low=0, high=32)
    branch: int = hyper(3, low=1, high=8)
    explore: float = hyper(0.25, low=0.0, high=2.0)
    temperature: float = hyper(1.0, low=0.2, high=1.5)
    alpha: float = hyper(0.5, low=0.0, high=1.0)
    beta: float = hyper(0.2, low=0.0, high=1.0)
    cutoff: int = hyper(2, low=1, high=16)
    revise: bool = hyper(True, choices=(True, False))
    epochs: int = hyper(4, low=1, high=16)
    judge_epochs: int = hyper(4, low=1, high=64)

    def setup(self, policy: Policy, view: PolicyView) -> None:
        self.known: dict[int, dict[str, bool]] = {}

    def round(self, policy: Policy, view: PolicyView, number: int) -> None:
        if not self.iterations:
            policy.use("base")
            policy.finetune(view.demonstrations, epochs=self.epochs)
            return
        if number == 1 and self.revise:
            policy.finetune(judging_examples(view), epochs=self.judge_epochs)
            policy.keep(_JUDGE)
            policy.use("base")
        trees = self.search(policy, view)
        kept = [*self.good(view, trees), *(self.revised(policy, view, trees) if self.revise else [])]
        policy.use("base")
        policy.finetune([*view.demonstrations, *kept], epochs=self.epochs)

    def search(self, policy: Policy, view: PolicyView) -> list[Node]:
        """The trees, one a problem, all grown at a time; a node's value is the sum of what was paid below it."""
        trees = [Node() for _ in view.prompts]
        for _ in range(self.iterations):
            at_work = {at: tree for at, tree in enumerate(trees) if not tree.ended}
            while at_work:
                self.expand(policy, view, {at: node for at, node in at_work.items() if not node.children})
                chosen = {at: descend(node, self.explore) for at, node in at_work.items()}
                at_work = {at: node for at, node in chosen.items() if node is not None and not node.ended}
        return trees

    def expand(self, policy: Policy, view: PolicyView, leaves: dict[int, Node]) -> None:
        """Give each leaf its children; those that end an episode are paid for at once."""
        asked, begun = [view.prompts[at] for at in leaves], [leaf.text for leaf in leaves.values()]
        made = policy.step(asked, begun, self.branch, self.temperature)
        ends: list[tuple[int, Node]] = []
        for (at, leaf), texts in zip(leaves.items(), made, strict=True):
            # A response without room for another step is an end as well.
            leaf.ended = not texts
            ends += [(at, leaf)] if not texts else []
            ends += [(at, child) for text in dict.fromkeys(texts) if (child := leaf.add(text)).ended]
        right = judged(view, self.known, [at for at, _ in ends], [node.text for _, node in ends])
        for (_, node), good in zip(ends, right, strict=True):
            node.verdict = good
            pay(node, float(good))

    def good(self, view: PolicyView, trees: Sequence[Node]) -> list[Example]:
        """Good episodes, at most `cutoff` a tree."""
        return [
            Example(view.prompts[at], node.text)
            for at, tree in enumerate(trees)
            for node in self.drawn(view, [node for node in ends_of(tree) if mean(node) > self.alpha])
        ]

    def drawn(self, view: PolicyView, items: Sequence[Node]) -> list[Node]:
        order = torch.randperm(len(items), generator=view.generator)[: self.cutoff]
        return [items[at] for at in order.tolist()]

    def revised(self, policy: Policy, view: PolicyView, trees: Sequence[Node]) -> list[Example]:
        """Spliced episodes, at most `cutoff` a tree: tau_bad is part of the prompt, and is not trained on."""
        pairs: list[tuple[int, list[str], list[str]]] = []
        for at, tree in enumerate(trees):
            ends = ends_of(tree)
            fitting = [
                (one, two)
                for one in ends
                for two in ends
                if mean(one) > self.alpha and mean(one) - mean(two) > self.beta
            ]
            order = torch.randperm(len(fitting), generator=view.generator)[: self.cutoff]
            for good, bad in (fitting[place] for place in order.tolist()):
                pairs.append((at, view.steps(good.text), view.steps(bad.text)))
        wrong = self.first_wrong(policy, view, pairs)
        numbers = [at for at, _, _ in pairs]
        begun = ["".join(bad[: end + 1]) for (_, _, bad), end in zip(pairs, wrong, strict=True)]
        to_do = [
            spliced(view.actions(good), parting(good, bad), end, view.revision)
            for (_, good, bad), end in zip(pairs, wrong, strict=True)
        ]
        played = self.played(policy, [view.prompts[at] for at in numbers], begun, to_do)
        right = judged(view, self.known, numbers, played)
        return [
            Example(view.prompts[at] + before, text.removeprefix(before))
            for at, before, text, good in zip(numbers, begun, played, right, strict=True)
            if good and len(text) > len(before)
        ]

    def played(
        self, policy: Policy, prompts: Sequence[str], begun: Sequence[str], to_do: Sequence[Sequence[str]]
    ) -> list[str]:
        """What becomes of episodes that have `begun` when the actions `to_do` follow, as far as the world goes."""
        texts = [f"{text}{CUT_OFF}" for text in begun]
        for turn in range(max((len(actions) for actions in to_do), default=0)):
            going = [at for at, text in enumerate(texts) if text.endswith(CUT_OFF) and turn < len(to_do[at])]
            acted = [texts[at].removesuffix(CUT_OFF) + to_do[at][turn] for at in going]
            for at, text in zip(going, policy.answered([prompts[at] for at in going], acted), strict=True):
                texts[at] = text
        return texts

    def first_wrong(
        self, policy: Policy, view: PolicyView, pairs: Sequence[tuple[int, Sequence[str], Sequence[str]]]
    ) -> list[int]:
        """The place of the first step of each bad episode that the policy calls wrong, of those after the pair parts;
        its last one where there is none. Praise is what cannot be read."""
        asked = [
            (row, place) for row, (_, good, bad) in enumerate(pairs) for place in range(parting(good, bad), len(bad))
        ]
        prompts = [
            view.critic(view.prompts[pairs[row][0]], "".join(pairs[row][2][: place + 1]) + CUT_OFF)
            for row, place in asked
        ]
        said = [text for [text] in policy.generate(prompts, 1, 0.0, under=_JUDGE)]
        found = [len(bad) - 1 for _, _, bad in pairs]
        for (row, place), text in reversed(list(zip(asked, said, strict=True))):
            if view.approves(text) is False:
                found[row] = place
        return found


def judging_examples(view: PolicyView) -> list[Example]:
    """What a judge of steps learns of each demonstration: a right step, and, where one can be had, a wrong one, another
    demonstration's in the place of its own; both are drawn."""
    trees = demonstrated([view.steps(example.response) for example in view.demonstrations], view.generator)
    found = []
    for example, tree in zip(view.demonstrations, trees, strict=True):
        steps = [node for node in tree.walk() if node.parent is not None]
        for right in (True, False):
            fitting = [node for node in steps if (node.verdict is not False) == right]
            if fitting:
                node = fitting[int(torch.randint(len(fitting), (), generator=view.generator))]
                found.append(Example(view.critic(example.prompt, node.text), view.feedback([right])))
    return found


def bound(node: Node, parent: Node, explore: float) -> float:
    """Q + c sqrt(ln N_parent / N) of a child; without end where it was never visited."""
    if not node.visits:
        return math.inf
    return mean(node) + explore * math.sqrt(math.log(parent.visits) / node.visits)


def mean(node: Node) -> float:
    """Q, what was paid below a node in the mean."""
    return node.value / node.visits if node.visits else 0.0


def descend(root: Node, explore: float) -> Node | None:
    """The leaf that following the best child that is not done leads to, the first of equal ones; None where all are
    done, and then the node above them is done too."""
    node = root
    while node.children:
        going = [child for child in node.children if not child.ended]
        if not going:
            node.ended = True
            return None
        node = max(going, key=lambda child: bound(child, node, explore))
    return node


def pay(node: Node, reward: float) -> None:
    """A reward for an end, a visit of it and of all above it; what has nothing but ends below it is done."""
    above: Node | None = node
    while above is not None:
        above.visits += 1
        above.value += reward
        above.ended = all(child.ended for child in above.children)
        above = above.parent


def ends_of(root: Node) -> list[Node]:
    """The ends of episodes in a tree that has a success; none in others."""
    if root.value <= 0:
        return []
    return [node for node in root.walk() if node.ended and not node.children]


def parting(good: Sequence[str], bad: Sequence[str]) -> int:
    """How many steps two episodes begin with together."""
    return next(
        (at for at, (one, two) in enumerate(zip(good, bad, strict=False)) if one != two), min(len(good), len(bad))
    )


def spliced(good: Sequence[str], shared: int, end: int, revision: str) -> list[str]:
    """The actions after the step `end` of a bad episode: back to where both part, then those of the `good` one."""
    return [revision] * (end + 1 - shared) + list(good[shared:])
