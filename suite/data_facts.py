"""What a record says of its task's data beside the scores: texts that training and test part share, and repeats.

A task counts them in `build` and puts them into its bundle's `facts` by these names; other facts stay in the bundle.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple


class DataFact(NamedTuple):
    """How a number is said: what one is, what several are, and what has become of them, if there are any."""

    one: str
    many: str
    fate: str

    def text(self, number: float) -> str:
        said = f"{number:,.0f} {self.one if number == 1 else self.many}"
        return f"{said}; {self.fate}" if number else said


_OUT, _STAY = "left out of the training part", "left as published"

DATA_FACTS: Mapping[str, DataFact] = {
    "train_in_test": DataFact("training text is also a test text", "training texts are also test texts", _OUT),
    "train_repeats": DataFact("training text repeats another one", "training texts repeat another one", _OUT),
    "train_contradicting": DataFact("training text has two classes", "training texts have two classes", _OUT),
    "test_repeats": DataFact("test text repeats another one", "test texts repeat another one", _STAY),
    "pool_in_test": DataFact(
        "unlabelled sentence is also a test sentence", "unlabelled sentences are also test sentences", _STAY
    ),
    "test_contexts_in_train": DataFact(
        "text of test questions is also a training text", "texts of test questions are also training texts", _STAY
    ),
    "repeated": DataFact("text stands more than once", "texts stand more than once", "left out of both parts"),
}


def data_facts(facts: Mapping[str, Any]) -> dict[str, int | float]:
    """Those of a bundle's facts that are in `DATA_FACTS`, in its order; what stands there by domain is summed."""
    found: Counter[str] = Counter()
    for name, value in _numbers(facts):
        found[name] += value
    return {name: found[name] for name in DATA_FACTS if name in found}


def _numbers(facts: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from _numbers(value)
        elif name in DATA_FACTS and isinstance(value, int | float) and not isinstance(value, bool):
            yield name, value


def sentences(facts: Mapping[str, float]) -> list[str]:
    """`facts` in plain words; one that nobody declares is shown by its name."""
    known = [DATA_FACTS[name].text(facts[name]) for name in DATA_FACTS if name in facts]
    return known + [f"{name.replace('_', ' ')}: {facts[name]:g}" for name in sorted(facts.keys() - DATA_FACTS.keys())]
