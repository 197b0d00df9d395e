"""Verdicts on variables, folders, ranks and fits: what is right passes, and each thing that is wrong is named with its mend."""

from __future__ import annotations

import dataclasses
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from frontier.doctor import checks, compare, libraries, links, meeting, nodes, storage
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

    from frontier.doctor import nodes
    from frontier.doctor.command import _check_target
    from frontier.errors import UserError

    with pytest.raises(UserError, match="cannot|can be written"):
        _check_target(Path("/proc/local.yaml"))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        nodes.write(tmp_path / "local.yaml", "name: local")
    assert not list(tmp_path.iterdir())


def test_the_worst_of_all_nodes_is_reported_with_its_hosts() -> None:
    fine, scarce = checks.ok("shm", "8 GiB", 8.0), checks.warning("shm", "0.1 GiB", "grow it", 0.1)
    gone = checks.error("shm", "cannot be written", "mount it")
    merged = checks.merge([("a", [fine]), ("b", [scarce]), ("c", [fine])])
    assert [(c.status, c.text, c.hosts) for c in merged] == [("WARNING", "0.1 GiB (on b)", ("b",))]
    (many,) = checks.merge([(f"n{i}", [scarce]) for i in range(10)])
    assert many.text.endswith("n7 and 2 more)") and len(many.hosts) == 10 and not many.blame
    (both,) = checks.merge([("a", [scarce]), ("b", [gone]), ("b", [scarce])])
    assert both.status == "ERROR" and both.text == "cannot be written (on b); a WARNING on a"
    assert both.hosts == ("b",) and both.blame == {"b": "cannot be written"}
    assert both.as_dict().keys() == {"check", "status", "text", "value", "unit", "mend", "hosts"}


def test_all_slow_ranks_are_named_and_very_slow_nodes_blamed() -> None:
    hosts = ["a", "a", "b", "b", "c", "c"]
    found = compare.check_spread("product", [1.0, 1.0, 1.0, 0.45, 1.0, 0.7], hosts, "TFLOP/s")
    assert found.status == "WARNING" and found.hosts == ("b", "c") and found.blame.keys() == {"b"}
    assert "rank 3 on b 0.45 (45%), rank 5 on c 0.7 (70%)" in found.text and "--exclude=b,c" in found.mend
    assert compare.check_spread("product", [1.0, 0.9], ["a", "a"], "TFLOP/s").status == "OK"
    # Ranks that differ widely among themselves are no outliers; of two nodes none is blamed.
    assert compare.check_spread("product", [1.0, 0.6, 1.5, 2.0, 0.9], list("abcde"), "TFLOP/s").status == "OK"
    noisy = compare.check_spread("product", [1.0, 0.2, 1.5, 2.0, 0.9], list("abcde"), "TFLOP/s")
    assert noisy.hosts == ("b",) and not noisy.blame
    assert not compare.check_spread("product", [1.0, 0.1], ["a", "b"], "TFLOP/s").blame


def test_clocks_by_majority() -> None:
    def judged(*offsets: float) -> checks.Check:
        return compare.check_clocks(compare.clocks_of_nodes(offsets, [f"n{i}" for i in range(len(offsets))]))

    assert judged(0.0, 0.2, -0.3, 0.1).status == "OK"
    first = judged(0.0, -7.5, -7.4, -7.5)  # offsets are against rank 0, whose clock is the wrong one
    assert first.status == "WARNING" and first.hosts == ("n0",) and "n0 +7.50 s" in first.text and not first.blame
    wild = judged(0.0, 0.0, 100.0, 0.0, -90.0)
    assert wild.status == "ERROR" and wild.hosts == ("n2", "n4") and wild.blame.keys() == {"n2", "n4"}
    for offsets in ((0.0, 90.0), (0.0, 0.0, 90.0, 90.0)):
        open_question = judged(*offsets)
        assert open_question.status == "ERROR" and not open_question.blame and "no majority" in open_question.text
        assert len(open_question.hosts) == len(offsets)


def test_versions_by_majority() -> None:
    old, new = {"torch": "2.10.0", "numpy": "2.4"}, {"torch": "2.13.0", "numpy": "2.4"}
    found = compare.check_same("same_versions", [old, new, new, new], list("abcd"))
    assert found.status == "ERROR" and found.hosts == ("a",) and found.text == "torch is 2.10.0 on a, 2.13.0 on most"
    assert found.blame == {"a": "torch is 2.10.0, 2.13.0 on most nodes"}
    tie = compare.check_same("same_versions", [old, new], ["a", "b"])
    assert tie.hosts == ("a", "b") and not tie.blame and "no majority" in tie.text
    assert compare.check_same("same_places", [old, new, new], list("abc")).status == "WARNING"
    assert compare.check_same("same_versions", [new, {"torch": "2.13.0"}], ["a", "a"]).status == "OK"


@pytest.mark.parametrize("members", [2, 3, 4, 5, 8, 9, 101, 128])
def test_rounds_are_disjoint_pairs_with_ever_other_partners(members: int) -> None:
    turns = links.rounds(members)
    assert len(turns) == min(3, members - 1 + members % 2)
    seen: list[set[int]] = [set() for _ in range(members)]
    for pairs in turns:
        flat = [i for pair in pairs for i in pair]
        assert len(flat) == len(set(flat)) >= members - 1
        for a, b in pairs:
            assert a != b and b not in seen[a]
            seen[a].add(b)
            seen[b].add(a)
    assert min(map(len, seen)) >= min(2, members - 1)


def test_all_ranks_of_a_machine_find_their_partners() -> None:
    nodes_ = links.grid(["a", "b", "a", "b", "c", "c"])  # not in blocks
    assert nodes_ == [[0, 2], [1, 3], [4, 5]]
    between, inside = links.plan(nodes_, 2)
    assert {pair for pairs in between for pair in pairs} == {(0, 1), (2, 3), (0, 4), (2, 5), (1, 4), (3, 5)}
    assert inside == [[(0, 2), (1, 3), (4, 5)]]


def pairs_of(speeds: list[float]) -> list[tuple[str, str, float]]:
    """What is measured where a pair is as quick as the slower one of both."""
    turns = links.rounds(len(speeds))
    return [(f"n{a}", f"n{b}", min(speeds[a], speeds[b])) for pairs in turns for a, b in pairs]


@pytest.mark.parametrize("members", [3, 4, 5, 6, 7, 16, 33])
def test_a_slow_node_is_told_from_its_partners(members: int) -> None:
    for slow in range(members):
        found = links.check_between(pairs_of([1.0 if i == slow else 10.0 for i in range(members)]))
        assert found.status == "WARNING" and found.hosts == (f"n{slow}",) and found.blame.keys() == {f"n{slow}"}
    assert links.check_between(pairs_of([10.0] * members)).status == "OK"


def test_two_slow_nodes_also_where_they_meet() -> None:
    a, b = links.rounds(16)[0][3]
    found = links.check_between(pairs_of([1.0 if i in (a, b) else 10.0 for i in range(16)]))
    assert set(found.hosts) == {f"n{a}", f"n{b}"}


def test_a_slow_way_between_two_quick_nodes_blames_neither() -> None:
    pairs = pairs_of([10.0] * 8)
    pairs[5] = (*pairs[5][:2], 1.0)
    found = links.check_between(pairs)
    assert found.status == "WARNING" and not found.blame and set(found.hosts) == set(pairs[5][:2])
    two = links.check_between([("a", "b", 0.1)])
    assert two.status == "OK" and "cannot be told" in two.text


def test_places_in_a_node_are_held_against_the_same_places_elsewhere() -> None:
    members = [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    hosts = [f"n{r // 3}" for r in range(9)]
    rate = {(0, 1): 200.0, (0, 2): 50.0, (1, 2): 50.0}  # by design
    found = [{(m[a], m[b]): speed for m in members for (a, b), speed in rate.items()}]
    assert links.check_inside(found, members, hosts).status == "OK"
    found[0][(3, 4)] = 50.0  # as quick as others, and a quarter of what it should be
    judged = links.check_inside(found, members, hosts)
    assert judged.hosts == ("n1",) and judged.blame.keys() == {"n1"} and "local ranks 0 and 1 at 25%" in judged.text


def blamed(name: str, *hosts: str) -> checks.Check:
    return checks.Check(name, "ERROR", "bad", mend="mend", hosts=hosts, blame=dict.fromkeys(hosts, "bad"))


def test_at_most_a_third_of_the_nodes_is_called_bad() -> None:
    six = [f"n{i}" for i in range(6)]
    named, found = nodes.bad([blamed("disk", "n1"), blamed("clock", "n1", "n2")], six)
    assert named == {"n1": "disk: bad; clock: bad", "n2": "clock: bad"} and found.hosts == ("n1", "n2")
    assert nodes.list_lines(named) == "n1 disk: bad; clock: bad\nn2 clock: bad\n"
    named, found = nodes.bad([blamed("disk", "n1", "n2", "n3")], six)
    assert not named and found.status == "WARNING" and "the cause is not the nodes" in found.text
    named, _ = nodes.bad([blamed("disk", "n1", "n2", "n3"), blamed("clock", "n5")], six)  # what all have is not theirs
    assert named == {"n5": "clock: bad"}
    assert not nodes.bad([blamed("a", "n1"), blamed("b", "n2"), blamed("c", "n3")], six)[0]
    slow = [dataclasses.replace(blamed(name, host), status="WARNING") for name, host in (("a", "n2"), ("b", "n3"))]
    assert nodes.bad([blamed("disk", "n1"), *slow], six)[0] == {
        "n1": "disk: bad"
    }  # slowness may pass, a full disk does not
    assert not nodes.bad([*slow, dataclasses.replace(slow[0], blame={"n4": "slow"})], six)[0]
    assert nodes.bad([blamed("disk", "a")], ["a", "b"])[0] == {"a": "disk: bad"}
    assert nodes.bad([checks.warning("x", "y", "z")], six)[1].status == "OK" and nodes.list_lines({}) == ""


def test_a_long_table_shows_what_is_wrong() -> None:
    hosts = [f"n{i:03}" for i in range(200)]
    sent = {"free": {"local_gib": 9.0, "tmp_gib": 5.0, "run_gib": 7.0}, "versions": {"torch": "2"}}
    table = nodes.rows(hosts, dict.fromkeys(range(200), sent))
    nodes.fill(table, "product_tflops", [1.0] * 199 + [0.2], hosts)
    text = nodes.lines(table, [blamed("product.spread", "n199")])
    assert len(text) == 5 and text[2].startswith("n199") and text[2].endswith("product.spread")
    assert text[3].startswith("median") and "200 nodes, 1 with findings" in text[4]
    assert len(nodes.document(table, [])["nodes"]) == 200


def test_who_is_missing() -> None:
    assert meeting.expand("n[01-03,7],x,r[1-2]c[0-1]") == [
        "n01",
        "n02",
        "n03",
        "n7",
        "x",
        "r1c0",
        "r1c1",
        "r2c0",
        "r2c1",
    ]
    env = {"SLURM_STEP_NODELIST": "n[1-3]", "SLURM_STEP_TASKS_PER_NODE": "2(x2),1"}
    expected = meeting.expected_hosts(env, Ranks(0, 5, 0, 2, "slurm", 3))
    assert expected == {"n1": 2, "n2": 2, "n3": 1}
    assert meeting.missing_hosts(expected, {0: "n1", 1: "n1", 2: "n2"}).keys() == {"n2", "n3"}
    assert meeting.missing_hosts({}, {0: "n1"}) == {}
    assert meeting.spans([5, 0, 1, 2, 7, 8]) == "0-2, 5, 7-8"


def test_a_package_that_shadows_another_is_what_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mpi4py", "deepspeed"):
        (tmp_path / name).mkdir()
    (tmp_path / "mpi4py" / "__init__.py").write_text('__version__ = "0.0.7"\n')
    (tmp_path / "deepspeed" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("mpi4py", "deepspeed"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    found = libraries.versions({}, whole=False)
    assert found["mpi4py"] == "0.0.7" and found["deepspeed"] == f"unknown, in {tmp_path}/deepspeed"
    assert libraries.places({}, False, None)["mpi4py"] == f"{tmp_path}/mpi4py"


def test_libraries_are_those_of_the_library_path(tmp_path: Path) -> None:
    (tmp_path / "libfabric.so.1.27.0").touch()
    (tmp_path / "libfabric.so.1").symlink_to("libfabric.so.1.27.0")
    (tmp_path / "librccl-net-ofi.so").touch()
    env = {"LD_LIBRARY_PATH": f"/nowhere:{tmp_path}", "NCCL_NET_PLUGIN": "ofi"}
    found = libraries.libraries(env)
    assert (
        found["libfabric"] == tmp_path / "libfabric.so.1.27.0"
        and found["net_plugin"] == tmp_path / "librccl-net-ofi.so"
    )


def test_a_digest_of_the_source_changes_with_a_byte_and_a_name(tmp_path: Path) -> None:
    seen = set()
    for name, text in (("a.py", "1"), ("a.py", "2"), ("b.py", "2")):
        for old in tmp_path.glob("*.py"):
            old.unlink()
        (tmp_path / name).write_text(text)
        seen.add(libraries.digest(tmp_path))
    assert len(seen) == 3


def test_nearly_full_is_the_smaller_of_a_gib_and_a_twentieth() -> None:
    assert storage.nearly_full(free=14 << 20, total=300 << 20) and not storage.nearly_full(16 << 20, 300 << 20)
    assert storage.nearly_full(free=1 << 29, total=1 << 41) and not storage.nearly_full(2 << 30, 1 << 41)


def test_shared_memory_that_cannot_be_used() -> None:
    assert storage.shared_memory(Path("/proc")).status == "ERROR"
    assert storage.shared_memory(Path("/nowhere")).status == "OK"


def test_disks_that_are_fuller_than_the_others() -> None:
    found = compare.check_free({"a": 900.0, "b": 100.0, "c": 950.0, "d": 920.0})
    assert found.status == "WARNING" and found.hosts == ("b",) and not found.blame
    assert compare.check_free({"a": 900.0, "b": 100.0}).status == "OK"
