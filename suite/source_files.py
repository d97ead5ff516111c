"""Which files of code a file stands on: digests of them say when what they have made is to be made anew."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path


def imported_files(file: Path, counts: Callable[[Path], bool]) -> set[Path]:
    """`file` and all files for which `counts` holds that it imports by relative names, directly or by way of others."""
    seen, due = set[Path](), [file]
    while due:
        one = due.pop()
        seen.add(one)
        for node in ast.walk(ast.parse(one.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                folder = one.parents[node.level - 1].joinpath(*(node.module or "").split("."))
                names = (folder / f"{item.name}.py" for item in node.names)
                for module in (folder.with_suffix(".py"), folder / "__init__.py", *names):
                    if module not in seen and counts(module) and module.is_file():
                        due.append(module)
    return seen
