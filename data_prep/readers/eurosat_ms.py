"""EuroSAT with all 13 bands of Sentinel-2: GeoTIFFs in class folders, stored in the order of the wavelengths."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.class_folders import PARTIAL, SPLITS, Layout, class_files
from data_prep.folder import Found
from data_prep.readers.classification import EUROSAT_CITATION, EUROSAT_IMAGES
from data_prep.readers.registry import Reader, Request
from data_prep.records import Record, RecordSource, inputs_digest
from data_prep.scenes_spectra import S2_BANDS
from data_prep.small_geotiff import TRANSFORM, decode_chip, rasterio_or_error
from data_prep.source import ArrayColumn, Band, ImageColumn, Source
from frontier.errors import UserError

LAYOUT = Layout(
    (
        "",
        "EuroSAT_MS",
        "EuroSATallBands",
        "tif",
        "ds/images/remote_sensing/otherDatasets/sentinel_2/tif",
        "EuroSATallBands/ds/images/remote_sensing/otherDatasets/sentinel_2/tif",
    ),
    tuple(EUROSAT_IMAGES),
    ".tif",
    27_000,
    EUROSAT_IMAGES,
)
IN_FILE = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B09", "B10", "B11", "B12", "B8A")
"""B8A comes last in the files (github.com/phelber/EuroSAT issue 7, torchgeo pull request 2480)."""
_KNOWN = {band.name: band for band in S2_BANDS} | {"B10": Band("B10", 1373.5, 31)}
STORED = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
BANDS = tuple(_KNOWN[name] for name in STORED)
_ORDER = [IN_FILE.index(name) for name in STORED]
SIDE = 64


@dataclass(frozen=True)
class Scanned:
    """What reading a file showed, or why it cannot be used."""

    sha256: str = ""
    lon: float = 0.0
    lat: float = 0.0
    error: str = ""


def scan(path: str) -> Scanned:
    """Read and decode one file."""
    try:
        data = Path(path).read_bytes()
        chip = decode_chip(data)
    except OSError as error:
        return Scanned(error=error.strerror or "cannot be read")
    except UserError as error:
        return Scanned(error=str(error))
    pixels = chip.pixels
    if pixels.shape != (len(IN_FILE), SIDE, SIDE) or pixels.dtype != "uint16":
        bands, height, width = pixels.shape
        return Scanned(
            error=f"{bands} bands of {height}x{width} {pixels.dtype}, {len(IN_FILE)} of {SIDE}x{SIDE} uint16 are expected"
        )
    return Scanned(hashlib.sha256(data).hexdigest(), chip.lon, chip.lat)


class EurosatMS(RecordSource):
    """Records of the files; the payload is (path, sha256)."""

    def __init__(
        self, request: Request, files: Sequence[Found], scanned: Sequence[Scanned], notes: dict[str, Any]
    ) -> None:
        number = {name: place for place, name in enumerate(LAYOUT.classes)}
        records = [
            Record(
                os.fsencode(file.path),
                (file.path, found.sha256),
                number[file.label],
                bytes.fromhex(found.sha256),
                file.split,
                found.lon,
                found.lat,
            )
            for file, found in zip(files, scanned, strict=True)
        ]
        super().__init__(
            records,
            settings={"kind": request.reader.name},
            inputs=inputs_digest(
                (file.path, bytes.fromhex(found.sha256)) for file, found in zip(files, scanned, strict=True)
            ),
            classes=LAYOUT.classes,
            notes=notes,
        )
        self.root, self.name = request.path, request.name or request.reader.name
        self.license = request.license or request.reader.license
        self.citation = request.citation or request.reader.citation
        self.homepage = request.reader.homepage
        self.images = {
            "image": ImageColumn(
                (len(BANDS), SIDE, SIDE),
                "uint16",
                BANDS,
                gsd_m=10.0,
                units="reflectance",
                scale=1e-4,
                sensor="Sentinel-2 L1C",
            )
        }
        self.arrays = {"transform": ArrayColumn((6,), "float64", "K", "other", TRANSFORM)}
        self.columns = {"lon": "float64", "lat": "float64", "crs_epsg": "int32", "gsd_m": "float32"}

    def load_one(self, record: Record) -> dict[str, Any]:
        path, sha256 = record.payload
        try:
            data = (self.root / path).read_bytes()
        except OSError as error:
            raise UserError(f"{self.root / path}: cannot be read any more ({error.strerror}): restore it") from None
        if hashlib.sha256(data).hexdigest() != sha256:
            raise UserError(f"{self.root / path}: changed while it was read: run the same command again")
        chip = decode_chip(data)
        return {
            "image": chip.pixels[_ORDER],
            "transform": chip.transform,
            "lon": chip.lon,
            "lat": chip.lat,
            "crs_epsg": chip.epsg,
            "gsd_m": chip.gsd_m,
        }


def open_eurosat_ms(request: Request) -> Source:
    """Every file is read once before anything is written, so that a damaged one is known in time."""
    rasterio_or_error(f"reader {request.reader.name}")
    moved, files, notes = class_files(request, LAYOUT)
    scanned = request.map(scan, [str(moved.path / file.path) for file in files])
    bad = [(file.path, found.error) for file, found in zip(files, scanned, strict=True) if found.error]
    notes |= moved.settle(bad, len(files), "images")
    good = [(file, found) for file, found in zip(files, scanned, strict=True) if not found.error]
    copies = Counter(found.sha256 for _, found in good)
    notes["duplicates"] = copies.total() - len(copies)
    return EurosatMS(moved, [file for file, _ in good], [found for _, found in good], notes)


READERS = (
    Reader(
        name="eurosat_ms",
        summary="EuroSAT, all bands: 27,000 Sentinel-2 L1C images of 13x64x64 with their places, 10 classes",
        expects="unpack EuroSAT_MS.zip (or the older EuroSATallBands.zip) from https://zenodo.org/records/7711810 and "
        "give EuroSAT_MS or tif (holding CLASS/*.tif) or the folder above it, with lists of splits beside them if wanted",
        open=open_eurosat_ms,
        uses=frozenset({"on_error", "license", "citation"}),
        settings={"partial": PARTIAL, "splits": SPLITS},
        license="MIT; contains modified Copernicus Sentinel data",
        citation=EUROSAT_CITATION,
        homepage="https://github.com/phelber/EuroSAT",
    ),
)
