"""One short run of a plain MAE, with a checkpoint and metrics, for all tests of the exports."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.conftest import run_frontier, toy_config


@pytest.fixture(scope="session")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder: 12 steps, checkpoints at 6 and 12."""
    folder = tmp_path_factory.mktemp("export")
    config = toy_config(folder / "run", shards)
    config["train"]["steps"] = 12
    config["checkpoint"] = {"every_steps": 6}
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump(config))
    done = run_frontier("pretrain", path)
    assert done.returncode == 0, done.stderr
    return folder / "run"
