"""The feed of the family: one stream, of which a sample is one row with an image of each sensor."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from frontier.config.load import Config
from frontier.config.schema import DataConfig, SyntheticConfig
from frontier.data.feed import Stream, stored_bytes
from frontier.data.sampler import Sampler
from frontier.data.shards import ShardSet
from frontier.data.synthetic import SyntheticSet, open_images
from frontier.errors import UserError
from scale_alibi.attention import check_possible
from scale_alibi.config import METRIC
from scale_alibi.reader import ScaleALiBiReader, normaliser_of
from scale_alibi.sensors import SensorSection, check_filled, check_together, resolve_sensor
from scale_alibi.sizes import POWER


@dataclass(frozen=True)
class ScaleALiBiFeed:
    """See `frontier.data.feed.Feed`."""

    data: DataConfig
    model: Any
    streams: list[Stream]

    def fixed(self) -> dict[str, Any]:
        found = {f"data.{name}": getattr(self.data, name) for name in ("split", "block", "window")}
        found["model.sensors"] = list(self.model.sensors)
        for name, sensor in self.model.sensors.items():
            found |= {
                f"model.sensors.{name}.{key}": getattr(sensor, key)
                for key in ("column", "bands", "size", "gsd_m", "mean", "std")
            }
        return found

    def reader(self, device: torch.device, seed: int) -> ScaleALiBiReader:
        model, augment = self.model, self.data.augment
        check_possible(model.attention, POWER[model.position], device.type)
        return ScaleALiBiReader(model.sensors, model.patch, self.streams[0].shards, augment, device, seed)


def open_feed(config: Config, check: bool, samples: int | None) -> ScaleALiBiFeed:
    """Open the shards and fill in the sensors. `check`, `samples`: as of `frontier.train.plan.resolve`.

    Raises UserError for data that the sensors do not fit.
    """
    data, model = config.data, config.model
    if data.synthetic is not None and data.synthetic.images is None:
        wanted = ", ".join(f"{sensor.column}: [BANDS, PIXELS]" for sensor in model.sensors.values())
        raise UserError(
            f"data.synthetic: model.family=scale_alibi takes an image of each sensor: give data.synthetic.images={{{wanted}}}, no image_size"
        )
    try:
        data.refuse(
            ("column", "mean", "std", "image_size"),
            "with model.family=scale_alibi, where each of model.sensors has its own",
        )
    except ValueError as error:
        raise UserError(str(error)) from None
    if model.weights.contrastive and config.train.global_batch == 1:
        raise UserError(
            "train.global_batch=1: the contrastive loss compares samples of a batch: take 2 or more, or set model.weights.contrastive=0"
        )
    shards = open_images(data, check)
    sensors = {name: resolve_sensor(name, section, shards, model.patch) for name, section in model.sensors.items()}
    for name, section in model.sensors.items():
        check_filled(name, section, sensors[name])
    check_together(sensors, model.patch, shards)
    columns = columns_of(sensors, shards)
    sampler = Sampler.plan(
        samples or len(shards),
        config.train.global_batch,
        config.run.seed,
        stored_bytes(shards, columns),
        data.block,
        data.window,
    )
    first = next(iter(sensors.values()))
    filled: dict[str, Any] = {"sensors": sensors, "chain": list(sensors)}
    if model.position in METRIC and model.reference_m is None:
        filled["reference_m"] = model.patch * (first.nominal_gsd_m or 0.0)
    return ScaleALiBiFeed(
        data.model_copy(update={"block": sampler.block, "window": sampler.window}),
        model.model_copy(update=filled),
        [Stream("", shards, sampler, columns)],
    )


def without_shards(config: Config) -> tuple[Config, str]:
    """See `frontier.models.registry.Family`: a model of the same cost, from the size and the bands that each of model.sensors names.

    Raises UserError where one does not.
    """
    model, images, sensors = config.model, {}, {}
    for name, sensor in model.sensors.items():
        if sensor.size is None or sensor.bands is None:
            raise UserError(
                f"{config.data.shards} is not here, and model.sensors.{name} does not say what its images are: give its size and bands, "
                "or data.shards that are here"
            )
        images[name] = (len(sensor.bands), sensor.size)
        # Metres are no cost, but all sensors must show the same ground.
        sensors[name] = SensorSection(
            column=name, gsd_m=1000.0 / sensor.size, depth=sensor.depth, mask_ratio=sensor.mask_ratio
        )
    made = SyntheticConfig(images=images, samples=max(config.train.global_batch, 1_000_000))
    taken = ", ".join(f"{name} of {bands} bands and {side} px" for name, (bands, side) in images.items())
    return replace(
        config,
        data=config.data.model_copy(update={"shards": None, "synthetic": made}),
        model=model.model_copy(update={"sensors": sensors}),
    ), f"assumed: {taken}, stored as 8 bits, for {config.data.shards} is not here"


def columns_of(sensors: dict[str, SensorSection], shards: ShardSet | SyntheticSet) -> tuple[str, ...]:
    """Of resolved sensors, what a batch must hold: images, their masks, and GSD of samples."""
    images = [column for s in sensors.values() for column in normaliser_of(s, shards, "cpu").columns]
    numbers = [s.gsd_column for s in sensors.values() if s.gsd_column is not None]
    return tuple(dict.fromkeys([*images, *numbers]))
