"""The cache of decoded pictures: what comes from it is what would be decoded, after a kill and within a bound."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from selfbench.suite import registry
from selfbench.suite.bundle import Array, Bundle, BundleFolder, write_bundle
from selfbench.suite.places import cache_folder
from selfbench.suite.prepare import decoded
from selfbench.suite.prepare.decoded import DecodedFolder, fill, folder_of, read_decoded, rows_of, rows_to_keep
from selfbench.suite.prepare.decoded_option import Decoded
from selfbench.suite.registry import source as registry_source

WANTED = Decoded(50, (2, 3, 4))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SELFBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(decoded, "_BLOCK", 7 * WANTED.row)
    monkeypatch.setattr(decoded, "_SYNC_SECONDS", 0.0)


class Files:
    """Pictures that are functions of their number, and which of them have been decoded."""

    def __init__(self, torn: int = -1, shift: int = 0) -> None:
        self.torn, self.shift, self.asked = torn, shift, list[int]()

    def __call__(self, rows: Array) -> Array:
        if self.torn in rows:
            raise ValueError(f"picture {self.torn} is torn")
        self.asked += rows.tolist()
        return picture(rows + self.shift)


def picture(rows: Array) -> Array:
    return (31 * np.asarray(rows)[:, None] + np.arange(24)).astype(np.uint8).reshape(-1, 2, 3, 4)


def folder(name: str = "some", wanted: Decoded = WANTED) -> DecodedFolder:
    return DecodedFolder(cache_folder() / "decoded" / name, wanted)


def test_what_is_read_is_what_was_decoded_each_once() -> None:
    files, said = Files(), list[str]()
    fill(folder(), files, 50, said.append)
    assert files.asked == list(range(50))
    assert folder().rows == 50
    public = read_decoded(folder().path)
    assert isinstance(public["decoded"], np.memmap)
    np.testing.assert_array_equal(public["decoded"], picture(np.arange(50)))
    with pytest.raises(ValueError, match="read-only"):
        public["decoded"][0] = 0
    assert said[-1].startswith("decoding 50 of 50 pictures")
    assert folder().text() == "50 of 50 pictures are kept decoded (0.0 GB)"


def test_rows_come_in_the_order_that_was_asked_for_whatever_is_kept() -> None:
    rows = np.array([49, 3, 3, 20, 19, 0])
    for kept in (0, 20, 50):
        fill(folder(str(kept)), Files(), kept)
        files = Files()
        found = rows_of(read_decoded(folder(str(kept)).path), rows, files)
        np.testing.assert_array_equal(found, picture(rows))
        assert type(found) is np.ndarray
        assert files.asked == [row for row in rows if row >= kept]
    files = Files(torn=0)
    assert rows_of(read_decoded(folder("20").path), rows[:0], files).shape == (0, 2, 3, 4)


def test_what_was_decoded_before_a_torn_picture_stays() -> None:
    with pytest.raises(ValueError, match="picture 30 is torn"):
        fill(folder(), Files(torn=30), 50)
    assert folder().rows == 28
    files = Files()
    fill(folder(), files, 50)
    assert sorted(set(files.asked) - set(range(28))) == list(range(28, 50))
    assert len([row for row in files.asked if row < 28]) == 8
    np.testing.assert_array_equal(read_decoded(folder().path)["decoded"], picture(np.arange(50)))


@pytest.mark.parametrize("moment", ["rows without their state", "a torn row", "fewer rows than the state says"])
def test_a_crash_leaves_whole_rows(moment: str) -> None:
    fill(folder(), Files(), 21)
    pixels = folder().path / "pixels"
    content = pixels.read_bytes()
    left = {"rows without their state": content + b"x" * 5 * WANTED.row, "a torn row": content + b"x" * 10}
    pixels.write_bytes(left.get(moment, content[: 17 * WANTED.row + 3]))
    assert folder().rows == (17 if moment.startswith("fewer") else 21)
    fill(folder(), Files(), 50)
    np.testing.assert_array_equal(read_decoded(folder().path)["decoded"], picture(np.arange(50)))
    assert pixels.stat().st_size == 50 * WANTED.row


def test_a_killed_decoding_goes_on() -> None:
    """A process of its own that is killed in the middle; the next one begins after what it left on the disk."""
    code = (
        "import sys, time; import numpy as np; from pathlib import Path\n"
        "from selfbench.suite.prepare import decoded as d\n"
        "d._BLOCK, d._SYNC_SECONDS = 24 * 7, 0.0\n"
        "def decode(rows):\n"
        "    time.sleep(0.0 if rows[0] < 28 else 60.0)\n"
        "    return (31 * rows[:, None] + np.arange(24)).astype(np.uint8).reshape(-1, 2, 3, 4)\n"
        "d.fill(d.DecodedFolder(Path(sys.argv[1]), d.Decoded(50, (2, 3, 4))), decode, 50)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(folder().path)])
    deadline = time.monotonic() + 60
    while folder().rows < 28 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    files = Files()
    fill(folder(), files, 50)
    assert set(range(28, 50)) == {row for row in files.asked if row >= 28}
    assert len(files.asked) == 22 + 8
    np.testing.assert_array_equal(read_decoded(folder().path)["decoded"], picture(np.arange(50)))


def test_pictures_that_have_changed_are_decoded_again() -> None:
    fill(folder(), Files(), 30)
    files, said = Files(shift=1), list[str]()
    fill(folder(), files, 50, said.append)
    assert said[0] == "the pictures have changed: decoding them again"
    np.testing.assert_array_equal(read_decoded(folder().path)["decoded"], picture(np.arange(1, 51)))


def test_another_shape_than_registered_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(2, 3, 4\), registered is \(3, 3, 4\)"):
        fill(folder(wanted=Decoded(50, (3, 3, 4))), Files(), 50)
    assert read_decoded(folder().path) == {}
    assert read_decoded("") == {}


def test_the_bound_says_how_many_are_kept_and_what_is_done_with_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SELFBENCH_DECODED_GB", str(20.5 * WANTED.row / 1e9))
    assert rows_to_keep(folder()) == 20
    fill(folder("other"), Files(), 5)
    assert rows_to_keep(folder()) == 20
    assert rows_to_keep(folder(), [folder("other").path, folder().path]) == 15
    fill(folder(), Files(), 15)
    assert (
        folder().text().startswith("15 of 50 pictures are kept decoded (0.0 GB); the others are decoded at each access")
    )
    assert "SELFBENCH_DECODED_GB" in folder().text()
    monkeypatch.setenv("SELFBENCH_DECODED_GB", "1")
    assert rows_to_keep(folder()) == 50
    monkeypatch.setattr(decoded, "_free", lambda path: 11 * WANTED.row)
    assert rows_to_keep(folder()) == 15 + 5


def bundle_of(path: Path, first: int = 0, **facts: object) -> BundleFolder:
    return write_bundle(path, Bundle({"paths": np.arange(first, 50)}, {}, facts={"pictures": 50, **facts}))


def test_the_key_is_the_content_the_shape_and_the_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def key(bundle: BundleFolder, wanted: Decoded = WANTED) -> str:
        found = folder_of(wanted, bundle, "some")
        assert found is not None
        assert found.wanted.pictures == 50
        return found.path.name

    usual = key(bundle_of(tmp_path / "a"))
    assert key(bundle_of(tmp_path / "b")) == usual
    assert usual.startswith("some-")
    others = [
        key(bundle_of(tmp_path / "c", first=1)),
        key(bundle_of(tmp_path / "d", pictures_sha256="other sizes")),
        key(bundle_of(tmp_path / "b"), Decoded(50, (2, 4, 4))),
        key(bundle_of(tmp_path / "b"), Decoded(50, (2, 3, 4), "float32")),
    ]
    monkeypatch.setattr(decoded, "_decoders", lambda: ["another version"])
    others.append(key(bundle_of(tmp_path / "b")))
    assert len({usual, *others}) == 6
    monkeypatch.setenv("SELFBENCH_DECODED_GB", "0")
    assert folder_of(WANTED, bundle_of(tmp_path / "b"), "some") is None
    assert folder_of(WANTED, BundleFolder(tmp_path / "none"), "some") is None


def test_what_was_used_longest_ago_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    for age, name in enumerate(("new", "old", "kept")):
        fill(folder(name), Files(), 10)
        os.utime(folder(name).path, (1e9 - age, 1e9 - age))
    monkeypatch.setenv("SELFBENCH_DECODED_GB", str(75 * WANTED.row / 1e9))
    decoded._prune(folder(), [folder("kept").path])
    assert [folder(name).rows for name in ("new", "old", "kept")] == [10, 0, 10]
    decoded.used(folder("new"))
    assert folder("new").path.stat().st_mtime > 1e9


MALFORMED = [{"pictures": 3}, {"shape": (1,)}, {"pictures": 3, "shape": (1,), "side": 4}, {}]


@pytest.mark.parametrize("option", MALFORMED)
def test_a_malformed_registration_is_refused(tmp_path: Path, option: dict[str, object]) -> None:
    file = tmp_path / "wrong.py"
    file.write_text(
        "@register_task('wrong', protocol='adaptation', version='1', metric='m', title='t', budget={}, data=(), "
        f"decoded={option!r})\nclass Wrong:\n    pass\n"
    )
    with pytest.raises(registry.RegistryError, match=r"decoded is .*a number"):
        list(registry_source.read_file("task", file, None))


def test_info_says_what_a_full_set_takes(cli: Callable[..., object]) -> None:
    said = json.loads(cli("info", "wilds-iwildcam", "--json").out)["decoded pictures"]  # type: ignore[attr-defined]
    assert said["number"] == 1_022_149
    assert said["gigabytes"] == pytest.approx(1_022_149 * 3 * 448 * 448 / 1e9, abs=0.05)
    assert "SELFBENCH_DECODED_GB, 64" in said["bound"]
