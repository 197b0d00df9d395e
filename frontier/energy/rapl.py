"""Processor packages and memory through Linux powercap: /sys/class/powercap/intel-rapl:* (AMD processors as well).

Zones overlap: `core` and `uncore` lie inside their package, `psys` around all of them, `intel-rapl-mmio` shows a package again. Counted are
packages, each once, and `dram`, which no package includes.
"""

from __future__ import annotations

from pathlib import Path

from frontier.energy.source import Access, Rising, Source, Unavailable, read_small


class Rapl(Source):
    name = "RAPL"
    period_s = 0.05

    def __init__(self, root: Path) -> None:
        """Raises Unavailable where there is no package or its counter may not be read."""
        super().__init__()
        if not root.is_dir():
            raise Unavailable(f"no {root}: no powercap driver, or a virtual machine")
        self._zones: dict[str, tuple[str, float | None]] = {}
        self._rising = Rising()
        packages = 0
        for zone in sorted(root.glob("intel-rapl:*")):
            name = _text(zone / "name")
            if zone.name.count(":") == 1 and name.startswith("package"):
                packages += name not in self._zones
                self._add(name, zone)
            elif zone.name.count(":") == 2 and name == "dram":
                self._add(f"dram-{zone.name.split(':')[1]}", zone)
        if not packages:
            raise Unavailable(f"no processor package in {root}")
        dram = any(part.startswith("dram") for part in self._zones)
        self.covers = f"{packages} processor package(s)" + (" and memory" if dram else ", memory not measured")

    def _add(self, part: str, zone: Path) -> None:
        if part in self._zones:
            return
        limit = _text(zone / "max_energy_range_uj")
        self._zones[part] = str(zone / "energy_uj"), float(limit) if limit.isdigit() else None

    def read(self) -> dict[str, float]:
        reading = {}
        for part, (path, limit) in self._zones.items():
            try:
                raw = float(read_small(path))
            except PermissionError:
                raise Unavailable(
                    f"{path} may be read by root alone (as most systems have it since 2020): "
                    "an administrator can allow it, `chmod a+r` on energy_uj"
                ) from None
            except (OSError, ValueError) as error:
                raise Unavailable(f"{path}: {error}") from None
            reading[part] = self._rising.follow(part, raw, limit) / 1e6
        return reading


def _text(path: Path) -> str:
    try:
        return read_small(path).strip()
    except OSError:
        return ""


def open_source(access: Access, ranks: int) -> Source:
    """Raises Unavailable. Packages are read whole, so `ranks` (on this node) has no part in it."""
    return Rapl(access.powercap)
