"""From stored columns to what the module takes: images of all sensors, their GSD, and the noise that orders their patches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from frontier.config.schema import AugmentConfig
from frontier.data.feed import stream_seed
from frontier.data.loader import Batch
from frontier.data.manifest import band_places
from frontier.data.shards import ShardSet
from frontier.data.synthetic import SyntheticSet
from frontier.data.transforms import Normaliser, mask_noise
from scale_alibi.augment import View, draw_view, see_gsd, see_images
from scale_alibi.sensors import SensorSection


@dataclass(frozen=True)
class Placed:
    """A batch on the device.

    Attributes:
        images: by sensor [B, C, S, S] float32, normalised and augmented, 0 where missing.
        gsd: by sensor [B, 2] float32, metres a pixel along (y, x) of those images.
        known: by sensor [B, 1 or C, S, S] bool, which of those pixels are there; of sensors that can miss some.
        members: [B, 2] int64 (epoch, sample).
    """

    images: dict[str, Tensor]
    gsd: dict[str, Tensor]
    known: dict[str, Tensor]
    members: Tensor


class ScaleALiBiReader:
    """See `frontier.data.feed.Reader`. Every choice is a function of (seed, epoch, sample): windows and symmetries of the sample, the
    same for all its sensors, and the noise of each sensor under a seed of its own (`stream_seed` of its name).
    """

    def __init__(
        self,
        sensors: Mapping[str, SensorSection],
        patch: int,
        shards: ShardSet | SyntheticSet,
        augment: AugmentConfig,
        device: torch.device,
        seed: int,
    ) -> None:
        """`sensors`: resolved. `augment`: `AugmentConfig()` shows every image whole, as stored."""
        self.sensors, self.patch, self.augment, self.device, self.seed = sensors, patch, augment, device, seed
        self.normalisers = {name: normaliser_of(sensor, shards, device) for name, sensor in sensors.items()}

    def place(self, batches: Mapping[str, Batch]) -> Placed:
        """The batch of the one stream."""
        batch = batches[""]
        members = batch.members.to(self.device, non_blocking=True)
        view = draw_view(members, self.augment, self.seed)
        images, gsd, known = {}, {}, {}
        for name in self.sensors:
            images[name], there, gsd[name] = self._see(name, batch.columns, view, len(members))
            if there is not None:
                known[name] = there
        return Placed(images, gsd, known, members)

    def _see(
        self, name: str, columns: Mapping[str, Tensor], view: View, count: int
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        sensor = self.sensors[name]
        assert sensor.size is not None and sensor.stored_size is not None
        values, there = self.normalisers[name].with_there(columns)
        if isinstance(sensor.gsd_m, float):
            stored = torch.full((count,), sensor.gsd_m, device=self.device)
        else:
            stored = columns[str(sensor.gsd_column)].to(self.device, non_blocking=True).float()
        return *see_images(values, there, view, sensor.size), see_gsd(stored, sensor.stored_size, sensor.size, view)

    def inputs(self, module: nn.Module, placed: Placed, turn: int, turns: int) -> dict[str, Any]:
        """images, gsd, noise and known, each by sensor; noise [B, L] of L patches. See `scale_alibi.model.ScaleALiBi.forward`."""
        each = len(placed.members) // turns
        part = slice(turn * each, (turn + 1) * each)
        members = placed.members[part]
        tokens = {name: (images.shape[-1] // self.patch) ** 2 for name, images in placed.images.items()}
        return {
            "images": {name: images[part] for name, images in placed.images.items()},
            "gsd": {name: gsd[part] for name, gsd in placed.gsd.items()},
            "known": {name: there[part] for name, there in placed.known.items()},
            "noise": {n: mask_noise(members, count, stream_seed(self.seed, n)) for n, count in tokens.items()},
        }


def normaliser_of(sensor: SensorSection, shards: ShardSet | SyntheticSet, device: torch.device | str) -> Normaliser:
    """Of a resolved sensor: its bands, by its own statistics."""
    spec = shards.manifest["images"][sensor.column]
    pick = band_places(spec, sensor.bands or (), "bands")
    every = pick == list(range(len(spec["bands"])))
    return Normaliser.of(shards, sensor.column, device, sensor.mean, sensor.std, None if every else pick)
