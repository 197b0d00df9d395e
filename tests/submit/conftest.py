from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.submit.runs import Submitter, write_config


@pytest.fixture
def submit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Submitter:
    """In a folder of its own, without the settings of whoever runs the tests."""
    for name in os.environ:
        if name.startswith(("FRONTIER_", "SBATCH_", "SLURM_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path)
    return Submitter(tmp_path, capsys)
