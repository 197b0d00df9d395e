"""Predicted studies: every point a row, no hardware, no folder for a point."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

from frontier.cli import main
from frontier_profiling.predict.system import FOLDER
from frontier_profiling.rows import from_json
from frontier_profiling.sweep.results import table
from tests.conftest import run_frontier
from tests.profiling.sweep.fakes import study


def rows_of(out: Path):
    return from_json((out / "rows.json").read_text())


def test_the_whole_grid_of_the_study(tmp_path: Path) -> None:
    assert main(["sweep", "whole", "--out", str(tmp_path), "--no-report"]) == 0
    rows = rows_of(tmp_path)
    assert len(rows) == 6 * 8 * 6 and {row.source for row in rows} == {"predicted"}
    assert (
        not (tmp_path / "points").exists() and (tmp_path / "study.yaml").exists() and (tmp_path / "rows.csv").exists()
    )
    by = {(row.model, row.strategy, row.nodes): row for row in rows}
    assert by["vit_5b", "hybrid_1", 4].status == "oom" and by["vit_5b", "hybrid_1", 4].images_per_s is None
    assert by["vit_15b", "hybrid_2", 1].status == "oom" and by["vit_15b", "hybrid_8", 1].status == "done"
    base = by["vit_base", "hybrid_1", 128]
    assert base.devices == 1024 and base.global_batch == 32768 and base.images_per_s and base.engine == "fsdp1"


def test_what_cannot_be_told_is_skipped_with_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = {"model": "vit_base", "strategy": ["ddp", "hybrid_3"], "nodes": [1, 99999], "data": ["synthetic", "shards"]}
    path = study(tmp_path / "s.yaml", mode="predicted", system="frontier", grid=grid, config={"data.image_size": 224})
    assert main(["sweep", str(path), "--out", str(tmp_path / "o"), "--no-report"]) == 0
    found = {(row.strategy, row.nodes, row.data): (row.status, row.error) for row in rows_of(tmp_path / "o")}
    assert found["ddp", 1, "synthetic"] == ("done", "")
    assert found["ddp", 1, "shards"] == ("done", "")
    assert "does not fit 8 ranks" in found["hybrid_3", 1, "synthetic"][1]
    assert "largest job" in found["ddp", 99999, "synthetic"][1]
    assert "8 points: 2 done, 6 skipped" in capsys.readouterr().out
    command = ["sweep", str(path), "--out", str(tmp_path / "j"), "--no-report", "--set", "system=jupiter"]
    assert main(command) == 0
    found = {(row.strategy, row.nodes, row.data): (row.status, row.error) for row in rows_of(tmp_path / "j")}
    assert found["ddp", 1, "shards"][0] == "skipped" and "not known" in found["ddp", 1, "shards"][1]


def test_more_ranks_than_the_described_machine_has_are_skipped(tmp_path: Path) -> None:
    whole = yaml.safe_load((FOLDER / "frontier.yaml").read_text())
    whole |= {"name": "mine", "nodes": 1, "network": None, "links": [{"devices": 2, "gb_per_s": 1.0}]}
    whole["device"]["type"], whole["node"]["devices"] = "cpu", 2
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(whole))
    grid = {"model": "vit_tiny", "strategy": ["ddp", "full_shard"], "ranks": [1, 2, 4]}
    path = study(tmp_path / "s.yaml", mode="predicted", system="mine.yaml", grid=grid, config={"data.image_size": 64})
    assert main(["sweep", str(path), "--out", str(tmp_path / "o"), "--no-report"]) == 0
    rows = rows_of(tmp_path / "o")
    assert {(row.devices, row.status) for row in rows} == {(1, "done"), (2, "done"), (4, "skipped")}
    assert all("doctor --ranks 4 --write-system" in row.error for row in rows if row.status == "skipped")


def test_rows_of_another_source_stay(tmp_path: Path) -> None:
    out = tmp_path / "o"
    grid = {"model": "vit_base", "strategy": ["ddp", "full_shard", "hybrid_1"], "nodes": 1}
    path = study(tmp_path / "s.yaml", mode="predicted", system="frontier", grid=grid, config={"data.image_size": 224})
    assert main(["sweep", str(path), "--out", str(out), "--no-report"]) == 0
    node = json.loads((out / "rows.json").read_text())
    node["rows"] = [{**row, "source": "measured", "images_per_s": 7.0} for row in node["rows"]]
    (out / "rows.json").write_text(json.dumps(node))
    assert main(["sweep", str(path), "--out", str(out), "--no-report"]) == 0
    rows = rows_of(out)
    assert [row.source for row in rows] == ["predicted"] * 3 + ["measured"] * 3
    assert "images/s, measured" in table(rows) and "7.0*" in table(rows)


def test_only_leaves_the_other_points_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = {
        "model": "vit_base",
        "strategy": ["ddp", "full_shard", "hybrid_3"],
        "nodes": [1, 2],
        "data": ["synthetic", "only"],
    }
    path = study(tmp_path / "s.yaml", mode="predicted", system="frontier", grid=grid, config={"data.image_size": 224})
    command = ["sweep", str(path), "--out", str(tmp_path / "o"), "--no-report"]
    assert main([*command, "--only", "*/full_shard/2"]) == 0
    assert len(rows_of(tmp_path / "o")) == 2  # what was not asked for is not there
    assert main(command) == 0
    whole = rows_of(tmp_path / "o")
    assert len(whole) == 12 and {row.status for row in whole} == {"done", "skipped"}
    capsys.readouterr()
    assert main([*command, "--only", "*/ddp/1"]) == 0
    assert rows_of(tmp_path / "o") == whole
    assert "2 points: 2 done" in capsys.readouterr().out  # the terminal shows what was asked for
    assert main([*command, "--set", "samples=7000000", "--only", "*/ddp/1"]) == 0
    assert {row.samples for row in rows_of(tmp_path / "o") if row.step_s and row.data == "synthetic"} == {7_000_000}
    assert main([*command, "--set", "grid.nodes=[2]"]) == 0
    assert len(rows_of(tmp_path / "o")) == 6  # a smaller grid has no place for the others


def test_dry_run_and_list_write_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", "prefetch", "--dry-run"]) == 0 and main(["sweep", "--list"]) == 0
    text = capsys.readouterr().out
    assert "vit_5b-hybrid_16-n8-prefetch2" in text and "laptop_weak_scaling" in text
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["weak"], "no study 'weak'"),
        (["gone.yaml"], "no study gone.yaml"),
        ([], "name a study"),
        (["--set", "steps=3", "whole"], "before --set and --only"),
        (["whole", "--set", "base=run.yaml"], "stands in a study's file"),
        (["whole", "--retry", "sometimes"], "--retry sometimes"),
        (["whole", "--retry", "oom"], "the study is predicted"),
        (["whole", "--collect"], "go with --mode submitted"),
        (["whole", "--set", "system=frontierr"], "frontier"),
        (["whole", "--set", "data=only"], "is a section"),
        (["whole", "--only", "vit_77b"], "fits no point"),
        (["whole", "--set", "model.depth=3"], "the predictor takes presets"),
    ],
)
def test_mistakes(argv: list[str], words: str, tmp_path: Path) -> None:
    done = run_frontier("sweep", *argv, *(["--out", tmp_path / "o"] if argv else []))
    assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_it_needs_no_torch(tmp_path: Path) -> None:
    import subprocess

    code = "import sys; from frontier.cli import main; main(['sweep', 'whole', '--no-report', '--out', sys.argv[1]]); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True).returncode == 0


def test_the_whole_study_plans_ddp_as_it_was_published(tmp_path):
    """DDP ran in float32 there: it is slower than hybrid_1 at every size, and no point is skipped."""
    import json

    from frontier_profiling.sweep.command import main

    assert main(["whole", "--out", str(tmp_path), "--no-report"]) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert len(rows) == 6 * 8 * 6 and not any(row["status"] == "skipped" for row in rows)
    rate = {(r["model"], r["strategy"], r["nodes"]): r["images_per_s"] for r in rows}
    assert all(
        rate[m, "ddp", n] < 0.8 * rate[m, "hybrid_1", n]
        for m in ("vit_base", "vit_1b", "vit_3b")
        for n in (1, 8, 64, 128)
    )
