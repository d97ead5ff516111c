"""Readers of published layouts, on miniature folders of the same form."""

from __future__ import annotations

import io
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selfbench.suite.errors import DataMissing, UsageError
from selfbench.tasks.streams.layouts.binary import read_binary
from selfbench.tasks.streams.layouts.decode import decode, decode_file
from selfbench.tasks.streams.layouts.folders import class_folders, decode_all, domain_folders, image_list, listed
from selfbench.tasks.streams.layouts.npy import read_corruption, read_labels
from selfbench.tasks.streams.layouts.parquet import read_parquet
from selfbench.tasks.streams.layouts.shards import samples

RNG = np.random.default_rng(0)


def encoded(pixels: np.ndarray, form: str = "PNG") -> bytes:
    """uint8 (H, W, 3) as an image file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def noise(height: int, width: int) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)


def put(path: Path, pixels: np.ndarray) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(pixels))
    return pixels.transpose(2, 0, 1)


@pytest.fixture
def array(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """A corruption of four images: `fog.npy` and what is in it."""
    images = RNG.integers(0, 256, (20, 6, 6, 3), dtype=np.uint8)
    np.save(tmp_path / "fog.npy", images)
    np.save(tmp_path / "labels.npy", np.tile([3, 1, 4, 1], 5))
    return tmp_path, images


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_npy_gives_the_slice_of_a_severity(array: tuple[Path, np.ndarray], severity: int) -> None:
    folder, images = array
    found = read_corruption(folder / "fog.npy", severity, 4)
    assert found.flags.c_contiguous
    for number in range(4):
        for channel in range(3):
            assert np.array_equal(found[number, channel], images[4 * (severity - 1) + number, :, :, channel])
    assert list(read_labels(folder / "labels.npy", 4)) == [3, 1, 4, 1]


def test_npy_names_what_is_wrong(array: tuple[Path, np.ndarray]) -> None:
    folder, images = array
    with pytest.raises(ValueError, match="severity"):
        read_corruption(folder / "fog.npy", 0, 4)
    with pytest.raises(DataMissing, match=r"snow\.npy cannot be read"):
        read_corruption(folder / "snow.npy", 1, 4)
    with pytest.raises(DataMissing, match=r"fog\.npy holds uint8 \(20, 6, 6, 3\), expected uint8 \(25"):
        read_corruption(folder / "fog.npy", 1, 5)
    torn = folder / "torn.npy"
    torn.write_bytes((folder / "fog.npy").read_bytes()[:-9])
    with pytest.raises(DataMissing, match=r"torn\.npy cannot be read"):
        read_corruption(torn, 1, 4)
    np.save(folder / "float.npy", images.astype(np.float32))
    with pytest.raises(DataMissing, match="holds float32"):
        read_corruption(folder / "float.npy", 1, 4)
    np.save(folder / "labels.npy", np.arange(20))
    with pytest.raises(DataMissing, match="expected 4 classes, 5 times"):
        read_labels(folder / "labels.npy", 4)


@pytest.mark.parametrize(("label_bytes", "records"), [(1, [(7,), (2,)]), (2, [(1, 55), (9, 3)])])
def test_binary_records_are_classes_then_channels(
    tmp_path: Path, label_bytes: int, records: list[tuple[int, ...]]
) -> None:
    pixels = RNG.integers(0, 256, (2, 3, 32, 32), dtype=np.uint8)
    raw = b"".join(bytes(head) + body.tobytes() for head, body in zip(records, pixels, strict=True))
    (tmp_path / "test.bin").write_bytes(raw)
    images, labels = read_binary(tmp_path / "test.bin", label_bytes)
    assert np.array_equal(images, pixels)
    assert list(labels) == [head[-1] for head in records]
    (tmp_path / "test.bin").write_bytes(raw[:-1])
    with pytest.raises(
        DataMissing,
        match=r"test\.bin, row 2 \(from 1\): 3,07\d bytes of 3,07\d, .*whole records\. Get",
    ):
        read_binary(tmp_path / "test.bin", label_bytes)


def test_parquet_rows_keep_their_order(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    pixels = [noise(5, 4) for _ in range(3)]
    rows = [{"bytes": encoded(item), "path": None} for item in pixels]
    parquet.write_table(pyarrow.table({"img": rows, "label": [2, 0, 1]}), tmp_path / "a.parquet")
    images, labels = read_parquet(tmp_path / "a.parquet")
    assert np.array_equal(images, np.stack(pixels).transpose(0, 3, 1, 2))
    assert list(labels) == [2, 0, 1]
    assert len(read_parquet(tmp_path / "a.parquet", limit=2)[0]) == 2
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-20])
    with pytest.raises(DataMissing, match=r"b\.parquet cannot be read"):
        read_parquet(tmp_path / "b.parquet")


def test_a_missing_library_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(noise(4, 4))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"selfbench\[images\]"):
        read_parquet(tmp_path / "a.parquet")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(UsageError, match=r"selfbench\[images\]"):
        decode(content, "x")


def test_the_centre_is_cut_and_the_shorter_side_resized() -> None:
    pixels = noise(9, 7)
    assert np.array_equal(decode(encoded(pixels), "x", side=5), pixels[2:7, 1:6].transpose(2, 0, 1))
    transforms = pytest.importorskip("torchvision.transforms.v2")
    image = Image.fromarray(noise(60, 47))
    for resize, bicubic in ((32, False), ((32, 32), False), (32, True)):
        kind = transforms.InterpolationMode.BICUBIC if bicubic else transforms.InterpolationMode.BILINEAR
        expected = transforms.Compose([transforms.Resize(resize, kind), transforms.CenterCrop(28)])(image)
        found = decode(encoded(np.asarray(image)), "x", side=28, resize=resize, bicubic=bicubic)
        assert np.array_equal(found, np.asarray(expected).transpose(2, 0, 1))


def test_grey_images_and_those_with_a_palette_become_colours() -> None:
    grey = RNG.integers(0, 256, (4, 4), dtype=np.uint8)
    found = decode(encoded(grey), "x")
    assert np.array_equal(found, np.stack([grey] * 3))


def test_a_torn_or_small_image_is_named(tmp_path: Path) -> None:
    content = encoded(noise(40, 40), "JPEG")
    (tmp_path / "a.jpg").write_bytes(content[:200])
    with pytest.raises(DataMissing, match=r"a\.jpg is no whole image"):
        decode_file(tmp_path / "a.jpg")
    with pytest.raises(DataMissing, match="40 x 40 pixels, expected 41"):
        decode(content, "a.jpg", side=41)
    with pytest.raises(DataMissing, match=r"none\.jpg cannot be read"):
        decode_file(tmp_path / "none.jpg")


def test_a_picture_of_too_many_pixels_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(encoded(noise(40, 40)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)
    with pytest.raises(DataMissing, match=r"a\.png is no whole image: .*exceeds limit.*Get the file again"):
        decode_file(tmp_path / "a.png")


def test_class_folders_are_sorted_by_class_and_name(tmp_path: Path) -> None:
    expected = {}
    for name in ("n02/b.JPEG", "n01/z.png", "n02/a.JPEG", "n01/.hidden.txt"):
        if not name.endswith("txt"):
            expected[name] = put(tmp_path / name, noise(8, 8))
        else:
            (tmp_path / name).write_text("")
    files = class_folders(tmp_path)
    assert [str(path.relative_to(tmp_path)) for path in files.paths] == ["n01/z.png", "n02/a.JPEG", "n02/b.JPEG"]
    assert files.classes == ("n01", "n02")
    assert list(files.labels) == [0, 1, 1]
    out = np.zeros((3, 3, 8, 8), np.uint8)
    heard: list[int] = []
    decode_all(files.paths, out, 8, tell=heard.append)
    assert np.array_equal(out, np.stack([expected[name] for name in ("n01/z.png", "n02/a.JPEG", "n02/b.JPEG")]))
    assert heard == [3]
    assert list(class_folders(tmp_path, ("n02",)).labels) == [0, 0]
    with pytest.raises(DataMissing, match=r"lacks 1 class folder \(n03\)"):
        class_folders(tmp_path, ("n01", "n03"))
    with pytest.raises(DataMissing, match="holds 3 images, expected 50"):
        class_folders(tmp_path, expected=50)
    with pytest.raises(DataMissing, match=r"nowhere is missing\. Unpack the published archive there again"):
        class_folders(tmp_path / "nowhere")
    with pytest.raises(DataMissing, match=r"n01 has no folders in it\. Unpack the published archive there again"):
        class_folders(tmp_path / "n01")


def test_a_list_of_names_keeps_its_order(tmp_path: Path) -> None:
    for name in ("n01/a.png", "n02/b.png"):
        put(tmp_path / name, noise(4, 4))
    files = listed(tmp_path, ["n02/b.png", "n01/a.png"], ("n01", "n02"))
    assert list(files.labels) == [1, 0]
    assert files.paths[0] == tmp_path / "n02" / "b.png"
    with pytest.raises(DataMissing, match=r"1 listed file .*c\.png"):
        listed(tmp_path, ["n02/c.png"], ("n01", "n02"))


def test_domains_must_have_the_same_classes(tmp_path: Path) -> None:
    for name in ("photo/dog/a.jpg", "photo/cat/b.jpg", "sketch/dog/a.png", "sketch/cat/c.jpg"):
        put(tmp_path / name, noise(4, 4))
    found = domain_folders(tmp_path, ("photo", "sketch"))
    assert {domain: files.classes for domain, files in found.items()} == dict.fromkeys(found, ("cat", "dog"))
    put(tmp_path / "sketch" / "horse" / "d.png", noise(4, 4))
    with pytest.raises(DataMissing, match=r"sketch and .*photo .*1 folder \(horse\) in one alone\. Get the archives"):
        domain_folders(tmp_path, ("photo", "sketch"))


def test_an_image_list_gives_paths_and_classes(tmp_path: Path) -> None:
    file = tmp_path / "real_list.txt"
    file.write_text("real/bird/real 1.jpg 1\nreal/axe/real_2.jpg 0\n\n")
    files = image_list(tmp_path, file, 2)
    assert files.paths == (tmp_path / "real" / "bird" / "real 1.jpg", tmp_path / "real" / "axe" / "real_2.jpg")
    assert list(files.labels) == [1, 0]
    assert files.classes == ("axe", "bird")
    with pytest.raises(DataMissing, match=r"real_list\.txt: classes must lie in 0 to 0\. Get the file again"):
        image_list(tmp_path, file, 1)
    file.write_text("real/bird/real_1.jpg\n")
    with pytest.raises(DataMissing, match=r"real_list\.txt is no list of lines .*Get the file again"):
        image_list(tmp_path, file, 2)


def shard(path: Path, parts: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in parts:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def test_shards_are_read_in_order(tmp_path: Path) -> None:
    shard(tmp_path / "serial_00001.tar", [("c.input.jpg", b"three"), ("c.output.cls", b"7")])
    shard(
        tmp_path / "serial_00000.tar",
        [("a.output.cls", b"4"), ("a.input.jpg", b"one"), ("b.input.jpg", b"two"), ("b.output.cls", b"999")],
    )
    found = list(samples(tmp_path))
    assert [(content, label) for _, content, label in found] == [(b"one", 4), (b"two", 999), (b"three", 7)]
    assert found[2][0].endswith("serial_00001.tar, c")


def test_torn_shards_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match=r"holds no shards \(\*\.tar\)\. Get them again and put them there"):
        list(samples(tmp_path))
    file = tmp_path / "serial_00000.tar"
    shard(file, [("a.input.jpg", b"one")])
    with pytest.raises(DataMissing, match=r"00000\.tar: sample 'a' has .*Get the shard again"):
        list(samples(tmp_path))
    shard(file, [("a.input.jpg", b"one"), ("a.output.cls", b"one")])
    with pytest.raises(DataMissing, match=r"00000\.tar: sample 'a' has no class number\. Get the shard again"):
        list(samples(tmp_path))
    shard(file, [("a.input.jpg", b"x" * 5000), ("a.output.cls", b"1")])
    file.write_bytes(file.read_bytes()[:3000])
    with pytest.raises(DataMissing, match=r"serial_00000\.tar is torn"):
        list(samples(tmp_path))
