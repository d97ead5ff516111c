"""The house's arrows run one way: no file of the harness imports itself by way of others, for types or in functions."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from selfbench.suite.registry import PACKAGE


def _imported(file: Path, root: Path) -> Iterator[Path]:
    """The files below `root` that a file imports, wherever it does: at its head, for types alone, within a function."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, (ast.Import, ast.ImportFrom)):
            continue
        if isinstance(node, ast.Import):
            absolute = [Path(*item.name.split(".")) for item in node.names]
            places = [root.parent / path for path in absolute if path.parts[0] == root.name]
        else:
            above = file.parents[node.level - 1] if node.level else root.parent
            place = above.joinpath(*(node.module or "").split("."))
            # A name is a file of a folder, or stands in the file itself.
            places = [inner if _source(inner := place / item.name) else place for item in node.names]
        yield from (found for place in places if (found := _source(place)) and root in found.parents)


def _source(place: Path) -> Path | None:
    """The file of a module or of a package."""
    return next((file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()), None)


def circle(root: Path, room: Path) -> list[str]:
    """The files of a circle of imports among those of `room`, a folder of the package `root`; empty without one."""
    graph = {file: set(_imported(file, root)) for file in room.rglob("*.py")}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [str(file.relative_to(root)) for file in error.args[1]]
    return []


def test_imports_of_the_harness_run_one_way() -> None:
    assert circle(PACKAGE, PACKAGE / "suite") == []


def test_a_circle_is_found_wherever_its_imports_stand(tmp_path: Path) -> None:
    root, room = tmp_path / "house", tmp_path / "house" / "room"
    room.mkdir(parents=True)
    files = {
        "__init__.py": "",
        "room/__init__.py": "from .low import one\n",
        "room/low.py": "one = 1\n",
        "room/middle.py": "import os\nfrom . import low\nfrom ..room.low import one\n",
        "room/high.py": "from house.room import middle\nfrom .middle import low\n",
    }
    for name, text in files.items():
        (root / name).write_text(text)
    assert circle(root, room) == []
    for closing in (
        "from .high import low\n",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .high import low\n",
        "def late():\n    from . import high\n",
        "import house.room.high\n",
    ):
        (room / "low.py").write_text(closing)
        assert {"room/low.py", "room/middle.py", "room/high.py"} <= set(circle(root, room))
