"""All that keeps wilds 2.0.0, the last release, from working with today's libraries, mended while it is in use.

`usable()` gives the package; inside, it loads and evaluates, outside, every name is as it was. Nothing changes on disk.

    what                                             why
    `import wilds` leaves `outdated` aside           it starts a thread that asks the package index for a newer version
    `avg_over_groups` without torch_scatter          all metrics by group need it; it is published as source alone, and
                                                     its build needs torch beforehand
    civilcomments: the column `split` as objects     it writes integers into a column of strings, which pandas 3 refuses
    rxrx1: `Series.values` as copies                 it writes into the array, which pandas 3 gives out read-only
    globalwheat: `eval` is `int`                     it evaluates every word of a table's boxes as Python
    py150: a length in place of a tokeniser          it asks the hub for one, to learn that it has 50,001 tokens
    camelyon17, unlabelled: assertions off, on       it asserts the numbers of its published rows, so that nothing
    request                                          smaller can be loaded to test with
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from ...suite.errors import UsageError

VERSION = "2.0.0"
_HOLDERS = ("utils", "metrics.metric", "metrics.loss", "metrics.all_metrics")
"""Modules of `wilds.common` that import `avg_over_groups` by name."""


@contextlib.contextmanager
def usable(published_counts: bool = True) -> Iterator[ModuleType]:
    """The package `wilds`, mended inside this context.

    `published_counts=False` takes the assertions of published row counts away, for miniatures. Raises `UsageError` with
    the command that installs the package where it is missing or of another version.
    """
    wilds = _imported()
    with contextlib.ExitStack() as mended:
        # All before one is changed: a module imported afterwards would keep what it takes from the changed one.
        for module in [importlib.import_module(f"wilds.common.{holder}") for holder in _HOLDERS]:
            mended.enter_context(patch.object(module, "avg_over_groups", mean_by_group))
        for name, change in (("civilcomments", _objects), ("rxrx1", _copying)):
            module = importlib.import_module(f"wilds.datasets.{name}_dataset")
            mended.enter_context(patch.object(module, "pd", _Reader(module.pd, change)))
        module = importlib.import_module("wilds.datasets.globalwheat_dataset")
        mended.enter_context(patch.object(module, "eval", int, create=True))
        module = importlib.import_module("wilds.datasets.py150_dataset")
        mended.enter_context(patch.object(module, "GPT2Tokenizer", _CodeGptTokens))
        if not published_counts:
            module = importlib.import_module("wilds.datasets.unlabeled.camelyon17_unlabeled_dataset")
            mended.enter_context(patch.object(module, "Camelyon17UnlabeledDataset", _without_assertions(module)))
        yield wilds


def mean_by_group(values: Tensor, groups: Tensor, n_groups: int) -> tuple[Tensor, Tensor]:
    """Means (G,) of `values` (N,) by `groups` (N,), 0 for a group without a member, and the members' numbers (G,)."""
    counts = torch.bincount(groups, minlength=n_groups).to(torch.float32)
    kind = values.dtype if values.is_floating_point() else torch.float32
    sums = torch.zeros(n_groups, dtype=kind, device=values.device).index_add_(0, groups, values.to(kind))
    return sums / counts.clamp(min=1).to(kind), counts


def _imported() -> ModuleType:
    if "wilds" not in sys.modules:
        # An entry of None makes `import outdated` fail, which the package takes for its being absent.
        held = sys.modules.get("outdated")
        sys.modules["outdated"] = None  # type: ignore[assignment]
        try:
            with patch.dict(os.environ):
                importlib.import_module("wilds")
        except ImportError as error:
            raise UsageError(
                f"WILDS comes through the package wilds: type `pip install 'selfbench[wilds]'` ({error})."
            ) from None
        finally:
            del sys.modules["outdated"]
            if held is not None:
                sys.modules["outdated"] = held
    wilds = sys.modules["wilds"]
    if wilds.__version__ != VERSION:
        raise UsageError(
            f"The package wilds has the version {wilds.__version__}; what is mended here is {VERSION}: type "
            "`pip install 'selfbench[wilds]'`."
        )
    return wilds


class _Reader:
    """`pandas` as a module sees it, with `change` applied to every table that it reads."""

    def __init__(self, pandas: Any, change: Callable[[Any], Any]) -> None:
        self._pandas, self._change = pandas, change

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pandas, name)

    def read_csv(self, *arguments: Any, **options: Any) -> Any:
        return self._change(self._pandas.read_csv(*arguments, **options))


class _CodeGptTokens:
    """As many tokens as CodeGPT's tokeniser has."""

    @classmethod
    def from_pretrained(cls, name: str) -> range:
        return range(50_001)


def _objects(table: Any) -> Any:
    return table.astype({"split": object})


def _copying(table: Any) -> Any:
    """`table` with columns whose `values` are copies."""
    import pandas

    class Column(pandas.Series):  # type: ignore[misc]
        @property
        def _constructor(self) -> Any:
            return Column

        @property
        def values(self) -> Any:
            return super().values.copy()

    class Table(pandas.DataFrame):  # type: ignore[misc]
        @property
        def _constructor(self) -> Any:
            return Table

        @property
        def _constructor_sliced(self) -> Any:
            return Column

    return Table(table)


def _without_assertions(module: ModuleType) -> type:
    """The class of `module` compiled as under `python -O`, in a copy of its names."""
    names = dict(vars(module))
    exec(compile(inspect.getsource(module), str(module.__file__), "exec", optimize=1), names)
    return names["Camelyon17UnlabeledDataset"]  # type: ignore[no-any-return]
