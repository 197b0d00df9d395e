"""A shard directory as Croissant 1.1 and GeoCroissant 1.0 metadata (JSON-LD).

Croissant has no words for HDF5: a field names its dataset in the shards as `column`. What is not known (publication
date, creator) is left out, which validators remark on. Lists of band names are ordered, hence their `@list`.
"""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import quote

import numpy as np

from data_prep.contents import spread

HDF5 = "application/x-hdf5"
FINGERPRINT = "frontier-shards fingerprint"
CONFORMS = ["http://mlcommons.org/croissant/1.1", "http://mlcommons.org/croissant/geo/1.0"]
CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "dct": "http://purl.org/dc/terms/",
    "ddi-stats": "http://rdf-vocabulary.ddialliance.org/cv/SummaryStatisticType/2.1.2/",
    "geocr": "http://mlcommons.org/croissant/geo/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "geocr:bandNameList": {"@id": "geocr:bandNameList", "@container": "@list"},
    "annotation": "cr:annotation",
    "arrayShape": "cr:arrayShape",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "containedIn": "cr:containedIn",
    "equivalentProperty": "cr:equivalentProperty",
    "excludes": "cr:excludes",
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isArray": "cr:isArray",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sdVersion": "cr:sdVersion",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
_SPLITS = {"train": "cr:TrainingSplit", "val": "cr:ValidationSplit", "test": "cr:TestSplit"}
_SPDX = re.compile(r"(CC0|CC-BY(-NC)?(-SA|-ND)?|CC-PDDC|ODbL|ODC-By|PDDL|Apache|etalab|OGL-UK)-\d\.\d|MIT", re.ASCII)
_SAME_AS = {
    "lon": "sc:longitude",
    "lat": "sc:latitude",
    "gsd_m": "geocr:spatialResolution",
    "crs_epsg": "geocr:coordinateReferenceSystem",
}
_MEANING = {
    "sample_id": "Identifier of the sample, UTF-8 bytes padded with zeros.",
    "label": "Index of the class, -1 where there is none.",
    "crc32": "CRC-32 of the sample's inputs and arrays, in the order of their names.",
    "lon": "Longitude of the centre in degrees, NaN where unknown.",
    "lat": "Latitude of the centre in degrees, NaN where unknown.",
    "crs_epsg": "EPSG code of the sample's coordinate reference system, 0 where unknown.",
    "gsd_m": "Ground sampling distance in metres.",
    "time_start": "Begin of the observation, Unix seconds UTC, 0 where unknown.",
    "time_end": "End of the observation, Unix seconds UTC, 0 where unknown.",
    "valid_fraction": "Share of the pixels that are valid.",
    "cloud_fraction": "Share of the pixels under cloud.",
}
_STATISTICS = {
    "mean": ["ddi-stats:7975ed0"],  # arithmetic mean; this code and the next are those of the specification's example
    "max": ["ddi-stats:8321e79"],
    "std": [],
    "min": [],
    "percentiles": [],
}


def croissant(manifest: dict[str, Any], found: dict[str, Any], *, sampling: str, gaps: list[str]) -> dict[str, Any]:
    """The JSON-LD document; `found` is what `data_prep.contents.contents` returns.

    `sampling` tells how samples were selected and built, `gaps` what is known to be missing.
    """
    where = found["extent"]
    out: dict[str, Any] = {
        "@context": CONTEXT,
        "@type": "Dataset",
        "name": manifest["name"],
        "description": manifest.get("description") or _describe(manifest),
        "conformsTo": CONFORMS,
        "license": _license(manifest.get("license")),
        "url": manifest.get("homepage"),
        "citeAs": manifest.get("citation"),
        "identifier": _property(FINGERPRINT, manifest["fingerprint"]),
        "isBasedOn": _input(manifest),
        "isLiveDataset": False,
        "spatialCoverage": _place(where["box"]),
        "temporalCoverage": f"{where['time']['start']}/{where['time']['end']}" if where["time"] else None,
        "geocr:coordinateReferenceSystem": _reference_system(where["crs_epsg"]),
        "geocr:spatialResolution": _resolution(manifest, where),
        "geocr:samplingStrategy": sampling,
        "geocr:spatialBias": spread(where["cells"]) if where["cells"] else None,
        "rai:dataLimitations": gaps or None,
    }
    if len(manifest["images"]) == 1:
        out |= _bands(next(iter(manifest["images"].values())))
    out |= {"distribution": _files(manifest), "recordSet": _record_sets(manifest)}
    return {key: value for key, value in out.items() if value is not None}


def _describe(manifest: dict[str, Any]) -> str:
    splits = ", ".join(f"{name} {split['samples']}" for name, split in manifest["splits"].items())
    columns = ", ".join([*manifest["images"], *manifest["arrays"]])
    return f"{manifest['name']}: {manifest['samples']} samples ({splits}) of {columns}, in HDF5 shards."


def _license(given: str | None) -> str | None:
    """The licence's page where it is named by an identifier of SPDX, else as it was given."""
    return f"https://spdx.org/licenses/{given}" if given and _SPDX.fullmatch(given) else given


def _property(name: str, value: str) -> dict[str, Any]:
    return {"@type": "PropertyValue", "propertyID": name, "value": value}


def _input(manifest: dict[str, Any]) -> dict[str, Any] | None:
    """What repacked shards were made from."""
    source = manifest.get("source") or {}
    if source.get("kind") != "shards" or not isinstance(source.get("input"), dict):
        return None
    identity = _property(FINGERPRINT, source["fingerprint"])
    return {"@type": "CreativeWork", "name": source["input"].get("name"), "identifier": identity}


def _quantity(value: float, unit: str) -> dict[str, Any]:
    return {"@type": "QuantitativeValue", "value": value, "unitText": unit}


def _place(box: dict[str, float] | None) -> dict[str, Any] | None:
    if box is None:
        return None
    corners = " ".join(f"{box[side]:g}" for side in ("south", "west", "north", "east"))
    return {"@type": "Place", "geo": {"@type": "GeoShape", "box": corners}}


def _reference_system(codes: dict[str, int] | None) -> str | None:
    if not codes:
        return None
    named = [f"EPSG:{code}" for code in codes]
    return named[0] if len(named) == 1 else f"by sample, column crs_epsg: {', '.join(named)}"


def _resolution(manifest: dict[str, Any], where: dict[str, Any]) -> dict[str, Any] | str | None:
    known = {name: spec["gsd_m"] for name, spec in manifest["images"].items() if spec.get("gsd_m")}
    if known and len(set(known.values())) == 1 and len(known) == len(manifest["images"]):
        return _quantity(next(iter(known.values())), "m")
    if known:
        return ", ".join(f"{name}: {size:g} m" for name, size in known.items())
    sizes = where["gsd_m"]
    if sizes is None:
        return None
    if sizes["min"] == sizes["max"]:
        return _quantity(sizes["min"], "m")
    return f"by sample, column gsd_m: {sizes['min']:g} to {sizes['max']:g} m"


def _bands(spec: dict[str, Any]) -> dict[str, Any]:
    """GeoCroissant's description of an input's bands."""
    out: dict[str, Any] = {
        "geocr:bandConfiguration": {
            "@type": "geocr:BandConfiguration",
            "geocr:totalBands": len(spec["bands"]),
            "geocr:bandNameList": [band["name"] for band in spec["bands"]],
        }
    }
    spectral = []
    for band in spec["bands"]:
        if band.get("centre_nm"):
            one = {"@type": "geocr:SpectralBand", "name": band["name"]}
            one |= {"geocr:centerWavelength": _quantity(band["centre_nm"], "nm")}
            if band.get("width_nm"):
                one |= {"geocr:bandwidth": _quantity(band["width_nm"], "nm")}
            spectral.append(one)
    return out | ({"geocr:spectralBandMetadata": spectral} if spectral else {})


def _files(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    shards = [
        {
            "@type": "cr:FileObject",
            "@id": shard["file"],
            "name": shard["file"].rpartition("/")[2],
            "contentUrl": shard["file"],
            "contentSize": f"{shard['bytes']} B",
            "encodingFormat": HDF5,
            "sha256": shard["sha256"],
        }
        for shard in manifest["shards"]
    ]
    patterns = {f"{split}-*/{split}-*.h5" if "/" in file else f"{split}-*.h5" for split, file in _some_file(manifest)}
    every = {
        "@type": "cr:FileSet",
        "@id": "shards",
        "name": "shards",
        "description": "All shards: flat HDF5 files, one dataset a column, the first axis counts samples.",
        "encodingFormat": HDF5,
        "includes": sorted(patterns),
    }
    return [*shards, every]


def _some_file(manifest: dict[str, Any]) -> list[tuple[str, str]]:
    return [(name, split["shards"][0]) for name, split in manifest["splits"].items() if split["shards"]]


def _record_sets(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    splits = [
        {"splits/name": name, "splits/url": _SPLITS.get(name, "cr:Split"), "splits/samples": split["samples"]}
        for name, split in manifest["splits"].items()
    ]
    out: list[dict[str, Any]] = [
        {
            "@type": "cr:RecordSet",
            "@id": "splits",
            "name": "splits",
            "dataType": "cr:Split",
            "key": {"@id": "splits/name"},
            "field": [
                _field("splits/name", ["sc:Text"]),
                _field("splits/url", ["sc:URL", "cr:Split"]),
                _field("splits/samples", ["sc:Integer"]),
            ],
            "data": splits,
        }
    ]
    named = _class_sets(manifest)
    for key, classes in named.values():
        out.append(
            {
                "@type": "cr:RecordSet",
                "@id": key,
                "name": key,
                "dataType": "sc:Enumeration",
                "key": {"@id": f"{key}/index"},
                "field": [_field(f"{key}/index", ["sc:Integer"]), _field(f"{key}/name", ["sc:Text"])],
                "data": [{f"{key}/index": index, f"{key}/name": name} for index, name in enumerate(classes)],
            }
        )
    fields = [
        _field("samples/split", ["sc:Text"])
        | {
            "description": "The split, from the name of the shard.",
            "source": {
                "fileSet": {"@id": "shards"},
                "extract": {"fileProperty": "filename"},
                "transform": {"regex": f"^({'|'.join(map(re.escape, manifest['splits']))})-\\d+\\.h5$"},
            },
            "references": {"field": {"@id": "splits/name"}},
        }
    ]
    fields += [_scalar(name, dtype, manifest, named) for name, dtype in manifest["columns"].items()]
    fields += [_image(name, spec) for name, spec in manifest["images"].items()]
    fields += [_array(name, spec, manifest, named) for name, spec in manifest["arrays"].items()]
    samples: dict[str, Any] = {"@type": "cr:RecordSet", "@id": "samples", "name": "samples", "field": fields}
    if "sample_id" in manifest["columns"]:
        samples["key"] = {"@id": "samples/sample_id"}
    return [*out, samples]


def _class_sets(manifest: dict[str, Any]) -> dict[str, tuple[str, list[str]]]:
    """By column with labels that index classes: (@id of the enumeration, class names)."""
    out = {}
    for name, target in manifest["targets"].items():
        if target["classes"] and target["kind"] in ("classification", "segmentation"):
            out[target["column"]] = (f"classes_{quote(name, safe='')}", target["classes"])
    if manifest["classes"] and "label" in manifest["columns"] and "label" not in out:
        out["label"] = ("classes_label", manifest["classes"])
    return out


def _field(identity: str, types: list[str]) -> dict[str, Any]:
    kinds: Any = types if len(types) > 1 else types[0]
    return {"@type": "cr:Field", "@id": identity, "name": identity.rpartition("/")[2], "dataType": kinds}


def _column(name: str, dtype: str, more: list[str], shape: list[int] | None = None) -> dict[str, Any]:
    out = _field(f"samples/{quote(name, safe='')}", [_type(dtype), *more])
    out |= {"name": name, "source": {"fileSet": {"@id": "shards"}, "extract": {"column": name}}}
    if shape is not None:
        out |= {"isArray": True, "arrayShape": ",".join(map(str, shape))}
    return out


def _type(dtype: str) -> str:
    kind = np.dtype(dtype)
    if kind.kind in "SU":
        return "sc:Text"
    if kind.kind == "b":
        return "sc:Boolean"
    word = {"i": "Int", "u": "UInt", "f": "Float"}[kind.kind]
    return f"cr:{word}{8 * kind.itemsize}"


def _scalar(name: str, dtype: str, manifest: dict[str, Any], named: dict[str, tuple[str, list[str]]]) -> dict[str, Any]:
    targets = [target for target in manifest["targets"].values() if target["column"] == name]
    out = _column(name, dtype, ["cr:Label"] if targets or name in named else [])
    told = [_MEANING[name]] if name in _MEANING else []
    told += [_target_text(target) for target in targets]
    if told:
        out["description"] = " ".join(told)
    if name in _SAME_AS:
        out["equivalentProperty"] = _SAME_AS[name]
    if name in named:
        out["references"] = {"field": {"@id": f"{named[name][0]}/index"}}
    return out


def _array(name: str, spec: dict[str, Any], manifest: dict[str, Any], named: dict[str, Any]) -> dict[str, Any]:
    targets = [target for target in manifest["targets"].values() if target["column"] == name]
    more = ["cr:Label"] if targets or spec.get("role") == "target" else []
    if any(target["kind"] == "segmentation" for target in targets):
        more.append("cr:SegmentationMask")
    out = _column(name, spec["dtype"], more, spec["shape"])
    told = [f"Axes {spec['axes']}."]
    masked = [image for image, other in manifest["images"].items() if other["mask"] == name]
    if masked:
        told.append(f"1 where {', '.join(masked)} is valid, 0 where it is missing.")
    if spec.get("names"):
        told.append(f"Entries: {', '.join(spec['names'])}.")
    if spec.get("units"):
        told.append(f"Units: {spec['units']}.")
    out["description"] = " ".join(told + [_target_text(target) for target in targets])
    if name in named:
        out["references"] = {"field": {"@id": f"{named[name][0]}/index"}}
    return out


def _target_text(target: dict[str, Any]) -> str:
    text = f"Target of {target['kind']}"
    if target["units"]:
        text += f" in {target['units']}"
    if target["kind"] == "multilabel" and target["classes"]:
        text += f", one entry a class: {', '.join(target['classes'])}"
    return text + (f"; {target['missing']} where the label is missing." if target["missing"] is not None else ".")


def _image(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    out = _column(name, spec["dtype"], ["sc:ImageObject"] if {"H", "W"} <= set(spec["axes"]) else [], spec["shape"])
    told = [f"Axes {spec['axes']}."]
    if spec.get("sensor"):
        told.append(f"Sensor: {spec['sensor']}.")
    scale, offset = spec.get("scale", 1), spec.get("offset", 0)
    told.append(f"Units: {spec.get('units') or 'not recorded'}; physical value = stored x {scale:g} + {offset:g}.")
    if spec.get("nodata") is not None:
        told.append(f"{spec['nodata']:g} marks a missing value.")
    if spec["mask"] is not None:
        told.append(f"Column {spec['mask']} marks what is valid.")
    out |= {"description": " ".join(told)} | _bands(spec)
    if spec.get("gsd_m"):
        out["geocr:spatialResolution"] = _quantity(spec["gsd_m"], "m")
    statistics = spec.get("statistics")
    if statistics:
        # As JSON in text: a plain list would be an unordered set to JSON-LD.
        out["annotation"] = [
            _field(f"{out['@id']}/{key}", ["sc:Text", *more])
            | {"description": "By band, of the train split, as stored.", "value": json.dumps(statistics[key])}
            for key, more in _STATISTICS.items()
            if key in statistics
        ]
    return out
