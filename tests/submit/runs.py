"""A run without data and the way to submit it from a test: in this process, as its user would type it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from frontier.cli import main

CONFIG = {
    "run": {"dir": "runs/small"},
    "model": {"family": "mae", "preset": "vit_debug"},
    "data": {"synthetic": {"samples": 100_000}, "image_size": 32},
    "train": {"steps": 20, "global_batch": 768},
}


def write_config(folder: Path) -> None:
    (folder / "small.yaml").write_text(yaml.safe_dump(CONFIG))


class Submitter:
    """`frontier submit …` in a folder that holds small.yaml."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capsys = folder, capsys

    def __call__(self, *words: str, config: str = "small.yaml") -> tuple[int, str, str]:
        """(exit code, stdout, stderr)."""
        self.capsys.readouterr()
        try:
            code = main(["submit", config, *words])
        except SystemExit as error:  # --help
            code = int(error.code or 0)
        said = self.capsys.readouterr()
        return code, said.out, said.err

    def dry(self, *words: str, site: str = "frontier") -> tuple[int, str, str]:
        """With --dry-run, two nodes and half an hour of an account, where the words do not say otherwise."""
        defaults = {"--site": site, "--nodes": "2", "--time": "30", "--account": "abc123"}
        given = [part for key, value in defaults.items() if key not in words for part in (key, value)]
        return self(*given, "--dry-run", *words)
