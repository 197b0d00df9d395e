"""Run many configs in one set of ranks: `python -m tests.matrix.worker JOBS.json` under `run_local`.

JOBS.json: a list of {"config": file, "overrides": [...]}. Every job is what `frontier pretrain` does from the plan on.
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path

import torch

from frontier.config.load import load_config
from frontier.launch.process_group import process_group
from frontier.launch.ranks import discover
from frontier.train.plan import resolve
from frontier.train.preemption import StopFlag
from frontier.train.trainer import train


def main(jobs: Path) -> int:
    ranks, device, stop = discover(), torch.device("cpu"), StopFlag()
    with process_group(ranks, device, 120):
        for job in json.loads(jobs.read_text()):
            if ranks.is_main:
                print(f"== {job['overrides']}", flush=True)
            try:
                train(resolve(load_config(job["config"], job["overrides"]), ranks.world_size), ranks, device, stop)
            except Exception:
                traceback.print_exc()
                raise
    return 0


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
