"""A run with a meter and without: what stands in its rows, on one rank, on two of a node, on two nodes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT, curve, read_jsonl, run_frontier, toy_config
from tests.energy.trees import CrayNode


@pytest.fixture
def config(tmp_path: Path, shards: Path) -> Path:
    node = toy_config(tmp_path / "run", shards)
    node["train"] |= {"steps": 100, "global_batch": 32}
    node["log"] = {"progress": "none"}
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump(node))
    return path


def free_port() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


def pretrain(config: Path, counters: Sequence[Path], per_node: int, *more: str) -> None:
    """One process for each of `counters`, the folder that it sees, `per_node` of them to a node."""
    world, port = len(counters), free_port()
    ranks = []
    for rank, folder in enumerate(counters):
        place = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank % per_node, "LOCAL_WORLD_SIZE": per_node}
        env = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        env |= {key: str(value) for key, value in place.items()} if world > 1 else {}
        command = [sys.executable, "-m", "tests.energy.metered", str(folder), str(config), *more]
        ranks.append(subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True))
    told = [rank.communicate(timeout=240)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * world, told


def rows_and_start(run: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    return read_jsonl(run / "metrics.jsonl"), read_jsonl(run / "starts.jsonl")[-1]


def check_power(run: Path, watts: float) -> None:
    """Every reading says the true power, its joules add up to no more than the run can have used, no row says 0."""
    rows, start = rows_and_start(run)
    measured = [row for row in rows if row["energy_j"] is not None]
    assert measured, "a run of seconds and counters of 10 Hz: some row must have a reading"
    assert all(row["energy_j"] > 0 for row in measured)
    assert [row["power_w"] for row in measured if row["power_w"] is not None] == pytest.approx(
        [watts] * sum(row["power_w"] is not None for row in measured), rel=0.05
    )
    seconds = rows[-1]["time"] - rows[0]["time"] + rows[0]["step_s"]
    assert sum(row["energy_j"] for row in measured) <= watts * (seconds + 0.5)
    assert all(row["power_w"] is None for row in rows if row["energy_j"] is None)
    assert start["energy_source"] == "Cray pm_counters"
    assert start["energy_why_not"] is None


def test_one_rank_with_a_meter_and_the_same_curve_without(config: Path, tmp_path: Path) -> None:
    with CrayNode(tmp_path / "pm", 1500.0):
        pretrain(config, [tmp_path / "pm"], 1)
    check_power(tmp_path / "run", 1500.0)
    done = run_frontier("pretrain", config, f"run.dir={tmp_path / 'plain'}", "log.energy=false")
    assert done.returncode == 0, done.stderr
    rows, start = rows_and_start(tmp_path / "plain")
    assert {row["energy_j"] for row in rows} == {row["power_w"] for row in rows} == {None}
    assert (start["energy_source"], start["energy_why_not"]) == (None, "log.energy is off")
    assert curve(tmp_path / "plain") == curve(tmp_path / "run")


def test_two_ranks_of_a_node_share_one_meter(config: Path, tmp_path: Path) -> None:
    with CrayNode(tmp_path / "pm", 1500.0):
        pretrain(config, [tmp_path / "pm"] * 2, 2)
    check_power(tmp_path / "run", 1500.0)


@pytest.mark.slow
def test_two_nodes_add_up(config: Path, tmp_path: Path) -> None:
    with ExitStack() as stack:
        nodes = [stack.enter_context(CrayNode(tmp_path / f"pm{i}", watts)) for i, watts in enumerate((1000.0, 500.0))]
        pretrain(config, [node.root for node in nodes], 1)
    check_power(tmp_path / "run", 1500.0)


def test_a_node_without_a_meter_makes_the_sum_not_measured(config: Path, tmp_path: Path) -> None:
    with CrayNode(tmp_path / "pm", 1500.0):
        pretrain(config, [tmp_path / "pm", tmp_path / "none"], 1)
    rows, start = rows_and_start(tmp_path / "run")
    assert {row["energy_j"] for row in rows} == {None}
    assert (start["energy_source"], start["energy_why_not"]) == (None, "1 of 2 nodes have a meter")
