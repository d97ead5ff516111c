"""Record files are written whole or not at all; the index is a cache that can be lost, broken and shared."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from selfbench.suite import record as records
from selfbench.suite.engine.local import LocalExecutor
from selfbench.suite.engine.preparation import prepare
from selfbench.suite.engine.runner import run
from selfbench.suite.errors import RecordError, UsageError
from selfbench.suite.files import bytes_below, last_used, locked, write_atomic
from selfbench.suite.index import read_bodies
from selfbench.suite.record import Record
from selfbench.suite.store import Store
from selfbench.suite.suites import expand

RUNS = 5


class _Silent:
    def started(self, *_: object) -> None: ...
    def tick(self, *_: object) -> None: ...
    def finished(self, *_: object) -> None: ...


@pytest.fixture(scope="module")
def template(executor: LocalExecutor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with real records: two methods with two seeds, and a failed run."""
    folder = tmp_path_factory.mktemp("template")
    specs = expand(tasks=["toy-stream"], methods=["source", "norm"], seeds=[0, 1])
    specs += expand(tasks=["toy-stream"], methods=["raises"], seeds=[0])
    store = Store(folder)
    prepare(specs, executor, store, lambda text: None)
    assert len(run(specs, store, executor, _Silent()).finished) == RUNS
    return folder


@pytest.fixture
def store(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A copy of the records, and an index folder of its own."""
    monkeypatch.setenv("SELFBENCH_CACHE", str(tmp_path / "cache"))
    shutil.copytree(template, tmp_path / "results")
    return Store(tmp_path / "results")


def files(store: Store) -> list[Path]:
    return sorted(store.root.glob("[!.]*/*/*.json"))


def index_file(store: Store) -> Path:
    with store.index() as index:
        return index.file


def ids(store: Store) -> list[str]:
    with store.index() as index:
        return [record.run_id for record in index.records()]


def test_a_written_file_has_the_new_content_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    for content in (b"old", b"", b"new" * 1000):
        write_atomic(path, content)
        assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    with pytest.raises(OSError):
        write_atomic(target, b"a file cannot replace a folder")
    assert list(tmp_path.iterdir()) == [target]


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    contents = [bytes([65 + number]) * 200_000 for number in range(4)]
    write_atomic(path, contents[0])
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            for content in contents:
                write_atomic(path, content)

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and len(seen) < 3:
        raw = path.read_bytes()
        assert raw in contents
        seen.add(raw[:1])
    stop.set()
    writer.join()
    assert len(seen) >= 3


HOLD = (
    "import sys, time; from pathlib import Path; from selfbench.suite.files import locked\n"
    "with locked(Path(sys.argv[1])) as mine: print(mine, flush=True); time.sleep(600)"
)


def test_folders_are_measured_while_others_remove_from_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("goes", "stays/inner"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "file").write_bytes(b"12345")
    (tmp_path / "loose").write_bytes(b"678")
    assert bytes_below(tmp_path) == 13
    scan = os.scandir

    def late(folder: str) -> Iterator[os.DirEntry[str]]:
        """The folder goes between the listing that names it and its own."""
        if Path(folder).name == "goes":
            Path(folder, "file").unlink()
            Path(folder).rmdir()
        return scan(folder)

    monkeypatch.setattr(os, "scandir", late)
    assert bytes_below(tmp_path) == 8
    assert last_used(tmp_path / "goes") == 0.0 < last_used(tmp_path / "stays")


def test_a_lock_is_exclusive_and_freed_by_the_death_of_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "claim"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    with holder.stdout:
        assert holder.stdout.readline() == b"True\n"
        with locked(path, wait=False) as mine:
            assert not mine
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with locked(path) as mine:
        assert mine
        with locked(path, wait=False) as second:
            assert not second
    with locked(path, wait=False) as mine:
        assert mine


def test_a_record_lies_where_its_spec_says(store: Store) -> None:
    for path in files(store):
        record = records.decode(path.read_bytes())
        assert store.path(record.spec) == path
        assert store.read(record.spec) == record
        assert path.parts[-3:] == (record.spec.task.name, record.spec.method.name, f"{record.run_id}.json")


def test_reading_what_is_not_there_or_broken(store: Store) -> None:
    path = files(store)[0]
    spec = records.decode(path.read_bytes()).spec
    path.write_bytes(b"{")
    with pytest.raises(RecordError, match=str(path)):
        store.read(spec)
    path.unlink()
    assert store.read(spec) is None


def test_writing_replaces_the_record_of_the_same_run(store: Store) -> None:
    path = files(store)[0]
    old = records.decode(path.read_bytes())
    new = old.model_copy(update={"reason": "again"})
    assert store.write(new) == path
    assert store.read(old.spec) == new
    assert len(files(store)) == RUNS
    assert ids(store).count(old.run_id) == 1


def test_the_index_holds_every_record_in_order(store: Store) -> None:
    expected = sorted(
        (records.decode(path.read_bytes()) for path in files(store)),
        key=lambda record: (record.spec.task.name, record.spec.method.name, record.spec.seed, record.run_id),
    )
    with store.index() as index:
        assert len(index) == RUNS
        assert list(index.records()) == expected
        assert index.broken() == []
        assert index.statuses() == {record.run_id: record.status for record in expected}
        assert [record.spec.method.name for record in index.records(method="norm")] == ["norm", "norm"]
        assert list(index.records(task="nowhere")) == []
        for summary, record in zip(index.summaries(), expected, strict=True):
            assert (summary.run_id, summary.status, summary.seed) == (record.run_id, record.status, record.spec.seed)
            assert summary.value == record.metrics.get(record.primary)
            assert json.loads(summary.params) == record.spec.method.params
            assert json.loads(summary.budget) == record.spec.budget.model_dump()
        bodies = read_bodies(index.file, [record.run_id for record in expected])
        assert {name: Record.model_validate_json(body) for name, body in bodies.items()} == {
            record.run_id: record for record in expected
        }


def test_a_record_is_found_by_the_start_of_its_id(store: Store) -> None:
    names = [path.stem for path in files(store)]
    with store.index() as index:
        for name in names:
            found = index.find(name)
            assert found is not None
            assert found.run_id == name
            short = next(name[:n] for n in range(1, 17) if sum(other.startswith(name[:n]) for other in names) == 1)
            assert index.find(short) == found
        assert index.find("") is None, "more than one record starts so"
        assert index.find("zz") is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.unlink(),
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(b"no database at all, but longer than a header" * 100),
        lambda file: file.write_bytes(file.read_bytes()[:5000]),
        lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
        lambda file: file.write_bytes(file.read_bytes()[:-4096]),
        lambda file: file.write_bytes(b"\0" * 4096 + file.read_bytes()[4096:]),
        lambda file: _execute(file, "pragma user_version=1"),
        lambda file: _execute(file, "drop table files"),
        lambda file: _execute(file, "drop table bodies"),
    ],
    ids=["deleted", "empty", "no database", "torn early", "torn in half", "torn late", "without head", "old version",
         "no table of files", "no table of bodies"],
)  # fmt: skip
def test_a_lost_or_broken_index_is_built_again(store: Store, damage: Callable[[Path], None]) -> None:
    before = ids(store)
    damage(index_file(store))
    files(store)[0].touch()  # Makes the index write, too.
    assert ids(store) == before


def _execute(file: Path, statement: str) -> None:
    with contextlib.closing(sqlite3.connect(file)) as database:
        database.execute(statement)
        database.commit()


def test_unchanged_files_are_not_read_again(store: Store) -> None:
    """Recognised by size and time: a change that keeps both goes unseen until the index is built anew."""
    before = ids(store)
    path = files(store)[0]
    stat = path.stat()
    path.write_bytes(b"x" * stat.st_size)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert ids(store) == before
    index_file(store).unlink()
    assert len(ids(store)) == RUNS - 1


def test_changed_added_and_removed_files_are_picked_up(store: Store) -> None:
    assert len(ids(store)) == RUNS
    first, second, *_ = files(store)
    raw = second.read_bytes()
    record = records.decode(first.read_bytes())
    first.write_bytes(records.encode(record.model_copy(update={"reason": "edited and signed"})))
    second.unlink()
    with store.index() as index:
        assert len(index) == RUNS - 1
        found = index.find(record.run_id)
        assert found is not None
        assert found.reason == "edited and signed"
    second.write_bytes(raw)
    assert len(ids(store)) == RUNS
    shutil.rmtree(second.parent)
    assert len(ids(store)) < RUNS


def test_a_broken_file_is_named_until_it_is_whole_again(store: Store) -> None:
    path = files(store)[0]
    raw = path.read_bytes()
    path.write_bytes(raw[:-30])
    with store.index() as index:
        [broken] = index.broken()
        assert broken.path == str(path.relative_to(store.root))
        assert str(path) in broken.error
        assert len(index) == RUNS - 1
        assert index.find(path.stem) is None
    path.write_bytes(raw)
    with store.index() as index:
        assert index.broken() == []
        assert len(index) == RUNS


def test_a_record_in_the_wrong_place_is_broken(store: Store) -> None:
    first, second, *_ = files(store)
    (first.parent / "0123456789abcdef.json").write_bytes(first.read_bytes())
    other = store.root / "another-task" / "norm"
    other.mkdir(parents=True)
    shutil.copy(second, other)
    with store.index() as index:
        assert len(index.broken()) == 2
        assert all("lies in the wrong place" in item.error for item in index.broken())
        assert len(index) == RUNS


def test_what_is_no_record_file_is_left_alone(store: Store) -> None:
    folder = files(store)[0].parent
    (folder / "notes.txt").write_text("mine")
    (folder / ".hidden.json").write_text("mine")
    (store.root / "top.json").write_text("mine")
    (store.root / ".work" / "x").mkdir(parents=True, exist_ok=True)
    (store.root / ".work" / "x" / "y.json").write_text("{}")
    with store.index() as index:
        assert index.broken() == []
        assert len(index) == RUNS


def test_a_folder_that_is_not_there_is_explained(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"There is no results folder '.*nowhere'\. `selfbench run --suite quick`"):
        Store(tmp_path / "nowhere").index()


def test_an_index_that_cannot_be_written_is_explained(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    (store.root.parent / "file").write_text("in the way of a folder")
    monkeypatch.setenv("SELFBENCH_CACHE", str(store.root.parent / "file"))
    with pytest.raises(UsageError, match="SELFBENCH_CACHE"):
        store.index()


OPEN = (
    "import sys; from pathlib import Path; from selfbench.suite.store import Store\n"
    "sys.stdin.read(1)\n"
    "for _ in range(20):\n"
    "    with Store(Path(sys.argv[1])).index() as index: print(len(index), len(list(index.records())))"
)


@pytest.mark.parametrize("state", ["fresh", "empty", "broken", "old", "torn"])
def test_processes_may_open_the_index_at_once(store: Store, state: str) -> None:
    file = index_file(store)
    if state == "fresh":
        file.unlink()
    elif state == "empty":
        file.write_bytes(b"")
    elif state == "broken":
        file.write_bytes(b"no database at all" * 1000)
    elif state == "old":
        _execute(file, "pragma user_version=1")
    else:
        file.write_bytes(file.read_bytes()[:-16384])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", OPEN, str(store.root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )
        for _ in range(3)
    ]  # fmt: skip
    time.sleep(0.5)
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("x")
        process.stdin.flush()
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert out.split("\n")[:-1] == [f"{RUNS} {RUNS}"] * 20


def test_validate_reports_broken_files_with_exit_code_1(store: Store, cli) -> None:
    called = cli("validate", store.root)
    assert (called.code, called.err) == (0, "")
    assert f"{RUNS} valid records, 0 broken files" in called.out
    path = files(store)[0]
    path.write_bytes(path.read_bytes().replace(b'"seed": 0', b'"seed": 7').replace(b'"seed": 1', b'"seed": 7'))
    called = cli("validate", store.root, "--json")
    assert called.code == 1
    answer = json.loads(called.out)
    assert answer["valid"] == RUNS - 1
    [broken] = answer["broken"]
    assert broken["path"] == str(path.relative_to(store.root))
    assert "altered after the run" in broken["error"]


def mount(*words: object) -> None:
    done = subprocess.run(["mount", *map(str, words)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mount is not permitted here: {done.stderr.strip()}")


@pytest.fixture
def read_only(store: Store) -> Iterator[Path]:
    """The results folder, made read-only: by a mount for root, who ignores permission bits, else by these bits."""
    root = store.root
    if os.geteuid():
        folders = [root, *(path for path in root.rglob("*") if path.is_dir())]
        for folder in folders:
            folder.chmod(0o555)
        yield root
        for folder in folders:
            folder.chmod(0o755)
        return
    if shutil.which("mount") is None:
        pytest.skip("root ignores permission bits, and there is no mount command")
    mount("--bind", root, root)
    try:
        mount("-o", "remount,bind,ro", root)
        yield root
    finally:
        subprocess.run(["umount", str(root)], check=True)


def test_a_read_only_folder_is_read_and_not_written(read_only: Path, cli) -> None:
    for words in (
        ("validate", read_only),
        ("status", "-t", "toy-stream", "-m", "norm", "-s", "0-1", "--results", read_only),
    ):
        called = cli(*words)
        assert called.code == 0, called.err
    done = cli("run", "-t", "toy-stream", "-m", "norm", "-s", "5", "--results", read_only)
    assert done.code == 2
    assert f"Cannot write to the results folder '{read_only}'" in done.err
    assert "--results FOLDER" in done.err
    assert "Traceback" not in done.err


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() or shutil.which("mount") is None:
        pytest.skip("a disk of 256 KiB needs a mount, which only root may make")
    folder = tmp_path / "small"
    folder.mkdir()
    mount("-t", "tmpfs", "-o", "size=256k", "tmpfs", folder)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path, leave: int) -> Path:
    """A file that takes all but `leave` bytes of the disk."""
    filler = disk / "filler"
    filler.write_bytes(b"x" * max(0, shutil.disk_usage(disk).free - leave))
    return filler


@pytest.mark.parametrize("leave", [0, 24 << 10, 48 << 10])
def test_a_full_disk_ends_the_campaign_and_loses_nothing(small_disk: Path, cli, leave: int) -> None:
    """However early the disk is full: exit code 2, what to do, whole records; with room, the command completes."""
    words = ("run", "-t", "toy-stream", "-m", "source", "-m", "norm", "-s", "0-7", "--results", small_disk / "results")
    filler = fill(small_disk, leave)
    full = cli(*words)
    assert full.code == 2, full.err
    assert "Cannot write to the results folder" in full.err
    assert "ake room" in full.err
    assert "Traceback" not in full.err
    finished = {path: path.read_bytes() for path in (small_disk / "results").glob("[!.]*/*/*.json")}
    assert len(finished) < 16
    assert finished or leave < 48 << 10, "not even the first runs found room"
    for path, raw in finished.items():
        records.decode(raw, str(path))

    filler.unlink()
    again = cli(*words)
    assert again.code == 0, again.err
    after = {path: path.read_bytes() for path in (small_disk / "results").glob("[!.]*/*/*.json")}
    assert len(after) == 16
    assert finished.items() <= after.items()


@pytest.mark.parametrize("use", [lambda path: write_atomic(path, b"new"), lambda path: _lock(path)])
@pytest.mark.parametrize(("times", "survived"), [(3, True), (99, False)])
def test_a_folder_that_goes_after_it_was_made_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use: Callable[[Path], None], times: int, survived: bool
) -> None:
    """Another campaign that ends the same run removes its folder of work."""
    folder, real, left = tmp_path / "work", Path.mkdir, iter(range(times))

    def mkdir(path: Path, *arguments: object, **options: object) -> None:
        real(path, *arguments, **options)  # type: ignore[arg-type]
        if path == folder and next(left, None) is not None:
            shutil.rmtree(folder)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    if survived:
        use(folder / "file")
        assert (folder / "file").exists()
    else:
        with pytest.raises(FileNotFoundError):
            use(folder / "file")


def _lock(path: Path) -> None:
    with locked(path, wait=False) as mine:
        assert mine
