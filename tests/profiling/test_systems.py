"""The shipped system descriptions load, and hold what their sources say where arithmetic can tell."""

from __future__ import annotations

import pytest
import yaml

from frontier.errors import UserError
from frontier.train.metrics import PEAK_BF16_TFLOPS
from frontier_profiling.predict.system import FOLDER, load_system, system_names

NAMES = ("aurora", "frontier", "h200", "jupiter", "lumi", "perlmutter")


def test_all_are_there() -> None:
    assert set(NAMES) <= set(system_names())


@pytest.mark.parametrize("name", NAMES)
def test_each_is_whole(name: str) -> None:
    system = load_system(name)
    assert system.name == name and len(str(system.source)) > 40
    assert system.device.peak_tflops["bf16"] > system.device.peak_tflops["fp32"]
    assert system.links[-1].devices == system.node.devices and system.network is not None
    assert system.network.nics is None or system.network.node_gb_per_s / system.network.nics in (25, 50)


def test_peaks_are_those_of_the_device_that_torch_sees() -> None:
    clock_ghz, units = 1.7, 110
    for name in ("frontier", "lumi"):
        device = load_system(name).device
        assert device.peak_tflops["bf16"] == pytest.approx(1024 * units * clock_ghz / 1e3, rel=1e-3)
        assert device.peak_tflops["fp32"] == pytest.approx(256 * units * clock_ghz / 1e3, rel=1e-2)
    assert load_system("aurora").device.peak_tflops["bf16"] == pytest.approx(448 * 512 * 1.3 / 1e3, rel=1e-3)
    for name, word in (("perlmutter", "A100"), ("jupiter", "GH200"), ("h200", "H200"), ("frontier", "MI250X")):
        assert load_system(name).device.peak_tflops["bf16"] == pytest.approx(PEAK_BF16_TFLOPS[word], rel=1e-3)


def test_the_frontier_node() -> None:
    system = load_system("frontier")
    assert (system.node.devices, system.nodes, system.device.memory_gib) == (8, 9472, 63.98)
    assert [(link.devices, link.gb_per_s) for link in system.links] == [(2, 200), (8, 50)]


BROKEN = [
    ({"efficiency": {"launch_s": "abc"}}, "efficiency.launch_s: give a number"),
    ({"efficiency": {"lunch_s": 1}}, "did you mean 'launch_s'?"),
    ({"efficiency": {"product_efficiency_bf16": {"valu": 1}}}, "give a number"),
    ({"efficiency": {"product_efficiency_bf16": 0}}, "a positive number"),
    ({"efficiency": {"memory_efficiency": float("nan")}}, "give a number"),
    ({"efficiency": {"overlap": 7}}, "0 to 1"),
    ({"efficiency": {"spread": 0}}, "1 or more"),
    ({"device": {"peak_tflops": {"bf16": -1}}}, "greater than 0"),
    ({"device": {"peak_tflops": {}}}, "at least 1"),
    ({"device": {"memory_gib": float("inf")}}, "finite"),
    ({"device": {"type": "quantum"}}, "'cuda', 'xpu' or 'cpu'"),
    ({"device": {"memry_gib": 4}}, "did you mean 'memory_gib'?"),
    ({"node": {"host_w": -1}}, "node.host_w"),
    ({"network": {"latency_s": float("inf")}}, "finite"),
    ({"network": None}, "needs one"),
    ({"foo": 1}, "foo is no key"),
]


@pytest.mark.parametrize(("change", "said"), BROKEN)
def test_a_broken_file_is_refused(tmp_path, change, said) -> None:
    whole = yaml.safe_load((FOLDER / "frontier.yaml").read_text())
    for key, value in change.items():
        whole[key] = {**whole[key], **value} if isinstance(value, dict) and isinstance(whole.get(key), dict) else value
    path = tmp_path / "broken.yaml"
    path.write_text(yaml.safe_dump(whole))
    with pytest.raises(UserError) as error:
        load_system(str(path))
    assert said in str(error.value) and "Value error" not in str(error.value)


def test_bytes_are_no_system(tmp_path) -> None:
    (tmp_path / "bytes.yaml").write_bytes(bytes(range(128, 256)))
    with pytest.raises(UserError, match="no text"):
        load_system(str(tmp_path / "bytes.yaml"))
