"""Run cells and pairs, compare each with the undisturbed run on one rank, and say so in a table."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from torch import Tensor

from frontier.train.storage import read_tensors
from tests.conftest import curve, read_jsonl, toy_config
from tests.matrix.cells import STEPS, STOP, Cell

TOLERANCE = 1e-5


@dataclass(frozen=True)
class Difference:
    """From the reference: largest relative difference of a loss, largest absolute one of a weight."""

    losses: float
    weights: float

    @property
    def ok(self) -> bool:
        return self.losses < TOLERANCE and self.weights < TOLERANCE


class Bench:
    """A folder of runs of one small config.

    The reference is one rank, alone. Final weights are compared except the bias of the attention keys: softmax does not see it,
    its true gradient is 0, and AdamW scales what rounding leaves of it up to full steps.

    `config`: (folder of the reference, the data) -> the small config. `steps`, `stop`: length of a run, and where the first
    side of a stop-and-resume ends.
    """

    def __init__(
        self,
        folder: Path,
        data: Path,
        config: Callable[[Path, Path], dict[str, Any]] = toy_config,
        steps: int = STEPS,
        stop: int = STOP,
    ) -> None:
        self.folder, self.steps, self.stop = folder, steps, stop
        folder.mkdir(parents=True, exist_ok=True)
        self.config = folder / "toy.yaml"
        settings = config(folder / "reference", data)
        settings["train"]["steps"] = steps
        self.config.write_text(yaml.safe_dump(settings, sort_keys=False))

    def run(self, ranks: int, jobs: Iterable[tuple[str, tuple[str, ...]]], timeout: float = 3600) -> None:
        """Run (folder name, overrides) one after the other on one set of ranks; their output goes to ranks_<n>.log."""
        listed = [
            {"config": str(self.config), "overrides": [f"run.dir={self.folder / name}", *overrides]}
            for name, overrides in jobs
        ]
        if not listed:
            return
        path = self.folder / f"jobs_{ranks}.json"
        path.write_text(json.dumps(listed))
        code = "import sys; from frontier.launch.local import run_local; sys.exit(run_local(sys.argv[2:], int(sys.argv[1])))"
        command = [sys.executable, "-c", code, str(ranks), sys.executable, "-m", "tests.matrix.worker", str(path)]
        log = self.folder / f"ranks_{ranks}.log"
        with open(log, "a") as out:
            done = subprocess.run(
                command, stdout=out, stderr=out, timeout=timeout, env={**os.environ, "OMP_NUM_THREADS": "1"}
            )
        if done.returncode:
            lines = log.read_text().splitlines()
            raise RuntimeError(f"{ranks} ranks ended with {done.returncode}, see {log}:\n" + "\n".join(lines[-25:]))

    def reference(self) -> None:
        self.run(1, [("reference", ())])
        losses = curve(self.folder / "reference")
        assert losses[-1] < losses[0] - 0.02, "the toy model does not learn, so equal curves would mean little"

    def cells(self, cells: Iterable[Cell]) -> None:
        """Run the cells, all of one number of ranks in one set; each also saves at step `stop`."""
        cells = list(cells)
        for ranks in sorted({cell.ranks for cell in cells}):
            mine = [c for c in cells if c.ranks == ranks]
            self.run(
                ranks,
                [(c.name, (*c.overrides, f"checkpoint.every_steps={self.stop}", "checkpoint.keep=9")) for c in mine],
            )

    def resume(self, pairs: Iterable[tuple[Cell, Cell]]) -> dict[tuple[str, str], str]:
        """For each (first, second): go on under `second` from the checkpoint that `first` made at `stop`. Returns names."""
        names: dict[tuple[str, str], str] = {}
        jobs: dict[int, list[tuple[str, tuple[str, ...]]]] = {}
        for first, second in pairs:
            name = names[first.name, second.name] = f"{first.name}_to_{second.name}"
            saved = f"checkpoints/step_{self.stop:08d}"
            shutil.copytree(self.folder / first.name / saved, self.folder / name / saved, dirs_exist_ok=True)
            rows = (self.folder / first.name / "metrics.jsonl").read_text().splitlines(keepends=True)
            (self.folder / name / "metrics.jsonl").write_text("".join(rows[: self.stop]))
            jobs.setdefault(second.ranks, []).append((name, second.overrides))
        for ranks, listed in jobs.items():
            self.run(ranks, listed)
        for name in names.values():  # a run begun anew would show the same curve
            assert [row["resumed_from"] for row in read_jsonl(self.folder / name / "starts.jsonl")] == [self.stop]
        return names

    def difference(self, name: str) -> Difference:
        """Of the run `name` from the reference."""
        ours, theirs = np.array(curve(self.folder / name)), np.array(curve(self.folder / "reference"))
        assert len(ours) == len(theirs) == self.steps
        checkpoint = f"checkpoints/step_{self.steps:08d}"
        mine = read_tensors(self.folder / name / checkpoint, "model.")
        wanted = read_tensors(self.folder / "reference" / checkpoint, "model.")
        assert mine.keys() == wanted.keys()
        worst = max(float((seen(key, value) - seen(key, mine[key])).abs().max()) for key, value in wanted.items())
        return Difference(float(np.max(np.abs(ours - theirs) / theirs)), worst)


def seen(name: str, value: Tensor) -> Tensor:
    """What the loss sees of a parameter: all but the biases of keys."""
    if name.endswith("attn.qkv.bias"):  # rows are [heads, 3, head_dim]
        return value.view(2, 3, -1)[:, [0, 2]]
    return value.view(2, -1)[1] if name.endswith(".kv.bias") else value
