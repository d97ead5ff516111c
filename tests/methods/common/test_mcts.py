"""The tree of MCTS* by hand: bounds, visits and values, and the step values that follow from its outcomes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from selfbench.methods.common.mcts import Node, back_propagate, best_child, inferred_values, select, simulated


def grown(node: Node, **children: float) -> dict[str, Node]:
    return {name: node.add(name + "…", value) for name, value in children.items()}


def test_unvisited_children_come_first_by_their_values_then_bounds_decide() -> None:
    root = Node()
    children = grown(root, a=0.5, b=0.6, c=0.6)
    root.visits = 1
    assert select(root, 0.7) is children["b"]
    children["b"].visits = 1
    # Unvisited: 0.5 + 1, 0.6 + 1; visited: 0.6 + 0.7 sqrt(2 ln 1 / 1) = 0.6.
    assert select(root, 0.7) is children["c"]
    children["a"].visits, children["c"].visits, root.visits = 2, 1, 4
    bounds = {name: child.value + 0.7 * math.sqrt(2 * math.log(4) / child.visits) for name, child in children.items()}
    assert bounds["b"] == bounds["c"] > bounds["a"]
    assert best_child(root, 0.7) is children["b"]
    children["b"].value = children["c"].value = 0.1
    # 0.5 + 0.7 sqrt(ln 4) = 1.324 against 0.1 + 0.7 sqrt(2 ln 4) = 1.266.
    assert best_child(root, 0.7) is children["a"]
    assert best_child(root, 1.0) is children["b"]
    below = grown(children["a"], aa=0.3)
    assert select(root, 0.7) is below["aa"]


def test_values_and_visits_of_a_hand_made_tree() -> None:
    root = Node()
    # The first round expands the root; its best child, of value 0.4, sees 0.8 in its simulation.
    children = grown(root, a=0.4, b=0.2)
    simulated(children["a"], 0.8, alpha=0.5)
    back_propagate(root)
    assert (children["a"].value, children["a"].visits) == pytest.approx((0.6, 1))
    assert (root.value, root.visits) == pytest.approx((0.6, 1))
    # The second one simulates from b, the only unvisited child, and finds nothing better: 0.5 0.2 + 0.5 0.1.
    leaf = select(root, 0.0)
    assert leaf is children["b"]
    below = grown(leaf, ba=0.3, bb=0.0)
    simulated(below["ba"], 0.1, alpha=0.5)
    back_propagate(leaf)
    assert below["ba"].value == pytest.approx(0.2)
    assert (children["b"].value, children["b"].visits) == pytest.approx((0.2, 1))
    assert (root.value, root.visits) == pytest.approx(((0.6 + 0.2) / 2, 2))
    # The third one comes to what has ended: its value stands, all above it is visited once more.
    end = children["a"].add("a$", 0.9)
    assert end.ended
    simulated(end, end.value, alpha=0.5)
    back_propagate(end)
    assert (end.value, end.visits) == (0.9, 2)
    assert (children["a"].value, children["a"].visits) == pytest.approx((0.9, 2))
    assert (root.value, root.visits) == pytest.approx(((2 * 0.9 + 0.2) / 3, 3))


def test_step_values_of_a_hand_made_tree() -> None:
    root = Node()
    top = grown(root, a=0.0, b=0.0, c=0.0)
    under = grown(top["a"], ab=0.0)
    good, bad, worse = top["a"].add("a!"), under["ab"].add("ab!"), top["b"].add("b!")
    good.verdict, bad.verdict, worse.verdict = True, False, False
    found = {node.text: value for node, value in inferred_values(root)}
    assert found == pytest.approx(
        {
            "a…": 1 / 2,  # one step from the end: (1 - 0) / (1 + 1)
            "a!": 1.0,  # the end itself: 1/2 + (1/2) / 1
            "ab…": 1 / 4,  # wrong; from a it is one step: 1/2 - (1/2) / 2
            "ab!": 0.0,  # 1/4 - (3/4) / 2 < 0
            "b…": 0.0,  # wrong; from the root it is two steps: 0 - 1/3 < 0
            "b!": 0.0,
        }
    )
    # c leads to no verdict; without a good one nobody knows anything.
    good.verdict = False
    assert inferred_values(root) == []


@pytest.mark.parametrize("length", [1, 2, 5])
def test_the_steps_of_a_right_solution_rise_evenly_to_one(length: int) -> None:
    root = node = Node()
    for step in range(length):
        node = node.add("s" * (step + 1) + ("" if step == length - 1 else "…"))
    node.verdict = True
    assert [value for _, value in inferred_values(root)] == pytest.approx(
        [(step + 1) / length for step in range(length)]
    )


def slow_values(root: Node) -> dict[str, float]:
    """Equations 1 and 2 from their definitions, node by node, by searching the whole subtree each time."""

    def ends(node: Node, depth: int = 0) -> list[tuple[int, bool]]:
        own = [] if node.verdict is None else [(depth, node.verdict)]
        return own + [end for child in node.children for end in ends(child, depth + 1)]

    def distance(node: Node) -> int | None:
        return min((depth for depth, good in ends(node) if good), default=None)

    def value(node: Node) -> float:
        if node.parent is None:
            return 0.0
        before, m, r = value(node.parent), distance(node), 0
        if m is None:
            r, above = 1, node.parent
            while (m := distance(above)) is None:
                above = above.parent
        return max(before + (1 - before) / (m + 1) * (1 - 2 * r), 0.0)

    if distance(root) is None:
        return {}
    return {node.text: value(node) for node in root.walk() if node is not root and ends(node)}


def test_step_values_of_random_trees_are_those_of_a_slow_loop() -> None:
    draw = np.random.default_rng(0)
    sizes = []
    for _ in range(200):
        root, nodes = Node(), []
        nodes.append(root)
        for number in range(int(draw.integers(1, 20))):
            nodes.append(nodes[int(draw.integers(len(nodes)))].add(f"{number}…"))
        for node in nodes[1:]:
            if not node.children:
                node.verdict = [None, False, True][int(draw.integers(3))]
        found = {node.text: value for node, value in inferred_values(root)}
        assert found == pytest.approx(slow_values(root), abs=1e-12)
        assert all(0 <= value <= 1 for value in found.values())
        sizes.append(len(found))
    assert max(sizes) > 10
