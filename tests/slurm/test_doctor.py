"""`frontier doctor` on four nodes of a real Slurm, each hurt in its way: the node that is at fault is named, listed, and left out."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import ROOT
from tests.slurm.cluster import Cluster

FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), Path("/nowhere"))


def visit(
    cluster: Cluster, folder: Path, *words: str, before: str = "", wait: int = 5, timeout: float = 240
) -> tuple[int, dict[str, Any], str]:
    """`srun … frontier doctor` with one rank a node: (exit code, checks by name, the list of bad nodes).

    `before`: shell words that run on every node first, where $1 is its name.
    """
    script = f'set -- "$SLURMD_NODENAME" "$@"\n{before}\nshift\nexec "$@"'
    command = [sys.executable, "-W", "ignore", "-m", "frontier", "doctor", "--quick", "--json", "--local", "/mnt/bb"]
    command += ["--bad-nodes", str(folder / "bad"), "--table", str(folder / "table.json"), *words]
    env = {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}", "OMP_NUM_THREADS": "1"}
    srun = ["srun", "-N4", "--ntasks-per-node=1", "--kill-on-bad-exit=0", f"--wait={wait}", f"--chdir={folder}"]
    done = cluster.run(*srun, "sh", "-c", script, "sh", *command, timeout=timeout, **env)
    print(done.stderr)
    checks = {c["check"]: c for c in json.loads(done.stdout)}
    assert all(c["mend"] for c in checks.values() if c["status"] != "OK")
    return done.returncode, checks, (folder / "bad").read_text()


def test_a_node_with_a_full_disk_another_library_and_a_wrong_clock(cluster: Cluster, tmp_path: Path) -> None:
    shadow = tmp_path / "shadow" / "h5py"
    shadow.mkdir(parents=True)
    (shadow / "__init__.py").write_text('__version__ = "9.9.9"\n')
    filled = cluster.inside("n3", "dd", "if=/dev/zero", "of=/mnt/bb/old", "bs=1M", "count=290")
    assert filled.returncode == 0, filled.stderr
    clock = f"export LD_PRELOAD={FAKETIME} FAKETIME=+300s DONT_FAKE_MONOTONIC=1" if FAKETIME.exists() else ":"
    try:
        code, found, bad = visit(
            cluster,
            tmp_path,
            before=f'if [ "$1" = n3 ]; then export PYTHONPATH={tmp_path}/shadow:$PYTHONPATH; {clock}; fi',
        )
    finally:
        cluster.inside("n3", "rm", "/mnt/bb/old")
    assert code == 75
    wrong = {"local", "same_versions", *(["clocks"] if FAKETIME.exists() else [])}
    for name in wrong:
        assert found[name]["status"] == "ERROR" and found[name]["hosts"] == ["n3"], found[name]
    assert "nearly full" in found["local"]["text"] and "h5py is 9.9.9 on n3" in found["same_versions"]["text"]
    assert found["bad_nodes"]["hosts"] == ["n3"] and "--exclude=n3" in found["bad_nodes"]["mend"]
    (line,) = bad.splitlines()
    assert line.startswith("n3 ") and all(f"{name}: " in line for name in wrong)

    table = json.loads((tmp_path / "table.json").read_text())
    rows = {row["host"]: row for row in table["nodes"]}
    assert list(rows) == ["n1", "n2", "n3", "n4"] and wrong <= set(rows["n3"]["findings"])
    assert rows["n3"]["versions"] != rows["n1"]["versions"] == rows["n2"]["versions"] == rows["n4"]["versions"]
    assert rows["n3"]["local_gib"] < 0.02 < 0.2 < rows["n1"]["local_gib"]
    assert all(row[key] > 0 for row in rows.values() for key in ("product_tflops", "memory_gb_per_s", "link_gb_per_s"))
    if FAKETIME.exists():
        assert abs(rows["n3"]["clock_s"] - 300) < 10 > abs(rows["n1"]["clock_s"])

    # What a job does with the list.
    went_on = cluster.run("srun", "-N3", f"--exclude={line.split()[0]}", "sh", "-c", "echo $SLURMD_NODENAME")
    assert sorted(went_on.stdout.split()) == ["n1", "n2", "n4"]


@pytest.mark.slow
def test_a_node_that_never_arrives(cluster: Cluster, tmp_path: Path) -> None:
    code, found, bad = visit(cluster, tmp_path, "--timeout", "12", before='[ "$1" != n4 ] || exec sleep 90', wait=15)
    assert code == 137  # srun's word for the task that it had to end, which the doctor's 75 does not outvote
    assert found["rendezvous"]["hosts"] == ["n4"]
    assert "did not come within 12 s: 3 (of n4)" in found["rendezvous"]["text"]
    assert found["product.fp32"]["value"] > 0 and found["same_versions"]["status"] == "OK"  # the others are told of
    assert bad.startswith("n4 rendezvous: 1 of its 1 ranks did not come") and bad.count("\n") == 1


@pytest.mark.slow
def test_rank_0_that_never_arrives_is_listed_by_another(cluster: Cluster, tmp_path: Path) -> None:
    with pytest.raises(json.JSONDecodeError):  # there is nobody who could print the report
        visit(cluster, tmp_path, "--timeout", "15", before='[ "$1" != n1 ] || exec sleep 60')
    assert (tmp_path / "bad").read_text().startswith("n1 rendezvous: rank 1 on n2 does not reach rank 0 at n1:")


@pytest.mark.slow
@pytest.mark.skipif(not FAKETIME.exists(), reason="no libfaketime (Debian: faketime)")
def test_rank_0_has_the_wrong_clock(cluster: Cluster, tmp_path: Path) -> None:
    shift = f'[ "$1" != n1 ] || export LD_PRELOAD={FAKETIME} FAKETIME=-10s DONT_FAKE_MONOTONIC=1'
    _, found, bad = visit(cluster, tmp_path, before=shift)
    assert found["clocks"]["status"] == "WARNING" and found["clocks"]["hosts"] == ["n1"]
    assert "n1 -" in found["clocks"]["text"] and "clocks" not in bad  # no reason to leave a node out


@pytest.mark.slow
def test_a_rank_that_is_stopped_most_of_the_time(cluster: Cluster, tmp_path: Path) -> None:
    def throttle(process: psutil.Process) -> None:
        while True:
            process.suspend()
            time.sleep(0.09)
            process.resume()
            time.sleep(0.01)

    with at_work(cluster, "n2", 0, throttle):
        _, found, bad = visit(cluster, tmp_path, "--timeout", "120")
    for name in ("product.fp32.spread", "memory_bandwidth.spread"):
        assert found[name]["status"] == "WARNING" and found[name]["hosts"] == ["n2"], found[name]
    rates = {row["host"]: row["product_tflops"] for row in json.loads((tmp_path / "table.json").read_text())["nodes"]}
    stopped, others = rates.pop("n2"), sorted(rates.values())
    assert stopped < 0.5 * others[1]
    if others[-1] < 1.2 * others[0]:  # not on a machine so busy that the others differ as much
        assert bad.startswith("n2 product.fp32.spread: product.fp32 of rank 1 is ") and bad.count("\n") == 1


@pytest.mark.slow
def test_a_rank_that_hangs_in_its_own_checks(cluster: Cluster, tmp_path: Path) -> None:
    with at_work(cluster, "n3", 1, psutil.Process.suspend):
        _, found, bad = visit(cluster, tmp_path, "--timeout", "20")
    assert found["lost_ranks"]["hosts"] == ["n3"] and "rank 2 on n3 does not answer" in found["lost_ranks"]["text"]
    assert bad == "n3 lost_ranks: rank 2 does not answer\n"


@pytest.mark.slow
def test_a_rank_that_dies_among_the_others(cluster: Cluster, tmp_path: Path) -> None:
    with at_work(cluster, "n2", 5, psutil.Process.kill):  # two to the store, three of gloo
        _, found, bad = visit(cluster, tmp_path, "--timeout", "30", wait=60)
    assert found["lost_ranks"]["hosts"] == ["n2"] and "contact was lost" in found["lost_ranks"]["text"]
    assert bad == "n2 lost_ranks: rank 1 does not answer\n"


@contextlib.contextmanager
def at_work(
    cluster: Cluster, node: str, connections: int, action: Callable[[psutil.Process], object]
) -> Iterator[None]:
    """While the block runs: do something to the doctor of this node as soon as it holds so many connections."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            with contextlib.suppress(psutil.Error):
                for process in cluster.processes():
                    mine = process.environ().get("SLURMD_NODENAME") == node and "frontier" in process.cmdline()
                    if mine and len(process.net_connections("tcp")) >= connections:
                        action(process)
                        return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
