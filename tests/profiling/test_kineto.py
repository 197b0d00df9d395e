"""Shares of a profiler trace: interval arithmetic by hand and against a second way of counting, real traces, a trace made here."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from frontier.errors import UserError
from frontier_profiling.measure.kineto import length, main, read_trace, shares, union, without
from frontier_profiling.measure.summary import measured_row
from tests.conftest import SHARED_DATA, run_frontier

TRACES = SHARED_DATA / "hpc_logs" / "hta_traces"
real = pytest.mark.skipif(not TRACES.is_dir(), reason="the shared logs are not here")


def test_spans_by_hand() -> None:
    assert union([(5, 7), (1, 3), (2, 4), (7, 8), (9, 9)]) == [(1, 4), (5, 8)]
    assert without([(0, 10), (20, 30)], [(2, 3), (9, 21), (29, 40)]) == [(0, 2), (3, 9), (21, 29)]
    assert without([(0, 1)], []) == [(0, 1)]
    assert without([(0, 1)], [(0, 1)]) == []
    assert length([(0, 2), (3, 9)]) == 8


def test_spans_against_counting_points() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        a, b = ([(int(x), int(x + w)) for x, w in zip(*random.integers(0, 40, (2, 12)), strict=True)] for _ in range(2))
        in_a, in_b = ({p for begin, end in spans for p in range(begin, end)} for spans in (a, b))
        assert length(union(a)) == len(in_a)
        assert length(without(union(a), union(b))) == len(in_a - in_b)


def event(name: str, begin: float, end: float, cat: str = "kernel", **more: Any) -> dict[str, Any]:
    return {"ph": "X", "cat": cat, "name": name, "ts": begin, "dur": end - begin, "pid": 0, "tid": 7, **more}


def test_a_device_by_hand() -> None:
    trace = {
        "traceEvents": [
            event("ProfilerStep#3", 0, 1000, "user_annotation"),
            event("gemm", 100, 300, args={"device": 0}),
            event("gemm", 200, 400, args={"device": 0}),
            event("ncclDevKernel_AllGather_RING_LL", 350, 600, args={"device": 0}),
            event("Memcpy HtoD", 580, 620, "gpu_memcpy", args={"device": 0}),
            event("ncclDevKernel_Generic", 700, 800, args={"device": 0}),
            event("gemm", 900, 1100, args={"device": 0}),
            event("gemm", 0, 50, args={"device": 1}),
            event("aten::mm", 0, 5000, "cpu_op"),
            {"ph": "X", "cat": "kernel", "name": "no time"},
        ]
    }
    first, second = shares(trace)
    assert (first.device, first.steps, first.collectives) == ("0", 1, 2)
    figures = (first.window_s, first.compute_s, first.communication_s, first.exposed_s, first.copies_s, first.idle_s)
    assert figures == pytest.approx([1000e-6, 500e-6, 350e-6, 280e-6, 40e-6, 180e-6])
    assert (second.device, second.compute_s, second.idle_s) == ("1", pytest.approx(50e-6), 0)
    assert shares({"traceEvents": []}) == []


def test_a_cpu_run_by_hand() -> None:
    """A collective waited for inside an operator of the backward pass: the outer operator is no compute."""

    def op(name: str, begin: float, end: float, tid: int = 1, cat: str = "cpu_op") -> dict[str, Any]:
        return event(name, begin, end, cat) | {"tid": tid}

    trace = {
        "traceEvents": [
            op("ProfilerStep#1", 0, 1000, cat="user_annotation"),
            op("aten::mm", 100, 300),
            op("autograd::engine::evaluate_function: Hook", 300, 900),
            op("aten::copy_", 300, 350),
            op("c10d::_allgather_base_", 350, 360),
            op("gloo:all_gather", 355, 700, tid=2, cat="user_annotation"),
            op("aten::copy_", 400, 500, tid=2),
            op("aten::mm", 650, 900),
        ]
    }
    (share,) = shares(trace)
    figures = (share.window_s, share.compute_s, share.communication_s, share.exposed_s, share.idle_s)
    assert figures == pytest.approx([1000e-6, 500e-6, 345e-6, 295e-6, 205e-6])


def by_sweep(events: list[dict[str, Any]]) -> dict[str, float]:
    """The same shares by walking over all ends of all events, in one loop."""
    marks = []
    for e in events:
        kind = "copies" if e["cat"] != "kernel" else "nccl" if "nccl" in e["name"].lower() else "compute"
        marks += [(e["ts"], 1, kind), (e["ts"] + e["dur"], -1, kind)]
    marks.sort()
    active = {"copies": 0, "nccl": 0, "compute": 0}
    total = {"compute_s": 0.0, "communication_s": 0.0, "exposed_s": 0.0, "copies_s": 0.0, "idle_s": 0.0}
    for (at, change, kind), (later, _, _) in zip(marks, [*marks[1:], marks[-1]], strict=True):
        active[kind] += change
        for key, holds in (
            ("compute_s", active["compute"]),
            ("communication_s", active["nccl"]),
            ("copies_s", active["copies"]),
            ("exposed_s", active["nccl"] and not active["compute"] and not active["copies"]),
            ("idle_s", not any(active.values())),
        ):
            if holds:
                total[key] += (later - at) / 1e6
    return total


@real
@pytest.mark.parametrize(
    ("name", "steps", "collectives"),
    [
        ("amd_trace_mi250_minitoy_train_ROCm6_2_kineto.json.gz", 2, 0),
        ("nccl_parser_config_nccl_data.json.gz", 3, 21),
        ("trace_filter_sampled_rank-0.json.gz", 2, 10),
        ("trace_filter_sampled_rank-1.json.gz", 2, 10),
    ],
)
def test_real_traces(name: str, steps: int, collectives: int) -> None:
    trace = read_trace(TRACES / name)
    (share,) = shares(trace)
    assert (share.steps, share.collectives) == (steps, collectives)
    expected = by_sweep([e for e in trace["traceEvents"] if e.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")])
    for key, value in expected.items():
        assert getattr(share, key) == pytest.approx(value, rel=1e-6, abs=1e-9), key
    assert share.exposed_s <= share.communication_s


def test_a_trace_of_our_own(toy: Path, tmp_path: Path) -> None:
    done = run_frontier(
        "pretrain", toy, "--ranks", "2", "train.steps=5", "log.profile_steps=[3,4]", "log.profile_ranks=[0,1]"
    )
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "run" / "profile"
    assert sorted(file.name for file in folder.iterdir()) == ["rank0.json.gz", "rank1.json.gz"]
    for rank in (0, 1):
        trace = read_trace(folder / f"rank{rank}.json.gz")
        assert trace["distributedInfo"]["rank"] == rank
        (share,) = shares(trace)
        assert (share.device, share.steps) == ("cpu", 2)
        assert share.collectives >= 2 * 4, "at least a gather a block and a sum a step"
        assert 0 < share.compute_s < share.window_s
        assert 0 <= share.exposed_s <= share.communication_s
        assert share.compute_s + share.exposed_s + share.idle_s == pytest.approx(share.window_s)
    row = measured_row(tmp_path / "run")
    (first,) = shares(read_trace(folder / "rank0.json.gz"))
    assert row.facts["trace"]["exposed_s"] == pytest.approx(first.exposed_s / 2)
    assert row.steps_timed == 2, "of five steps one is warm-up and two are profiled"
    (folder / "rank0.json.gz").write_bytes(b"torn")
    torn = measured_row(tmp_path / "run")
    assert "trace" not in torn.facts and any("profile again" in note for note in torn.notes)


def test_what_is_no_trace(tmp_path: Path) -> None:
    torn = tmp_path / "torn.json.gz"
    torn.write_bytes(gzip.compress(json.dumps({"traceEvents": list(range(1000))}).encode())[:-20])
    with pytest.raises(UserError, match="profile again"):
        read_trace(torn)
    other = tmp_path / "other.json"
    other.write_text("[1]")
    with pytest.raises(UserError, match="no traceEvents"):
        read_trace(other)
    with pytest.raises(UserError, match="absent"):
        read_trace(tmp_path / "absent.json")


def test_the_command_refuses_what_is_no_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="usage"):
        main([])
    damaged = tmp_path / "damaged.json.gz"
    damaged.write_bytes(b"\x1f\x8b" + bytes(range(200)))
    with pytest.raises(UserError, match="is damaged"):
        main([str(damaged)])
    odd = tmp_path / "odd.json"
    odd.write_text(
        '{"traceEvents": [1, {"ph": "X", "ts": 1, "dur": 2000000, "cat": "kernel", "name": 5, "args": 3, "pid": 7}]}'
    )
    assert main([str(odd)]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:5] == ["odd.json", "7", "0", "2.0000", "2.0000"]
    done = subprocess.run(
        [sys.executable, "-m", "frontier_profiling.measure.kineto", tmp_path / "gone"], capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1
