"""The tree of MCTS* and the step values inferred from its outcomes (ReST-MCTS*, Zhang et al., 2024, arXiv:2406.03816).

Functions on one tree, without a model: `methods/self_rewarding/rest_mcts.py` grows many of them at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from ...suite.protocols.tokens import CUT_OFF

_UNVISITED = 1.0
"""What a child that was never visited has beside its value: `inf` of the authors' code."""


@dataclass(eq=False)
class Node:
    """A partial solution: `text`, which ends in `CUT_OFF` while it is unfinished, its value V and number of visits N.

    `ended` ones do not grow: they are whole, or as long as a response may be. `verdict` is the verifier's on a whole
    response, None where there is none.
    """

    text: str = CUT_OFF
    parent: Node | None = None
    value: float = 0.0
    visits: int = 0
    ended: bool = False
    verdict: bool | None = None
    children: list[Node] = field(default_factory=list)

    def add(self, text: str, value: float = 0.0) -> Node:
        """A new child; it is ended where its text is whole."""
        child = Node(text, self, value, ended=not text.endswith(CUT_OFF))
        self.children.append(child)
        return child

    def walk(self) -> Iterator[Node]:
        """This node and all below it, parents first."""
        yield self
        for child in self.children:
            yield from child.walk()


def best_child(node: Node, explore: float) -> Node:
    """The child with the largest V_c + explore sqrt(2 ln N / N_c), V_c + 1 where N_c is 0; the first of equal ones."""

    def bound(child: Node) -> float:
        if not child.visits:
            return child.value + _UNVISITED
        return child.value + explore * math.sqrt(2.0 * math.log(node.visits) / child.visits)

    return max(node.children, key=bound)


def select(root: Node, explore: float) -> Node:
    """The leaf that following the best child leads to."""
    node = root
    while node.children:
        node = best_child(node, explore)
    return node


def simulated(node: Node, reached: float, alpha: float) -> None:
    """A visit of `node` by a simulation whose best value was `reached`: V <- (1 - alpha) V + alpha reached."""
    node.value = (1.0 - alpha) * node.value + alpha * reached
    node.visits += 1


def back_propagate(node: Node) -> None:
    """A visit of `node` and all above it; where there are visited children, V <- sum_c N_c V_c / sum_c N_c."""
    above: Node | None = node
    while above is not None:
        above.visits += 1
        visits = sum(child.visits for child in above.children)
        if visits:
            above.value = sum(child.visits * child.value for child in above.children) / visits
        above = above.parent


def inferred_values(root: Node) -> list[tuple[Node, float]]:
    """The values (node, v) that follow from the verdicts, parents first; none where no verdict is good.

        v_0 = 0,    v_k = max(v_{k-1} + w_k, 0),    w_k = (1 - v_{k-1}) / (m_k + 1) (1 - 2 r_k)

    A step is right, r = 0, where a good end lies below it, and m is its reasoning distance, the fewest steps from there
    to such an end. Steps that lead to bad ends alone are wrong, r = 1: their distance is that of the last right step
    before them, from which the solution has to be found anew. As in the authors' code, nodes without a verdict below
    them have no value: nobody knows.
    """
    distance = {node: 0 for node in root.walk() if node.verdict}
    for node in list(distance):
        steps, above = 0, node.parent
        while above is not None:
            steps += 1
            distance[above] = min(steps, distance.get(above, steps))
            above = above.parent
    known = {node for node in root.walk() if node.verdict is not None}
    for node in list(known):
        above = node.parent
        while above is not None and above not in known:
            known.add(above)
            above = above.parent
    found: list[tuple[Node, float]] = []
    if root not in distance:
        return found

    def descend(node: Node, value: float, last: int) -> None:
        for child in node.children:
            if child in known:
                right = child in distance
                m = distance[child] if right else last
                v = max(value + (1.0 - value) / (m + 1) * (1.0 if right else -1.0), 0.0)
                found.append((child, v))
                descend(child, v, m)

    descend(root, 0.0, distance[root])
    return found


def demonstrated(solutions: Sequence[Sequence[str]], generator: torch.Generator) -> list[Node]:
    """The trees of worked solutions, given by their steps: every step, and beside it a wrong one where one can be had.

    The wrong step is the one at the same place of another solution, drawn at random, where it is another step.
    """
    others = torch.randint(max(1, len(solutions)), (len(solutions),), generator=generator).tolist()
    trees = []
    for own, other in zip(solutions, (solutions[at] for at in others), strict=True):
        tree = node = Node()
        text = ""
        for place, step in enumerate(own):
            if place < len(other) and other[place] != step:
                wrong = node.add(text + other[place] + ("" if place == len(other) - 1 else CUT_OFF))
                wrong.ended, wrong.verdict = True, False
            text += step
            node = node.add(text + ("" if place == len(own) - 1 else CUT_OFF))
        node.verdict = True
        trees.append(tree)
    return trees
