"""Points with status: results that are no successes, resuming, kills, two sweeps at once. Fake runs, real processes and signals."""

from __future__ import annotations

import csv
import errno
import json
import os
import signal
import time
from pathlib import Path

import psutil
import pytest
import yaml

from frontier.claim import claimed
from frontier.errors import UserError
from frontier_profiling.rows import Row
from frontier_profiling.sweep.results import measured_there
from frontier_profiling.sweep.state import write_text
from frontier_profiling.sweep.study import read_study
from tests.conftest import run_frontier
from tests.profiling.sweep.fakes import attempts, begin, environment, status, statuses, study, sweep

DDP, FULL, HYBRID = (f"vit_debug-{word}-r2" for word in ("ddp", "full_shard", "hybrid_1"))


def until(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_out_of_memory_timeout_and_failure_are_rows(tmp_path: Path) -> None:
    out = tmp_path / "out"
    path = study(tmp_path / "s.yaml", time_limit_s=8)
    done = sweep(path, "--out", out, behaviour={"ddp": "oom", "full_shard": "hang", "hybrid_1": "failed"})
    assert done.returncode == 75, done.stderr
    assert statuses(out) == {"ddp": "oom", "full_shard": "timeout", "hybrid_1": "failed"}
    rows = {row["strategy"]: row for row in json.loads((out / "rows.json").read_text())["rows"]}
    assert "HIP out of memory" in rows["ddp"]["error"] and not rows["ddp"]["error"].startswith("[rank1]")
    assert rows["full_shard"]["error"] == "not done after 8 s"
    assert "data.column 'x' is not in shards" in rows["hybrid_1"]["error"]
    assert rows["ddp"]["images_per_s"] is None and rows["ddp"]["devices"] == 2 and rows["ddp"]["global_batch"] == 16
    table = list(csv.DictReader((out / "rows.csv").open()))
    assert [line["status"] for line in table] == ["oom", "timeout", "failed"] and table[0]["images_per_s"] == ""
    rank = int((out / "points" / FULL / "run" / "rank.pid").read_text())
    until(lambda: gone(rank), 5)


def test_a_second_call_skips_what_has_a_result_and_retries_on_request(tmp_path: Path) -> None:
    out, path = tmp_path / "out", study(tmp_path / "s.yaml")
    assert sweep(path, "--out", out, behaviour={"ddp": "oom", "full_shard": "failed"}).returncode == 75
    assert sweep(path, "--out", out).returncode == 75
    assert [len(attempts(out, point)) for point in (DDP, FULL, HYBRID)] == [1, 1, 1]
    done = sweep(path, "--out", out, "--retry", "failed")
    assert done.returncode == 0, done.stderr
    assert statuses(out) == {"ddp": "oom", "full_shard": "done", "hybrid_1": "done"}
    assert sweep(out, "--retry", "oom").returncode == 0  # the folder alone is enough
    assert statuses(out) == {"ddp": "done", "full_shard": "done", "hybrid_1": "done"}
    assert [len(attempts(out, point)) for point in (DDP, FULL, HYBRID)] == [2, 2, 1]
    assert status(out, DDP)["attempts"] == 2
    row = json.loads((out / "rows.json").read_text())["rows"][0]
    assert row["source"] == "measured" and row["steps_timed"] == 8 and row["step_s"] > 0 and row["images_per_s"] > 0


def test_results_of_another_config_are_not_mixed_in(tmp_path: Path) -> None:
    out, path = tmp_path / "out", study(tmp_path / "s.yaml")
    assert sweep(path, "--out", out, "--only", "vit_debug/ddp").returncode == 0
    done = sweep(path, "--out", out, "--set", "train.base_lr=0.1")
    assert done.returncode == 2 and "another config" in done.stderr and done.stderr.count("\n") == 1
    assert sweep(path, "--out", out, "--set", "time_limit_s=50").returncode == 0  # that changes no result
    assert len(attempts(out, DDP)) == 1
    assert sweep(path, "--out", out, "--set", "train.base_lr=0.1", "--retry", "changed").returncode == 0
    assert len(attempts(out, DDP)) == 2


def test_killed_at_any_moment_a_second_call_finishes(tmp_path: Path) -> None:
    out, path = tmp_path / "out", study(tmp_path / "s.yaml")
    first = begin(path, "--out", out, behaviour={"full_shard": "hang"})
    pid_file = out / "points" / FULL / "run" / "rank.pid"
    until(lambda: pid_file.exists() and pid_file.read_text())
    assert status(out, FULL)["status"] == "running"
    first.send_signal(signal.SIGKILL)
    first.communicate()
    (run,), rank = attempts(out, FULL), int(pid_file.read_text())
    until(
        lambda: gone(run), 10
    )  # a run dies with its sweep; its ranks die with it (frontier.launch.local), a fake's do not
    psutil.Process(rank).kill()
    assert sweep(path, "--out", out).returncode == 0
    assert statuses(out) == dict.fromkeys(("ddp", "full_shard", "hybrid_1"), "done")
    assert [len(attempts(out, point)) for point in (DDP, FULL, HYBRID)] == [1, 2, 1]


def test_a_point_whose_runner_dies_again_and_again_is_given_up(tmp_path: Path) -> None:
    out, path = tmp_path / "out", study(tmp_path / "s.yaml")
    assert sweep(path, "--out", out, "--only", DDP).returncode == 0
    place = out / "points" / DDP / "status.json"
    known = json.loads(place.read_text())
    for lost in (1, 4):
        place.write_text(json.dumps({**known, "status": "running", "lost_runners": lost}))
        code = sweep(path, "--out", out, "--only", DDP).returncode
        assert (code, status(out, DDP)["status"]) == ((0, "done") if lost == 1 else (75, "failed"))
    assert "died 5 times" in status(out, DDP)["reason"]


def test_asked_to_stop_it_ends_the_ranks_and_goes_on_later(tmp_path: Path) -> None:
    out, path = tmp_path / "out", study(tmp_path / "s.yaml")
    first = begin(path, "--out", out, behaviour={"ddp": "hang"})
    pid_file = out / "points" / DDP / "run" / "rank.pid"
    until(lambda: pid_file.exists() and pid_file.read_text())
    rank = int(pid_file.read_text())
    first.send_signal(signal.SIGTERM)
    output, _ = first.communicate(timeout=60)
    assert first.returncode == 85, output
    assert gone(rank) and status(out, DDP)["status"] == "pending"
    assert statuses(out) == dict.fromkeys(("ddp", "full_shard", "hybrid_1"), "pending")
    assert sweep(path, "--out", out).returncode == 0


def test_two_sweeps_never_run_the_same_point(tmp_path: Path) -> None:
    out, path = tmp_path / "out", study(tmp_path / "s.yaml")
    first = begin(path, "--out", out, behaviour={"ddp": "hang"}, SLURM_JOB_ID="11")
    until(lambda: attempts(out, DDP) != [])
    here = sweep(path, "--out", out, SLURM_JOB_ID="11")  # they would disturb each other's times
    assert here.returncode == 2 and "another `frontier sweep`" in here.stderr
    other = sweep(path, "--out", out, SLURM_JOB_ID="12")
    assert other.returncode == 0 and "passed over" in other.stdout
    assert statuses(out) == {"ddp": "running", "full_shard": "done", "hybrid_1": "done"}
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=60)
    assert [len(attempts(out, point)) for point in (DDP, FULL, HYBRID)] == [1, 1, 1]


def test_a_point_held_elsewhere_is_left_alone(tmp_path: Path) -> None:
    out, path = tmp_path / "out", study(tmp_path / "s.yaml")
    folder = out / "points" / DDP
    folder.mkdir(parents=True)
    with claimed(folder, ".running"):
        assert sweep(path, "--out", out).returncode == 0
    assert statuses(out) == {"ddp": "pending", "full_shard": "done", "hybrid_1": "done"}


def test_points_that_cannot_work_are_rows_with_the_reason(tmp_path: Path) -> None:
    out = tmp_path / "out"
    grid = {
        "model": "vit_debug",
        "strategy": ["ddp", "hybrid_4"],
        "ranks": 2,
        "micro_batch": 8,
        "tensor": [1, 2],
        "data": "shards",
    }
    done = sweep(study(tmp_path / "s.yaml", grid=grid), "--out", out)
    assert done.returncode == 0, done.stderr
    rows = json.loads((out / "rows.json").read_text())["rows"]
    found = {(row["strategy"], row["tensor"]): (row["status"], row["error"]) for row in rows}
    assert found["ddp", 1] == ("done", "")
    assert found["hybrid_4", 1][0] == "skipped" and "does not fit 2 ranks: choose among" in found["hybrid_4", 1][1]
    assert found["ddp", 2][0] == "skipped" and "does not compose" in found["ddp", 2][1]


def test_json_is_all_that_stands_on_standard_output(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = sweep(study(tmp_path / "s.yaml"), "--out", out, "--only", "*/ddp", "--json")
    node = json.loads(done.stdout)
    assert [row["status"] for row in node["rows"]] == ["done", "pending", "pending"] and node["study"]["name"] == "toy"


def test_real_runs(tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`frontier pretrain` itself: the config that a point gets is one that it takes, its folder one that is understood."""
    grid = {"model": "vit_debug", "strategy": "full_shard", "ranks": [2], "micro_batch": 8, "data": ["shards", "only"]}
    config = {"data": {"shards": str(shards)}, "parallel": {"timeout_s": 120}}
    path = study(tmp_path / "s.yaml", grid=grid, config=config, threads=1, time_limit_s=280)
    monkeypatch.setattr("os.environ", environment())
    done = run_frontier("sweep", path, "--out", tmp_path / "out", "--no-report", timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    trained, read = json.loads((tmp_path / "out" / "rows.json").read_text())["rows"]
    assert (trained["status"], read["status"]) == ("done", "done")
    assert trained["steps_timed"] == 8 and 0 < trained["images_per_s"] < read["images_per_s"]
    assert trained["memory_gib"]["peak"] > 0 and not read["memory_gib"]
    assert read["step_s_low"] <= read["step_s"] <= read["step_s_high"]
    assert read["step_s"] == pytest.approx(read["global_batch"] / read["images_per_s"])
    assert "OMP_NUM_THREADS=1 python -m frontier_profiling.measure.reading" in read["command"]
    assert " run.dir=NEW " in read["command"]
    assert read["steps_timed"] >= 2 * read["facts"]["batches_a_window"] and read["limit"] == "data"
    run = tmp_path / "out" / "points" / "vit_debug-full_shard-r2-shards" / "run"
    assert not list((run / "checkpoints").glob("step_*"))
    assert yaml.safe_load((run / "config.yaml").read_text())["train"]["steps"] == 10


@pytest.mark.parametrize(
    ("system", "kind", "device", "there"),
    [
        ("frontier", "cuda", "AMD Instinct MI250X", True),
        ("frontier", "cuda", "NVIDIA H100 80GB HBM3", False),
        ("frontier", "cpu", "AMD EPYC 7A53 64-Core Processor", False),
        ("h200", "cuda", "NVIDIA H200", True),
        ("h200", "cuda", "NVIDIA GH200 480GB", False),
        ("aurora", "xpu", "Intel(R) Data Center GPU Max 1550", True),
        ("local", "cpu", "anything", True),
    ],
)
def test_the_machine_of_a_measured_row_is_the_one_that_measured(
    tmp_path: Path, system: str, kind: str, device: str, there: bool
) -> None:
    found = read_study(study(tmp_path / "s.yaml", system=system))
    row = Row(source="measured", model="vit_debug", system=system, strategy="ddp", nodes=1, devices=1, micro_batch=1, status="done")  # fmt: skip
    row.facts = {"device": device, "device_type": kind}
    assert measured_there(found, row) is there


def test_a_file_that_cannot_be_written_leaves_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_path: Path, _text: str, **_: str) -> None:
        Path.touch(_path)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "status.json").touch()
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UserError, match="No space left"):
        write_text(tmp_path / "status.json", "{}")
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


@pytest.mark.parametrize(
    "text", ['{"status": ', '{"status": 5}', '{"status": "dnoe"}', '{"status": "done", "attempts": "x"}']
)
def test_damaged_files_are_as_good_as_none(tmp_path: Path, text: str) -> None:
    path, out = study(tmp_path / "s.yaml"), tmp_path / "out"
    folder = out / "points" / DDP
    folder.mkdir(parents=True)
    (folder / "status.json").write_text(text)
    (folder / "point.json").write_text("[1, 2")
    (out / "rows.json").write_text('{"rows": [5]}')
    done = sweep(path, "--out", out, "--only", "*/ddp")
    assert done.returncode == 0, done.stderr
    assert status(out, DDP)["status"] == "done" and status(out, DDP)["attempts"] == 1
