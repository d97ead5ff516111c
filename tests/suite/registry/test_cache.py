"""What the registry keeps between calls: never anything but what the files say now."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from selfbench.suite.registry import PACKAGE, Entry, Kind, RegistryError, cache, lookup

SOURCE = '''
@register_method("{name}", family="f", protocol="stream", paper="-", needs=("images",))
@dataclass
class Mine(StreamMethod):
    """Does {what}."""
    presets = {{"small": {{"lr": 0.5}}}}
    lr: float = hyper({lr}, low=0.0, high=1.0)
    kind: str = hyper("a", choices=("a", "b"))
    n: int = hyper(1, low=1, high=8, log=True, help="how many")
'''
LONG_AGO = time.time() - 1000


class Folder:
    """A folder of methods, and how many of its files were parsed by the last call."""

    def __init__(self, path: Path, patch: pytest.MonkeyPatch) -> None:
        self.path, self.parsed = path, 0
        inner = lookup.read_file

        def counted(*arguments):
            self.parsed += 1
            return inner(*arguments)

        patch.setattr(lookup, "read_file", counted)

    def write(self, name: str, lr: float = 0.1, what: str = "much", when: float = LONG_AGO) -> Path:
        file = self.path / f"{name.replace('-', '_')}.py"
        file.write_text(SOURCE.format(name=name, lr=lr, what=what))
        os.utime(file, (when, when))
        return file

    def read(self) -> dict[str, Entry]:
        self.parsed = 0
        return {entry.name: entry for entry in lookup._read_folder("method", self.path, None)}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    monkeypatch.setenv("SELFBENCH_CACHE", str(tmp_path / "cache"))
    # Files of tests are younger than the clock's grain: what is tested is all but that.
    monkeypatch.setattr(cache, "_SETTLED_NS", -(10**10))
    (tmp_path / "mine").mkdir()
    return Folder(tmp_path / "mine", monkeypatch)


def cache_file(tmp_path: Path) -> Path:
    [file] = (tmp_path / "cache" / "registry").iterdir()
    return file


def test_what_is_kept_is_what_was_parsed(folder: Folder) -> None:
    folder.write("one")
    (folder.path / "nothing.py").write_text("x = 1\n")
    parsed = folder.read()
    assert folder.parsed == 2
    assert folder.read() == parsed
    assert folder.parsed == 0
    entry = parsed["one"]
    assert entry.options["needs"] == ("images",)
    assert entry.hypers[1].choices == ("a", "b")
    assert entry.params(preset="small")["lr"] == 0.5


@pytest.mark.parametrize("kind", ["method", "task"])
def test_the_rooms_of_the_package_come_back_equal(kind: Kind, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SELFBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(cache, "_SETTLED_NS", -(10**10))
    room = PACKAGE / f"{kind}s"
    parsed = list(lookup._read_folder(kind, room, "selfbench"))
    monkeypatch.setattr(lookup, "read_file", None)
    kept = list(lookup._read_folder(kind, room, "selfbench"))
    assert kept == parsed
    assert all(entry.module and entry.module.startswith(f"selfbench.{kind}s.") for entry in kept)
    assert kept == [entry for file in sorted(room.rglob("*.py")) for entry in parsed if entry.file == file]


def test_only_what_changed_is_parsed_again(folder: Folder) -> None:
    for name in ("one", "two", "three"):
        folder.write(name)
    folder.read()
    folder.write("two", lr=0.25)
    assert folder.read()["two"].hypers[0].default == 0.25
    assert folder.parsed == 1
    (folder.path / "one.py").unlink()
    folder.write("four")
    assert sorted(folder.read()) == ["four", "three", "two"]
    assert folder.parsed == 1
    folder.read()
    assert folder.parsed == 0


def test_equal_size_and_an_older_date_do_not_deceive_it(folder: Folder) -> None:
    before = folder.write("one", lr=0.1).stat()
    folder.read()
    time.sleep(0.02)
    after = folder.write("one", lr=0.2).stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert folder.read()["one"].hypers[0].default == 0.2


def test_a_file_that_changed_just_now_is_read_each_time(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_SETTLED_NS", 2 * 10**9)
    folder.write("one", when=time.time())
    folder.read()
    folder.read()
    assert folder.parsed == 1


@pytest.mark.parametrize("how", ["torn", "empty", "altered", "no json", "other shape", "a folder"])
def test_a_broken_cache_is_ignored_and_replaced(folder: Folder, tmp_path: Path, how: str) -> None:
    folder.write("one")
    parsed = folder.read()
    file = cache_file(tmp_path)
    raw = file.read_bytes()
    forged = b"[1, 2, 3]"
    digest = cache.hashlib.sha256(forged).hexdigest().encode()
    broken = {
        "torn": raw[: len(raw) // 2], "empty": b"", "altered": raw.replace(b"0.1", b"0.2"), "no json": b"\xff\n{",
        "other shape": digest + b"\n" + forged,
    }  # fmt: skip
    if how == "a folder":
        file.unlink()
        file.mkdir()
    else:
        assert broken[how] != raw
        file.write_bytes(broken[how])
    assert folder.read() == parsed
    assert folder.parsed == 1
    folder.read()
    assert folder.parsed == (1 if how == "a folder" else 0)


def test_a_changed_reader_empties_the_cache(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.write("one")
    folder.read()
    other = folder.path.parent / "lookup.py"
    other.write_text("# newer")
    monkeypatch.setattr(lookup, "__file__", str(other))
    folder.read()
    assert folder.parsed == 1


@pytest.mark.parametrize("obstacle", ["file", "read-only"])
def test_a_cache_that_cannot_be_written_is_no_fault(folder: Folder, tmp_path: Path, obstacle: str) -> None:
    cache = tmp_path / "cache"
    if obstacle == "file":
        cache.write_text("in the way")
    else:
        cache.mkdir(mode=0o500)
    folder.write("one")
    for _ in range(2):
        assert list(folder.read()) == ["one"]


def test_a_read_only_cache_is_used(folder: Folder, tmp_path: Path) -> None:
    folder.write("one")
    folder.read()
    file = cache_file(tmp_path)
    file.chmod(0o400)
    file.parent.chmod(0o500)
    try:
        assert list(folder.read()) == ["one"]
        assert folder.parsed == 0
    finally:
        file.parent.chmod(0o700)


def test_a_file_amiss_is_told_each_time_and_spares_the_rest(folder: Folder) -> None:
    folder.write("one")
    folder.read()
    bad = folder.path / "two.py"
    bad.write_text("register_method(")
    for _ in range(2):
        with pytest.raises(RegistryError, match=r"two\.py, line 1"):
            folder.read()
        assert folder.parsed == 1
    bad.unlink()
    assert list(folder.read()) == ["one"]
    assert folder.parsed == 0
    (folder.path / "dangling.py").symlink_to("nowhere")
    with pytest.raises(RegistryError, match=r"dangling\.py cannot be read"):
        folder.read()


def test_what_json_would_change_is_never_kept(folder: Folder) -> None:
    text = SOURCE.format(name="one", lr=0.1, what="much")
    (folder.path / "one.py").write_text(text.replace('{"lr": 0.5}', '{"lr": 0.5, 1: [2]}'))
    parsed = folder.read()
    assert folder.read() == parsed
    assert folder.parsed == 1
    assert parsed["one"].presets["small"][1] == [2]


def test_processes_that_write_at_once_agree(folder: Folder, tmp_path: Path) -> None:
    for number in range(20):
        folder.write(f"m{number}")
    program = (
        "import sys; from selfbench.suite.registry import cache, lookup; cache._SETTLED_NS = -(10 ** 10)\n"
        "from pathlib import Path\n"
        "print(len(list(lookup._read_folder('method', Path(sys.argv[1]), None))))"
    )
    command = [sys.executable, "-c", program, str(folder.path)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert [process.communicate(timeout=60)[0].strip() for process in running] == ["20"] * 4
    assert [item.suffix for item in (tmp_path / "cache" / "registry").iterdir()] == [".json"]
    assert len(folder.read()) == 20
    assert folder.parsed == 0


def test_the_command_line_says_the_same_from_the_cache(cli: Callable, folder: Folder, tmp_path: Path) -> None:
    folder.write("lonely-method")
    environment = {"SELFBENCH_PATH": str(folder.path), "SELFBENCH_CACHE": str(tmp_path / "cache")}
    first, second = (cli("list", "methods", **environment) for _ in range(2))
    assert "lonely-method" in first.out
    assert first.out == second.out
