"""NVIDIA devices: NVML's cumulative counters (Volta and later), else power from NVML or nvidia-smi, integrated."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from typing import Any

from frontier.energy.source import Access, Integrated, Source, Unavailable

COMMAND = ("nvidia-smi", "--query-gpu=index,uuid,power.draw", "--format=csv,noheader,nounits")
FULL_COMMAND = ("nvidia-smi", "-q", "-x")
DRAWS = ("instant_power_draw", "power_draw", "average_power_draw")
"""Their name depends on the driver."""


def _watts(text: str | None) -> float | None:
    words = (text or "").split()
    try:
        return float(words[0])
    except (IndexError, ValueError):
        return None  # N/A, [N/A], [Not Supported]


def parse_xml(text: str) -> dict[str, float]:
    """Watts by UUID from `nvidia-smi -q -x`: the device's own figure, not the module's."""
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise Unavailable(f"nvidia-smi: not the XML expected ({error})") from None
    found: dict[str, float] = {}
    for gpu in root.iter("gpu"):
        readings = gpu.find("gpu_power_readings")
        readings = gpu.find("power_readings") if readings is None else readings
        if readings is None:
            continue
        watts = next((w for name in DRAWS if (w := _watts(readings.findtext(name))) is not None), None)
        if watts is not None:
            found[gpu.findtext("uuid") or gpu.get("id") or str(len(found))] = watts
    return found


def parse_text(text: str) -> dict[str, float]:
    """Watts by UUID from `nvidia-smi -q`."""
    found = {}
    for part in re.split(r"^GPU (?=[0-9A-F]{4,}:)", text, flags=re.MULTILINE)[1:]:
        uuid = re.search(r"GPU UUID\s*: (\S+)", part)
        section = re.search(r"^ +(?:GPU )?Power Readings *$(.*?)(?=^ {4}\S|\Z)", part, flags=re.MULTILINE | re.DOTALL)
        draw = re.search(r"Power Draw\s*: ([\d.]+) W", section[1]) if section else None
        if draw:
            found[uuid[1] if uuid else part.split()[0]] = float(draw[1])
    return found


def parse_csv(text: str) -> dict[str, float]:
    """Watts by UUID from lines `index, uuid, watts`."""
    rows = [[cell.strip() for cell in line.split(",")] for line in text.splitlines()]
    return {row[1]: watts for row in rows if len(row) == 3 and (watts := _watts(row[2])) is not None}


def parse(text: str) -> dict[str, float]:
    """Watts by UUID from any of the three forms."""
    head = text.lstrip()[:200]
    return parse_xml(text) if head.startswith("<") else parse_text(text) if "NVSMI LOG" in head else parse_csv(text)


def in_use(uuids: Sequence[str], visible: str | None, ranks: int) -> list[int]:
    """Indices of the devices that count: those of CUDA_VISIBLE_DEVICES where it names enough for all `ranks` of the node, else all.

    A launcher that shows each rank one device sets the variable of this process to that one alone. Raises Unavailable where fewer devices than
    ranks are seen: a sum over a part would pass for the whole.
    """
    chosen = []
    for word in (visible or "").split(","):
        word = word.strip()
        chosen += [
            i for i, uuid in enumerate(uuids) if word == str(i) or (word.startswith("GPU-") and uuid.startswith(word))
        ]
    if len(chosen) < ranks:
        chosen = list(range(len(uuids)))
    if not chosen:
        raise Unavailable("no NVIDIA device")
    if len(chosen) < ranks:
        raise Unavailable(
            f"{len(chosen)} device(s) visible to this process for {ranks} ranks on the node: the rest would be missing"
        )
    return chosen


class NvmlCounters(Source):
    """Millijoules since the driver was loaded."""

    name = "NVML energy counters"
    period_s = 0.1

    def __init__(self, nvml: Any, handles: dict[str, Any]) -> None:
        super().__init__()
        self._nvml, self._handles = nvml, handles
        self.covers = _covers(len(handles))

    def read(self) -> dict[str, float]:
        try:
            return {n: self._nvml.nvmlDeviceGetTotalEnergyConsumption(h) / 1e3 for n, h in self._handles.items()}
        except Exception as error:  # pynvml's own class, which is not imported here
            raise Unavailable(f"NVML: {error}") from None

    def sensor_w(self) -> float | None:
        return sum(self._nvml.nvmlDeviceGetPowerUsage(handle) for handle in self._handles.values()) / 1e3


def _covers(devices: int) -> str:
    return f"{devices} NVIDIA device(s)"


def open_library(access: Access, ranks: int) -> Source:
    """NVML through pynvml (package nvidia-ml-py). Raises Unavailable."""
    try:
        nvml = access.load("pynvml")
    except ImportError:
        raise Unavailable("no Python module pynvml (pip install nvidia-ml-py)") from None
    try:
        nvml.nvmlInit()
        every = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
        uuids = [uuid.decode() if isinstance(uuid := nvml.nvmlDeviceGetUUID(h), bytes) else str(uuid) for h in every]
    except Exception as error:  # pynvml's own class
        raise Unavailable(f"NVML: {error}") from None
    handles = {f"gpu{i}": every[i] for i in in_use(uuids, access.environment.get("CUDA_VISIBLE_DEVICES"), ranks)}
    counters = NvmlCounters(nvml, handles)
    try:
        counters.read()
        return counters
    except Unavailable:
        pass

    def watts() -> dict[str, float]:
        try:
            return {name: nvml.nvmlDeviceGetPowerUsage(handle) / 1e3 for name, handle in handles.items()}
        except Exception as error:  # pynvml's own class
            raise Unavailable(f"NVML: {error}") from None

    watts()
    return Integrated("NVML", _covers(len(handles)), watts, 0.1)


def open_command(access: Access, ranks: int) -> Source:
    """Power by nvidia-smi, once a second. Raises Unavailable."""
    command, found = COMMAND, parse(access.run(COMMAND))
    if not found:
        command, found = FULL_COMMAND, parse(access.run(FULL_COMMAND))
    if not found:
        raise Unavailable("nvidia-smi shows the power of no device")
    uuids = list(found)
    names = {uuids[i]: f"gpu{i}" for i in in_use(uuids, access.environment.get("CUDA_VISIBLE_DEVICES"), ranks)}

    def watts() -> dict[str, float]:
        return {names[uuid]: value for uuid, value in parse(access.run(command)).items() if uuid in names}

    return Integrated("nvidia-smi", _covers(len(names)), watts, 1.0)
