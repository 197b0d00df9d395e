"""Counters in files: Cray pm_counters and RAPL, on trees made by hand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from frontier.energy import pm_counters, rapl
from frontier.energy.source import Access, Unavailable, total
from tests.energy.trees import RANGE_UJ, write_cray, write_rapl, write_zone


@pytest.fixture
def cray(tmp_path: Path) -> Path:
    write_cray(tmp_path / "pm", 0.0)
    return tmp_path / "pm"


def test_cray_reads_the_node_and_its_parts(cray: Path) -> None:
    source = pm_counters.PmCounters(cray)
    first = source.read()
    assert set(first) == {"node", "cpu", "memory", "accel0", "accel1", "accel2", "accel3"}
    assert first["node"] == 218_318_347
    began = source.stamp
    write_cray(cray, 2.5)
    second = source.read()
    assert total(second) - total(first) == pytest.approx(5000)  # the node alone: its parts are inside
    assert source.stamp is not None and began is not None
    assert source.stamp - began == pytest.approx(2.5)
    assert second["accel2"] - first["accel2"] == pytest.approx(5000 / 6, abs=1)
    assert not source.notes


def test_cray_without_numbered_modules(cray: Path) -> None:
    for i in range(4):
        (cray / f"accel{i}_energy").rename(cray / f"old{i}")
    (cray / "accel_energy").write_text("1234 J 1732281422000000 us\n")
    assert pm_counters.PmCounters(cray).read()["accel"] == 1234


def test_cray_torn_reads_are_rejected(cray: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refresh in the middle of a read: that read does not count, the next whole one does."""
    source = pm_counters.PmCounters(cray)
    real, refreshes = pm_counters.read_small, []

    def refresh_while_reading(path: str) -> str:
        text = real(path)
        if path.endswith("memory_energy") and len(refreshes) < 2:
            refreshes.append(path)
            write_cray(cray, 10.0 * len(refreshes))
        return text

    monkeypatch.setattr(pm_counters, "read_small", refresh_while_reading)
    reading = source.read()
    assert len(refreshes) == 2
    assert reading["node"] == 218_318_347 + 40_000  # of one refresh, the last: not the first node with later modules
    assert reading["accel0"] == int(218_318_347 / 6 + 40_000 / 6)

    def always(path: str) -> str:
        write_cray(cray, 100.0 + len(refreshes))
        refreshes.append(path)
        return real(path)

    monkeypatch.setattr(pm_counters, "read_small", always)
    with pytest.raises(Unavailable, match="freshness"):
        source.read()


def test_cray_restart_and_power_cap_are_noticed(cray: Path) -> None:
    source = pm_counters.PmCounters(cray)
    before = source.read()["node"]
    write_cray(cray, 5.0, base=0, startup=2)  # the counters began anew: 10,000 J since, 218 MJ forgotten
    after = source.read()["node"]
    assert after == before
    assert "restarted" in source.notes.pop()
    write_cray(cray, 6.0, base=0, startup=2, generation=6)
    assert source.read()["node"] - after == pytest.approx(2000)
    assert "power cap" in source.notes.pop()


def test_cray_absent_or_unreadable_says_so(tmp_path: Path, cray: Path) -> None:
    with pytest.raises(Unavailable, match="not a Cray"):
        pm_counters.open_source(Access(pm_counters=tmp_path / "none"), 8)
    (cray / "energy").write_text("not a number\n")
    with pytest.raises(Unavailable, match="pm"):
        pm_counters.PmCounters(cray).read()


def test_rapl_counts_packages_once_and_memory_beside(tmp_path: Path) -> None:
    write_rapl(tmp_path / "cap")
    source = rapl.Rapl(tmp_path / "cap")
    assert source.read() == {"package-0": 10.0, "package-1": 11.0, "dram-0": 2.0, "dram-1": 2.0}
    assert source.covers == "2 processor package(s) and memory"


def test_rapl_wraps_around(tmp_path: Path) -> None:
    counter = write_zone(tmp_path, "intel-rapl:0", "package-0", RANGE_UJ - 5_000_000)
    source = rapl.Rapl(tmp_path)
    assert "memory not measured" in source.covers
    first = source.read()["package-0"]
    for _ in range(3):
        counter.write_text("7000000\n")
        assert source.read()["package-0"] - first == pytest.approx(12.0)
        counter.write_text(f"{RANGE_UJ - 5_000_000}\n")
        first = source.read()["package-0"]


def test_rapl_refused_or_absent_says_so(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="no powercap"):
        rapl.Rapl(tmp_path / "none")
    write_zone(tmp_path / "psys", "intel-rapl:0", "psys", 1)
    with pytest.raises(Unavailable, match="no processor package"):
        rapl.Rapl(tmp_path / "psys")


def test_rapl_permission_denied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rapl(tmp_path / "cap")

    def refuse(path: str) -> str:
        if str(path).endswith("energy_uj"):
            raise PermissionError(13, "Permission denied", path)
        return Path(path).read_text()

    monkeypatch.setattr(rapl, "read_small", refuse)  # tests may run as root, whom no file mode stops
    with pytest.raises(Unavailable, match="root alone"):
        rapl.open_source(Access(powercap=tmp_path / "cap"), 1).read()


@pytest.mark.skipif(
    not os.access("/sys/class/powercap/intel-rapl:0/energy_uj", os.R_OK), reason="no readable RAPL here"
)
def test_rapl_of_this_machine() -> None:
    source = rapl.open_source(Access(), 1)
    first = total(source.read())
    for _ in range(200_000):
        pass
    assert total(source.read()) >= first > 0
