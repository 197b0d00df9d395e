"""Scene classification sets of class folders: UC Merced, AID, NWPU-RESISC45, Million-AID, EuroSAT in RGB.

What is said of them here was looked up: counts, class names and layouts in the publishers' pages and papers, or in
TorchGeo's readers of the same files. AID's images by class and Million-AID's numbering of classes were not found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_prep.class_folders import PARTIAL, SPLITS, Layout, class_files, missing_images, settle_problems
from data_prep.folder import Found, image_source, list_images
from data_prep.readers.registry import Reader, Request, Setting
from data_prep.source import Source
from frontier.errors import UserError


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_UCMERCED = _words(
    "agricultural airplane baseballdiamond beach buildings chaparral denseresidential forest freeway golfcourse harbor "
    "intersection mediumresidential mobilehomepark overpass parkinglot river runway sparseresidential storagetanks "
    "tenniscourt"
)
_AID = _words(
    "Airport BareLand BaseballField Beach Bridge Center Church Commercial DenseResidential Desert Farmland Forest "
    "Industrial Meadow MediumResidential Mountain Park Parking Playground Pond Port RailwayStation Resort River School "
    "SparseResidential Square Stadium StorageTanks Viaduct"
)
_RESISC45 = _words(
    "airplane airport baseball_diamond basketball_court beach bridge chaparral church circular_farmland cloud "
    "commercial_area dense_residential desert forest freeway golf_course ground_track_field harbor industrial_area "
    "intersection island lake meadow medium_residential mobile_home_park mountain overpass palace parking_lot railway "
    "railway_station rectangular_farmland river roundabout runway sea_ice ship snowberg sparse_residential stadium "
    "storage_tank tennis_court terrace thermal_power_station wetland"
)
_MILLIONAID = _words(
    "apartment apron bare_land baseball_field basketball_court beach bridge cemetery church commercial_area dam desert "
    "detached_house dry_field forest golf_course greenhouse ground_track_field helipad ice_land intersection island "
    "lake meadow mine mobile_home_park oil_field orchard paddy_field parking_lot pier quarry railway river road "
    "rock_land roundabout runway solar_power_plant sparse_shrub_land stadium storage_tank substation swimming_pool "
    "tennis_court terraced_field train_station viaduct wastewater_plant wind_turbine works"
)
EUROSAT_IMAGES = {
    "AnnualCrop": 3000,
    "Forest": 3000,
    "HerbaceousVegetation": 3000,
    "Highway": 2500,
    "Industrial": 2500,
    "Pasture": 2000,
    "PermanentCrop": 2500,
    "Residential": 3000,
    "River": 2500,
    "SeaLake": 3000,
}
UCMERCED = Layout(("", "Images", "UCMerced_LandUse/Images"), _UCMERCED, ".tif", 2100, dict.fromkeys(_UCMERCED, 100))
AID = Layout(("", "AID"), _AID, ".jpg", 10_000)
RESISC45 = Layout(("", "NWPU-RESISC45"), _RESISC45, ".jpg", 31_500, dict.fromkeys(_RESISC45, 700))
EUROSAT = Layout(
    ("", "2750", "EuroSAT/2750", "EuroSAT_RGB", "EuroSAT"), tuple(EUROSAT_IMAGES), ".jpg", 27_000, EUROSAT_IMAGES
)
MILLIONAID = Layout(("", "Million-AID", "MillionAID"), _MILLIONAID, ".jpg", 10_000)
MILLIONAID_TEST = 990_848


def _open(layout: Layout, gsd_m: float | None = None) -> Callable[[Request], Source]:
    """What opens an archive of this layout; `gsd_m` is its published pixel size, where it has one."""

    def open_archive(request: Request) -> Source:
        moved, files, notes = class_files(request, layout)
        return image_source(
            replace(moved, gsd_m=gsd_m if moved.gsd_m is None else moved.gsd_m), files, notes, layout.classes
        )

    return open_archive


def open_millionaid(request: Request) -> Source:
    """Million-AID: train/LEVEL1/[LEVEL2/]CLASS/*.jpg with labels, test/*.jpg without."""
    request.need(kind="folder")
    roots = [request.path / root for root in MILLIONAID.roots]
    root = next((root for root in roots if (root / "train").is_dir() or (root / "test").is_dir()), None)
    if root is None:
        raise UserError(
            f"reader {request.reader.name}: {request.path}: no folder train or test in it: {request.reader.expects}"
        )
    wanted = ("train", "test") if request.settings["part"] == "all" else (request.settings["part"],)
    parts = [part for part in wanted if (root / part).is_dir()]
    if not parts:
        raise UserError(f"reader {request.reader.name}: {root / wanted[0]} not found: {request.reader.expects}")
    files: list[Found] = []
    notes: dict[str, Any] = {"parts": parts}
    problems: list[str] = []
    for part in parts:
        paths, left_out = list_images(root / part)
        kept, wrong = _millionaid_part(part, paths, request.settings["splits"] == "published")
        files += kept
        problems += wrong
        notes |= {f"{part}_{name}": count for name, count in left_out.items()}
    published = (MILLIONAID.total if "train" in parts else 0) + (MILLIONAID_TEST if "test" in parts else 0)
    notes |= settle_problems(request, root, problems, len(files), published)
    if not files:
        raise UserError(f"reader {request.reader.name}: {root}: no images to read: {request.reader.expects}")
    moved = replace(request, path=root, name=request.name or request.reader.name)
    return image_source(moved, files, notes, MILLIONAID.classes if "train" in parts else ())


def _millionaid_part(part: str, paths: list[str], splits: bool) -> tuple[list[Found], list[str]]:
    """The images of train or test with their classes, and what is not as published."""
    jpegs = [path for path in paths if path.lower().endswith(MILLIONAID.suffix)]
    problems = [f"{len(paths) - len(jpegs)} images in {part} that are not JPEG"] if len(jpegs) < len(paths) else []
    split = part if splits else ""
    if part == "test":
        # Whatever folders they lie in: labels of the test images are not published.
        if len(jpegs) != MILLIONAID_TEST:
            problems.append(f"{len(jpegs):,} images in test where {MILLIONAID_TEST:,} are published")
        return [Found(f"{part}/{path}", "", split) for path in jpegs], problems
    leaves = [Path(path).parent.name for path in jpegs]
    known = set(MILLIONAID.classes)
    kept = [Found(f"{part}/{path}", leaf, split) for path, leaf in zip(jpegs, leaves, strict=True) if leaf in known]
    others = sorted({leaf or "(none)" for leaf in leaves if leaf not in known})
    if others:
        problems.append(
            f"{len(jpegs) - len(kept)} images in train in folders that are no class: {', '.join(others[:5])}"
        )
    counts = Counter(file.label for file in kept)
    return kept, problems + [f"train: {problem}" for problem in missing_images(MILLIONAID, counts)]


_USES = frozenset({"image_size", "fit", "channels", "gsd_m", "on_error", "license", "citation"})
_SETTINGS = {"partial": PARTIAL, "splits": SPLITS}
EUROSAT_CITATION = (
    "Helber, Bischke, Dengel, Borth: EuroSAT: A Novel Dataset and Deep Learning Benchmark for Land Use and Land Cover "
    "Classification. IEEE JSTARS 12 (2019), doi:10.1109/JSTARS.2019.2918242"
)

READERS = (
    Reader(
        name="ucmerced",
        summary="UC Merced Land Use: 2,100 aerial images of 1 foot, 21 classes",
        expects="unpack UCMerced_LandUse.zip from http://weegee.vision.ucmerced.edu/datasets/landuse.html and give "
        "UCMerced_LandUse (holding Images/CLASS/*.tif) or the folder above it; 44 images are not 256x256, so pass "
        "--image-size 256",
        open=_open(UCMERCED, 0.3048),
        uses=_USES,
        settings=_SETTINGS,
        license="public domain (USGS National Map imagery)",
        citation="Yang, Newsam: Bag-of-Visual-Words and Spatial Extensions for Land-Use Classification. ACM SIGSPATIAL "
        "GIS 2010, doi:10.1145/1869790.1869829",
        homepage="http://weegee.vision.ucmerced.edu/datasets/landuse.html",
    ),
    Reader(
        name="aid",
        summary="AID: 10,000 aerial images of 600x600, 30 classes",
        expects="download AID from https://captain-whu.github.io/AID/ and give AID (holding CLASS/*.jpg) or the folder "
        "above it",
        open=_open(AID),
        uses=_USES,
        settings=_SETTINGS,
        license="unknown (images from Google Earth)",
        citation="Xia, Hu, Hu, Shi, Bai, Zhong, Zhang, Lu: AID: A Benchmark Data Set for Performance Evaluation of "
        "Aerial Scene Classification. IEEE TGRS 55(7) (2017) 3965-3981, doi:10.1109/TGRS.2017.2685945",
        homepage="https://captain-whu.github.io/AID/",
    ),
    Reader(
        name="resisc45",
        summary="NWPU-RESISC45: 31,500 images of 256x256, 45 classes",
        expects="unpack NWPU-RESISC45.zip (from https://huggingface.co/datasets/torchgeo/resisc45) and give "
        "NWPU-RESISC45 (holding CLASS/*.jpg) or the folder above it",
        open=_open(RESISC45),
        uses=_USES,
        settings=_SETTINGS,
        license="unknown (images from Google Earth)",
        citation="Cheng, Han, Lu: Remote Sensing Image Scene Classification: Benchmark and State of the Art. Proceedings "
        "of the IEEE 105(10) (2017), doi:10.1109/JPROC.2017.2675998",
        homepage="https://huggingface.co/datasets/torchgeo/resisc45",
    ),
    Reader(
        name="millionaid",
        summary="Million-AID: 10,000 labelled images of 51 classes and 990,848 without labels, sizes differ",
        expects="unpack train.zip and test.zip of Million-AID (https://captain-whu.github.io/DiRS/) and give the folder "
        "that holds train (LEVEL1/LEVEL2/CLASS/*.jpg) and test (*.jpg), one of them, or the folder above; pass "
        "--image-size N",
        open=open_millionaid,
        uses=_USES,
        settings={
            "part": Setting(
                "all: what is there of both; train: labelled; test: without labels", "all", ("all", "train", "test")
            ),
            "splits": Setting(
                "published: train and test; none: the plan chooses by --test-fraction and --val-fraction (to pretrain on "
                "test, or to probe on train)",
                "published",
                ("published", "none"),
            ),
            "partial": PARTIAL,
        },
        license="unknown (images from Google Earth)",
        citation="Long, Xia, Li, Yang, Yang, Zhu, Zhang, Li: On Creating Benchmark Dataset for Aerial Image "
        "Interpretation: Reviews, Guidances, and Million-AID. IEEE JSTARS 14 (2021) 4205-4230",
        homepage="https://captain-whu.github.io/DiRS/",
    ),
    Reader(
        name="eurosat",
        summary="EuroSAT in RGB: 27,000 Sentinel-2 images of 64x64 at 10 m, 10 classes",
        expects="unpack EuroSAT_RGB.zip (or the older EuroSAT.zip) from https://zenodo.org/records/7711810 and give "
        "EuroSAT_RGB, EuroSAT or 2750 (holding CLASS/*.jpg) or the folder above it, with lists of splits beside them "
        "if wanted",
        open=_open(EUROSAT, 10.0),
        uses=_USES,
        settings=_SETTINGS,
        license="MIT; contains modified Copernicus Sentinel data",
        citation=EUROSAT_CITATION,
        homepage="https://github.com/phelber/EuroSAT",
    ),
)
