"""Scene classification archives: published layouts, whole and partial copies, lists of splits, damaged files."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_prep.plan import PlanOptions, make_plan
from data_prep.readers import eurosat_ms
from data_prep.readers.classification import AID, EUROSAT, EUROSAT_IMAGES, MILLIONAID, RESISC45, UCMERCED
from data_prep.readers.registry import Request, find_reader, parse_settings
from data_prep.source import Source
from data_prep.writer import write
from frontier.data.shards import ShardSet
from frontier.errors import UserError
from tests.conftest import SHARED_DATA, run_frontier

PARTIAL = {"partial": "yes"}
pytestmark = pytest.mark.filterwarnings("ignore:Dataset has no geotransform")


def read(name: str, path: Path, settings: Mapping[str, str] | None = None, **options: Any) -> Source:
    reader = find_reader(name)
    given = parse_settings(reader, [f"{key}={value}" for key, value in (settings or {}).items()])
    return reader.open(Request(path, reader, settings=given, **options))


def picture(path: Path, seed: int, side: int = 8, height: int | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height or side, side, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def archive(root: Path, classes: tuple[str, ...], pattern: str, each: int = 2) -> Path:
    """`each` images a class; `pattern` takes {name} and {number}."""
    for c, name in enumerate(classes):
        for i in range(each):
            picture(root / pattern.format(name=name, number=i), 1000 * c + i)
    return root


CASES = {
    "ucmerced": (UCMERCED, "UCMerced_LandUse/Images/{name}/{name}{number:02d}.tif", 21, 2_100),
    "aid": (AID, "AID/{name}/{name}_{number}.jpg", 30, 10_000),
    "resisc45": (RESISC45, "NWPU-RESISC45/{name}/{name}_{number:03d}.jpg", 45, 31_500),
    "eurosat": (EUROSAT, "EuroSAT/2750/{name}/{name}_{number}.jpg", 10, 27_000),
}


@pytest.mark.parametrize("name", CASES)
def test_published_layout_from_every_folder(name: str, tmp_path: Path) -> None:
    layout, pattern, classes, total = CASES[name]
    assert (len(layout.classes), layout.total) == (classes, total)
    assert list(layout.classes) == sorted(set(layout.classes))
    assert not layout.each or sum(layout.each.values()) == total
    archive(tmp_path / "in", layout.classes, pattern)
    top = tmp_path / "in"
    expected = sorted(f"{c}/{Path(pattern.format(name=c, number=i)).name}" for c in layout.classes for i in range(2))
    for given in (top, *(top / part for part in Path(pattern).parents if "{" not in str(part) and str(part) != ".")):
        listing = read(name, given, PARTIAL).listing()
        assert [os.fsdecode(i) for i in listing.ids] == sorted(expected, key=os.fsencode), given
        assert listing.classes == layout.classes
        for sample, label in zip(listing.ids, listing.labels, strict=True):
            assert os.fsdecode(sample).startswith(layout.classes[label] + "/")
    with pytest.raises(UserError, match=rf"reader {name}: .* {2 * classes} images where .* are published.*partial=yes"):
        read(name, top)


def test_pixels_reach_the_shards(tmp_path: Path) -> None:
    archive(tmp_path / "in", UCMERCED.classes, "{name}/{name}{number:02d}.tif")
    write(read("ucmerced", tmp_path / "in", PARTIAL), tmp_path / "out", PlanOptions())
    shards = ShardSet(tmp_path / "out")
    images = shards.read("image", 0, len(shards))
    for sample, label, image in zip(shards.column("sample_id"), shards.column("label"), images, strict=True):
        path = tmp_path / "in" / sample.decode()
        assert np.array_equal(image, np.asarray(Image.open(path)).transpose(2, 0, 1))
        assert UCMERCED.classes[label] == path.parent.name
    assert shards.manifest["images"]["image"]["gsd_m"] == 0.3048
    assert shards.manifest["license"].startswith("public domain")
    assert "44 images" not in shards.manifest["citation"]
    assert "2,100 are published" in shards.manifest["notes"]["warning"]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """UC Merced as if two images a class were published, to see a whole copy."""
    from data_prep.readers import classification

    layout = dataclasses.replace(UCMERCED, total=42, each=dict.fromkeys(UCMERCED.classes, 2))
    reader = dataclasses.replace(find_reader("ucmerced"), open=classification._open(layout, 0.3048))
    monkeypatch.setattr(classification, "READERS", (reader,))


@pytest.mark.usefixtures("small")
def test_whole_copy_and_what_breaks_it(tmp_path: Path) -> None:
    root = archive(tmp_path / "in", UCMERCED.classes, "{name}/{name}{number:02d}.tif")
    notes = read("ucmerced", root).listing().notes
    assert "warning" not in notes
    assert (notes["images_found"], notes["images_published"]) == (42, 42)

    (root / "river" / "river00.tif").unlink()
    with pytest.raises(UserError, match="41 images where 42 are published; river 1 of 2: complete it from http"):
        read("ucmerced", root)
    assert "river 1 of 2" in read("ucmerced", root, PARTIAL).listing().notes["warning"]

    shutil.rmtree(root / "river")
    with pytest.raises(UserError, match=r"no images of 1 of 21 classes \(river\)"):
        read("ucmerced", root)
    assert read("ucmerced", root, PARTIAL).listing().classes == UCMERCED.classes, "numbers stay those of the archive"

    archive(root, ("river",), "{name}/{name}{number:02d}.tif")
    picture(root / "extra" / "x.tif", 7)
    picture(root / "river" / "y.png", 8)
    picture(root / "overview.tif", 9)
    with pytest.raises(
        UserError, match=r"not of the archive: \(none\) \(1\), extra \(1\); 1 images that do not end in .tif"
    ):
        read("ucmerced", root)
    assert len(read("ucmerced", root, PARTIAL).listing().ids) == 42


def test_wrong_layouts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere not found: download AID from https://captain-whu.github.io/AID/"):
        read("aid", tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="file not found"):
        read("aid", tmp_path / "file")
    picture(tmp_path / "other" / "a" / "x.jpg", 0)
    with pytest.raises(UserError, match=r"no class folders \(Airport, BareLand, BaseballField, …\).*download AID"):
        read("aid", tmp_path / "other")
    for place in ("2750", "EuroSAT_RGB"):
        archive(tmp_path / "two" / place, EUROSAT.classes, "{name}/{name}_{number}.jpg", 1)
    with pytest.raises(UserError, match="class folders lie in .*2750 and .*EuroSAT_RGB: give one of these"):
        read("eurosat", tmp_path / "two", PARTIAL)
    archive(tmp_path / "tif", EUROSAT.classes, "{name}/{name}_{number}.tif", 1)
    with pytest.raises(UserError, match="10 images that do not end in .jpg"):
        read("eurosat", tmp_path / "tif")
    with pytest.raises(UserError, match="no images to read"):
        read("eurosat", tmp_path / "tif", PARTIAL)


def test_odd_sizes_need_a_choice(tmp_path: Path) -> None:
    root = archive(tmp_path / "in", UCMERCED.classes, "{name}/{name}{number:02d}.tif", 1)
    picture(root / "beach" / "beach09.tif", 3, 8, 7)
    with pytest.raises(UserError, match="2 different sizes: 8x8 .21., 8x7 .1.: choose one with --image-size"):
        read("ucmerced", root, PARTIAL)
    source = read("ucmerced", root, PARTIAL, image_size=8, fit="resize")
    assert source.images["image"].shape == (3, 8, 8)
    with pytest.raises(UserError, match="8x7 is smaller than the crop"):
        read("ucmerced", root, PARTIAL, image_size=8, fit="crop")


def test_damaged_image(tmp_path: Path) -> None:
    root = archive(tmp_path / "in", AID.classes, "{name}/{name}_{number}.jpg", 1)
    (root / "Port" / "Port_0.jpg").write_bytes((root / "Port" / "Port_0.jpg").read_bytes()[:200])
    with pytest.raises(UserError, match=r"1 of 30 images cannot be used: Port/Port_0.jpg \(.*--on-error skip"):
        read("aid", root, PARTIAL)
    report = tmp_path / "unreadable.tsv"
    source = read("aid", root, PARTIAL, on_error="skip", report=report)
    assert source.listing().notes["skipped"] == 1
    assert len(source.listing().ids) == 29
    assert report.read_text().startswith("Port/Port_0.jpg\t")


def eurosat_with_lists(tmp_path: Path, prefix: str = "eurosat") -> Path:
    root = archive(tmp_path / "in", EUROSAT.classes, "EuroSAT_RGB/{name}/{name}_{number}.jpg", 3)
    for number, split in enumerate(("train", "val", "test")):
        lines = [f"{name}_{number}.jpg\n" for name in EUROSAT.classes]
        (root / f"{prefix}-{split}.txt").write_text("".join(lines))
    return root


def test_lists_of_splits(tmp_path: Path) -> None:
    root = eurosat_with_lists(tmp_path)
    listing = read("eurosat", root, PARTIAL).listing()
    expected = {"0": "train", "1": "val", "2": "test"}
    for sample, split in zip(listing.ids, listing.splits, strict=True):
        assert split == expected[Path(os.fsdecode(sample)).stem[-1]]
    assert listing.notes["splits"] == "eurosat"
    plan = make_plan(read("eurosat", root, PARTIAL), PlanOptions())
    assert {shard.split: len(shard.rows) for shard in plan.shards} == {"train": 10, "val": 10, "test": 10}
    assert set(read("eurosat", root, PARTIAL | {"splits": "none"}).listing().splits) == {""}


def test_lists_of_splits_that_do_not_fit(tmp_path: Path) -> None:
    root = eurosat_with_lists(tmp_path)
    eurosat_with_lists(tmp_path, "eurosat-spatial")
    with pytest.raises(UserError, match=r"several sets of split files.*splits=eurosat\|eurosat-spatial, or none"):
        read("eurosat", root, PARTIAL)
    assert read("eurosat", root, PARTIAL | {"splits": "eurosat-spatial"}).listing().notes["splits"] == "eurosat-spatial"
    with pytest.raises(UserError, match="no such split files .* did you mean eurosat"):
        read("eurosat", root, PARTIAL | {"splits": "eurosatt"})
    for path in root.glob("eurosat-spatial-*"):
        path.unlink()
    (root / "eurosat-test.txt").write_text("Forest_0.jpg\n")
    with pytest.raises(UserError, match="Forest_0 is also in the train split"):
        read("eurosat", root, PARTIAL)
    (root / "eurosat-test.txt").write_text("Forest_2.jpg\nForest_99.jpg\n")
    with pytest.raises(
        UserError, match=r"9 images are in none of the eurosat splits \(such as AnnualCrop_2\); 1 images of"
    ):
        read("eurosat", root)
    notes = read("eurosat", root, PARTIAL).listing().notes
    assert (notes["in_no_split"], notes["listed_but_missing"]) == (9, 1)
    assert len(read("eurosat", root, PARTIAL).listing().ids) == 21, "no image may slip into a split that is not its own"


def test_lists_of_other_archives_are_none_of_this(tmp_path: Path) -> None:
    archive(tmp_path / "AID", AID.classes, "{name}/{name}_{number}.jpg", 1)
    for split in ("train", "val", "test"):
        (tmp_path / f"resisc45-{split}.txt").write_text(f"airplane_{split}.jpg\n")
        (tmp_path / f"uc_merced-{split}.txt").write_text(f"beach_{split}.tif\n")
    listing = read("aid", tmp_path, PARTIAL).listing()
    assert set(listing.splits) == {""} and "splits" not in listing.notes
    (tmp_path / "AID" / "aid-train.txt").write_text("".join(f"{name}_0.jpg\n" for name in AID.classes))
    assert set(read("aid", tmp_path, PARTIAL).listing().splits) == {"train"}


def test_splits_in_csv(tmp_path: Path) -> None:
    root = archive(tmp_path / "in", EUROSAT.classes, "{name}/{name}_{number}.jpg", 2)
    for number, split in enumerate(("train", "validation")):
        rows = [f"{i},{name}/{name}_{number}.jpg,{i},{name}\n" for i, name in enumerate(EUROSAT.classes)]
        (root / f"{split}.csv").write_text(",Filename,Label,ClassName\n" + "".join(rows))
    listing = read("eurosat", root, PARTIAL).listing()
    assert sorted(listing.splits) == ["train"] * 10 + ["val"] * 10
    (root / "train.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match=r"train.csv: no column Filename among a, b"):
        read("eurosat", root, PARTIAL)
    (root / "train.csv").write_text("Filename\n" + "x" * 200_000)
    with pytest.raises(UserError, match=r"train.csv: cannot be read \(field larger than"):
        read("eurosat", root, PARTIAL)
    (root / "train.csv").write_text("a,Filename\n1,Forest/Forest_0.jpg\n2\n")
    with pytest.raises(UserError, match=r"train.csv: line 3 has no Filename"):
        read("eurosat", root, PARTIAL)
    (root / "train.csv").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UserError, match=r"train.csv: cannot be read \(not UTF-8 text\)"):
        read("eurosat", root, PARTIAL)


def million(root: Path) -> Path:
    for i, name in enumerate(MILLIONAID.classes):
        where = f"water_area/{name}" if name == "beach" else f"agriculture_land/arable_land/{name}"
        picture(root / "train" / where / f"P{i:07d}.jpg", i, 6 + i % 3)
    for i in range(5):
        picture(root / "test" / f"P{9000 + i}.jpg", 500 + i)
    return root


def test_million_aid(tmp_path: Path) -> None:
    assert len(MILLIONAID.classes) == 51
    root = million(tmp_path / "above" / "Million-AID")
    ids = None
    for given in (root, root.parent):
        source = read("millionaid", given, PARTIAL, image_size=6)
        listing = source.listing()
        assert ids is None or ids == listing.ids
        ids = listing.ids
    for sample, label, split in zip(listing.ids, listing.labels, listing.splits, strict=True):
        parts = os.fsdecode(sample).split("/")
        assert split == parts[0]
        assert label == (-1 if split == "test" else MILLIONAID.classes.index(parts[-2]))
    assert listing.notes["images_published"] == 1_000_848
    with pytest.raises(UserError, match="train: 51 images where 10,000 are published; 5 images in test where 990,848"):
        read("millionaid", root, image_size=6)


def test_million_aid_parts(tmp_path: Path) -> None:
    root = million(tmp_path / "in")
    test = read("millionaid", root, PARTIAL | {"part": "test", "splits": "none"}).listing()
    assert (test.classes, set(test.splits), set(test.labels.tolist())) == ((), {""}, {-1})
    train = read("millionaid", root, PARTIAL | {"part": "train"}, image_size=8).listing()
    assert set(train.splits) == {"train"} and len(train.ids) == 51
    picture(root / "train" / "agriculture_land" / "z.jpg", 3)
    with pytest.raises(UserError, match="1 images in train in folders that are no class: agriculture_land"):
        read("millionaid", root, {"part": "train"}, image_size=8)
    picture(root / "test" / "z.png", 3)
    with pytest.raises(UserError, match="1 images in test that are not JPEG"):
        read("millionaid", root, {"part": "test"})
    shutil.rmtree(root / "test")
    with pytest.raises(UserError, match=r"test not found: unpack train.zip and test.zip"):
        read("millionaid", root, {"part": "test"})
    assert read("millionaid", root, PARTIAL, image_size=8).listing().notes["parts"] == ["train"]
    with pytest.raises(UserError, match="no folder train or test in it"):
        read("millionaid", root / "train")


def geotiff(path: Path, pixels: np.ndarray, **more: Any) -> Path:
    rasterio = pytest.importorskip("rasterio")
    path.parent.mkdir(parents=True, exist_ok=True)
    bands, height, width = pixels.shape
    with rasterio.open(
        path, "w", driver="GTiff", count=bands, height=height, width=width, dtype=pixels.dtype, **more
    ) as file:
        file.write(pixels)
    return path


def multispectral(root: Path, place: bool = True) -> Path:
    rasterio = pytest.importorskip("rasterio")
    for c, name in enumerate(EUROSAT_IMAGES):
        # Band k of the file is k + 1 everywhere: where it lands in the shard shows the order.
        pixels = np.arange(1, 14, dtype=np.uint16)[:, None, None] * np.ones((13, 64, 64), np.uint16) + np.uint16(
            100 * c
        )
        transform = rasterio.Affine(10, 0, 500_000 + 640 * c, 0, -10, 5_000_000)
        geotiff(
            root / name / f"{name}_1.tif", pixels, **({"crs": "EPSG:32632", "transform": transform} if place else {})
        )
    return root


@pytest.mark.parametrize("place", ["EuroSAT_MS", "ds/images/remote_sensing/otherDatasets/sentinel_2/tif", "tif", "."])
def test_multispectral(place: str, tmp_path: Path) -> None:
    pyproj = pytest.importorskip("pyproj")
    multispectral(tmp_path / "in" / place)
    write(read("eurosat_ms", tmp_path / "in", PARTIAL), tmp_path / "out", PlanOptions())
    shards = ShardSet(tmp_path / "out")
    spec = shards.manifest["images"]["image"]
    names = [band["name"] for band in spec["bands"]]
    assert names == ["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12"]
    centres = [band["centre_nm"] for band in spec["bands"]]
    assert centres == sorted(centres), "B8A (865 nm) stands between B08 (833) and B09 (945)"
    assert (spec["scale"], spec["units"], spec["gsd_m"]) == (1e-4, "reflectance", 10)
    inverse = pyproj.Transformer.from_crs("EPSG:32632", "EPSG:4326", always_xy=True)
    images, transforms = shards.read("image", 0, 10), shards.read("transform", 0, 10)
    for row, label in enumerate(shards.column("label")):
        # The file's band 13 is B8A, its bands 9 to 12 are B09 to B12.
        expected = np.array([1, 2, 3, 4, 5, 6, 7, 8, 13, 9, 10, 11, 12]) + 100 * label
        assert np.array_equal(images[row], np.broadcast_to(expected[:, None, None], (13, 64, 64)))
        assert transforms[row].tolist() == [10, 0, 500_000 + 640 * label, 0, -10, 5_000_000]
        lon, lat = inverse.transform(500_000 + 640 * label + 320, 5_000_000 - 320)
        assert shards.column("lon")[row] == pytest.approx(lon, abs=1e-7)
        assert shards.column("lat")[row] == pytest.approx(lat, abs=1e-7)
    assert shards.column("crs_epsg").tolist() == [32632] * 10
    assert shards.column("gsd_m").tolist() == [10] * 10


def test_multispectral_without_places(tmp_path: Path) -> None:
    source = read("eurosat_ms", multispectral(tmp_path / "in", place=False), PARTIAL)
    sample = source.load([0])
    assert sample["crs_epsg"].tolist() == [0]
    assert np.isnan([*sample["lon"], *sample["lat"], *sample["gsd_m"], *sample["transform"][0]]).all()
    assert source.listing().places is None


def test_multispectral_splits_and_copies(tmp_path: Path) -> None:
    root = multispectral(tmp_path / "in")
    shutil.copy(root / "Forest" / "Forest_1.tif", root / "Forest" / "Forest_2.tif")
    assert read("eurosat_ms", root, PARTIAL).listing().notes["duplicates"] == 1
    (root / "eurosat-train.txt").write_text("".join(f"{name}_1.jpg\n" for name in EUROSAT_IMAGES))
    (root / "eurosat-test.txt").write_text("Forest_2.jpg\n")
    listing = read("eurosat_ms", root, PARTIAL).listing()
    assert sorted(listing.splits) == ["test"] + ["train"] * 10
    assert len(set(listing.groups)) == 10


def test_multispectral_bad_files(tmp_path: Path) -> None:
    root = multispectral(tmp_path / "in")
    forest = root / "Forest"
    geotiff(forest / "bands.tif", np.zeros((3, 64, 64), np.uint16))
    geotiff(forest / "size.tif", np.zeros((13, 32, 64), np.uint16))
    geotiff(forest / "type.tif", np.zeros((13, 64, 64), np.float32))
    whole = (forest / "Forest_1.tif").read_bytes()
    (forest / "cut.tif").write_bytes(whole[: len(whole) // 2])
    bands = "".join(
        f"<VRTRasterBand dataType='UInt16' band='{band}'><SimpleSource><SourceFilename>{forest / 'Forest_1.tif'}"
        f"</SourceFilename><SourceBand>{band}</SourceBand></SimpleSource></VRTRasterBand>"
        for band in range(1, 14)
    )
    (forest / "text.tif").write_text(f"<VRTDataset rasterXSize='64' rasterYSize='64'>{bands}</VRTDataset>")
    source = read("eurosat_ms", root, PARTIAL, on_error="skip", report=tmp_path / "bad.tsv")
    bad = dict(line.split("\t") for line in (tmp_path / "bad.tsv").read_text().splitlines())
    assert sorted(bad) == [f"Forest/{name}.tif" for name in ("bands", "cut", "size", "text", "type")]
    assert bad["Forest/bands.tif"] == "3 bands of 64x64 uint16, 13 of 64x64 uint16 are expected"
    assert "13 bands of 32x64" in bad["Forest/size.tif"]
    assert "float32" in bad["Forest/type.tif"]
    assert "does not decode as GeoTIFF" in bad["Forest/cut.tif"]
    assert "does not decode as GeoTIFF" in bad["Forest/text.tif"], "a file that points to others is not followed"
    assert source.listing().notes["skipped"] == 5
    with pytest.raises(UserError, match="5 of 15 images cannot be used"):
        read("eurosat_ms", root, PARTIAL)
    (forest / "Forest_1.tif").write_bytes(whole[:-1] + b"x")
    with pytest.raises(UserError, match=r"Forest_1.tif: changed while it was read"):
        source.load(range(10))
    (forest / "Forest_1.tif").unlink()
    with pytest.raises(UserError, match=r"Forest_1.tif: cannot be read any more"):
        source.load(range(10))


def test_multispectral_without_rasterio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = multispectral(tmp_path / "in")
    monkeypatch.setitem(__import__("sys").modules, "rasterio", None)
    with pytest.raises(UserError, match="reader eurosat_ms needs rasterio .* extra 'geo'"):
        read("eurosat_ms", root, PARTIAL)


def test_band_table() -> None:
    assert sorted(eurosat_ms.IN_FILE) == sorted(eurosat_ms.STORED) == sorted(band.name for band in eurosat_ms.BANDS)


def test_from_the_command_line(tmp_path: Path) -> None:
    archive(tmp_path / "in", EUROSAT.classes, "{name}/{name}_{number}.jpg", 2)
    common = ("shards", "write", "--reader", "eurosat", "--from", tmp_path / "in")
    done = run_frontier(*common, tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr.startswith("frontier shards: reader eurosat:") and done.stderr.count("\n") == 1
    done = run_frontier(*common, "--set", "partial=yes", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "20 samples" in done.stdout and "10 classes" in done.stdout


@pytest.mark.realdata
@pytest.mark.skipif(not (SHARED_DATA / "eurosat_rgb").is_dir(), reason="no real imagery")
def test_real_eurosat(tmp_path: Path) -> None:
    few = tmp_path / "EuroSAT_RGB"
    for name in EUROSAT.classes:
        (few / name).mkdir(parents=True)
        for path in sorted((SHARED_DATA / "eurosat_rgb" / name).iterdir())[:20]:
            shutil.copy(path, few / name)
    source = read("eurosat", tmp_path, PARTIAL)
    assert source.images["image"].shape == (3, 64, 64)
    listing = source.listing()
    assert np.bincount(listing.labels).tolist() == [20] * 10
    rows = [0, 57, 199]
    for row, image in zip(rows, source.load(rows)["image"], strict=True):
        path = few / os.fsdecode(listing.ids[row])
        assert np.array_equal(image, np.asarray(Image.open(path)).transpose(2, 0, 1))
