"""WebDataset shards: parts, labels, splits, order, reading by offset, and everything that can be wrong with a tar."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_prep.plan import PlanOptions, make_plan
from data_prep.readers.registry import Request, find_reader, parse_settings
from data_prep.source import Source
from data_prep.tar_index import list_members
from data_prep.writer import write
from frontier.data.shards import ShardSet
from frontier.errors import UserError
from tests.conftest import SHARED_DATA, run_frontier


def read(path: Path, settings: Mapping[str, str] | None = None, **options: Any) -> Source:
    reader = find_reader("webdataset")
    given = parse_settings(reader, [f"{key}={value}" for key, value in (settings or {}).items()])
    return reader.open(Request(path, reader, settings=given, **options))


def tar(path: Path, members: Iterable[tuple[str, bytes]], kind: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape or (6, 6, 3), np.uint8)


def picture(seed: int, kind: str = "PNG", *shape: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(noise(seed, *shape)).save(buffer, kind)
    return buffer.getvalue()


def array(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=True)
    return buffer.getvalue()


def sample(seed: int, **parts: bytes | str) -> list[tuple[str, bytes]]:
    """k<seed>.png and other parts; "__" in a name stands for a dot."""
    found = [(f"k{seed}.png", picture(seed))] if "png" not in parts else []
    return found + [
        (f"k{seed}.{name.replace('__', '.')}", part.encode() if isinstance(part, str) else part)
        for name, part in parts.items()
    ]


def labels_of(source: Source) -> list[str]:
    listing = source.listing()
    return [listing.classes[label] if label >= 0 else "none" for label in listing.labels]


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_order_ids_and_pixels(kind: int, tmp_path: Path) -> None:
    # Written in the wrong order; a long name takes an extra header in every format.
    tar(tmp_path / "in" / "b.tar", sample(3, cls="1") + sample(2, cls="0"), kind)
    long = "d" * 60 + "/" + "e" * 60 + "/k9"
    tar(
        tmp_path / "in" / "a.tar",
        [("./x/k1.cls", b"2"), ("./x/k1.png", picture(1)), (f"{long}.png", picture(9)), (f"{long}.cls", b"0")],
        kind,
    )
    source = read(tmp_path / "in")
    assert source.listing().ids == [b"a.tar/x/k1", f"a.tar/{long}".encode(), b"b.tar/k3", b"b.tar/k2"]
    assert labels_of(source) == ["2", "0", "1", "0"]
    assert source.listing().classes == ("0", "1", "2")
    expected = np.stack([noise(seed).transpose(2, 0, 1) for seed in (1, 9, 3, 2)])
    assert np.array_equal(source.load(range(4))["image"], expected)
    assert np.array_equal(source.load([3, 0])["image"], expected[[3, 0]])


def test_headers_are_read_once_and_samples_by_offset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tar(tmp_path / "a.tar", [part for i in range(9) for part in sample(i)])
    with tarfile.open(path) as archive:
        expected = [(info.name, info.offset_data, info.size) for info in archive]
    assert [(member.name, member.offset, member.size) for member in list_members(str(path))[0]] == expected
    source = read(path)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the tar is scanned again")

    monkeypatch.setattr(tarfile, "open", refuse)
    assert np.array_equal(source.load([7])["image"][0], noise(7).transpose(2, 0, 1))


def test_pictures_sizes_and_channels(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", [("a.jpg", picture(0, "JPEG", 12, 8, 3)), ("b.jpg", picture(1, "JPEG", 8, 8, 3))])
    with pytest.raises(UserError, match="2 different sizes: .*--image-size"):
        read(path)
    with pytest.raises(UserError, match="--image-size 0: give 1 or more"):
        read(path, image_size=0)
    source = read(path, image_size=8, fit="crop", channels="grey", gsd_m=0.5)
    assert source.images["image"].shape == (1, 8, 8)
    assert source.images["image"].gsd_m == 0.5
    with Image.open(io.BytesIO(picture(0, "JPEG", 12, 8, 3))) as image:
        assert np.array_equal(source.load([0])["image"][0, 0], np.asarray(image.convert("L"))[2:10])
    with pytest.raises(UserError, match=r"b \(8x8 is smaller than the crop of 9\)"):
        read(path, image_size=9, fit="crop")
    deep = tar(tmp_path / "b.tar", [("a.png", _png16(np.full((4, 4), 40000, np.uint16)))])
    assert read(deep).load([0])["image"].tolist() == [[[[40000] * 4] * 4]]


def _png16(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_arrays(tmp_path: Path) -> None:
    stack = np.random.default_rng(0).normal(size=(5, 3, 4, 6, 2)).astype(np.float32)
    path = tar(tmp_path / "a.tar", [(f"{i}.s2.npy", array(stack[i])) for i in range(5)])
    source = read(path, {"axes": "THWC", "bands": "a,b", "units": "dB", "sensor": "S1"}, gsd_m=10.0)
    column = source.images["image"]
    assert (column.axes, column.shape, column.dtype, column.units, column.gsd_m) == (
        "TCHW",
        (3, 2, 4, 6),
        "float32",
        "dB",
        10,
    )
    assert np.array_equal(source.load(range(5))["image"], stack.transpose(0, 1, 4, 2, 3))
    write(source, tmp_path / "out", PlanOptions())
    assert ShardSet(tmp_path / "out").manifest["images"]["image"]["sensor"] == "S1"


def test_array_mistakes(tmp_path: Path) -> None:
    good = np.zeros((2, 4, 4), np.uint16)
    whole = array(good)
    members = [
        ("a.npy", whole),
        ("b.npy", array(good + np.uint16(1))),
        ("c.npy", array(good.astype(np.int16))),
        ("d.npy", array(good[0])),
        ("e.npy", array(np.array([{}], object))),
        ("f.npy", whole[:-5]),
        ("g.npy", b"nothing"),
        ("h.npy", b""),
    ]
    path = tar(tmp_path / "a.tar", members)
    source = read(path, on_error="skip", report=tmp_path / "bad.tsv")
    assert source.listing().ids == [b"a.tar/a", b"a.tar/b"]
    said = dict(line.split("\t") for line in (tmp_path / "bad.tsv").read_text().splitlines())
    assert said.keys() == {f"a.tar/{key}" for key in "cdefgh"}
    assert said["a.tar/c"] == "(2, 4, 4) int16, most are (2, 4, 4) uint16"
    assert "has 2 axes, CHW has 3" in said["a.tar/d"]
    assert "never unpickled" in said["a.tar/e"]
    assert "does not decode as .npy" in said["a.tar/f"]
    assert "not in the .npy format" in said["a.tar/g"]
    with pytest.raises(UserError, match="has 2 bands, 3 are named"):
        read(path, {"bands": "a,b,c"}, on_error="skip")
    for options in ({"image_size": 4}, {"channels": "grey"}, {"fit": "crop"}):
        with pytest.raises(UserError, match="have no effect on arrays"):
            read(path, **options)
    with pytest.raises(UserError, match="--set axes=NCHW"):
        read(path, {"axes": "NCHW"})


@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
def test_tiff_with_many_bands(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    pixels = np.arange(5 * 4 * 4, dtype=np.uint16).reshape(5, 4, 4)
    with rasterio.MemoryFile() as file:
        with file.open(driver="GTiff", count=5, height=4, width=4, dtype="uint16") as image:
            image.write(pixels)
        data = file.read()
    path = tar(tmp_path / "a.tar", [("a.tif", data), ("b.tif", b"nothing")])
    with pytest.raises(UserError, match=r"a.tar/a \("):
        read(path)
    source = read(path, {"bands": "a,b,c,d,e"}, on_error="skip")
    assert np.array_equal(source.load([0])["image"][0], pixels)
    with pytest.raises(UserError, match=r"a.tar/b \(does not decode as GeoTIFF"):
        read(path, {"bands": "a,b,c,d,e"})
    with pytest.raises(UserError, match="--set axes: has no effect on .tif, which is CHW"):
        read(path, {"bands": "a,b,c,d,e", "axes": "CHW"})


def test_labels(tmp_path: Path) -> None:
    path = tar(
        tmp_path / "a.tar",
        sample(0, cls="sea\n", txt="2", json='{"a": {"b": "x"}, "n": 1, "no": null, "list": [1]}')
        + sample(1, cls=" land", txt="0", json='{"a": {"b": "w"}, "n": 0, "no": 1, "list": [1]}'),
    )
    assert labels_of(read(path)) == ["sea", "land"]
    assert read(path).listing().classes == ("land", "sea")
    assert read(path, {"classes": "sea,land"}).listing().labels.tolist() == [0, 1]
    assert labels_of(read(path, {"label": "txt"})) == ["2", "0"]
    assert labels_of(read(path, {"label": "txt", "classes": "a,b,c"})) == ["c", "a"]
    assert labels_of(read(path, {"label": "json:a.b"})) == ["x", "w"]
    assert labels_of(read(path, {"label": "json:n"})) == ["1", "0"]
    assert read(path, {"label": "json:no"}).listing().labels.tolist() == [-1, 1]
    assert read(path, {"label": "none"}).listing().classes == ()
    for label, message in (
        ("json:q", r"a.tar/k0 \(.json has no q\)"),
        ("json:a.b.c", r".json has no a.b.c"),
        ("json:list", r"list in .json is \[1\], a whole number or a name is expected"),
        ("json", "say which entry: --set label=json:KEY"),
        ("tag", r"no sample has a part .tag: there are .png \(2\)"),
    ):
        with pytest.raises(UserError, match=message):
            read(path, {"label": label})
    with pytest.raises(UserError, match=r"k0 \(label 'sea' is not among the classes"):
        read(path, {"classes": "land"})
    with pytest.raises(UserError, match="--set classes: has no effect without labels"):
        read(path, {"label": "none", "classes": "a"})


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ("9" * 5000, "is too large for a class number"),
        ("70000", "is too large for a class number"),
        ("+-1", ""),
        ("-" + "9" * 5000, ""),
        ("\u0663", ""),
    ],
)
def test_strange_numbers_as_labels(tmp_path: Path, label: str, said: str) -> None:
    tar(tmp_path / "a.tar", [*sample(0, cls="0"), *sample(1, cls=label)])
    if said:
        with pytest.raises(UserError, match=rf"a.tar/k1 \(label [0-9]+ {said}"):
            read(tmp_path)
    else:
        names = {"-": ["0", "none"]}.get(label[0], ["0", label])
        assert labels_of(read(tmp_path)) == names


def test_labels_that_change_make_another_plan(tmp_path: Path) -> None:
    prints = set()
    for labels in ("01", "10", "10"):
        path = tar(tmp_path / "a.tar", sample(0, cls=labels[0]) + sample(1, cls=labels[1]))
        prints.add(make_plan(read(path), PlanOptions()).fingerprint)
    assert len(prints) == 2


def test_bad_samples_are_named(tmp_path: Path) -> None:
    good = sample(0, cls="0", json="{}")
    members = [
        *good,
        *sample(1, json="{}"),  # no label
        ("k2.cls", b"1"),
        ("k2.json", b"{}"),  # no image
        *sample(3, cls="1", json="{}"),
        ("k3.cls", b"2"),  # twice
        *sample(4, cls="", json="{}"),
        *sample(5, cls=b"\xff\xfe", json="{}"),
        *sample(6, png=picture(6)[:60], cls="1", json="{}"),
        ("k0.extra", b"0"),  # apart from the rest of k0
        *sample(7, cls="1", json="{}"),
    ]
    path = tar(tmp_path / "a.tar", members)
    with pytest.raises(UserError, match="7 of 8 samples cannot be used: .*--on-error skip"):
        read(path)
    source = read(path, on_error="skip", report=tmp_path / "bad.tsv")
    assert source.listing().ids == [b"a.tar/k7"]
    said = dict(line.split("\t") for line in (tmp_path / "bad.tsv").read_text().splitlines())
    assert said.pop("a.tar/k6").startswith("does not decode")
    assert said == {
        "a.tar/k0": "occurs again later in the shard: its parts must follow each other",
        "a.tar/k1": "has no .cls",
        "a.tar/k2": "has no .png",
        "a.tar/k3": "has two parts .cls",
        "a.tar/k4": ".cls is empty",
        "a.tar/k5": ".cls is not UTF-8 text",
    }


def test_places_from_json(tmp_path: Path) -> None:
    def at(seed: int, lon: Any, lat: Any) -> list[tuple[str, bytes]]:
        return sample(seed, json=json.dumps({"geo": {"x": lon}, "lat": lat}))

    where = {"lon": "geo.x", "lat": "lat"}
    source = read(tar(tmp_path / "a.tar", at(0, 7.5, 46) + at(1, None, None)), where)
    assert source.listing().places.tolist()[0] == [7.5, 46]
    loaded = source.load([0, 1])
    assert (loaded["lon"][0], loaded["lat"][0]) == (7.5, 46) and np.isnan(loaded["lon"][1])
    for lon, lat, message in (
        (181, 0, "geo.x in .json is 181, degrees"),
        (0, "n", 'lat in .json is "n"'),
        (True, 0, "geo.x in"),
    ):
        with pytest.raises(UserError, match=message):
            read(tar(tmp_path / "b.tar", at(0, lon, lat)), where)
    with pytest.raises(UserError, match=r"k0 \(.json is not JSON\)"):
        read(tar(tmp_path / "c.tar", sample(0, json="{")), where)
    with pytest.raises(UserError, match=r"k0 \(has no .json\)"):
        read(tar(tmp_path / "d.tar", sample(0)), where)
    with pytest.raises(UserError, match="--set lon and --set lat: give both or neither"):
        read(tmp_path / "a.tar", {"lon": "geo.x"})


def test_choosing_the_image(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", sample(0, mask__png=picture(5), S2__NPY=array(np.zeros((2, 3, 3)))))
    with pytest.raises(UserError, match=r"may be the image: .mask.png, .png, .s2.npy .*choose with --set image=PART"):
        read(path)
    assert np.array_equal(read(path, {"image": "mask.png"}).load([0])["image"][0], noise(5).transpose(2, 0, 1))
    assert read(path, {"image": ".s2.npy"}).images["image"].shape == (2, 3, 3)
    with pytest.raises(UserError, match="--set image=jpg: no sample has such a part: there are .png"):
        read(path, {"image": "jpg"})
    text = tar(tmp_path / "b.tar", [("a.txt", b"x"), ("a.cls", b"1")])
    with pytest.raises(UserError, match=r"may be the image: none \(there are .txt \(1\), .cls \(1\)\)"):
        read(text)
    with pytest.raises(UserError, match="--set image=txt: give a part that ends in jpg"):
        read(text, {"image": "txt"})
    for setting in ("axes=CHW", "units=dB", "scale=2", "wavelengths=1"):
        with pytest.raises(UserError, match=f"--set {setting.partition('=')[0]}: has no effect on .png pictures"):
            read(path, {"image": "png", **dict([setting.split("=")])})


def test_splits_from_names(tmp_path: Path) -> None:
    for i, name in enumerate(("train-0.tar", "train/x.tar", "val_0.tar", "test.tar")):
        tar(tmp_path / name, sample(i))
    splits = dict(zip(read(tmp_path).listing().ids, read(tmp_path).listing().splits, strict=True))
    assert splits == {
        b"test.tar/k3": "test",
        b"train-0.tar/k0": "train",
        b"train/x.tar/k1": "train",
        b"val_0.tar/k2": "val",
    }
    assert set(read(tmp_path, {"splits": "none"}).listing().splits) == {""}
    tar(tmp_path / "more.tar", sample(9))
    assert set(read(tmp_path).listing().splits) == {""}


def test_copies_and_repeated_keys(tmp_path: Path) -> None:
    tar(tmp_path / "a.tar", [*sample(0), ("copy.png", picture(0))])
    tar(tmp_path / "b.tar", [("k0.png", picture(8))])
    with tarfile.open(tmp_path / "b.tar", "a") as archive:
        for name, kind in (("link.png", tarfile.SYMTYPE), ("hard.png", tarfile.LNKTYPE), ("dir", tarfile.DIRTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        for name in ("README", ".hidden.png", "x/.png"):
            archive.addfile(tarfile.TarInfo(name))
    listing = read(tmp_path).listing()
    assert listing.ids == [b"a.tar/k0", b"a.tar/copy", b"b.tar/k0"]
    assert len(set(listing.groups)) == 2
    notes = listing.notes
    assert (notes["duplicates"], notes["keys_in_several_shards"]) == (1, 1)
    assert (notes["links_not_followed"], notes["members_without_ending"], notes["shards"]) == (2, 3, 2)


def test_compressed_shards_are_refused_with_the_mend(tmp_path: Path) -> None:
    plain = tar(tmp_path / "plain.tar", sample(0)).read_bytes()
    for name in ("a.tar.gz", "b.TGZ"):
        folder = tmp_path / name[0]
        folder.mkdir()
        (folder / name).write_bytes(gzip.compress(plain))
        with pytest.raises(UserError, match=rf"{name}: is compressed, .*unpack it to a plain .tar first \(gunzip"):
            read(folder)
    (tmp_path / "plain.tar").write_bytes(gzip.compress(plain))
    with pytest.raises(UserError, match=r"plain.tar \(is compressed with gzip, .*gunzip it first"):
        read(tmp_path / "plain.tar")


def test_damaged_shards(tmp_path: Path) -> None:
    members = [part for i in range(6) for part in sample(i)]
    whole = tar(tmp_path / "in" / "a.tar", members).read_bytes()
    found = list_members(str(tmp_path / "in" / "a.tar"))[0]
    header = found[3].offset - 512
    broken = bytearray(whole)
    broken[header : header + 512] = b"\xaa" * 512
    (tmp_path / "in" / "header.tar").write_bytes(broken)
    (tmp_path / "in" / "cut.tar").write_bytes(whole[: found[3].offset + 10])
    (tmp_path / "in" / "cut_last.tar").write_bytes(whole[: found[5].offset + 10])
    (tmp_path / "in" / "cut_header.tar").write_bytes(whole[: header + 100])
    (tmp_path / "in" / "empty.tar").write_bytes(b"")
    (tmp_path / "in" / "text.tar").write_text("nothing of the kind" * 100)
    (tmp_path / "in" / "unended.tar").write_bytes(whole[: found[5].offset + -(-found[5].size // 512) * 512])
    (tmp_path / "in" / "joined.tar").write_bytes(whole + whole)
    source = read(tmp_path / "in", on_error="skip", report=tmp_path / "bad.tsv")
    said = dict(line.split("\t") for line in (tmp_path / "bad.tsv").read_text().splitlines())
    bad = {f"{name}.tar" for name in ("header", "cut", "cut_last", "cut_header", "empty", "text", "joined", "unended")}
    assert said.keys() == bad
    assert "without the mark of an archive's end" in said["unended.tar"]
    assert "goes on after its end" in said["joined.tar"] and "cat" in said["joined.tar"]
    assert source.listing().notes["shards"] == 1
    source = read(tmp_path / "in", {"unended": "take"}, on_error="skip", report=tmp_path / "bad.tsv")
    said = dict(line.split("\t") for line in (tmp_path / "bad.tsv").read_text().splitlines())
    assert said.keys() == bad - {"unended.tar"}
    assert said["header.tar"] == f"damaged at byte {header:,}: fetch it again"
    assert said["cut_header.tar"] == f"damaged at byte {header:,}: fetch it again"
    assert source.listing().notes["shards"] == 2
    assert len(source.listing().ids) == 12, "all of the whole shard, and of the one without an end mark"
    with pytest.raises(UserError, match=r"8 of 14 samples cannot be used: cut.tar \("):
        read(tmp_path / "in")
    with pytest.raises(UserError, match=r"text.tar"):
        read(tmp_path / "in" / "text.tar")


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere not found: a folder of uncompressed .tar"):
        read(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no .tar files"):
        read(tmp_path)
    with pytest.raises(UserError, match="no samples in the shards"):
        read(tar(tmp_path / "a.tar", [("README", b"x")]))


def test_links_that_lead_out_are_left_out(tmp_path: Path) -> None:
    tar(tmp_path / "out" / "x.tar", sample(0))
    tar(tmp_path / "in" / "a.tar", sample(1))
    (tmp_path / "in" / "b.tar").symlink_to(tmp_path / "out" / "x.tar")
    assert len(read(tmp_path / "in").listing().labels) == 1


def test_changed_after_listing(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", sample(0) + sample(1))
    source = read(path)
    member = list_members(str(path))[0][1]
    data = bytearray(path.read_bytes())
    data[member.offset + 20] ^= 1
    path.write_bytes(data)
    source.load([0])
    with pytest.raises(UserError, match="a.tar: changed while it was read"):
        source.load([1])
    path.write_bytes(data[: member.offset])
    with pytest.raises(UserError, match="a.tar: is shorter than it was"):
        source.load([1])
    path.unlink()
    with pytest.raises(UserError, match="a.tar: cannot be read any more"):
        source.load([0])


def test_no_member_is_written_to_disk(tmp_path: Path) -> None:
    """Names that climb out of the folder are only names."""
    path = tar(tmp_path / "in" / "a.tar", [("../../evil.png", picture(0)), ("/tmp/x/evil.png", picture(1))])
    assert len(read(path).listing().ids) == 2
    assert sorted(os.listdir(tmp_path)) == ["in"]


def test_workers_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from data_prep import team

    for i in range(2):
        tar(tmp_path / f"{i}.tar", [part for j in range(3) for part in sample(10 * i + j, cls=str(j))])
    alone = read(tmp_path)
    monkeypatch.setattr(team, "_IN_PROCESS", 1)
    shared = read(tmp_path, workers=2)
    assert shared.describe() == alone.describe()
    assert shared.listing().ids == alone.listing().ids


def test_from_the_command_line(tmp_path: Path) -> None:
    tar(tmp_path / "in" / "a.tar", [part for i in range(10) for part in sample(i, cls=("sea", "land")[i % 2])])
    done = run_frontier("shards", "write", "--reader", "webdataset", "--from", tmp_path / "in", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    shards = ShardSet(tmp_path / "out", "train")
    assert shards.classes == ["land", "sea"]
    for name, label in zip(shards.column("sample_id"), shards.column("label"), strict=True):
        assert label == 1 - int(name.decode()[-1]) % 2


@pytest.mark.realdata
@pytest.mark.skipif(not (SHARED_DATA / "eurosat_rgb").is_dir(), reason="no real imagery")
def test_real_images_as_in_class_folders(tmp_path: Path) -> None:
    members = []
    for name in ("Forest", "River"):
        for path in sorted((SHARED_DATA / "eurosat_rgb" / name).iterdir())[:10]:
            (tmp_path / "folder" / name).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, tmp_path / "folder" / name)
            members += [(f"{path.stem}.jpg", path.read_bytes()), (f"{path.stem}.cls", name.encode())]
    source = read(tar(tmp_path / "tar" / "a.tar", members))
    reader = find_reader("folder")
    folder = reader.open(Request(tmp_path / "folder", reader))
    assert labels_of(source) == labels_of(folder)
    assert np.array_equal(source.load(range(20))["image"], folder.load(range(20))["image"])
    assert [os.fsdecode(i)[6:] for i in source.listing().ids] == [
        Path(os.fsdecode(i)).stem for i in folder.listing().ids
    ]
