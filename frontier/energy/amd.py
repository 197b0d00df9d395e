"""AMD devices, through the amdsmi library or the rocm-smi command, summed by MODULE.

The two dies (GCDs) of an MI250X are two devices with one power rail: one of them reports for both, the other shows 0 or
"N/A (Secondary die)". Where both show the module's figure (same serial number), it is counted once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from frontier.energy.source import Access, Integrated, Source, Unavailable

POWER_KEYS = ("Average Graphics Package Power (W)", "Current Socket Graphics Package Power (W)")
ENERGY_KEY, SERIAL_KEY = "Accumulated Energy (uJ)", "Serial Number"
COMMAND = ("rocm-smi", "--showenergycounter", "--showpower", "--showserial", "--json")
NO_SERIAL = ("", "0", "n/a", "none", "unknown")


@dataclass(frozen=True)
class Die:
    """What one device says; None where it says nothing (the second die of a module)."""

    name: str
    module: str
    joules: float | None
    watts: float | None


def number(value: Any) -> float | None:
    """A positive number, or None: 0, "N/A" and "N/A (Secondary die)" alike mean that this die does not report."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if found > 0 else None


def module_of(name: str, serial: Any) -> str:
    """Dies with the same serial number share a module; without one, a die stands for itself."""
    text = str(serial or "").strip()
    return name if text.lower() in NO_SERIAL else text


def by_module(dies: Sequence[Die], field: str) -> dict[str, float]:
    """`joules` or `watts` of each module, named after its reporting die: the largest of its dies, not their sum."""
    found: dict[str, tuple[float, str]] = {}
    for die in dies:
        value = getattr(die, field)
        if value is not None and value > found.get(die.module, (0.0, ""))[0]:
            found[die.module] = value, found[die.module][1] if die.module in found else die.name
    return {name: value for value, name in found.values()}


def parse_rocm_smi(text: str) -> list[Die]:
    """Output of `rocm-smi … --json`, which may begin with warnings. Raises Unavailable where it is no such thing."""
    try:
        cards = json.loads(text[text.index("{") :])
    except ValueError:
        raise Unavailable("rocm-smi printed no JSON") from None
    dies = []
    for name, card in cards.items():
        if not name.startswith("card") or not isinstance(card, dict):
            continue
        joules = number(card.get(ENERGY_KEY))
        watts = next((value for key in POWER_KEYS if (value := number(card.get(key))) is not None), None)
        dies.append(Die(name, module_of(name, card.get(SERIAL_KEY)), joules and joules / 1e6, watts))
    return dies


def _enough(dies: Sequence[Die], ranks: int) -> None:
    if not dies:
        raise Unavailable("no AMD device")
    if len(dies) < ranks:
        raise Unavailable(
            f"{len(dies)} device(s) visible to this process for {ranks} ranks on the node: the rest would be missing"
        )


class _Counters(Source):
    """Energy counters of all modules."""

    def __init__(self, name: str, dies: Any, period_s: float, slow: bool) -> None:
        super().__init__()
        self.name, self._dies, self.period_s, self.slow = name, dies, period_s, slow
        self.covers = _covers(len(self.read()))

    def read(self) -> dict[str, float]:
        return by_module(self._dies(), "joules")

    def sensor_w(self) -> float | None:
        return sum(by_module(self._dies(), "watts").values()) or None


def _covers(modules: int) -> str:
    return f"{modules} AMD module(s), all their dies"


def _open(name: str, dies: Any, ranks: int, period_s: float, slow: bool) -> Source:
    """Energy counters where there are any, else power."""
    found = dies()
    _enough(found, ranks)
    if by_module(found, "joules"):
        return _Counters(f"{name} energy counters", dies, period_s, slow)
    modules = len(by_module(found, "watts"))
    if not modules:
        raise Unavailable(f"{name} shows neither energy nor power of any device")
    return Integrated(name, _covers(modules), lambda: by_module(dies(), "watts"), max(period_s, 0.2))


def open_library(access: Access, ranks: int) -> Source:
    """The amdsmi library. Raises Unavailable where it is not installed or finds no device."""
    try:
        smi = access.load("amdsmi")
    except Exception as error:  # ImportError, or whatever the package raises without a ROCm library beside it
        raise Unavailable(f"no Python module amdsmi ({error})") from None
    try:
        smi.amdsmi_init()
        handles = smi.amdsmi_get_processor_handles()
    except Exception as error:  # the library's own classes, which change between versions
        raise Unavailable(f"amdsmi: {error}") from None

    def ask(function: str, handle: Any) -> dict[str, Any]:
        try:
            answer = getattr(smi, function)(handle)
        except Exception:  # not supported by this device
            return {}
        return answer if isinstance(answer, dict) else {}

    names = [f"gpu{i}" for i in range(len(handles))]
    serials = [ask("amdsmi_get_gpu_board_info", handle).get("product_serial") for handle in handles]
    modules = [module_of(name, serial) for name, serial in zip(names, serials, strict=True)]

    def dies() -> list[Die]:
        found = []
        for name, module, handle in zip(names, modules, handles, strict=True):
            energy = ask("amdsmi_get_energy_count", handle)
            count = number(energy.get("energy_accumulator", energy.get("power")))
            resolution = number(energy.get("counter_resolution"))
            joules = count * resolution / 1e6 if count and resolution else None
            power = ask("amdsmi_get_power_info", handle)
            watts = number(power.get("average_socket_power")) or number(power.get("current_socket_power"))
            found.append(Die(name, module, joules, watts))
        return found

    return _open("amdsmi", dies, ranks, 0.1, slow=False)


def open_command(access: Access, ranks: int) -> Source:
    """The rocm-smi command, a good part of a second a call. Raises Unavailable."""
    return _open("rocm-smi", lambda: parse_rocm_smi(access.run(COMMAND)), ranks, 1.0, slow=True)
