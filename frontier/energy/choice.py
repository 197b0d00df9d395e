"""Which source to read on this node: Cray pm_counters, AMD, NVIDIA, RAPL, none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from frontier.energy import amd, nvidia, pm_counters, rapl
from frontier.energy.meter import Meter
from frontier.energy.source import Access, Source, Together, Unavailable

NODE_SOURCES: dict[str, Callable[[Access, int], Source]] = {"pm_counters": pm_counters.open_source}
DEVICE_SOURCES: dict[str, Callable[[Access, int], Source]] = {
    "amdsmi": amd.open_library,
    "rocm-smi": amd.open_command,
    "nvml": nvidia.open_library,
    "nvidia-smi": nvidia.open_command,
}
HOST_SOURCES: dict[str, Callable[[Access, int], Source]] = {"rapl": rapl.open_source}
ORDER = {**NODE_SOURCES, **DEVICE_SOURCES, **HOST_SOURCES}


@dataclass(frozen=True)
class Finding:
    """One source on this node: usable, or why not."""

    key: str
    source: Source | None
    reason: str = ""


def _try(key: str, access: Access, ranks: int) -> Finding:
    try:
        source = ORDER[key](access, ranks)
        source.read()
    except Unavailable as error:
        return Finding(key, None, str(error))
    except Exception as error:  # a vendor's library must not end a run
        return Finding(key, None, f"{type(error).__name__}: {error}")
    return Finding(key, source)


def survey(ranks: int = 1, access: Access | None = None) -> list[Finding]:
    """Every source, in the order of preference, each opened and read once."""
    access = access or Access()
    return [_try(key, access, ranks) for key in ORDER]


def choose(device_type: str, ranks: int = 1, access: Access | None = None) -> tuple[Source | None, str]:
    """(source for a run on `device_type`, or None; why those before it were passed over).

    The node as a whole where it can be read; else the devices and, where they can be read too, the processors. On a CPU the processors. A run on
    devices whose power cannot be read has no source: processors alone would pass for its energy.
    """
    access, told = access or Access(), []

    def first(keys: dict[str, Callable[[Access, int], Source]]) -> Source | None:
        for key in keys:
            found = _try(key, access, ranks)
            if found.source is not None:
                return found.source
            told.append(f"{key}: {found.reason}")
        return None

    source = first(NODE_SOURCES)
    if source is None and device_type == "cpu":
        source = first(HOST_SOURCES)
    elif source is None:
        source = first(DEVICE_SOURCES)
        host = first(HOST_SOURCES) if source is not None else None
        if source is not None and host is not None:
            source = Together([source, host])
    return source, "; ".join(told)


def open_meter(device_type: str, ranks: int = 1, access: Access | None = None) -> Meter | None:
    """The meter of this node for a run on `device_type` ("cpu", "cuda") with `ranks` ranks here; None where nothing can be read.

    One process a node opens it.
    """
    source, _ = choose(device_type, ranks, access)
    return Meter(source) if source is not None else None
