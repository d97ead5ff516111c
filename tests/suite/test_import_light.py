"""What answers at once: help, list and info import neither torch nor any other heavy library."""

from __future__ import annotations

import functools
import subprocess
import sys

import pytest

HEAVY = ("torch", "numpy", "scipy", "sklearn", "transformers", "pydantic", "jinja2", "rich", "psutil")


def imported(code: str) -> set[str]:
    """The heavy modules in `sys.modules` after `code`."""
    report = f"import sys; print('\\nHEAVY', *[name for name in {HEAVY!r} if name in sys.modules])"
    program = f"import atexit\ndef tell():\n    {report}\natexit.register(tell)\n{code}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    lines = [line for line in done.stdout.splitlines() if line.startswith("HEAVY")]
    assert len(lines) == 1, done.stderr
    return set(lines[0].split()[1:])


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["run", "--help"],
        ["tune", "--help"],
        ["list", "methods"],
        ["list", "suites"],
        ["info", "tent"],
        ["info", "wilds-fmow"],
    ],
)
def test_verbs_that_only_tell_import_nothing_heavy(words: list[str]) -> None:
    code = f"import sys; sys.argv = ['selfbench', *{words!r}]\nfrom selfbench.suite.cli import main\nmain()"
    assert imported(code) <= typer_alone(tuple(words))


EMPTY = """
import sys
import typer
app = typer.Typer(rich_markup_mode=None)
def nothing(name: str | None = typer.Argument(None)) -> None: ...
for verb in ("list", "info", "run"):
    app.command(verb)(nothing)
"""


@functools.cache
def typer_alone(words: tuple[str, ...]) -> set[str]:
    """What Typer itself imports for the same words and verbs that do nothing."""
    found = imported(f"{EMPTY}\nsys.argv = ['empty', *{words!r}]\napp()")
    assert found.isdisjoint({"torch", "numpy"})
    return found


def test_importing_the_package_imports_nothing_heavy() -> None:
    assert imported("import selfbench; selfbench.hyper; selfbench.register_method") == set()


def test_the_probe_sees_heavy_modules() -> None:
    assert "torch" in imported("import selfbench; selfbench.StreamMethod")
