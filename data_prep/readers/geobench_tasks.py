"""The twelve tasks of GEO-Bench v1.0: bands and what is wrong with their names, classes, sizes, licences.

Facts from ServiceNow/geo-bench (README "Known issues", the converters, the uploaded licences) and issues #28 and #29.
Centre wavelengths of Sentinel-2 are those of Sentinel-2A's MSI, of Landsat-8 those of OLI; the aerial ones are the
nominal ones that GEO-Bench states.

Band names (`band_fix=yes`, the default)
  m-eurosat     The channels stored as 08A, 09, 10, 11, 12 hold B09, B10, B11, B12, B8A (#28).
  m-brick-kiln  Thirteen channels are stored under the names of Sentinel-2's thirteen bands, but hold B01 B02 B03 B04 B05
                B07 B8A B08 B11 B12 and three 8-bit true-colour bands (#29), which become the column "true_colour".
  m-so2sat      Names are right. Sentinel-2 is float32 reflectance, not 1e-4 of it, and is kept so: scale 1.
  m-forestnet   Landsat-8 pan-sharpened to 15 m, 8-bit, often listed as Sentinel-2.
With `band_fix=no` every band has the name that the file gives it, and the wavelength that goes with that name.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from data_prep.scenes_spectra import S2_BANDS
from data_prep.source import Band, Task

CITATION = "Lacoste et al., GEO-Bench: Toward Foundation Models for Earth Monitoring, NeurIPS 2023, arXiv:2306.03831"
HOMEPAGE = "https://github.com/ServiceNow/geo-bench"
PARTITIONS = ("default", *(f"{share:.2f}x_train" for share in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)))
FOLDERS = {"classification": "classification_v1.0", "segmentation": "segmentation_v1.0"}
C_BAND_NM = 55465763.0

_S2 = {band.name: band for band in (*S2_BANDS, Band("B10", 1373.5, 31))}
_COMMON = {"B02": "blue", "B03": "green", "B04": "red", "B08": "nir"}
S2_NAMES = {
    "01 - Coastal aerosol": "B01",
    "02 - Blue": "B02",
    "03 - Green": "B03",
    "04 - Red": "B04",
    "05 - Vegetation Red Edge": "B05",
    "06 - Vegetation Red Edge": "B06",
    "07 - Vegetation Red Edge": "B07",
    "08 - NIR": "B08",
    "08A - Vegetation Red Edge": "B8A",
    "09 - Water vapour": "B09",
    "10 - SWIR - Cirrus": "B10",
    "11 - SWIR": "B11",
    "12 - SWIR": "B12",
}
"""Sentinel-2's bands as GEO-Bench's files name them."""


@dataclass(frozen=True)
class Input:
    """An image column: for each dataset of a sample's file, by name without date, the band that it holds.

    `planes` > 1: the one dataset is [H, W, planes], each plane a band.
    """

    sensor: str
    units: str | None
    bands: tuple[tuple[str, Band], ...]
    gsd_m: float
    scale: float = 1.0
    planes: int = 1


@dataclass(frozen=True)
class TaskFacts:
    """What is known of one task.

    `sizes`: samples of train, valid and test in the default partition; those of segmentation are not verified against the
    data. `as_named`: its inputs where band names are not mended. `place`: how far the stored transforms are to be trusted:
    "stored"; "centre", only for the centre; "none". `group`: pattern whose first group in a sample's id is its place.
    `dates`: "day", or "year" where the stored date is the first of January of the year of acquisition.
    `no_data`: number of the class that says that nothing is known. `sliced`: pattern of the ids of samples that carry the transform
    of the larger tile that they were cut from.
    """

    kind: Literal["classification", "segmentation"]
    target: Task
    classes: tuple[str, ...] | int
    pixels: int
    sizes: tuple[int, int, int]
    inputs: dict[str, Input]
    license: str
    metric: str
    as_named: dict[str, Input] = field(default_factory=dict)
    place: Literal["stored", "centre", "none"] = "stored"
    sliced: str | None = None
    group: str | None = None
    dates: Literal["day", "year"] = "day"
    no_data: int | None = None
    aliases: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """How many classes there are."""
        return self.classes if isinstance(self.classes, int) else len(self.classes)


def _s2(names: list[str], holds: list[str] | None = None) -> tuple[tuple[str, Band], ...]:
    """Sentinel-2 bands stored under `names`; `holds`: what they are, where that is something else."""
    true = holds or [S2_NAMES[name] for name in names]
    return tuple(
        (name, Band(real, _S2[real].centre_nm, _S2[real].width_nm, _COMMON.get(real)))
        for name, real in zip(names, true, strict=True)
    )


def _aerial(gsd_m: float, nir: bool = False) -> Input:
    bands = [("Red", Band("red", 665, None, "red")), ("Green", Band("green", 560, None, "green"))]
    bands += [("Blue", Band("blue", 490, None, "blue"))]
    bands += [("NearInfrared", Band("nir", 876, None, "nir"))] if nir else []
    return Input("aerial", "digital number", tuple(bands), gsd_m)


_ALL = list(S2_NAMES)
_WITHOUT_CIRRUS = [name for name in _ALL if S2_NAMES[name] != "B10"]
_CLOUD = Input("cloud detection", None, (("Cloud Probability", Band("cloud_probability")),), 10)


def _sentinel2(bands: tuple[tuple[str, Band], ...], level: str = "Sentinel-2") -> Input:
    return Input(level, "reflectance", bands, 10, 1e-4)


_KILN = ["B01", "B02", "B03", "B04", "B05", "B07", "B8A", "B08", "B11", "B12"]
_EUROSAT = [*(f"B{number:02d}" for number in range(1, 13)), "B8A"]
_LANDSAT = (
    ("04 - Red", Band("B4", 654.6, 37, "red")),
    ("03 - Green", Band("B3", 561.4, 57, "green")),
    ("02 - Blue", Band("B2", 482.0, 60, "blue")),
    ("05 - NIR", Band("B5", 864.7, 28, "nir")),
    ("06 - SWIR1", Band("B6", 1608.9, 85, "swir1")),
    ("07 - SWIR2", Band("B7", 2200.7, 187, "swir2")),
)
_S1 = (
    ("01 - VH.Real", "vh_real"),
    ("02 - VH.Imaginary", "vh_imaginary"),
    ("03 - VV.Real", "vv_real"),
    ("04 - VV.Imaginary", "vv_imaginary"),
    ("05 - VH.LEE Filtered", "vh_lee"),
    ("06 - VV.LEE Filtered", "vv_lee"),
    ("07 - VH.LEE Filtered.Real", "covariance_lee_real"),
    ("08 - VV.LEE Filtered.Imaginary", "covariance_lee_imaginary"),
)
_SOLAR = ("no solar pv", "solar pv")

TASKS: dict[str, TaskFacts] = {
    "m-bigearthnet": TaskFacts(
        "classification",
        "multilabel",
        43,
        120,
        (20000, 1000, 1000),
        {"image": _sentinel2(_s2(_WITHOUT_CIRRUS), "Sentinel-2 L2A")},
        "CDLA-Permissive-1.0",
        "F1",
    ),
    "m-so2sat": TaskFacts(
        "classification",
        "classification",
        (
            "compact high rise",
            "compact mid rise",
            "compact low rise",
            "open high rise",
            "open mid rise",
            "open low rise",
            "lightweight low rise",
            "large low rise",
            "sparsely built",
            "heavy industry",
            "dense trees",
            "scattered trees",
            "bush, scrub",
            "low plants",
            "bare rock or paved",
            "bare soil or sand",
            "water",
        ),
        32,
        (19992, 986, 986),
        {
            "s2": Input(
                "Sentinel-2", "reflectance", _s2([n for n in _ALL if S2_NAMES[n] not in ("B01", "B09", "B10")]), 10
            ),
            "s1": Input("Sentinel-1", "linear", tuple((name, Band(true, C_BAND_NM)) for name, true in _S1), 10),
        },
        "CC-BY-4.0",
        "accuracy",
    ),
    "m-brick-kiln": TaskFacts(
        "classification",
        "classification",
        ("not brick kiln", "brick kiln"),
        64,
        (15063, 999, 999),
        {
            "image": _sentinel2(_s2(_ALL[:10], _KILN)),
            "true_colour": Input(
                "Sentinel-2",
                "true colour, 8 bits",
                tuple(
                    (name, Band(c, common_name=c)) for name, c in zip(_ALL[10:], ("red", "green", "blue"), strict=True)
                ),
                10,
            ),
        },
        "CC-BY-SA-4.0",
        "accuracy",
        as_named={"image": _sentinel2(_s2(_ALL))},
    ),
    "m-forestnet": TaskFacts(
        "classification",
        "classification",
        (
            "Oil palm plantation",
            "Timber plantation",
            "Other large-scale plantations",
            "Grassland shrubland",
            "Small-scale agriculture",
            "Small-scale mixed plantation",
            "Small-scale oil palm plantation",
            "Mining",
            "Fish pond",
            "Logging",
            "Secondary forest",
            "Other",
        ),
        332,
        (6464, 989, 993),
        {"image": Input("Landsat-8", "digital number, 8 bits", _LANDSAT, 15)},
        "CC-BY-4.0",
        "accuracy",
        group=r"(.+)_\d{4}_\d{2}_\d{2}",
    ),
    "m-eurosat": TaskFacts(
        "classification",
        "classification",
        (
            "AnnualCrop",
            "Forest",
            "HerbaceousVegetation",
            "Highway",
            "Industrial",
            "Pasture",
            "PermanentCrop",
            "Residential",
            "River",
            "SeaLake",
        ),
        64,
        (2000, 1000, 1000),
        {"image": _sentinel2(_s2(_ALL, _EUROSAT), "Sentinel-2 L1C")},
        "CC-BY-4.0",
        "accuracy",
        as_named={"image": _sentinel2(_s2(_ALL), "Sentinel-2 L1C")},
    ),
    "m-pv4ger": TaskFacts(
        "classification",
        "classification",
        _SOLAR,
        320,
        (11814, 999, 999),
        {"image": _aerial(0.1)},
        "MIT",
        "accuracy",
    ),
    "m-pv4ger-seg": TaskFacts(
        "segmentation",
        "segmentation",
        _SOLAR,
        320,
        (3000, 403, 403),
        {"image": _aerial(0.1)},
        "MIT",
        "IoU",
    ),
    "m-chesapeake": TaskFacts(
        "segmentation",
        "segmentation",
        (
            "water",
            "tree-canopy-forest",
            "low-vegetation-field",
            "barren-land",
            "impervious-other",
            "impervious-roads",
            "no-data",
        ),
        256,
        (3000, 1000, 1000),
        {"image": _aerial(1, nir=True)},
        "CDLA-Permissive-1.0",
        "IoU",
        no_data=6,
        aliases=("m-chesapeake-landcover",),
    ),
    "m-cashew-plant": TaskFacts(
        "segmentation",
        "segmentation",
        (
            "no data",
            "well-managed plantation",
            "poorly-managed plantation",
            "non-plantation",
            "residential",
            "background",
            "uncertain",
        ),
        256,
        (1350, 400, 50),
        {"image": _sentinel2(_s2(_WITHOUT_CIRRUS)), "cloud": _CLOUD},
        "CC-BY-4.0",
        "IoU",
        no_data=0,
        aliases=("m-cashew-plantation",),
    ),
    "m-SA-crop-type": TaskFacts(
        "segmentation",
        "segmentation",
        (
            "No Data",
            "Lucerne/Medics",
            "Planted pastures (perennial)",
            "Fallow",
            "Wine grapes",
            "Weeds",
            "Small grain grazing",
            "Wheat",
            "Canola",
            "Rooibos",
        ),
        256,
        (3000, 1000, 1000),
        {"image": Input("Sentinel-2", "digital number, 8 bits", _s2(_WITHOUT_CIRRUS), 10), "cloud": _CLOUD},
        "CC-BY-4.0",
        "IoU",
        place="none",
        group=r"(.+)_\d+",
        no_data=0,
    ),
    "m-nz-cattle": TaskFacts(
        "segmentation",
        "segmentation",
        ("no cattle", "cattle"),
        500,
        (524, 66, 65),
        {"image": _aerial(0.1)},
        "CC-BY-4.0",
        "IoU",
        place="centre",
        dates="year",
    ),
    "m-NeonTree": TaskFacts(
        "segmentation",
        "segmentation",
        ("no tree", "tree"),
        400,
        (270, 94, 93),
        {
            "image": _aerial(0.1),
            "canopy_height": Input("lidar", "m", (("Canopy Height Model", Band("canopy_height")),), 1),
            "hyperspectral": Input(
                "NEON imaging spectrometer", "digital number", (("Neon", Band("neon")),), 1, planes=369
            ),
        },
        "CC-BY-4.0",
        "IoU",
        sliced=r".+_\d{2}_\d{2}",
        group=r"(.+)_\d{2}_\d{2}",
    ),
}
ALIASES = {alias: name for name, facts in TASKS.items() for alias in facts.aliases}


def inputs_of(name: str, fixed: bool) -> dict[str, Input]:
    """The image columns of a task, with true band names or with those of the files."""
    facts = TASKS[name]
    if fixed:
        return facts.inputs
    return {
        column: Input(
            given.sensor,
            given.units,
            tuple((file, Band(file, band.centre_nm, band.width_nm, band.common_name)) for file, band in given.bands),
            given.gsd_m,
            given.scale,
            given.planes,
        )
        for column, given in (facts.as_named or facts.inputs).items()
    }
