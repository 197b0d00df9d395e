"""Laps, integration, and which source a node gets."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from frontier.energy import open_meter
from frontier.energy.choice import ORDER, choose, survey
from frontier.energy.meter import Meter
from frontier.energy.source import Access, Integrated, Source, Unavailable
from tests.energy.test_devices import answering, fake_nvml, no_module
from tests.energy.trees import write_cray, write_rapl


class Counter(Source):
    name, covers = "test counter", "nothing"

    def __init__(self) -> None:
        super().__init__()
        self.value, self.fails = 100.0, False
        self.stamp = 0.0

    def read(self) -> dict[str, float]:
        if self.fails:
            raise Unavailable("gone")
        return {"a": self.value, "b": 1.0}


def nothing(tmp_path: Path, **more: object) -> Access:
    """A machine without any source, but those given."""

    def run(command: object) -> str:
        raise Unavailable("no command")

    sources: dict = {
        "pm_counters": tmp_path / "no",
        "powercap": tmp_path / "no",
        "run": run,
        "load": no_module,
        "environment": {},
    }
    return Access(**{**sources, **more})


def test_laps_add_up_and_are_never_zero() -> None:
    source = Counter()
    meter = Meter(source)
    assert meter.lap() is None
    source.value, source.stamp = 150.0, 0.5
    lap = meter.lap()
    assert lap is not None
    assert (lap.joules, lap.seconds, lap.watts, lap.parts) == (50.0, 0.5, 100.0, {"a": 50.0, "b": 0.0})
    assert meter.lap() is None  # the counter has not moved: not 0 joules


def test_a_failing_source_loses_nothing_when_it_recovers() -> None:
    source = Counter()
    meter = Meter(source)
    source.value, source.stamp, source.fails = 150.0, 1.0, True
    assert meter.lap() is None and meter.lap() is None
    assert [note for note in meter.notes() if "gone" in note] == ["energy: test counter cannot be read any more (gone)"]
    source.value, source.stamp, source.fails = 170.0, 2.0, False
    lap = meter.lap()
    assert lap is not None and lap.joules == 70.0


def test_power_is_integrated_by_trapezoids() -> None:
    times, watts = iter([0.0, 0.0, 2.0, 2.0, 3.0, 3.0]), iter([{"g": 100.0}, {"g": 200.0}, {"g": 200.0, "late": 50.0}])
    source = Integrated("test", "", lambda: next(watts), 1.0, clock=lambda: next(times))
    assert source.name == "test power, integrated"
    assert source.read() == {"g": 0.0}
    assert source.read() == {"g": 300.0}
    assert source.read() == {"g": 500.0, "late": 0.0}
    assert source.stamp == 3.0


def test_slow_sources_are_read_beside_the_steps() -> None:
    calls = []

    def slow() -> dict[str, float]:
        calls.append(time.monotonic())
        time.sleep(0.02)
        return {"g": 1000.0}

    meter = Meter(Integrated("test", "", slow, 0.05))
    assert meter.threaded
    began = len(calls)
    for _ in range(200):
        meter.lap()
    assert len(calls) - began < 50, "laps read the source themselves"
    deadline = time.monotonic() + 20
    lap = None
    while lap is None and time.monotonic() < deadline:
        time.sleep(0.02)
        lap = meter.lap()
    meter.close()
    assert lap is not None and lap.watts == pytest.approx(1000.0)


def test_order_of_preference(tmp_path: Path) -> None:
    write_cray(tmp_path / "pm", 0.0)
    write_rapl(tmp_path / "cap")
    nvml = {"load": lambda name: fake_nvml([5000, 5000]) if name == "pynvml" else no_module(name)}

    def name(device: str, **more: object) -> str | None:
        source, _ = choose(device, 1, nothing(tmp_path, **more))
        return source.name if source else None

    cray, rapl = {"pm_counters": tmp_path / "pm"}, {"powercap": tmp_path / "cap"}
    assert name("cuda", **cray, **rapl, **nvml) == name("cpu", **cray, **rapl) == "Cray pm_counters"
    assert name("cuda", **rapl, **nvml) == "NVML energy counters + RAPL"
    assert name("cuda", **nvml) == "NVML energy counters"
    assert name("cpu", **rapl, **nvml) == "RAPL"  # devices that the run does not use are not its energy
    assert name("cuda", **rapl) is None  # the processors alone would pass for the run's energy
    assert name("cuda") is None and name("cpu") is None


def test_devices_and_processors_add_up(tmp_path: Path) -> None:
    write_rapl(tmp_path / "cap")
    access = nothing(
        tmp_path,
        powercap=tmp_path / "cap",
        load=lambda name: fake_nvml([5000, 5000]) if name == "pynvml" else no_module(name),
    )
    meter = open_meter("cuda", 2, access)
    assert meter is not None
    assert sum(meter.source.read().values()) == pytest.approx(10 + 25)
    meter.close()
    assert open_meter("cuda", 2, nothing(tmp_path)) is None


def test_whatever_a_vendors_library_raises_does_not_end_a_run(tmp_path: Path) -> None:
    def broken(name: str) -> object:
        raise SyntaxError("half an installation")

    source, why = choose("cuda", 1, nothing(tmp_path, load=broken))
    assert source is None and "nvml: SyntaxError: half an installation" in why


def test_why_nothing_can_be_read(tmp_path: Path) -> None:
    source, why = choose("cuda", 1, nothing(tmp_path))
    assert source is None
    for key in ("pm_counters", "amdsmi", "rocm-smi", "nvml", "nvidia-smi"):
        assert f"{key}: " in why
    found = survey(access=nothing(tmp_path, run=answering("0, GPU-a, 40.0\n")))
    assert [f.key for f in found] == list(ORDER)
    assert {f.key for f in found if f.source} == {"nvidia-smi"}
    assert all(f.reason for f in found if not f.source)


def test_nothing_heavy_is_imported() -> None:
    code = "import sys, frontier.energy, frontier.energy.__main__; print([m for m in ('torch', 'numpy', 'pynvml', 'amdsmi') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
