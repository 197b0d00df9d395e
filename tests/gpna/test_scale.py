"""Dry runs: counts at the scale of a machine, memory against what real ranks hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from frontier.cli import main
from tests.gpna.sets import small_config, write_both


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_both(tmp_path_factory.mktemp("sources"))


def test_9408_nodes_on_a_laptop(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(small_config(tmp_path / "run", data)))
    scale = ("--nodes", "9408", "--samples", "1000000000", "train.global_batch=150528")
    assert main(["pretrain", str(config), "--dry-run", "--json", *scale, "parallel.strategy=hybrid_8"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["mesh"]["world_size"] == told["scale"]["ranks"] == 75_264
    assert told["batch"] == {"global": 150_528, "rank": 2, "micro": 2, "accumulation": 1}
    assert told["scale"]["setup_s"] < 10 and told["scale"]["setup_gib"] < 1
    assert told["scale"]["checkpoint"]["files"] == 64 + 2
    assert not told["scale"]["notes"]
    unequal = (*scale, "data.sources.scenes.weight=2", "data.sources.series.weight=1")
    assert main(["pretrain", str(config), "--dry-run", *unequal, "parallel.strategy=hybrid_8"]) == 2
    assert "set data.granule to a multiple of 75264" in capsys.readouterr().err
