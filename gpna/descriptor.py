"""What a band measures, and the descriptors of sensors, which are YAML files.

A modality is added by a descriptor, without code (docs/gpna_modalities.md). Bands come in three kinds: `optical` (centre and
width in nm), `sar` (radar band and polarisation) and `variable` (anything else, known by its name or by a vector).
Bands with equal stem keys share the weights of their convolutions ("different datasets may share these layers if they share
spectral bands", arXiv 2211.02348, 7.1.1). The default key of an optical band is the spectral region that it lies in.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, get_type_hints
from zipfile import BadZipFile

import numpy as np
import yaml

from frontier.config.load import StrictLoader
from frontier.data.manifest import nearest
from frontier.errors import UserError
from gpna.packed import pack, unpack

KINDS = ("optical", "sar", "variable")
RADAR_BANDS = {
    "P": 1000e6,
    "L": 300e6,
    "S": 150e6,
    "C": 75e6,
    "X": 37.5e6,
    "Ku": 25e6,
    "K": 16.7e6,
    "Ka": 11.1e6,
    "W": 4e6,
}
"""Letters of the radar bands and the longest wavelength of each, in nm (IEEE Std 521; P as used in remote sensing)."""
POLARISATIONS = ("H", "V", "R", "L")
"""Horizontal, vertical, right and left circular."""
SHORTEST_RADAR_NM = 2.7e6
SHORTEST_OPTICAL_NM = 100.0
"""Below it nothing reaches a sensor through the air: a wavelength in micrometres."""
SPELLED_OUT = 16
"""Numbers of a vector that a resolved config lists; longer ones are packed."""

REGIONS = (
    (400, "uv"), (455, "coastal"), (515, "blue"), (598, "green"), (620, "yellow"), (690, "red"), (725, "rededge071"),
    (762, "rededge075"), (800, "rededge078"), (920, "nir08"), (1000, "nir09"), (1150, "nir10"), (1330, "nir12"), (1480, "cirrus"),
    (1850, "swir16"), (2050, "swir19"), (2500, "swir22"), (8000, "mwir"), (10200, "lwir09"), (11500, "lwir11"), (math.inf, "lwir12"),
)  # fmt: skip
"""Upper ends in nm of the regions that name stems; after the common names of STAC's Electro-Optical extension, without gaps."""
PAN_NM, WIDE_NIR_NM = 150, 40
"""A band at least this wide below 1000 nm is panchromatic; one wider than this in the near infrared is `nir`, not `nir08`."""

_FOLDER = Path(__file__).parent / "descriptors"
_OF_KIND = {
    "optical": ("centre_nm", "width_nm"),
    "sar": ("radar_band", "polarisation"),
    "variable": ("vector",),
}
_OF_ALL = ("kind", "units", "stem", "mean", "std", "also")
_TOP = ("name", "gsd_m", "says", "bands")
_STEM = re.compile(r"[a-z0-9_-]+")


@dataclass(frozen=True)
class Band:
    """One band of an input. `stem`: key of the shared convolution weights; `mean`, `std` in physical units, where known.

    `vector` describes a variable by numbers, such as an embedding of its name by a language model.
    """

    name: str
    kind: str
    stem: str
    centre_nm: float | None = None
    width_nm: float | None = None
    radar_band: str | None = None
    polarisation: str | None = None
    units: str | None = None
    vector: tuple[float, ...] | None = None
    mean: float | None = None
    std: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain types; what is None is left out."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        if self.vector is not None:
            found["vector"] = pack(np.asarray(self.vector)) if len(self.vector) > SPELLED_OUT else list(self.vector)
        return {name: value for name, value in found.items() if value is not None}

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Band:
        """The inverse of `as_dict`. Raises UserError for a key that is none of a band's."""
        known_keys(given, tuple(get_type_hints(cls)), "band")
        vector = given.get("vector")
        if isinstance(vector, str):
            vector = unpack(vector, f"band {given.get('name')}: vector").tolist()
        return cls(**{**given, "vector": None if vector is None else tuple(vector)})


@dataclass(frozen=True)
class Sensor:
    """A descriptor: its bands by name, other names of theirs, and the words by which a manifest's sensor text is recognised."""

    name: str
    path: str
    gsd_m: float | None
    bands: dict[str, Band]
    also: dict[str, str]
    says: tuple[str, ...]

    def find(self, name: str) -> Band | None:
        """The band called `name`, in any case, or by another of its names."""
        real = self.also.get(name.lower())
        return None if real is None else self.bands[real]


def known_sensors() -> list[str]:
    """Names of the descriptors that come with the package."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def is_own(sensor: str) -> bool:
    """Whether it is the path of a user's own YAML file, and not the name of a descriptor of the package."""
    return sensor.endswith((".yaml", ".yml")) or "/" in sensor


def recorded_sensor(path: str, bands: Sequence[Band], gsd_m: float | None) -> Sensor:
    """A descriptor of the bands that a run took from the file `path`, under their own names."""
    also = {band.name.lower(): band.name for band in bands}
    return Sensor(Path(path).stem, path, gsd_m, {band.name: band for band in bands}, also, ())


def find_sensor(name_or_path: str | Path) -> Sensor:
    """A descriptor of the package by its name, or the user's own by the path of its YAML file. Raises UserError."""
    text = str(name_or_path)
    own = is_own(text)
    if not own and text not in known_sensors():
        raise UserError(f"no sensor '{text}': {nearest(text, known_sensors())}; or give the path of a YAML file")
    return _read(text, tuple(key for key in _TOP if key != "says")) if own else built_in(text)


@functools.cache
def built_in(name: str) -> Sensor:
    return _read(str(_FOLDER / f"{name}.yaml"), _TOP)


def _read(path: str, keys: tuple[str, ...]) -> Sensor:
    """A descriptor with these keys; `says` is for the package's own, which are looked through when none is named."""
    try:
        found = yaml.load(Path(path).read_text(encoding="utf-8"), StrictLoader)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): give the path of a sensor's YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{where}: is not YAML: {getattr(error, 'problem', None) or error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: must hold a mapping with {', '.join(keys)}")
    known_keys(found, keys, path)
    given = found.get("bands")
    if not isinstance(given, dict) or not given:
        raise UserError(f"{path}: bands: must be a mapping of at least one band's name to its description")
    name = found.get("name", Path(path).stem)
    if not isinstance(name, str) or not name:
        raise UserError(f"{path}: name: {name!r} is not a word")
    gsd = None if found.get("gsd_m") is None else number(found["gsd_m"], f"{path}: gsd_m", positive=True)
    bands: dict[str, Band] = {}
    also: dict[str, str] = {}
    for key, about in given.items():
        if isinstance(key, bool):
            raise UserError(f"{path}: bands: a name was read as {key}: put it in quotes")
        where = f"{path}: band {key}"
        bands[str(key)] = _band(str(key), about, where, Path(path).parent)
        for word in (str(key), *_words(about.get("also"), f"{where}: also")):
            if also.setdefault(word.lower(), str(key)) != str(key):
                raise UserError(
                    f"{where}: '{word}' is band {also[word.lower()]} already: each name stands for one band"
                )
    return Sensor(name, path, gsd, bands, also, tuple(w.lower() for w in _words(found.get("says"), f"{path}: says")))


def _band(name: str, about: Any, where: str, folder: Path) -> Band:
    """One band of a descriptor in `folder`, checked."""
    if not isinstance(about, dict):
        raise UserError(f"{where}: must be a mapping such as {{kind: variable, units: m}}")
    kind = about.get("kind")
    if kind not in KINDS:
        raise UserError(f"{where}: kind: {'is missing' if kind is None else repr(kind)}: {nearest(str(kind), KINDS)}")
    for key in about:
        other = next((k for k in KINDS if k != kind and key in _OF_KIND[k]), None)
        if other and key not in _OF_KIND[kind]:
            raise UserError(f"{where}: {key}: belongs to kind {other}, this band's kind is {kind}: change one of them")
    known_keys(about, (*_OF_KIND[kind], *_OF_ALL), where)
    numbers = {
        key: number(about[key], f"{where}: {key}", positive=key != "mean")
        for key in ("centre_nm", "width_nm", "mean", "std")
        if about.get(key) is not None
    }
    if ("mean" in numbers) != ("std" in numbers):
        raise UserError(f"{where}: {'std' if 'mean' in numbers else 'mean'}: is missing: give mean and std, or neither")
    if kind == "optical":
        if "centre_nm" not in numbers:
            raise UserError(f"{where}: centre_nm: is missing: an optical band needs its centre wavelength in nm")
        if numbers["centre_nm"] < SHORTEST_OPTICAL_NM:
            raise UserError(
                f"{where}: centre_nm: {numbers['centre_nm']:g} is too short for light: give it in nm, red is 665"
            )
        if numbers["centre_nm"] >= SHORTEST_RADAR_NM:
            raise UserError(
                f"{where}: centre_nm: {numbers['centre_nm']:g} is a radar's: give kind sar, radar_band, polarisation"
            )
        if numbers.get("width_nm", 0.0) >= 2 * numbers["centre_nm"]:
            raise UserError(f"{where}: width_nm: {numbers['width_nm']:g} reaches below 0 nm: give the full width in nm")
    radar, polarisation = about.get("radar_band"), about.get("polarisation")
    if kind == "sar":
        if radar not in RADAR_BANDS:
            raise UserError(f"{where}: radar_band: {radar!r}: {nearest(str(radar), RADAR_BANDS)}")
        if not is_polarisation(polarisation):
            raise UserError(
                f"{where}: polarisation: {polarisation!r}: two letters of {', '.join(POLARISATIONS)}, transmit first"
            )
    units = about.get("units")
    if units is not None and not isinstance(units, str):
        raise UserError(f"{where}: units: {units!r} is not text: put it in quotes")
    stem = about.get("stem")
    if stem is not None and not (isinstance(stem, str) and _STEM.fullmatch(stem)):
        raise UserError(f"{where}: stem: {stem!r}: use small letters, digits, _ and -")
    band = Band(
        name,
        kind,
        "",
        numbers.get("centre_nm"),
        numbers.get("width_nm"),
        radar,
        polarisation,
        units,
        _vector(about.get("vector"), where, folder),
        numbers.get("mean"),
        numbers.get("std"),
    )
    return replace(band, stem=stem or default_stem(band))


def _vector(given: Any, where: str, folder: Path) -> tuple[float, ...] | None:
    """A list of numbers, or those of a file, whose path counts from `folder`: from here on the file is not needed."""
    if given is None:
        return None
    where = f"{where}: vector"
    if isinstance(given, list) and given:
        found: Any = np.asarray([number(value, where) for value in given])
    elif isinstance(given, str) and given.partition(":")[0].endswith((".npy", ".npz")):
        found = _stored_vector(folder / given.partition(":")[0], given.partition(":")[2], where)
    else:
        raise UserError(f"{where}: give a list of numbers, FILE.npy or FILE.npz:KEY")
    if found.ndim != 1 or found.dtype.kind not in "fiu" or not np.isfinite(found).all() or not found.any():
        raise UserError(f"{where}: needs one axis of finite numbers, not all 0; it has shape {found.shape}")
    return tuple(found.astype(np.float32).tolist())


def _stored_vector(path: Path, key: str, where: str) -> Any:
    """What the .npy file holds, or under `key` the .npz file. Raises UserError."""
    try:
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.lib.npyio.NpzFile):
            with found:
                if key not in found:
                    raise UserError(f"{where}: no '{key}' in {path}: {nearest(key, found.files)}")
                return found[key]
        return found
    except OSError as error:
        why = error.strerror or str(error)
    except (ValueError, EOFError, BadZipFile) as error:
        why = str(error)
    raise UserError(f"{where}: {path} cannot be read ({why}): give FILE.npy or FILE.npz:KEY")


def vector_of(band: Band) -> np.ndarray:
    """[d] float32: the numbers of `band.vector`, scaled to a mean square of 1."""
    found = np.asarray(band.vector, np.float64)
    return (found / math.sqrt(np.square(found).mean())).astype(np.float32)


def default_stem(band: Band) -> str:
    """The stem key of a band whose descriptor gives none.

    Optical: the spectral region of its centre (`optical_red`; wide bands are `optical_nir` or `optical_pan`), whatever the sensor;
    SAR: radar band and polarisation (`sar_c_vv`); variables: their name (`variable_slope`).
    """
    if band.kind == "optical":
        centre, width = float(band.centre_nm or 0), band.width_nm or 0
        region = next(name for end, name in REGIONS if centre < end)
        if width > PAN_NM and 400 < centre < 750:
            region = "pan"
        elif region == "nir08" and width > WIDE_NIR_NM:
            region = "nir"
        elif centre > 8000 and width > 1500:
            region = "lwir"
        return f"optical_{region}"
    if band.kind == "sar":
        return f"sar_{band.radar_band}_{band.polarisation}".lower()
    return f"variable_{slug(band.name)}"


def slug(text: str) -> str:
    """`text` in small letters, digits and _: what names of parameters are made of."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_") or "x"


def is_polarisation(text: Any) -> bool:
    return isinstance(text, str) and len(text) == 2 and set(text) <= set(POLARISATIONS)


def known_keys(given: Mapping[Any, Any], known: tuple[str, ...], where: str) -> None:
    for key in given:
        if key not in known:
            raise UserError(f"{where}: unknown key '{key}': {nearest(str(key), known)}")


def number(value: Any, where: str, positive: bool = False) -> float:
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not math.isfinite(value)
        or (positive and value <= 0)
    ):
        raise UserError(f"{where}: {value!r} is not a {'positive ' if positive else ''}number")
    return float(value)


def _words(value: Any, where: str) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(
        isinstance(word, (str, int)) and not isinstance(word, bool) for word in value
    ):
        raise UserError(f"{where}: must be a list of words, such as [B4, red]; put yes, no, on and off in quotes")
    return [str(word) for word in value]
