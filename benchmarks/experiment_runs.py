"""What experiments share: a run of `frontier pretrain` in this process, and means over seeds."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml


def pretrain(config: dict[str, Any] | Path, folder: Path, *overrides: str) -> tuple[torch.nn.Module, dict[str, Any]]:
    """(trained module, resolved config) of `frontier pretrain CONFIG overrides…`; a finished run in `folder` is taken as it is."""
    from frontier.train.checkpoint import load_model
    from frontier.train.command import main

    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "done").exists():
        shutil.rmtree(folder / "run", ignore_errors=True)
        path = config if isinstance(config, Path) else folder / "config.yaml"
        if isinstance(config, dict):
            path.write_text(yaml.safe_dump({"run": {"dir": str(folder / "run")}, **config}, sort_keys=False))
        with (folder / "log.txt").open("w") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            code = main([str(path), f"run.dir={folder / 'run'}", *overrides])
        if code:
            raise RuntimeError(f"training ended with status {code}: see {folder / 'log.txt'}")
        (folder / "done").touch()
    module, settled, _ = load_model(folder / "run")
    return module.eval(), settled


def interval(values: Sequence[float]) -> tuple[float, float]:
    """(mean, half-width of the 95 % interval of the mean by Student's t) of independent seeds; NaN half-width of one."""
    from scipy.stats import t

    n = len(values)
    half = float(t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n)) if n > 1 else float("nan")
    return float(np.mean(values)), half


def told(values: Sequence[float]) -> str:
    """mean ± half-width."""
    mean, half = interval(values)
    return f"{mean:.3f} ± {half:.3f}" if len(values) > 1 else f"{mean:.3f}"


def one_thread() -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
