"""Folders of images: layouts, fitting, bands and depth, damaged files, links, splits and copies."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_prep.folder import FOLDER, ImageSource, find_images, scan_folder
from data_prep.images import Probe, decode, load_image
from data_prep.plan import PlanOptions, make_plan
from data_prep.readers.registry import Request
from data_prep.writer import write
from frontier.data.shards import ShardSet
from frontier.errors import UserError
from tests.data_prep.opening import refusal


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape or (8, 8, 3), np.uint8)


def scan(root: Path, **options: Any) -> ImageSource:
    return scan_folder(Request(root, FOLDER, **options))


def folder_of(root: Path, classes: int = 2, each: int = 5) -> Path:
    for c in range(classes):
        for i in range(each):
            save(root / f"class{c}" / f"{i}.png", noise(100 * c + i))
    return root


def test_classes_ids_and_pixels(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "in", 3, 4)
    save(root / "class1" / "deeper" / "x.png", noise(999))
    write(scan(root), tmp_path / "out", PlanOptions())
    shards = ShardSet(tmp_path / "out")
    assert shards.classes == ["class0", "class1", "class2"]
    assert len(shards) == 13
    images = shards.read("image", 0, 13)
    for name, label, image in zip(shards.column("sample_id"), shards.column("label"), images, strict=True):
        path = root / name.decode()
        assert np.array_equal(image, np.asarray(Image.open(path)).transpose(2, 0, 1))
        assert path.relative_to(root).parts[0] == f"class{label}"


def test_flat_folder_has_no_labels(tmp_path: Path) -> None:
    for i in range(4):
        save(tmp_path / "in" / f"{i}.png", noise(i))
    write(scan(tmp_path / "in"), tmp_path / "out", PlanOptions())
    shards = ShardSet(tmp_path / "out")
    assert shards.classes == []
    assert shards.column("label").tolist() == [-1] * 4


def test_splits_by_exact_fraction_of_every_class(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "in", 3, 20)
    write(scan(root), tmp_path / "out", PlanOptions(test_fraction=0.2, val_fraction=0.1))
    counts = {
        name: np.bincount(ShardSet(tmp_path / "out", name).column("label")).tolist()
        for name in ("train", "val", "test")
    }
    assert counts == {"train": [14] * 3, "val": [2] * 3, "test": [4] * 3}


def test_given_splits(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("test", 2), ("validation", 1)):
        for i in range(count):
            save(tmp_path / "in" / split / "river" / f"{i}.png", noise(hash(split) % 1000 + i))
    plan = make_plan(scan(tmp_path / "in"), PlanOptions())
    assert {shard.split: len(shard.rows) for shard in plan.shards} == {"train": 3, "val": 1, "test": 2}
    assert plan.listing.classes == ("river",)


def test_copies_never_straddle_splits(tmp_path: Path) -> None:
    root = tmp_path / "in"
    for i in range(60):
        save(root / f"class{i % 2}" / f"{i}.png", noise(i // 3))
    source = scan(root)
    plan = make_plan(source, PlanOptions(test_fraction=0.3))
    listing = source.listing()
    where: dict[bytes, set[str]] = {}
    for shard in plan.shards:
        for row in shard.rows:
            where.setdefault(listing.groups[row], set()).add(shard.split)
    assert len(where) == 20
    assert all(len(splits) == 1 for splits in where.values())
    assert listing.notes["duplicates"] == 40


def test_mixed_layout_is_refused(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "in")
    save(root / "stray.png", noise(1))
    with pytest.raises(UserError, match=r"1 images lie beside the class folders \(such as stray.png\)"):
        scan(root)


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        scan(tmp_path / "nowhere")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.csv").write_text("x")
    with pytest.raises(UserError, match="no images \\(1 other files"):
        scan(tmp_path / "in")


def test_different_sizes_need_a_choice(tmp_path: Path) -> None:
    save(tmp_path / "in" / "a.png", noise(0, 8, 8, 3))
    save(tmp_path / "in" / "b.png", noise(1, 6, 9, 3))
    with pytest.raises(UserError, match="2 different sizes: .*9x6.*--image-size"):
        scan(tmp_path / "in")
    assert scan(tmp_path / "in", image_size=4).images["image"].shape == (3, 4, 4)


def png(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return decode(buffer.getvalue())


def test_fitting() -> None:
    ramp = np.tile(np.arange(0, 240, 10, dtype=np.uint8), (12, 1))
    image = png(Image.fromarray(ramp))
    shape = (1, 6, 6)
    assert np.array_equal(load_image(image, shape, "crop", False)[0], ramp[3:9, 9:15])
    resized = load_image(image, shape, "resize", False)[0]
    assert np.abs(resized[3].astype(int) - np.array([15, 55, 95, 135, 175, 215])).max() <= 6
    both = load_image(image, shape, "resize_crop", False)[0]
    assert np.abs(both[3].astype(int) - np.array([65, 85, 105, 125, 145, 165])).max() <= 2
    same = load_image(image, (1, 12, 24), "resize_crop", False)[0]
    assert np.array_equal(same, ramp), "a size that fits is left alone"


def test_bands_and_alpha() -> None:
    grey, colour = noise(0, 5, 5), noise(1, 5, 5, 3)
    repeated = load_image(png(Image.fromarray(grey)), (3, 5, 5), "crop", False)
    assert all(np.array_equal(band, grey) for band in repeated)
    alpha = np.dstack([colour, np.zeros((5, 5), np.uint8)])
    dropped = load_image(png(Image.fromarray(alpha)), (3, 5, 5), "crop", False)
    assert np.array_equal(dropped, colour.transpose(2, 0, 1))
    palette = Image.fromarray(colour).quantize(8)
    expected = np.asarray(palette.convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(load_image(png(palette), (3, 5, 5), "crop", False), expected)


def test_grey_and_16_bits(tmp_path: Path) -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (2, 8, 8)).astype(np.uint16)
    for i in range(2):
        save(tmp_path / "deep" / f"{i}.{('png', 'tif')[i]}", deep[i])
    write(scan(tmp_path / "deep"), tmp_path / "out", PlanOptions())
    shards = ShardSet(tmp_path / "out")
    for name, image in zip(shards.column("sample_id"), shards.read("image", 0, 2), strict=True):
        assert image.dtype == np.uint16
        assert np.array_equal(image[0], deep[int(name[:1])])
    # One 8-bit image among them, and all become 8 bits: the upper byte.
    save(tmp_path / "deep" / "2.png", noise(0, 8, 8))
    source = scan(tmp_path / "deep", channels="rgb")
    assert source.images["image"].dtype == "uint8"
    loaded = source.load([0])["image"][0]
    assert loaded.shape == (3, 8, 8)
    assert np.array_equal(loaded[1], deep[0] >> 8)


def colour_png_of_16_bits() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + bytes(4 * 6) for _ in range(4))
    head = struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    root = folder_of(tmp_path / "in", 2, 6)
    whole = (root / "class0" / "0.png").read_bytes()
    (root / "class0" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (root / "class0" / "empty.jpg").write_bytes(b"")
    (root / "class0" / "text.jpg").write_text("not an image")
    (root / "class1" / "deep.png").write_bytes(colour_png_of_16_bits())
    pages = [Image.fromarray(noise(i)) for i in range(3)]
    pages[0].save(root / "class1" / "pages.tif", save_all=True, append_images=pages[1:])
    Image.fromarray(np.zeros((8, 8), np.float32)).save(root / "class1" / "float.tif")
    return root


def test_damaged_images_stop_before_anything_is_written(damaged: Path, tmp_path: Path) -> None:
    report = tmp_path / "out" / "unreadable.tsv"
    with pytest.raises(UserError, match=r"6 of 18 images cannot be used: class0/cut.png.*--on-error skip"):
        scan(damaged, report=report)
    lines = dict(line.split("\t") for line in report.read_text().splitlines())
    assert sorted(lines) == [
        "class0/cut.png",
        "class0/empty.jpg",
        "class0/text.jpg",
        "class1/deep.png",
        "class1/float.tif",
        "class1/pages.tif",
    ]
    assert "3 pages" in lines["class1/pages.tif"]
    assert "16-bit colour" in lines["class1/deep.png"]
    assert [path.name for path in report.parent.iterdir()] == ["unreadable.tsv"]


def test_damaged_images_are_skipped_by_choice(damaged: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    source = scan(damaged, on_error="skip", report=out / "unreadable.tsv")
    done = write(source, out, PlanOptions())
    assert done.manifest["samples"] == 12
    assert done.manifest["notes"]["skipped"] == 6
    assert len((out / "unreadable.tsv").read_text().splitlines()) == 6


def test_nothing_usable(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(b"x")
    with pytest.raises(UserError, match="none of 1 images"):
        scan(tmp_path / "in", on_error="skip")


def test_crops_need_large_images(tmp_path: Path) -> None:
    save(tmp_path / "in" / "a.png", noise(0, 9, 7, 3))
    with pytest.raises(UserError, match="7x9 is smaller than the crop of 8"):
        scan(tmp_path / "in", image_size=8, fit="crop")


def test_links_that_leave_are_not_followed(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "in")
    outside = save(tmp_path / "secret" / "s.png", noise(7))
    os.symlink(outside, root / "class0" / "out.png")
    os.symlink(tmp_path / "secret", root / "class9")
    os.symlink(root / "class0" / "0.png", root / "class1" / "inside.png")
    (root / "class0" / ".hidden.png").write_bytes(b"")
    files, counts = find_images(root)
    names = [file.path for file in files]
    assert "class0/out.png" not in names
    assert not any(name.startswith("class9") for name in names)
    assert "class1/inside.png" in names
    assert counts == {"other_files": 0, "links_not_followed": 2}
    assert len(names) == 11


def test_a_file_that_changes_is_noticed(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "in")
    source = scan(root)
    save(root / "class1" / "3.png", noise(12345))
    with pytest.raises(UserError, match=r"class1/3.png: changed while it was read"):
        write(source, tmp_path / "out", PlanOptions())


def test_names_that_are_not_ascii(tmp_path: Path) -> None:
    name = "ä" * 40 + ".png"
    save(tmp_path / "in" / "höhe" / name, noise(0))
    write(scan(tmp_path / "in"), tmp_path / "out", PlanOptions())
    shards = ShardSet(tmp_path / "out")
    assert shards.manifest["columns"]["sample_id"] == "S128"
    assert shards.column("sample_id")[0].decode() == f"höhe/{name}"
    assert shards.classes == ["höhe"]


def test_two_workers_scan_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_prep.team._IN_PROCESS", 4)
    root = folder_of(tmp_path / "in")
    one, two = (scan(root, workers=n) for n in (1, 2))
    assert one.describe() == two.describe()
    assert make_plan(one, PlanOptions()).fingerprint == make_plan(two, PlanOptions()).fingerprint


@pytest.mark.realdata
def test_eurosat(tmp_path: Path) -> None:
    folder = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "eurosat_rgb"
    if not folder.is_dir():
        pytest.skip(f"the shared EuroSAT images are not at {folder}")
    few = tmp_path / "few"
    for group in sorted(folder.iterdir()):
        (few / group.name).mkdir(parents=True)
        for image in sorted(group.iterdir())[:20]:
            (few / group.name / image.name).write_bytes(image.read_bytes())
    write(scan(few), tmp_path / "out", PlanOptions(test_fraction=0.2))
    train, test = ShardSet(tmp_path / "out"), ShardSet(tmp_path / "out", "test")
    assert (len(train), len(test)) == (160, 40)
    assert np.bincount(train.column("label")).tolist() == [16] * 10
    mean = train.statistics("image")[0] / 255
    # The published channel means of the whole set.
    assert np.abs(mean - [0.344, 0.380, 0.408]).max() < 0.03


def test_a_scan_goes_on_where_a_killed_one_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import data_prep.scan as scanning

    root, report = folder_of(tmp_path / "in", 2, 6), tmp_path / "out" / "unreadable.tsv"
    monkeypatch.setattr(scanning, "_PIECE", 4)
    looked: list[str] = []

    def probe(argument: tuple[str, int]) -> Probe:
        if len(looked) == 10:
            raise KeyboardInterrupt
        looked.append(argument[0])
        return real(argument)

    real = scanning.probe
    monkeypatch.setattr(scanning, "probe", probe)
    with pytest.raises(KeyboardInterrupt):
        scan(root, report=report)
    kept = report.with_name(scanning.SCAN)
    assert len(kept.read_text().splitlines()) == 8
    kept.write_text(kept.read_text() + '{"path": "torn')
    looked.clear()
    changed = save(root / "class0" / "1.png", noise(77))
    source = scan(root, report=report)
    assert sorted(looked) == sorted([str(changed), *(str(root / "class1" / f"{k}.png") for k in (2, 3, 4, 5))])
    monkeypatch.setattr(scanning, "probe", real)
    assert source.describe() == scan(root).describe()
    write(source, tmp_path / "out", PlanOptions())
    assert not kept.exists() and (tmp_path / "out" / "manifest.json").exists()


def test_links_in_a_ring_and_pipes_are_listed(tmp_path: Path) -> None:
    """Neither is followed for ever."""
    root = folder_of(tmp_path / "in", 1, 2)
    (root / "class0/ring.png").symlink_to("ring.png")
    os.mkfifo(root / "class0/pipe.png")
    report = tmp_path / "out" / "unreadable.tsv"
    with pytest.raises(UserError, match=r"2 of 4 images.*pipe.png \(not a regular file\).*ring.png"):
        scan(root, report=report)
    assert scan(root, on_error="skip", report=report).listing().notes["skipped"] == 2


def test_a_name_with_a_newline_is_one_line_of_the_report(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "in", 1, 2)
    (root / "class0/a\n\tb.png").write_bytes(b"")
    scan(root, on_error="skip", report=tmp_path / "unreadable.tsv")
    assert (tmp_path / "unreadable.tsv").read_text().startswith("class0/a\\n\\tb.png\tnot a JPEG")
    assert (tmp_path / "unreadable.tsv").read_text().count("\n") == 1


@pytest.mark.filterwarnings("error")
def test_damaged_tags_are_one_reason_and_no_warning(tmp_path: Path) -> None:
    """Every byte of a TIFF's table of tags set to several values: decoded, or refused in words."""
    stream = io.BytesIO()
    Image.fromarray(noise(1)).save(stream, "TIFF")
    data, refused = stream.getvalue(), []
    table = struct.unpack("<I", data[4:8])[0]
    for place in range(table, len(data)):
        for value in (0, 1, 127, 255):
            try:
                decode(data[:place] + bytes([value]) + data[place + 1 :])
            except UserError as error:
                refused.append(str(error))
    assert len(refused) > 20
    assert "\n" not in "".join(refused)


@pytest.mark.parametrize(
    ("reader", "name", "settings"),
    [
        ("geotiff", "a.tif", {}),
        ("raster_series", "20200101.tif", {}),
        ("netcdf", "a.nc", {}),
        ("npy", "a.npy", {"axes": "CHW"}),
        ("npy", "a.npz", {"axes": "CHW"}),
        ("webdataset", "a.tar", {}),
        ("folder", "a.png", {}),
    ],
)
def test_a_pipe_among_the_files_is_not_waited_for(
    tmp_path: Path, reader: str, name: str, settings: dict[str, str]
) -> None:
    os.mkfifo(tmp_path / name)
    assert "not a regular file" in refusal(reader, tmp_path, **settings)


def colour_tiff(bands: int, bits: int, extra: int | None = None) -> bytes:
    """An RGB TIFF of 4 x 4 pixels by hand: what pillow reads only in part it cannot write either."""
    pixels = np.arange(16 * bands, dtype=f"<u{bits // 8}").tobytes()
    tags = [(256, 3, (4,)), (257, 3, (4,)), (258, 3, (bits,) * bands), (259, 3, (1,)), (262, 3, (2,)), (273, 4, (8,))]
    tags += [(277, 3, (bands,)), (278, 3, (4,)), (279, 4, (len(pixels),))]
    tags += [] if extra is None else [(338, 3, (extra,))]
    table, after = struct.pack("<H", len(tags)), b""
    end = 8 + len(pixels) + 2 + 12 * len(tags) + 4
    for tag, kind, values in tags:
        data = struct.pack(f"<{len(values)}{'H' if kind == 3 else 'I'}", *values)
        if len(data) > 4:
            data, after = struct.pack("<I", end + len(after)), after + data
        table += struct.pack("<HHI", tag, kind, len(values)) + data.ljust(4, b"\0")
    return b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + table + bytes(4) + after


def test_a_tiff_that_pillow_would_cut_is_refused() -> None:
    assert decode(colour_tiff(3, 8)).mode == "RGB"
    assert decode(colour_tiff(4, 8, extra=2)).mode == "RGBA"  # alpha is dropped, as said
    with pytest.raises(UserError, match="16-bit TIFF of 3 bands, of which pillow takes 8 bits"):
        decode(colour_tiff(3, 16))
    with pytest.raises(UserError, match="holds 4 bands, of which pillow would keep 3"):
        decode(colour_tiff(4, 8, extra=0))
