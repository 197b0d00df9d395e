"""Devices: the parsers on real logs, the MI250X rule, and the libraries through fakes."""

from __future__ import annotations

import json
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from frontier.energy import amd, nvidia
from frontier.energy.source import Access, Unavailable, total
from tests.conftest import SHARED_DATA

LOGS = SHARED_DATA / "hpc_logs"
real_logs = pytest.mark.skipif(not LOGS.is_dir(), reason="the shared real logs are not here")


def log(name: str) -> str:
    return (LOGS / name).read_text()


def answering(*answers: str) -> Callable[[Sequence[str]], str]:
    """A command that prints these in turn, then the last for ever."""
    left = list(answers)
    return lambda command: left.pop(0) if len(left) > 1 else left[0]


def no_module(name: str) -> Any:
    raise ImportError(f"No module named {name!r}")


@real_logs
@pytest.mark.parametrize(
    ("name", "watts"),
    [
        ("mi100_rocm571", [39.0, 37.0, 35.0, 39.0, 39.0, 40.0]),
        ("vega-10-XT", [15.0]),
        ("vega-20-WKS-GL-XE", [26.0]),
    ],
)
def test_rocm_smi_logs(name: str, watts: list[float]) -> None:
    """The MI100s all have serial number 0: they are six modules, not one. None of these has an energy counter."""
    dies = amd.parse_rocm_smi(log(f"telegraf_smi/amd_rocm_smi_testdata_{name}.json"))
    assert list(amd.by_module(dies, "watts").values()) == watts
    assert amd.by_module(dies, "joules") == {}
    source = amd.open_command(Access(run=lambda _: log(f"telegraf_smi/amd_rocm_smi_testdata_{name}.json")), len(watts))
    assert source.name == "rocm-smi power, integrated"
    assert source.slow


def mi250x(joules: Sequence[Any], watts: Sequence[Any], serials: bool = True) -> str:
    """`rocm-smi --json` of a node of MI250X modules, two dies each, after warnings such as it prints."""
    cards: dict[str, Any] = {}
    for i, (energy, power) in enumerate(zip(joules, watts, strict=True)):
        cards[f"card{i}"] = {"Average Graphics Package Power (W)": str(power)}
        if energy is not None:
            cards[f"card{i}"] |= {"Energy counter": "1", "Accumulated Energy (uJ)": str(energy)}
        if serials:
            cards[f"card{i}"]["Serial Number"] = f"PCB0527{i // 2:02d}-0065"
    return "WARNING: AMD GPU device(s) is/are in a low-power state\n\n" + json.dumps(
        {**cards, "system": {"Driver version": "6.2.4"}}
    )


SECOND = "N/A (Secondary die)"


@pytest.mark.parametrize("serials", [True, False])
@pytest.mark.parametrize("second", [SECOND, "0.0", "N/A"])
def test_one_die_of_a_module_reports_for_both(second: str, serials: bool) -> None:
    text = mi250x([None] * 8, [300.0, second, 310.0, second, 320.0, second, 330.0, second], serials)
    assert amd.by_module(amd.parse_rocm_smi(text), "watts") == {
        "card0": 300.0,
        "card2": 310.0,
        "card4": 320.0,
        "card6": 330.0,
    }


def test_dies_that_both_show_their_module_count_once() -> None:
    text = mi250x([5e12, 5e12, 7e12, 0], [89.0, 89.0, 91.0, 0.0])
    dies = amd.parse_rocm_smi(text)
    assert amd.by_module(dies, "watts") == {"card0": 89.0, "card2": 91.0}
    assert amd.by_module(dies, "joules") == {"card0": 5e6, "card2": 7e6}


def test_rocm_smi_prefers_its_counter() -> None:
    before = mi250x([5e12, 0, 7e12, 0], [300, SECOND] * 2)
    after = mi250x([5e12 + 9e6, 0, 7e12 + 1e6, 0], [300, SECOND] * 2)
    run = answering(before, before, before, after)
    source = amd.open_command(Access(run=run), 4)
    assert source.sensor_w() == 600
    assert (source.name, source.covers) == ("rocm-smi energy counters", "2 AMD module(s), all their dies")
    assert total(source.read()) == pytest.approx(12e6 + 10)


def test_fewer_devices_than_ranks_is_refused() -> None:
    """A launcher that binds one device to each task hides the others from the process that reads."""
    with pytest.raises(Unavailable, match="2 device.* for 8 ranks"):
        amd.open_command(Access(run=answering(mi250x([None] * 2, [300, SECOND]))), 8)
    with pytest.raises(Unavailable, match="1 device.* for 4 ranks"):
        nvidia.open_command(Access(run=answering("0, GPU-a, 67.03\n"), environment={}), 4)


def test_no_amd_device_says_so() -> None:
    for text in ("no GPUs", '{"system": {}}', mi250x([None], ["N/A"])):
        with pytest.raises(Unavailable):
            amd.open_command(Access(run=answering(text)), 1)
    with pytest.raises(Unavailable, match="no Python module amdsmi"):
        amd.open_library(Access(load=no_module), 1)


def fake_amdsmi(counters: list[int], powers: list[Any], key: str = "energy_accumulator") -> Any:
    class Refused(Exception):
        pass

    def energy(handle: int) -> dict[str, Any]:
        if not counters:
            raise Refused("not supported")
        return {key: counters[handle], "counter_resolution": 15.259, "timestamp": 1}

    return types.SimpleNamespace(
        amdsmi_init=lambda: None,
        amdsmi_get_processor_handles=lambda: list(range(len(powers))),
        amdsmi_get_gpu_board_info=lambda handle: {"product_serial": f"M{handle // 2}"},
        amdsmi_get_energy_count=energy,
        amdsmi_get_power_info=lambda handle: {"average_socket_power": powers[handle], "current_socket_power": "N/A"},
    )


@pytest.mark.parametrize("key", ["energy_accumulator", "power"])  # before ROCm 6.2.1 the second
def test_amdsmi_counters(key: str) -> None:
    counters = [10**12, 0, 2 * 10**12, 0]
    source = amd.open_library(Access(load=lambda _: fake_amdsmi(counters, [300, 0, 300, 0], key)), 4)
    assert source.name == "amdsmi energy counters"
    assert source.sensor_w() == 600
    first = total(source.read())
    counters[0] += 1_000_000
    assert total(source.read()) - first == pytest.approx(15.259, rel=1e-4)


def test_amdsmi_without_counters_integrates_power() -> None:
    source = amd.open_library(Access(load=lambda _: fake_amdsmi([], [300, 0, "N/A", 310])), 4)
    assert source.name == "amdsmi power, integrated"
    assert set(source.read()) == {"gpu0", "gpu3"}


A100_UUID = "GPU-513536b6-7d19-9063-b049-1e69664bb298"


@real_logs
def test_nvidia_smi_logs() -> None:
    assert nvidia.parse(log("telegraf_smi/nvidia_smi_testdata_a100-sxm4-v12.xml")) == {
        A100_UUID: 67.03
    }  # not its MIG slices, not N/A of the module
    watts = nvidia.parse(log("sonar_slurm/src_testdata_nvidia-smi-output.txt"))
    assert list(watts.values())[:2] == [191.43, 40.23]
    assert len(watts) == 4 and next(iter(watts)).startswith("GPU-2a8f06c3")


def test_nvidia_smi_field_names_of_other_drivers() -> None:
    xml = "<nvidia_smi_log><gpu id='0'><uuid>GPU-x</uuid>{}</gpu></nvidia_smi_log>"
    newer = "<gpu_power_readings><average_power_draw>80.1 W</average_power_draw><instant_power_draw>82.5 W</instant_power_draw></gpu_power_readings>"
    older = "<power_readings><power_draw>61.22 W</power_draw></power_readings>"
    absent = "<gpu_power_readings><power_draw>N/A</power_draw></gpu_power_readings>"
    assert [nvidia.parse(xml.format(x)) for x in (newer, older, absent)] == [{"GPU-x": 82.5}, {"GPU-x": 61.22}, {}]
    assert nvidia.parse("0, GPU-a, 67.03\n1, GPU-b, [N/A]\n") == {"GPU-a": 67.03}
    with pytest.raises(Unavailable):
        nvidia.parse("<broken")


def test_which_nvidia_devices_count() -> None:
    uuids = ["GPU-aa", "GPU-bb", "GPU-cc", "GPU-dd"]
    assert nvidia.in_use(uuids, None, 4) == [0, 1, 2, 3]
    assert nvidia.in_use(uuids, "2,3", 2) == [2, 3]
    assert nvidia.in_use(uuids, "GPU-bb", 1) == [1]
    assert nvidia.in_use(uuids, "1", 4) == [0, 1, 2, 3]  # each rank is shown one device; together they use all
    with pytest.raises(Unavailable):
        nvidia.in_use([], None, 1)


def fake_nvml(millijoules: list[int] | None) -> Any:
    def energy(handle: int) -> int:
        if millijoules is None:
            raise RuntimeError("Not Supported")
        return millijoules[handle]

    return types.SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda i: i,
        nvmlDeviceGetUUID=lambda handle: f"GPU-{handle}".encode(),
        nvmlDeviceGetTotalEnergyConsumption=energy,
        nvmlDeviceGetPowerUsage=lambda handle: 67_030,
    )


def test_nvml_counters_and_power() -> None:
    source = nvidia.open_library(Access(load=lambda _: fake_nvml([5_000, 7_500]), environment={}), 2)
    assert (source.name, source.read()) == ("NVML energy counters", {"gpu0": 5.0, "gpu1": 7.5})
    old = nvidia.open_library(Access(load=lambda _: fake_nvml(None), environment={"CUDA_VISIBLE_DEVICES": "1"}), 1)
    assert old.name == "NVML power, integrated"
    assert set(old.read()) == {"gpu1"}
    with pytest.raises(Unavailable, match="pynvml"):
        nvidia.open_library(Access(load=no_module), 1)


def test_missing_commands_say_so(tmp_path: Path) -> None:
    from frontier.energy.source import run_command

    with pytest.raises(Unavailable, match="no command"):
        run_command(["frontier-no-such-command"])
    with pytest.raises(Unavailable, match="exits with 3: driver gone"):
        run_command(["sh", "-c", "echo driver gone >&2; exit 3"])
