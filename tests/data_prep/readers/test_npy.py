"""NumPy arrays: every order of axes, stacks, labels, what is not a number, and files that cannot be used."""

from __future__ import annotations

import io
import os
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from data_prep.plan import PlanOptions, make_plan
from data_prep.readers import npy
from data_prep.readers.registry import Request, find_reader, parse_settings
from data_prep.readers.webdataset import decode_array
from data_prep.source import Source
from data_prep.writer import write
from frontier.data.shards import ShardSet
from frontier.errors import UserError
from tests.conftest import SHARED_DATA, run_frontier


def read(path: Path, settings: Mapping[str, str], **options: Any) -> Source:
    reader = find_reader("npy")
    given = parse_settings(reader, [f"{key}={value}" for key, value in settings.items()])
    return reader.open(Request(path, reader, settings=given, **options))


def save(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)
    return path


def numbers(seed: int, *shape: int, dtype: str = "<u2") -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1000, shape).astype(dtype)


LETTERS = {"T": 3, "C": 4, "H": 5, "W": 6}


@pytest.mark.parametrize(
    ("axes", "stored"),
    [
        ("CHW", "CHW"),
        ("HWC", "CHW"),
        ("hwc", "CHW"),
        ("TCHW", "TCHW"),
        ("THWC", "TCHW"),
        ("HWTC", "TCHW"),
        ("TC", "TC"),
        ("CT", "TC"),
        ("C", "C"),
        ("HW", "CHW"),
        ("THW", "TCHW"),
    ],
)
def test_axes_of_single_samples_and_stacks(axes: str, stored: str, tmp_path: Path) -> None:
    shape = [LETTERS[axis] for axis in axes.upper()]
    stack = numbers(1, 7, *shape)
    for i in range(7):
        save(tmp_path / "single" / f"{i}.npy", stack[i])
    save(tmp_path / "stack" / "all.npy", stack)
    # einsum as an independent way to turn the axes round.
    letters = axes.lower() + ("" if "C" in axes.upper() else "c")
    wide = stack if "C" in axes.upper() else stack[..., None]
    expected = np.einsum(f"n{letters}->n{stored.lower()}", wide)
    single = read(tmp_path / "single", {"axes": axes})
    many = read(tmp_path / "stack", {"axes": "N" + axes})
    last = read(save(tmp_path / "last.npy", np.moveaxis(stack, 0, -1)), {"axes": axes + "N"})
    for source in (single, many, last):
        assert source.images["image"].axes == stored
        assert source.images["image"].dtype == "uint16"
        assert np.array_equal(source.load(range(7))["image"], expected)
        assert np.array_equal(source.load([5, 0])["image"], expected[[5, 0]])
    assert single.listing().ids == [f"{i}.npy".encode() for i in range(7)]
    assert many.listing().ids == [f"all.npy#{i}".encode() for i in range(7)]
    assert single.listing().groups == many.listing().groups


@pytest.mark.parametrize("dtype", ["<i2", ">i2", "<f4", ">f8", "<f2", "|u1", "|b1", "<i8"])
def test_types_keep_their_values_in_native_order(dtype: str, tmp_path: Path) -> None:
    array = numbers(2, 3, 4, 4).astype(dtype)
    source = read(save(tmp_path / "a.npy", array), {"axes": "CHW"})
    loaded = source.load([0])["image"]
    assert np.array_equal(loaded[0], array)
    assert loaded.dtype == (np.uint8 if dtype == "|b1" else np.dtype(dtype).newbyteorder("="))
    write(source, tmp_path / "out", PlanOptions())
    assert np.array_equal(ShardSet(tmp_path / "out").read("image", 0, 1)[0], array)


def test_bands_and_units(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npy", numbers(0, 4, 4, 3))
    settings = {"axes": "HWC", "units": "reflectance", "scale": "1e-4", "offset": "-0.1", "nodata": "0"}
    column = read(path, settings, gsd_m=10.0).images["image"]
    assert [band.name for band in column.bands] == ["band_1", "band_2", "band_3"]
    assert (column.scale, column.offset, column.nodata, column.units, column.gsd_m) == (
        1e-4,
        -0.1,
        0,
        "reflectance",
        10,
    )
    names = {"axes": "HWC", "bands": "B08, B8A,x"}
    assert read(path, names).images["image"].bands[0].centre_nm is None
    known = read(path, names | {"sensor": "Sentinel-2 L2A"}).images["image"]
    assert [(band.name, band.centre_nm, band.width_nm) for band in known.bands] == [
        ("B08", 832.8, 106),
        ("B8A", 864.7, 21),
        ("x", None, None),
    ]
    given = read(path, names | {"wavelengths": "1,2,3", "widths": "4,5,6"}).images["image"]
    assert [(band.centre_nm, band.width_nm) for band in given.bands] == [(1, 4), (2, 5), (3, 6)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"axes": "HWX"}, "--set axes=HWX: give the letters"),
        ({"axes": "HHC"}, "--set axes=HHC"),
        ({"axes": "N"}, "--set axes=N:"),
        ({"axes": ""}, "--set axes=:"),
        ({"axes": "HWC", "bands": "a,b,a"}, "a name occurs twice"),
        ({"axes": "HWC", "bands": "a,b,c", "widths": "1,2"}, "--set widths: 2 numbers for 3 names"),
        ({"axes": "HWC", "wavelengths": "1"}, "--set wavelengths: 1 numbers for 0 names"),
        ({"axes": "HWC", "bands": "a,b,c", "wavelengths": "1,2,x"}, "--set wavelengths=x: not a number"),
        ({"axes": "HWC", "scale": "nan"}, "--set scale=nan: not a number"),
        ({"axes": "HWC", "classes": "a,b"}, "--set classes: has no effect without --set labels"),
        ({"axes": "HWC", "labels": "y"}, "--set labels=y: a .npy file holds one array"),
        ({"axes": "HWC", "key": "y"}, "--set key=y: a .npy file holds one array"),
        ({"axes": "HWC", "bands": "a,b"}, r"a.npy \(shape \(4, 4, 3\) along HWC has 3 bands, 2 are named\)"),
        ({"axes": "TCHW"}, r"a.npy \(shape \(4, 4, 3\) has 3 axes, TCHW has 4\)"),
        ({"axes": "HWC", "labels": "no.npy"}, "no.npy: cannot be read: No such file"),
        ({"axes": "HWC", "labels": "folder"}, "a.npy lies in no class folder"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, str], message: str, tmp_path: Path) -> None:
    save(tmp_path / "a.npy", numbers(0, 4, 4, 3))
    with pytest.raises(UserError, match=message):
        read(tmp_path, settings)


def test_axes_must_be_given(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="reader npy: give --set axes="):
        read(tmp_path, {})


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere not found: a folder of .npy or .npz"):
        read(tmp_path / "nowhere", {"axes": "CHW"})
    (tmp_path / "x.txt").write_text("x")
    (tmp_path / ".hidden.npy").write_text("x")
    with pytest.raises(UserError, match="no .npy or .npz files"):
        read(tmp_path, {"axes": "CHW"})
    with pytest.raises(UserError, match=r"x.txt: not .npy or .npz"):
        read(tmp_path / "x.txt", {"axes": "CHW"})


def test_links_that_lead_out_are_left_out(tmp_path: Path) -> None:
    save(tmp_path / "out" / "x.npy", numbers(0, 4, 4))
    save(tmp_path / "in" / "a.npy", numbers(1, 4, 4))
    (tmp_path / "in" / "b.npy").symlink_to(tmp_path / "out" / "x.npy")
    (tmp_path / "in" / "c.npy").symlink_to(tmp_path / "in" / "a.npy")
    source = read(tmp_path / "in", {"axes": "HW"})
    assert [np.asarray(sample).shape for sample in source.load([0, 1])["image"]] == [(1, 4, 4)] * 2
    assert len(source.listing().labels) == 2


def bad_files(root: Path) -> dict[str, str]:
    """Files beside two good ones of float32 (2, 4, 4), and what is to be said of them."""
    for name in ("good1", "sub/good2"):
        save(root / f"{name}.npy", np.ones((2, 4, 4), np.float32) * len(name))
    save(root / "bands.npy", np.ones((3, 4, 4), np.float32))
    save(root / "type.npy", np.ones((2, 4, 4), np.int16))
    save(root / "axes.npy", np.ones((4, 4), np.float32))
    save(root / "empty.npy", np.ones((2, 0, 4), np.float32))
    save(root / "complex.npy", np.ones((2, 4, 4), np.complex64))
    save(root / "text.npy", np.full((2, 4, 4), "a"))
    np.save(root / "object.npy", np.array([[[{}]]], object), allow_pickle=True)
    whole = (root / "good1.npy").read_bytes()
    (root / "cut.npy").write_bytes(whole[:-1])
    (root / "header.npy").write_bytes(whole[:20])
    (root / "nonpy.npy").write_text("nothing of the kind")
    (root / "nothing.npy").write_bytes(b"")
    return {
        "bands": "(3, 4, 4) float32, the others are (2, 4, 4) float32",
        "type": "(2, 4, 4) int16, the others are (2, 4, 4) float32",
        "axes": "shape (4, 4) has 2 axes, CHW has 3",
        "empty": "empty",
        "complex": "complex64, which is no integer or real",
        "text": "<U1, which is no integer",
        "object": "holds Python objects, which are never unpickled",
        "cut": "cannot be read: ",
        "header": "cannot be read: ",
        "nonpy": "not a .npy file",
        "nothing": "not a .npy file",
    }


def test_bad_files(tmp_path: Path) -> None:
    expected = bad_files(tmp_path / "in")
    with pytest.raises(UserError, match="11 of 13 files cannot be used: .*--on-error skip"):
        read(tmp_path / "in", {"axes": "CHW"})
    source = read(tmp_path / "in", {"axes": "CHW"}, on_error="skip", report=tmp_path / "bad.tsv")
    assert source.listing().ids == [b"good1.npy", b"sub/good2.npy"]
    assert source.listing().notes["skipped"] == 11
    said = dict(line.split("\t") for line in (tmp_path / "bad.tsv").read_text().splitlines())
    assert said.keys() == {f"{name}.npy" for name in expected}
    for name, words in expected.items():
        assert words in said[f"{name}.npy"], name


def test_what_is_not_a_number_is_kept_and_counted(tmp_path: Path) -> None:
    stack = np.random.default_rng(0).normal(size=(6, 2, 3, 3)).astype(np.float32)
    stack[1, 0, 0, 0] = stack[1, 1] = stack[4, 0, 2, 2] = np.nan
    stack[2, 0, 0, :2] = np.inf, -np.inf
    source = read(save(tmp_path / "a.npy", stack), {"axes": "NCHW"})
    notes = source.listing().notes
    assert (notes["nan_values"], notes["nan_samples"], notes["infinite_values"]) == (11, 2, 2)
    assert np.array_equal(source.load(range(6))["image"], stack, equal_nan=True)
    write(source, tmp_path / "out", PlanOptions())
    found = ShardSet(tmp_path / "out").manifest["images"]["image"]["statistics"]
    finite = np.where(np.isfinite(stack), stack.astype(np.float64), np.nan)
    assert found["count"] == np.isfinite(stack).sum((0, 2, 3)).tolist()
    assert found["mean"] == pytest.approx(np.nanmean(finite, (0, 2, 3)))
    assert found["std"] == pytest.approx(np.nanstd(finite, (0, 2, 3)))


def test_copies_stay_together(tmp_path: Path) -> None:
    stack = np.repeat(numbers(3, 20, 2, 4, 4), 3, axis=0)
    source = read(save(tmp_path / "a.npy", stack), {"axes": "NCHW"})
    assert source.listing().notes["duplicates"] == 40
    plan = make_plan(source, PlanOptions(test_fraction=0.3))
    where: dict[int, set[str]] = {}
    for shard in plan.shards:
        for row in shard.rows:
            where.setdefault(row // 3, set()).add(shard.split)
    assert all(len(splits) == 1 for splits in where.values())


def labels_of(source: Source) -> list[str]:
    listing = source.listing()
    return [listing.classes[label] if label >= 0 else "none" for label in listing.labels]


def test_labels_in_a_file(tmp_path: Path) -> None:
    for i in range(4):
        save(tmp_path / f"{i}.npy", numbers(i, 2, 3, 3))
    save(tmp_path / "labels.npy", np.array([1, 0, -1, 2]))
    with pytest.raises(UserError, match="labels.npy lies among the arrays: pass --set labels=labels.npy"):
        read(tmp_path, {"axes": "CHW"})
    given = {"axes": "CHW", "labels": "labels.npy"}
    assert labels_of(read(tmp_path, given)) == ["1", "0", "none", "2"]
    assert labels_of(read(tmp_path, given | {"classes": "sea,land,ice"})) == ["land", "sea", "none", "ice"]
    with pytest.raises(UserError, match=r"3.npy \(label 2, but 2 classes are named\)"):
        read(tmp_path, given | {"classes": "sea,land"})
    save(tmp_path / "labels.npy", np.array(["b", "a", "b", "c"]))
    assert labels_of(read(tmp_path, given)) == ["b", "a", "b", "c"]
    assert read(tmp_path, given).listing().classes == ("a", "b", "c")
    with pytest.raises(UserError, match=r"3.npy \(label 'c' is not among the classes\)"):
        read(tmp_path, given | {"classes": "b,a"})
    for wrong, message in (
        (np.zeros(3, int), "3 labels for 4 samples"),
        (np.zeros((4, 2), int), "one number or name a sample is expected"),
        (np.array([70000, 0, 0, 0]), "label 70000 is too large"),
    ):
        save(tmp_path / "labels.npy", wrong)
        with pytest.raises(UserError, match=message):
            read(tmp_path, given)
    np.save(tmp_path / "labels.npy", np.array([{}, 1, 2, 3], object), allow_pickle=True)
    with pytest.raises(UserError, match="Python objects, which are never unpickled"):
        read(tmp_path, given)


def test_labels_keep_their_place_when_a_file_is_skipped(tmp_path: Path) -> None:
    for i in range(4):
        save(tmp_path / f"{i}.npy", numbers(i, 2, 3, 3))
    save(tmp_path / "labels.npy", np.array([5, 6, 7, 8]))
    (tmp_path / "1.npy").write_text("broken")
    source = read(tmp_path, {"axes": "CHW", "labels": "labels.npy"}, on_error="skip")
    assert labels_of(source) == ["5", "7", "8"]


def test_labels_that_change_make_another_plan(tmp_path: Path) -> None:
    save(tmp_path / "in" / "a.npy", numbers(0, 4, 2, 3, 3))
    prints = set()
    for labels in ([0, 1, 0, 1], [1, 0, 0, 1]):
        save(tmp_path / "in" / "labels.npy", np.array(labels))
        source = read(tmp_path / "in", {"axes": "NCHW", "labels": "labels.npy"})
        prints.add(make_plan(source, PlanOptions()).fingerprint)
    assert len(prints) == 2


def test_real_numbers_are_a_target(tmp_path: Path) -> None:
    save(tmp_path / "in" / "a.npy", numbers(0, 4, 2, 3, 3))
    save(tmp_path / "in" / "y.npy", np.array([0.5, np.nan, -2, 3], np.float32))
    source = read(tmp_path / "in", {"axes": "NCHW", "labels": "y.npy"})
    write(source, tmp_path / "out", PlanOptions())
    shards = ShardSet(tmp_path / "out")
    assert shards.manifest["targets"]["target"]["kind"] == "regression"
    by_id = dict(zip(shards.column("sample_id").tolist(), shards.column("target").tolist(), strict=True))
    assert [by_id[f"a.npy#{i}".encode()] for i in (0, 2, 3)] == [0.5, -2, 3]
    assert np.isnan(by_id[b"a.npy#1"])
    with pytest.raises(UserError, match="--set classes: has no effect on labels that are real numbers"):
        read(tmp_path / "in", {"axes": "NCHW", "labels": "y.npy", "classes": "a"})


def test_class_folders(tmp_path: Path) -> None:
    for name in ("sea", "land"):
        for i in range(2):
            save(tmp_path / name / "deep" / f"{i}.npy", numbers(i, 2, 3, 3))
    source = read(tmp_path, {"axes": "CHW", "labels": "folder"})
    assert labels_of(source) == ["land", "land", "sea", "sea"]


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npz(compressed: bool, order: Any, tmp_path: Path) -> None:
    stack = np.asarray(numbers(4, 10, 3, 4, 4), order=order)
    labels = np.arange(10) % 3
    put = np.savez_compressed if compressed else np.savez
    put(tmp_path / "a.npz", x=stack[:6], y=labels[:6])
    put(tmp_path / "b.npz", x=stack[6:], y=labels[6:])
    source = read(tmp_path, {"axes": "NCHW", "labels": "y"})
    assert np.array_equal(source.load(range(10))["image"], stack)
    assert np.array_equal(source.load([9, 0, 7, 3])["image"], stack[[9, 0, 7, 3]])
    assert source.listing().labels.tolist() == labels.tolist()
    opened = npy._opened(str(tmp_path / "a.npz"), "x")
    assert (opened is None) is compressed
    assert compressed or isinstance(opened, np.memmap)


def test_npz_keys(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=numbers(0, 3, 2, 2, 2), z=numbers(1, 3, 2, 2, 2), y=np.arange(3))
    with pytest.raises(UserError, match=r"a.npz \(holds x, z: choose the input with --set key=NAME\)"):
        read(tmp_path, {"axes": "NCHW", "labels": "y"})
    with pytest.raises(UserError, match=r"holds no array 'w', only x, z, y"):
        read(tmp_path, {"axes": "NCHW", "key": "w"})
    source = read(tmp_path, {"axes": "NCHW", "labels": "y", "key": "z"})
    assert np.array_equal(source.load([2])["image"][0], numbers(1, 3, 2, 2, 2)[2])
    with pytest.raises(
        UserError, match=r"labels 'z' are uint16 of shape \(3, 2, 2, 2\), one a sample \(3\) is expected"
    ):
        read(tmp_path, {"axes": "NCHW", "labels": "z", "key": "x"})
    np.savez(tmp_path / "b.npz", x=numbers(0, 1, 2, 2, 2), z=numbers(1, 1, 2, 2, 2), y=np.array(["a"]))
    with pytest.raises(UserError, match="names in some files and numbers in others"):
        read(tmp_path, {"axes": "NCHW", "labels": "y", "key": "z"})


def test_damaged_npz(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        np.savez_compressed(tmp_path / f"{name}.npz", x=numbers(5, 50, 2, 8, 8))
    data = bytearray((tmp_path / "b.npz").read_bytes())
    data[len(data) // 2] ^= 255
    (tmp_path / "b.npz").write_bytes(data)
    (tmp_path / "c.npz").write_bytes(bytes(data[: len(data) // 2]))
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        buffer = io.BytesIO()
        np.save(buffer, np.array([{}], object), allow_pickle=True)
        archive.writestr("x.npy", buffer.getvalue())
    report = tmp_path / "bad.tsv"
    source = read(tmp_path, {"axes": "NCHW"}, on_error="skip", report=report)
    assert len(source.listing().ids) == 50
    said = dict(line.split("\t") for line in report.read_text().splitlines())
    assert said.keys() == {"b.npz", "c.npz", "d.npz"}
    assert "Python objects" in said["d.npz"]


def test_a_stored_npz_is_held_against_its_checksum(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=numbers(0, 3, 2, 8, 8))
    data = bytearray((tmp_path / "a.npz").read_bytes())
    data[300] ^= 1  # in the numbers: the file is mapped, so that no other check sees it
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(UserError, match=r"a.npz \(cannot be read: Bad CRC-32"):
        read(tmp_path, {"axes": "NCHW"})


def test_a_npz_that_unpacks_to_more_than_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros((4, 2, 512, 512), np.float32))
    read(tmp_path, {"axes": "NCHW"})
    monkeypatch.setattr(npy.psutil, "virtual_memory", lambda: SimpleNamespace(available=4 << 20))
    with pytest.raises(UserError, match=r"a.npz \(cannot be read: 0.0 GiB once unpacked, .* save it as .npy"):
        read(tmp_path, {"axes": "NCHW"})
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40, 2, 8, 8)})
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", header.getvalue() + bytes(1000))
    with pytest.raises(UserError, match=r"bytes, but the archive holds 1,"):
        read(tmp_path, {"axes": "NCHW"})


def test_changed_after_listing(tmp_path: Path) -> None:
    for i in range(3):
        save(tmp_path / f"{i}.npy", numbers(i, 2, 3, 3))
    source = read(tmp_path, {"axes": "CHW"})
    npy._opened.cache_clear()
    save(tmp_path / "1.npy", numbers(9, 2, 3, 3))
    with pytest.raises(UserError, match="1.npy: changed while it was read"):
        source.load([0, 1])
    npy._opened.cache_clear()
    (tmp_path / "1.npy").unlink()
    with pytest.raises(UserError, match="1.npy: cannot be read"):
        source.load([0, 1])


def test_a_stack_is_mapped_not_read_whole(tmp_path: Path) -> None:
    save(tmp_path / "a.npy", numbers(0, 8, 2, 3, 3))
    read(tmp_path, {"axes": "NCHW"})
    assert isinstance(npy._opened(str(tmp_path / "a.npy"), ""), np.memmap)


def test_pieces_of_a_large_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npy, "_SCAN_BYTES", 100)
    stack = numbers(0, 23, 2, 3, 3)
    source = read(save(tmp_path / "a.npy", stack), {"axes": "NCHW"})
    assert len(source.listing().ids) == 23
    assert np.array_equal(source.load(range(23))["image"], stack)


def test_from_the_command_line(tmp_path: Path) -> None:
    stack = numbers(0, 10, 4, 4, 3)
    for i in range(10):
        save(tmp_path / "in" / f"{i}.npy", stack[i])
    arguments = ("shards", "write", "--reader", "npy", "--from", tmp_path / "in", "--set", "axes=HWC", tmp_path / "out")
    done = run_frontier(*arguments)
    assert done.returncode == 0, done.stderr
    shards = ShardSet(tmp_path / "out")
    found = dict(zip(shards.column("sample_id").tolist(), shards.read("image", 0, 10), strict=True))
    for i in range(10):
        assert np.array_equal(found[f"{i}.npy".encode()], stack[i].transpose(2, 0, 1))


@pytest.mark.realdata
@pytest.mark.skipif(not (SHARED_DATA / "s2_l2a_12band").is_dir(), reason="no real imagery")
def test_real_sentinel2(tmp_path: Path) -> None:
    paths = sorted((SHARED_DATA / "s2_l2a_12band").glob("*.npy"))[:20]
    (tmp_path / "in").mkdir()
    for path in paths:
        shutil.copy(path, tmp_path / "in")
    bands = "B01,B02,B03,B04,B05,B06,B07,B08,B8A,B09,B11,B12"
    source = read(tmp_path / "in", {"axes": "HWC", "bands": bands, "sensor": "Sentinel-2 L2A"}, gsd_m=10.0)
    write(source, tmp_path / "out", PlanOptions())
    shards = ShardSet(tmp_path / "out")
    assert shards.manifest["images"]["image"]["shape"] == [12, 64, 64]
    whole = np.stack([np.load(path) for path in paths])
    found = shards.manifest["images"]["image"]["statistics"]
    assert found["mean"] == pytest.approx(whole.mean((0, 1, 2)))
    assert found["max"] == whole.max((0, 1, 2)).tolist()
    for sample, image in zip(shards.column("sample_id"), shards.read("image", 0, 20), strict=True):
        stored = np.load(tmp_path / "in" / os.fsdecode(sample))
        assert np.array_equal(image, np.moveaxis(stored, 2, 0))


def test_damaged_headers_are_listed(tmp_path: Path) -> None:
    """Negative and huge sizes, and a type that there is none of, in the header of a .npy."""
    np.save(tmp_path / "good.npy", np.zeros((8, 8, 2), np.float32))
    data = (tmp_path / "good.npy").read_bytes()
    for number, (old, new) in enumerate(
        [(b"(8, 8, 2)", b"(8,8,-2) "), (b"(8, 8, 2)", b"(9**9999)"), (b"8, 2), }   ", b"9999999999)"), (b"<f4", b"<zz")]
    ):
        (tmp_path / f"bad{number}.npy").write_bytes(data.replace(old, new))
        assert npy.inspect((str(tmp_path / f"bad{number}.npy"), "HWC", None, "", "")).error
        with pytest.raises(UserError):
            decode_array(data.replace(old, new), "npy")
