"""A run folder as one measured row, against folders whose numbers are known."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from frontier.errors import UserError
from frontier_profiling.measure.summary import measured_row
from frontier_profiling.measure.timed import after_warm_up, median_interval, timed
from frontier_profiling.rows import from_json, to_csv, to_json
from tests.conftest import read_jsonl, run_frontier
from tests.profiling.runs import GLOBAL_BATCH, WORLD, make_run, write_lines


def lines(run: Path) -> list[dict]:
    return read_jsonl(run / "metrics.jsonl")


def change(run: Path, **values: object) -> None:
    """Set keys of all lines; a function is given the line."""
    rows = lines(run)
    for row in rows:
        row |= {key: value(row) if callable(value) else value for key, value in values.items()}
    write_lines(run / "metrics.jsonl", rows)


def test_interval_of_the_median() -> None:
    """Coverage by counting all 2^n patterns of values above and below the median."""
    for n in (6, 9, 12):
        ordered = list(range(1, n + 1))
        low, high = median_interval(np.array(ordered, float)) or (0, 0)
        covered = [
            sum(below) >= low and n - sum(below) >= n + 1 - high for below in itertools.product((0, 1), repeat=n)
        ]
        assert np.mean(covered) >= 0.95
        narrower = [
            sum(below) >= low + 1 and n - sum(below) >= n + 2 - high for below in itertools.product((0, 1), repeat=n)
        ]
        assert np.mean(narrower) < 0.95
    assert median_interval(np.arange(5.0)) is None
    assert timed(np.array([np.nan])) is None


def test_warm_up_rule() -> None:
    starts = np.array([0] * 30 + [1] * 10 + [2])
    keep = after_warm_up(starts)
    assert (~keep[:30]).sum() == 5
    assert (~keep[30:40]).sum() == 2
    assert not keep[40]


def test_a_run_stopped_and_resumed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=60, restarts=(20, 40))
    row = measured_row(run, system="test bench", why="because", samples=32000)
    steps = [line["step_s"] for line in lines(run) if (line["step"] - 1) % 20 >= 4]
    assert row.steps_timed == len(steps) == 48
    assert row.step_s == pytest.approx(np.median(steps))
    assert (row.step_s_low, row.step_s_high) == pytest.approx(tuple(np.percentile(steps, [10, 90])))
    assert row.step_ci95_s and row.step_s_low < row.step_ci95_s[0] < row.step_s < row.step_ci95_s[1] < row.step_s_high
    assert row.images_per_s == pytest.approx(GLOBAL_BATCH / row.step_s)
    assert (row.source, row.status, row.system, row.facts["why"]) == ("measured", "done", "test bench", "because")
    assert (row.model, row.strategy, row.devices, row.nodes) == ("vit_debug", "full_shard", WORLD, 1)
    assert (row.micro_batch, row.accumulation, row.global_batch) == (16, 1, 32)
    assert row.node_hours == pytest.approx(32000 / row.images_per_s / 3600)
    assert row.tflops_per_device == pytest.approx(row.images_per_s * 2.5e9 / WORLD / 1e12)
    assert (row.mfu, row.hfu, row.power_w, row.joules_per_image, row.rank_spread) == (None,) * 5
    assert row.memory_gib == {"peak": pytest.approx(1.06)}
    assert row.data == "shards"
    assert row.data_supply_ratio == pytest.approx(3.01)
    assert "exposed" not in row.step_parts_s and any("exposed communication was not measured" in n for n in row.notes)
    assert row.limit == "", "on two ranks without exposed communication nobody knows"
    assert "torchrun" in row.command and str(run) in row.command
    assert from_json(to_json([row]))[0] == row
    assert "exposed" in to_csv([row])


def test_another_topology_does_not_count(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=60, restarts=(20, 40))
    starts = read_jsonl(run / "starts.jsonl")
    starts[0]["world_size"] = starts[1]["world_size"] = 4
    write_lines(run / "starts.jsonl", starts)
    change(run, step_s=lambda line: line["step_s"] + (100 if line["start"] < 2 else 0))
    row = measured_row(run)
    assert row.steps_timed == 16 and row.step_s is not None and row.step_s < 1
    assert any("40 steps of earlier starts" in note for note in row.notes)


def test_one_step_is_warm_up(tmp_path: Path) -> None:
    row = measured_row(make_run(tmp_path / "run", steps=1, restarts=()))
    assert (row.step_s, row.images_per_s, row.step_ci95_s, row.steps_timed, row.limit) == (None, None, None, 0, "")
    assert row.memory_gib["peak"] == pytest.approx(1.001)
    assert any("speed not measured" in note for note in row.notes)
    to_json([row])


def test_only_profiled_steps_after_warm_up(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=10, restarts=())
    change(run, profiled=lambda line: line["step"] > 2)
    assert measured_row(run).step_s is None
    change(run, profiled=lambda line: line["step"] > 5)
    row = measured_row(run)
    assert row.steps_timed == 3 and row.step_s is not None and row.step_ci95_s is None


def test_nothing_logged_yet(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=5, restarts=())
    (run / "metrics.jsonl").write_text("")
    row = measured_row(run)
    assert row.step_s is None and row.memory_gib == {}
    with pytest.raises(UserError, match="no run folder"):
        measured_row(tmp_path / "absent")


def test_a_torn_last_line(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=20, restarts=())
    whole = measured_row(run)
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"schema": 1, "step": 21, "step_s": 99')
    row = measured_row(run)
    assert (row.step_s, row.steps_timed) == (whole.step_s, whole.steps_timed)
    assert any("torn" in note for note in row.notes)


def test_parts_add_up_and_name_the_limit(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=30, restarts=())
    times = {"data_s": 0.1, "forward_s": 0.2, "backward_s": 0.4, "optimizer_s": 0.1, "checkpoint_s": 0.0}
    exposed = {"exposed_s": 0.35, "exposed_forward_s": 0.1, "exposed_backward_s": 0.2, "exposed_optimizer_s": 0.05}
    change(run, step_s=0.85, other_s=0.05, **times, **exposed)
    row = measured_row(run)
    assert row.step_parts_s == pytest.approx(
        {"compute": 0.3, "optimizer": 0.05, "exposed": 0.35, "data": 0.1, "other": 0.05}
    )
    assert sum(row.step_parts_s.values()) == pytest.approx(row.step_s)
    assert row.limit == "compute"
    change(run, exposed_s=0.55, exposed_backward_s=0.4)
    assert measured_row(run).limit == "communication"
    change(run, data_s=3.0)
    assert measured_row(run).limit == "data"
    # Device events give the sum alone.
    rows = lines(run)
    write_lines(
        run / "metrics.jsonl",
        [{k: v for k, v in row.items() if not k.startswith("exposed_") or k == "exposed_s"} for row in rows],
    )
    assert measured_row(run).step_parts_s["compute"] == pytest.approx(0.6 - 0.55)


def test_memory_spread_and_rates_of_an_accelerator(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=30, restarts=())
    memory = {"memory_gib": 20.0, "memory_allocated_gib": 20.0, "memory_active_gib": 21.0, "memory_reserved_gib": 25.0}
    change(run, memory_kind="device_peak", **memory)
    starts = read_jsonl(run / "starts.jsonl")
    starts[0] |= {"peak_tflops": 191.5, "hardware_flops_per_image": 3.25e9}
    write_lines(run / "starts.jsonl", starts)

    def line(step: int, ranks: int, rank: int, factor: float, work: bool = True) -> dict:
        value = {"median": 1.0, "max": factor, "max_rank": rank, "factor": factor}
        return {"step": step, "ranks": ranks, "product_s": value | {"factor": 9.0}, "work_s": value if work else None,
                "memory_gib": {"median": 20.0, "max": 22.0}}  # fmt: skip

    write_lines(
        run / "ranks.jsonl", [line(10, 2, 1, 1.2), line(20, 2, 1, 1.4), line(30, 8, 7, 5.0), line(30, 2, 0, 1.3)]
    )
    row = measured_row(run)
    assert row.memory_gib == {"peak": 22.0, "total_allocated": 20.0, "active": 21.0, "reserved": 25.0}
    assert (row.rank_spread, row.slowest_rank) == (1.3, 1)
    assert row.mfu == pytest.approx(row.tflops_per_device / 191.5)
    assert row.hfu == pytest.approx(1.3 * row.mfu)
    write_lines(run / "ranks.jsonl", [line(10, 2, 1, 1.2, work=False)])
    assert measured_row(run).rank_spread == 9.0


def test_energy(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=30, restarts=())
    change(run, step_s=0.5, energy_j=lambda line: 100.0 if line["step"] != 20 else None, power_w=200.0)
    change(run, energy_source="RAPL")
    starts = read_jsonl(run / "starts.jsonl")
    starts[0] |= {"nodes": 2}
    write_lines(run / "starts.jsonl", starts)
    row = measured_row(run)
    assert row.power_w == pytest.approx(2 * 100 / 0.5)
    assert row.joules_per_image == pytest.approx(2 * 100 / GLOBAL_BATCH)
    assert row.energy_source == "RAPL" and any("node 0's" in note for note in row.notes)
    change(run, energy_j=None)
    assert measured_row(run).power_w == pytest.approx(400.0)


def test_a_run_made_here(toy: Path, tmp_path: Path) -> None:
    done = run_frontier("pretrain", toy, "--ranks", "2", "train.steps=12", "train.micro_batch=8")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    row = measured_row(run)
    assert (row.steps_timed, row.micro_batch, row.accumulation, row.tokens) == (9, 8, 2, 5)
    assert row.step_parts_s.keys() == {"compute", "optimizer", "exposed", "data", "other"}
    assert row.rank_spread is not None and row.rank_spread >= 1 and row.slowest_rank in (0, 1)
    assert row.facts["exposed_from"] == "host waits in collectives"
    assert 0 < row.facts["rss_before_model_gib"] < row.memory_gib["peak"]
    assert (row.mfu, row.hfu) == (None, None)
    for line in lines(run):
        assert 0 <= line["exposed_s"] <= line["forward_s"] + line["backward_s"] + line["optimizer_s"]
        inside = sum(line[f"exposed_{part}_s"] for part in ("forward", "backward", "optimizer"))
        assert inside == pytest.approx(line["exposed_s"], abs=1e-6)
        assert line["rss_gib"] <= line["rss_peak_gib"] and line["memory_allocated_gib"] is None
    json.dumps(row.as_dict(), allow_nan=False)
