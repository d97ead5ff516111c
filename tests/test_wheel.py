"""The wheel holds exactly the package's files, and works away from the clone."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("suite", "methods", "tasks")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the files under version control (and new ones), so that leftovers of other builds play no part."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard"], capture_output=True, text=True, check=True
    )
    for name in listed.stdout.splitlines():
        if name.split("/")[0] not in ("results", "tests") and (ROOT / name).is_file():
            target = source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), "."]
    subprocess.run(command, cwd=source, check=True, capture_output=True, timeout=300)
    [built] = folder.glob("*.whl")
    return built


def expected() -> set[str]:
    """Every Python file of the three rooms, the root's public face, and the data files that they need."""
    found = {ROOT / "__init__.py", ROOT / "py.typed", ROOT / "tasks" / "datasets.toml"}
    for room in ROOMS:
        found |= {path for path in (ROOT / room).rglob("*.py") if "__pycache__" not in path.parts}
    found |= set((ROOT / "suite" / "suites").glob("*.toml"))
    found |= set((ROOT / "tasks").glob("*/weights/*.safetensors"))
    for folder in ("templates", "static"):
        found |= {path for path in (ROOT / "site" / folder).iterdir() if path.is_file()}
    return {f"selfbench/{path.relative_to(ROOT)}" for path in found}


def test_the_wheel_is_the_tree(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == expected()


def test_the_wheel_works_away_from_the_clone(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    environment = {**os.environ, "PYTHONPATH": str(target)}
    environment.pop("SELFBENCH_PATH", None)

    def call(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert call("-c", "import selfbench; print(selfbench.__file__)").startswith(str(target))
    assert "fixmatch" in call("-m", "selfbench.suite", "list", "methods")
    call("-m", "selfbench.suite", "run", "-t", "digits-c-continual", "-m", "source", "--results", "results")
    assert "source" in call("-m", "selfbench.suite", "board", "--results", "results")
    call("-m", "selfbench.suite", "site", "build", "--results", "results", "--out", "site")
    assert (tmp_path / "site" / "index.html").is_file()
