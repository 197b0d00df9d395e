"""Joules of the whole job in its trainer: one meter a node, summed over nodes in a reduction that every step makes anyway."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from frontier.energy.choice import choose
from frontier.energy.meter import Meter
from frontier.energy.source import Access
from frontier.launch.ranks import Ranks


class JobEnergy:
    """Laps of all nodes. On one node a lap goes straight into the row of its step; over several nodes a lap travels with the sums of the next step
    and stands in that row. Nothing is measured unless every node has a meter: a sum over some nodes would pass for the whole.
    """

    def __init__(self, ranks: Ranks, device: torch.device, enabled: bool, access: Access | None = None) -> None:
        """Collective, once, where there is more than one rank and `enabled`."""
        self._meter: Meter | None = None
        source, reason = None, ""
        if enabled and ranks.local_rank == 0:
            source, reason = choose(device.type, ranks.local_world_size, access)
            try:
                self._meter = Meter(source) if source is not None else None
            except Exception as error:  # as of Meter: a vendor's library must not end a run
                reason = str(error)
        metered, nodes = int(self._meter is not None), 1
        if enabled and ranks.world_size > 1:
            counts = torch.tensor([float(metered), float(ranks.local_rank == 0)], device=device)
            dist.all_reduce(counts)
            metered, nodes = (int(count) for count in counts.tolist())
        self._nodes, self._whole = nodes, enabled and metered == nodes
        self._over_nodes = self._whole and nodes > 1
        self._watts: float | None = None
        self._pending = 0.0
        if not enabled:
            reason = "log.energy is off"
        elif 0 < metered < nodes:
            reason = f"{metered} of {nodes} nodes have a meter"
        if not self._whole:
            self.close()
            self._meter = None
        self.facts: dict[str, Any] = {
            "energy_source": self._meter.source.name if self._meter else None,
            "energy_covers": self._meter.source.covers if self._meter else None,
            "energy_why_not": None if self._whole else reason,
        }
        """For starts.jsonl; those of rank 0 stand for all nodes."""

    def start(self) -> None:
        """What was used before the first step does not count."""
        if self._meter is not None:
            self._meter.lap()

    def values(self) -> list[float]:
        """What this rank adds to the sums of the step: joules, watts, and whether it knows its watts; as long on every rank."""
        if not self._over_nodes:
            return []
        joules, self._pending = self._pending, 0.0
        return [joules, self._watts or 0.0, float(self._watts is not None)]

    def step(self, sums: list[float]) -> tuple[float | None, float | None]:
        """(joules, watts) for the row of the step that ends now; None where no counter moved. `sums` are those of `values` over all ranks.

        Joules add up over the rows: what a slow counter holds back stands in a later row.
        """
        lap = self._meter.lap() if self._meter is not None else None
        if lap is not None:
            self._pending += lap.joules
            self._watts = lap.watts
        if self._over_nodes:
            joules, watts, known = sums
            return (joules, watts if known == self._nodes else None) if joules > 0 else (None, None)
        if lap is None:
            return None, None
        self._pending = 0.0
        return lap.joules, lap.watts

    def notes(self) -> list[str]:
        return self._meter.notes() if self._meter is not None else []

    def close(self) -> None:
        if self._meter is not None:
            self._meter.close()
