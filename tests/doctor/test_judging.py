"""Verdicts on variables, folders, ranks and fits: what is right passes, and each thing that is wrong is named with its mend."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

from frontier.doctor import checks, compare, storage
from frontier.doctor.collectives import fit, sizes_of_groups
from frontier.doctor.environment import Site, judge
from frontier.launch.ranks import Ranks

LAPTOP = Site("cpu", interfaces=("lo", "eth0"), cores=8)
FRONTIER = Site("cuda", hip=True, slingshot=True, interfaces=("lo", "hsn0", "hsn1", "hsn2", "hsn3"), cores=7)
TWO_NODES = Ranks(0, 16, 0, 8, "slurm")
# The job recipe of the OLCF user guide with its rccl-net-plugin module.
RECIPE = {
    "SLURM_CPUS_PER_TASK": "7",
    "OMP_NUM_THREADS": "7",
    "MASTER_ADDR": "127.0.0.2",  # any that resolves
    "MASTER_PORT": "3442",
    "NCCL_SOCKET_IFNAME": "hsn0,hsn1,hsn2,hsn3",
    "NCCL_NET_PLUGIN": "/sw/rccl-net/librccl-net.so",
    "NCCL_CROSS_NIC": "1",
    "FI_MR_CACHE_MONITOR": "kdreg2",
    "FI_CXI_DISABLE_HOST_REGISTER": "1",
    "FI_CXI_DEFAULT_CQ_SIZE": "131072",
    "FI_CXI_RDZV_PROTO": "alt_read",
    "MIOPEN_USER_DB_PATH": "/tmp/my-miopen-cache",
}


def wrong(env: dict[str, str], ranks: Ranks, site: Site) -> dict[str, checks.Check]:
    return {c.check: c for c in judge(env, ranks, site) if c.status != "OK"}


def test_a_laptop_is_not_asked_for_a_supercomputers_variables() -> None:
    assert wrong({}, Ranks(0, 1, 0, 1, "alone"), LAPTOP) == {}


def test_the_sites_recipe_passes() -> None:
    assert wrong(RECIPE, TWO_NODES, FRONTIER) == {}
    assert wrong({}, Ranks(0, 8, 0, 8, "slurm"), FRONTIER).keys() == {"env.OMP_NUM_THREADS", "env.MIOPEN_USER_DB_PATH"}


@pytest.mark.parametrize(
    "name",
    [
        "NCCL_SOCKET_IFNAME",
        "NCCL_NET_PLUGIN",
        "NCCL_CROSS_NIC",
        "FI_MR_CACHE_MONITOR",
        "FI_CXI_DISABLE_HOST_REGISTER",
        "FI_CXI_DEFAULT_CQ_SIZE",
        "FI_CXI_RDZV_PROTO",
        "MIOPEN_USER_DB_PATH",
    ],
)
def test_each_missing_variable_is_named_with_its_mend(name: str) -> None:
    found = wrong({k: v for k, v in RECIPE.items() if k != name}, TWO_NODES, FRONTIER)
    assert found.keys() == {f"env.{name}"}
    assert found[f"env.{name}"].status == "WARNING" and name in found[f"env.{name}"].mend


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        ("MASTER_ADDR", "localhost", "ERROR"),
        ("MASTER_ADDR", "no-such-host.invalid", "ERROR"),
        ("MASTER_PORT", "http", "ERROR"),
        ("NCCL_SOCKET_IFNAME", "ib0", "ERROR"),
        ("OMP_NUM_THREADS", "many", "ERROR"),
        ("OMP_NUM_THREADS", "0", "ERROR"),
        ("FI_MR_CACHE_MONITOR", "memhooks", "WARNING"),
        ("FI_CXI_DEFAULT_CQ_SIZE", "1024", "WARNING"),
        ("MIOPEN_USER_DB_PATH", "/lustre/orion/x", "WARNING"),
        ("HIP_LAUNCH_BLOCKING", "1", "WARNING"),
    ],
)
def test_each_wrong_value_is_named(name: str, value: str, status: str) -> None:
    found = wrong(RECIPE | {name: value}, TWO_NODES, FRONTIER)
    assert {check: c.status for check, c in found.items()} == {f"env.{name}": status}


def test_more_threads_than_cores() -> None:
    found = wrong({"OMP_NUM_THREADS": "8"}, Ranks(0, 4, 0, 4, "torchrun"), LAPTOP)
    assert found["env.OMP_NUM_THREADS"].mend == "export OMP_NUM_THREADS=2"
    assert not wrong({"OMP_NUM_THREADS": "2"}, Ranks(0, 4, 0, 4, "torchrun"), LAPTOP)


def test_interfaces_by_prefix_exact_name_and_exclusion() -> None:
    for value in ("hsn", "=hsn0", "^docker"):
        assert not wrong(RECIPE | {"NCCL_SOCKET_IFNAME": value}, TWO_NODES, FRONTIER)


def test_a_folder_that_cannot_be_written() -> None:
    (found,) = storage.look("working_dir", Path("/proc"), 1 << 20, needed=True)
    assert found.status == "ERROR" and "cannot be written" in found.text and found.mend
    (found,) = storage.look("tmpdir", Path("/nowhere/at/all"), 1 << 20, needed=False)
    assert found.status == "WARNING" and "No such file" in found.text


def test_a_full_file_system(tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small tmpfs needs root")
    try:
        (found,) = storage.look("working_dir", tmp_path, 8 << 20, needed=True)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
    assert found.status == "ERROR" and "is full" in found.text and "tmpfs" in found.text


def test_a_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(os, "fsync", refuse)
    (found,) = storage.look("working_dir", tmp_path, 1 << 20, needed=True)
    assert found.status == "ERROR" and "over its quota" in found.text


def test_a_sound_folder_leaves_nothing_behind(tmp_path: Path) -> None:
    found = {c.check: c for c in storage.look("tmpdir", tmp_path, 8 << 20, needed=False)}
    assert found.keys() == {"tmpdir", "tmpdir.write", "tmpdir.read"}
    assert all(isinstance(c.value, float) and c.value > 0 for c in found.values())
    assert not list(tmp_path.iterdir())


def test_the_worst_of_all_nodes_is_reported_with_its_hosts() -> None:
    fine, scarce = checks.ok("shm", "8 GiB", 8.0), checks.warning("shm", "0.1 GiB", "grow it", 0.1)
    merged = checks.merge([("a", [fine]), ("b", [scarce]), ("c", [fine])])
    assert [(c.check, c.status, c.text) for c in merged] == [("shm", "WARNING", "0.1 GiB (on b)")]
    many = checks.merge([(f"n{i}", [scarce]) for i in range(10)])
    assert many[0].text == "0.1 GiB (on n0, n1, n2 and 7 more)"


def test_ranks_that_differ_are_named() -> None:
    hosts = ["a", "a", "b", "b"]
    slow = compare.check_spread("product", [1.0, 1.0, 1.0, 0.5], hosts, "TFLOP/s")
    assert slow.status == "WARNING" and "rank 3 on b" in slow.text and "--exclude=b" in slow.mend
    assert compare.check_spread("product", [1.0, 0.9], ["a", "a"], "TFLOP/s").status == "OK"
    late = compare.check_clocks([0.0, 0.0, 7.5, 0.0], hosts)
    assert late.status == "WARNING" and "rank 2 on b is +7.50 s" in late.text
    other = compare.check_same([{"torch": "2.13.0"}] * 3 + [{"torch": "2.10.0"}], hosts)
    assert other.status == "ERROR" and "2.10.0 on rank 3 (b)" in other.text


@pytest.mark.parametrize(("collective", "turns"), [("all_gather", 1), ("reduce_scatter", 1), ("all_reduce", 2)])
def test_the_fit_finds_the_constants_that_made_the_times(collective: str, turns: int) -> None:
    ranks, alpha, speed = 8, 5e-6, 40.0
    points = [
        (s, turns * ((ranks - 1) * alpha + s * (ranks - 1) / ranks / speed / 1e9)) for s in (4096, 1 << 20, 1 << 26)
    ]
    found = fit(collective, ranks, points)
    assert found.alpha_s == pytest.approx(alpha) and found.gb_per_s == pytest.approx(speed)


def test_a_fit_has_no_negative_constants() -> None:
    falling = fit("all_gather", 2, [(4096, 2e-3), (1 << 20, 1e-3)])
    assert falling.alpha_s >= 0 and falling.gb_per_s is None
    steep = fit("all_gather", 2, [(1 << 20, 1e-6), (1 << 26, 1.0)])
    assert steep.alpha_s >= 0 and steep.gb_per_s is not None and steep.gb_per_s > 0


def test_groups_are_those_of_a_node_and_the_whole() -> None:
    assert sizes_of_groups(1024, 8, quick=False) == [2, 4, 8, 1024]
    assert sizes_of_groups(1024, 8, quick=True) == [8, 1024]
    assert sizes_of_groups(12, 12, quick=False) == [2, 4, 12]
    assert sizes_of_groups(1, 1, quick=False) == []


def test_a_system_file_is_whole_or_absent(tmp_path, monkeypatch) -> None:
    """A disk that fills up leaves nothing behind; a folder that takes no files is refused before anything is measured."""
    from pathlib import Path

    import pytest

    from frontier.doctor import system
    from frontier.doctor.command import _check_target
    from frontier.errors import UserError

    with pytest.raises(UserError, match="cannot|can be written"):
        _check_target(Path("/proc/local.yaml"))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        system.write(tmp_path / "local.yaml", {"name": "local"})
    assert not list(tmp_path.iterdir())
