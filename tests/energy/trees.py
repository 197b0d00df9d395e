"""Fake /sys/cray/pm_counters and /sys/class/powercap trees, in the format of the real files."""

from __future__ import annotations

import tempfile
import threading
import time
from pathlib import Path

START_US = 1_732_281_422_000_000


def write_cray(root: Path, seconds: float, watts: float = 2000.0, base: float = 218_318_347, **more: int) -> None:
    """A Frontier-like node `seconds` after START: two thirds of `watts` in four modules, the rest as EX235a nodes show it.

    The folder is a link that is moved to a new one, so that a refresh is whole, as the kernel's is.
    """
    folder = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    stamp = f"{START_US + round(seconds * 1e6)} us"
    shares = {"energy": 1.0, "cpu_energy": 0.12, "memory_energy": 0.05, **{f"accel{i}_energy": 1 / 6 for i in range(4)}}
    values = {name: f"{int(base * share + watts * share * seconds)} J {stamp}" for name, share in shares.items()}
    values |= {"power": f"{int(watts)} W {stamp}", "power_cap": f"0 W {stamp}", "raw_scan_hz": "10", "version": "2"}
    values |= {"generation": str(more.get("generation", 5)), "startup": str(more.get("startup", 1_731_000_000_000_000))}
    values["freshness"] = str(int(40_634 + 10 * seconds))
    for name, text in values.items():
        (folder / name).write_text(text + "\n")
    link = folder.with_name(f"{folder.name}-link")
    link.symlink_to(folder.name)
    link.replace(root)


class CrayNode:
    """A tree that a thread keeps up to date at 10 Hz."""

    def __init__(self, root: Path, watts: float) -> None:
        self.root, self.watts, self._began = root, watts, time.monotonic()
        self._ended = threading.Event()
        write_cray(root, 0.0, watts)
        self._thread = threading.Thread(target=self._tick, daemon=True)

    def _tick(self) -> None:
        while not self._ended.wait(0.1):
            write_cray(self.root, time.monotonic() - self._began, self.watts)

    def __enter__(self) -> CrayNode:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


RANGE_UJ = 262_143_328_850


def write_zone(root: Path, zone: str, name: str, microjoules: int) -> Path:
    """One powercap zone, as Linux lays it out: sub-zones stand beside their parents."""
    folder = root / zone
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "name").write_text(name + "\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    (folder / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
    return folder / "energy_uj"


def write_rapl(root: Path) -> None:
    """Two packages with cores and memory inside, a platform zone around, and the first package once more through MMIO."""
    (root / "intel-rapl").mkdir(parents=True)
    for i in range(2):
        write_zone(root, f"intel-rapl:{i}", f"package-{i}", 1_000_000 * (10 + i))
        write_zone(root, f"intel-rapl:{i}:0", "core", 900_000)
        write_zone(root, f"intel-rapl:{i}:1", "dram", 2_000_000)
    write_zone(root, "intel-rapl:2", "psys", 99_000_000)
    write_zone(root, "intel-rapl-mmio:0", "package-0", 10_000_000)
