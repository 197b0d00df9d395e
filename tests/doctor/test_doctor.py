"""`frontier doctor` as its user runs it: real processes, alone and as two gloo ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from frontier.launch.local import free_port
from tests.conftest import ROOT, run_frontier


def by_name(text: str) -> dict[str, dict]:
    """The report: nothing but JSON may be on stdout."""
    checks = json.loads(text)
    assert all(list(c) == ["check", "status", "text", "value", "unit", "mend", "hosts"] for c in checks)
    assert all(c["status"] in ("OK", "WARNING", "ERROR") and c["text"] for c in checks)
    assert all(c["mend"] for c in checks if c["status"] != "OK")
    names = [c["check"] for c in checks]
    assert len(names) == len(set(names))
    return {c["check"]: c for c in checks}


def test_alone() -> None:
    done = run_frontier("doctor", "--quick", "--json")
    assert done.returncode == 0, done.stderr
    found = by_name(done.stdout)
    for name in ("product.fp32", "product.bf16", "memory_bandwidth", "working_dir.write", "tmpdir.read", "host_memory"):
        assert found[name]["value"] > 0 and found[name]["unit"]
    assert found["collectives"]["value"] is None and "not measured" in found["collectives"]["text"]
    assert {"versions", "devices", "cores", "open_files", "shared_memory", "energy", "ranks"} <= found.keys()


def test_two_ranks_measure_collectives_and_are_compared() -> None:
    done = run_frontier("doctor", "--quick", "--json", "--ranks", "2")
    assert done.returncode == 0, done.stderr
    found = by_name(done.stdout)
    for name in ("all_reduce.2", "all_gather.2", "reduce_scatter.2"):
        assert found[f"{name}.latency"]["unit"] == "us" and found[name]["unit"] == "GB/s"
    assert found["ranks"]["value"] == 2 and found["hosts"]["value"] == 1
    assert found["same_versions"]["status"] == "OK" and found["clocks"]["status"] == "OK"
    assert {"product.fp32.spread", "memory_bandwidth.spread"} <= found.keys()


def test_for_people_a_warning_is_followed_by_its_mend() -> None:
    done = run_frontier("doctor", "--quick", TORCH_DISTRIBUTED_DEBUG="DETAIL")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("WARNING env.TORCH_DISTRIBUTED_DEBUG"))
    assert "-> unset TORCH_DISTRIBUTED_DEBUG" in lines[at + 1]
    assert "0 errors" in lines[-1]


def test_what_keeps_ranks_apart_is_an_error_at_once() -> None:
    done = run_frontier("doctor", "--quick", "--json", "--ranks", "2", GLOO_SOCKET_IFNAME="nosuch0", timeout=60)
    assert done.returncode == 75, done.stderr
    found = by_name(done.stdout)
    assert found["env.GLOO_SOCKET_IFNAME"]["status"] == "ERROR" and "nosuch0" in found["env.GLOO_SOCKET_IFNAME"]["text"]
    assert found["collectives"]["status"] == "WARNING"


def test_a_rank_that_never_comes_is_an_error_within_the_bound() -> None:
    place = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    done = run_frontier(
        "doctor", "--quick", "--json", "--timeout", "8", **place, MASTER_PORT=str(free_port()), timeout=90
    )
    assert done.returncode == 75, done.stderr
    found = by_name(done.stdout)
    assert found["rendezvous"]["status"] == "ERROR"
    assert found["product.fp32"]["value"] > 0  # what needs nobody is still told


def test_a_check_that_hangs_is_reported_and_ends_the_process(tmp_path: Path) -> None:
    script = (
        "import time; from frontier.doctor import rates; rates.triad_gb_per_s = lambda *_: time.sleep(600); "
        "from frontier.cli import main; main(['doctor', '--quick', '--json', '--timeout', '8'])"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert time.monotonic() - began < 100
    assert done.returncode == 75
    hung = by_name(done.stdout)["memory_bandwidth"]
    assert hung["status"] == "ERROR" and "did not end within 8 s" in hung["text"]


@pytest.mark.slow
def test_a_rank_alone_that_hangs_while_the_machine_is_measured_is_reported(tmp_path: Path) -> None:
    """There are no other ranks to look for, and no traceback of a thread."""
    script = (
        "import sys, time; from frontier.doctor import system; system.constants = lambda *_: time.sleep(600); from frontier.cli import main; "
        "main(['doctor', '--quick', '--json', '--timeout', '8', '--ranks', '1', '--write-system', sys.argv[1]])"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "mine.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, cwd=ROOT)
    assert done.returncode == 75 and "Traceback" not in done.stderr, done.stderr
    hung = by_name(done.stdout)["system.all"]
    assert hung["status"] == "ERROR" and "did not end within 8 s" in hung["text"] and hung["mend"]
    assert not (tmp_path / "mine.yaml").exists()


def test_a_working_folder_that_cannot_be_written() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "frontier", "doctor", "--quick", "--json"],
        capture_output=True,
        text=True,
        cwd="/proc",
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 75, done.stderr
    assert by_name(done.stdout)["working_dir"]["status"] == "ERROR"


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (("--quik",), "--quik"),
        (("--ranks", "0"), "--ranks 0"),
        (("--ranks", "two"), "two"),
        (("--timeout", "0"), "--timeout 0"),
        (("--write-system", "/nowhere/local.yaml"), "/nowhere"),
        (("--write-system", "local.txt"), ".yaml"),
        (("--write-system", "/tmp"), "folder"),
        (("--bad-nodes", "/tmp"), "folder"),
        (("--ranks", "2", "--table", "/proc/none/table.json"), "--table /proc/none"),
    ],
)
def test_a_wrong_command_is_one_line(args: tuple[str, ...], word: str) -> None:
    done = run_frontier("doctor", *args)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and word in done.stderr and done.stderr.startswith("frontier doctor: ")


def test_ranks_under_a_launcher_is_refused() -> None:
    done = run_frontier("doctor", "--ranks", "2", RANK="0", WORLD_SIZE="1")
    assert done.returncode == 2 and "leave it out" in done.stderr


def test_write_system_describes_what_the_predictor_loads(tmp_path: Path) -> None:
    target = tmp_path / "local.yaml"
    done = run_frontier("doctor", "--quick", "--json", "--ranks", "2", "--write-system", target)
    assert done.returncode == 0, done.stderr
    assert by_name(done.stdout)["system"]["status"] == "OK"
    assert [p.name for p in tmp_path.iterdir()] == ["local.yaml"]

    from frontier_profiling.predict.system import load_system

    system = load_system(str(target))
    assert system.name == "local" and system.device.type == "cpu" and system.node.devices == 2 and system.nodes == 1
    assert 0 < system.device.memory_gib * 2 <= system.node.memory_gib * 1.001
    assert [link.devices for link in system.links] == [2]
    raw = yaml.safe_load(target.read_text())["efficiency"]
    for dtype in ("fp32", "bf16"):
        constant = raw[f"product_efficiency_{dtype}"]
        assert 0 < constant["value"] <= 1 and constant["from"] == "measured" and constant["date"]
        rows = raw["ranks"]["all"][dtype]["product_tflops"]
        best = max(max(row["forward"], row["backward"]) for row in rows)
        assert system.device.peak_tflops[dtype] == pytest.approx(best)
    assert {"all", "alone"} <= raw["ranks"].keys() and raw["ranks"]["threads"] == 1
    assert {fit["collective"] for fit in raw["collectives"]["fits"]} == {"all_reduce", "all_gather", "reduce_scatter"}
