"""Frozen features of labelled shards: of one sensor's encoder, or of all sensors' joint tokens, at the ground distances of these shards."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from frontier.config.load import validate
from frontier.config.schema import AugmentConfig
from frontier.data.loader import Batch
from frontier.data.manifest import band_places
from frontier.data.shards import ShardSet
from frontier.data.square_images import square_images
from frontier.errors import UserError
from frontier.probe.baselines import cell_statistics, colour_texture
from frontier.probe.features import FeatureFunction, GridFunction, LabelledSamples
from frontier.probe.methods import NORMALISATIONS
from frontier.probe.subject import Ask, Subject, inputs_record, labels_of, numbers_of, unlike_training
from scale_alibi.config import METRIC, ScaleALiBiSection
from scale_alibi.feed import columns_of
from scale_alibi.model import ScaleALiBi
from scale_alibi.reader import ScaleALiBiReader, normaliser_of
from scale_alibi.sensors import SensorSection, check_ground, resolve_sensor

JOINT = "joint"
COLOURS = {
    **dict.fromkeys(("blue", "b", "b02", "b2"), "blue"),
    **dict.fromkeys(("green", "g", "b03", "b3"), "green"),
    **dict.fromkeys(("red", "r", "b04", "b4"), "red"),
    **dict.fromkeys(("nir", "n", "b08", "b8"), "nir"),
}
"""Names of bands, of aerial images, of Sentinel-2 and of others -> their colour."""


@dataclass(frozen=True)
class Looks:
    """Some samples by sensor.

    Attributes:
        images, gsd: as encoders see them, [B, C, S, S], and their metres a pixel [B, 2].
        stored: the same bands [B, C, H, W] in stored units and at the stored size; what is missing is the mean.
    """

    images: dict[str, Tensor]
    gsd: dict[str, Tensor]
    stored: dict[str, Tensor]

    def __getitem__(self, chosen: np.ndarray) -> Looks:
        keep = torch.from_numpy(chosen)
        return Looks(*({n: t[keep] for n, t in of.items()} for of in (self.images, self.gsd, self.stored)))


def features(config: Mapping[str, Any], ask: Ask) -> Subject:
    """See `Subject`, of a resolved run config. Raises UserError where the shards do not suit the encoder."""
    section: ScaleALiBiSection = validate(dict(config)).model
    if ask.pooling == "cls":
        raise UserError("--pooling cls: tokens of this family have no [cls]: choose mean or mean_std")
    train, test = (ShardSet(ask.data, split=split) for split in ask.splits)
    source = choose_source(section, train, ask)
    if source == JOINT and ask.layers is not None:
        raise UserError("--layers: joint tokens come from the last blocks: leave it out, or name a sensor by --source")
    sensors = seen_sensors(section, source, train, ask)

    def samples(shards: ShardSet) -> LabelledSamples:
        columns = columns_of(sensors, shards)
        centred = {
            name: replace(found, std=torch.ones_like(found.std))
            for name, found in ((name, normaliser_of(sensor, shards, "cpu")) for name, sensor in sensors.items())
        }
        reader = ScaleALiBiReader(sensors, section.patch, shards, AugmentConfig(), torch.device("cpu"), 0)

        def read(start: int, stop: int) -> Looks:
            stored = {name: torch.from_numpy(shards.read(name, start, stop)) for name in columns}
            members = torch.zeros(stop - start, 2, dtype=torch.int64)
            placed = reader.place({"": Batch(stored, members, columns[0])})
            own = {name: one(stored) + one.mean.view(-1, 1, 1) for name, one in centred.items()}
            return Looks(placed.images, placed.gsd, own)

        return LabelledSamples(read, labels_of(shards, ask.target))

    def tokens(module: nn.Module) -> Any:
        return lambda looks: encode(cast(ScaleALiBi, module), looks, source, ask.layers, ask.device)

    def pooled(module: nn.Module) -> FeatureFunction:
        look = tokens(module)
        return lambda looks: torch.cat([pool(found, ask.pooling) for found in look(looks)], 1).cpu().numpy()

    def grid(module: nn.Module) -> GridFunction:
        look = tokens(module)

        def cells(looks: Looks) -> Tensor:
            found = torch.cat([one.float() for one in look(looks)], 2)
            return found.unflatten(1, (math.isqrt(found.shape[1]),) * 2)

        return cells

    first = next(iter(sensors))
    resized = {n: None if s.stored_size == s.size else [s.stored_size, s.size] for n, s in sensors.items()}
    seen = {n: s.nominal_gsd_m for n, s in sensors.items()}
    one = len(sensors) == 1
    return Subject(
        train,
        samples(train),
        samples(test),
        pooled,
        ("colour_texture", lambda looks: np.concatenate([colour_texture(i.numpy()) for i in looks.stored.values()], 1)),
        {"source": source, **inputs_record({s.column: described(s, train) for s in sensors.values()})},
        {
            "normalisation": NORMALISATIONS[ask.normalise],
            "resize": resized[first] if one else resized,
            "gsd_seen_m": seen[first] if one else seen,
        },
        grid,
        ("cell_statistics", lambda looks, grid: cell_statistics(looks.stored[first].numpy(), grid)),
        tuple(note for sensor in sensors.values() for note in _notes(sensor, train)) if ask.normalise == "run" else (),
    )


def _notes(sensor: SensorSection, shards: ShardSet) -> tuple[str, ...]:
    places = band_places(shards.manifest["images"][sensor.column], sensor.bands or (), "bands")
    return unlike_training(shards, sensor.column, places, sensor.mean or (), sensor.std or ())


def choose_source(section: ScaleALiBiSection, shards: ShardSet, ask: Ask) -> str:
    """Which encoder: `ask.source`, else joint where the shards have all sensors' columns, else the only sensor whose column they have.

    Raises UserError where that is none.
    """
    names = list(section.sensors)
    joint = [JOINT] if section.weights.reconstruction else []
    choices = f"choose --source {', '.join([*names, *joint])}"
    if ask.source is not None:
        if ask.source not in [*names, *joint]:
            raise UserError(f"--source {ask.source}: the run has no such encoder: {choices}")
        if ask.source == JOINT and ask.column is not None:
            raise UserError("--column: joint tokens take the columns of all sensors: leave it out")
        return ask.source
    there = [name for name, sensor in section.sensors.items() if sensor.column in shards.image_columns]
    if ask.column is None and joint and len(there) == len(names):
        return JOINT
    if ask.column is None and len(there) == 1:
        return there[0]
    raise UserError(f"{shards.path} has the columns {', '.join(shards.image_columns)}: {choices}, and --column")


def seen_sensors(section: ScaleALiBiSection, source: str, shards: ShardSet, ask: Ask) -> dict[str, SensorSection]:
    """Of the encoders that are asked, on these shards: their bands by name, at their stored size (with `ask.resize` at the encoder's)."""
    found = {}
    for name, sensor in section.sensors.items():
        if source not in (name, JOINT):
            continue
        column = ask.column or sensor.column
        if column not in shards.image_columns:
            others = f"choose --column {' or '.join(shards.image_columns)}"
            mend = "name a sensor by --source" if source == JOINT else others
            raise UserError(f"no image column '{column}' in {shards.path}: {mend}")
        _, stored = square_images(shards.manifest["images"], column, "--column", shards.path, "scale_alibi")
        size: int = sensor.size if ask.resize and sensor.size else stored
        if size % section.patch:
            raise UserError(
                f"{column} images of {stored} pixels in {shards.path} do not divide into patches of {section.patch}: add --resize"
            )
        spec = shards.manifest["images"][column]
        bands = match_bands(sensor.bands or [], spec, f"column '{column}' of {shards.path}")
        mean, std = numbers_of(ask.normalise, shards, column, band_places(spec, bands, "bands")) or (
            sensor.mean,
            sensor.std,
        )
        given = sensor.gsd_m if column == sensor.column and _has_gsd(sensor, shards) else None
        again = sensor.model_copy(
            update={
                "column": column,
                "bands": bands,
                "size": size,
                "gsd_m": ask.gsd_m or given,
                "mean": mean,
                "std": std,
            }
        )
        try:
            found[name] = resolve_sensor(name, again, shards, section.patch)
        except UserError as error:
            told, unknown, _ = str(error).partition(f"set model.sensors.{name}.gsd_m to it")
            raise UserError(told + ("add --gsd-m" if unknown else "")) from None
    _check_joint(section, found, ask)
    return found


def _check_joint(section: ScaleALiBiSection, sensors: Mapping[str, SensorSection], ask: Ask) -> None:
    """Of joint tokens: places of sensors are comparable. Raises UserError."""
    check_ground(sensors, f"{'leave --gsd-m out' if ask.gsd_m else 'mend the shards'}, or name a sensor by --source")
    first = next(iter(sensors))
    for name in sensors if section.position not in METRIC else ():
        here, trained = (
            of[name].grid(section.patch) / of[first].grid(section.patch) for of in (sensors, section.sensors)
        )
        if here != trained:
            raise UserError(
                f"--source joint: model.position={section.position} counts patches, and {name} has {here:g} times those of {first} a side here, "
                f"{trained:g} in training: {'give other images' if ask.resize else 'add --resize'}, or name a sensor by --source"
            )


def _has_gsd(sensor: SensorSection, shards: ShardSet) -> bool:
    """Whether what the run says of the GSD can be said of these shards: a column that they have too."""
    return sensor.gsd_column is not None and sensor.gsd_column in shards.manifest["columns"]


def match_bands(wanted: Sequence[str], spec: Mapping[str, Any], where: str) -> list[str]:
    """The bands of `spec` that are those of `wanted`, by name or by colour (`COLOURS`). Raises UserError where one is missing."""
    own = [band["name"] for band in spec["bands"]]
    by_colour = {_colour(band["name"], band.get("common_name")): band["name"] for band in reversed(spec["bands"])}
    found = []
    for name in wanted:
        match = name if name in own else by_colour.get(_colour(name))
        if match is None:
            raise UserError(
                f"{where} has the bands {', '.join(own)}; the encoder was trained on {name}: choose another --source"
            )
        found.append(match)
    return found


def _colour(name: str, common: str | None = None) -> str:
    """Of a band by its `common` name, where that is a colour, or else by its name; the plain name where it has none."""
    plain = name.strip().lower()
    return common if common and common in COLOURS.values() else COLOURS.get(plain, plain)


def described(sensor: SensorSection, shards: ShardSet) -> dict[str, Any]:
    """As an entry of a manifest's `images`: the bands that are taken, and the nominal GSD as stored."""
    spec = shards.manifest["images"][sensor.column]
    assert sensor.nominal_gsd_m and sensor.size and sensor.stored_size
    stored = sensor.nominal_gsd_m * sensor.size / sensor.stored_size
    by_name = {band["name"]: band for band in spec["bands"]}
    return {**spec, "bands": [by_name[name] for name in sensor.bands or ()], "gsd_m": stored}


@torch.inference_mode()
def encode(model: ScaleALiBi, looks: Looks, source: str, layers: Sequence[int] | None, device: str) -> list[Tensor]:
    """Unmasked tokens [B, L, D], of each of the blocks `layers`, or of the last."""
    images, gsd = ({name: t.to(device) for name, t in given.items()} for given in (looks.images, looks.gsd))
    if source == JOINT:
        return [model.join({name: model.encode(name, images[name], gsd[name]) for name in images})]
    return model.encode_layers(source, images[source], gsd[source], layers)


def pool(tokens: Tensor, pooling: str) -> Tensor:
    """Tokens [B, L, D] -> float32 [B, D], or [B, 2 D] of mean and deviation."""
    tokens = tokens.float()
    mean = tokens.mean(1)
    return mean if pooling == "mean" else torch.cat([mean, tokens.std(1, correction=0)], 1)
