"""Stands in for a rank of `frontier pretrain`: `srun … python -m tests.slurm.task python -m frontier pretrain CONFIG`.

A real task of a real step, without the seconds that torch takes to load. FAKE_RUNS (JSON: strategy -> behaviour) says what it does:
done, failed or oom as `tests.profiling.sweep.fake_run` (rank 0), sleep: waits for its end, sleep once: at its first attempt,
lost: rank 1 is killed, the others wait.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

import yaml

from frontier.launch.ranks import discover, rendezvous
from tests.profiling.sweep import fake_run


def main(path: str) -> int:
    ranks = discover()
    folder, strategy = Path(path).parent, yaml.safe_load(Path(path).read_text())["parallel"]["strategy"]
    where = {"host": socket.gethostname(), "pid": os.getpid(), "nodes": ranks.nodes, "address": rendezvous(ranks)[0]}
    given = {"cores": "SLURM_CPUS_PER_TASK", "of_the_site": "OF_THE_SITE"}
    where |= {key: os.environ.get(name) for key, name in given.items()}
    # By rename: a test that looks for it finds all of it.
    (folder / f".task{ranks.rank}").write_text(json.dumps(where))
    (folder / f".task{ranks.rank}").rename(folder / f"task{ranks.rank}.json")
    behaviour = json.loads(os.environ.get("FAKE_RUNS", "{}")).get(strategy, "done")
    if behaviour == "sleep once":
        (folder / "attempted").mkdir(exist_ok=True)
        slept = folder / "attempted" / str(ranks.rank)
        behaviour = "done" if slept.exists() else "sleep"
        slept.touch()
    if behaviour in ("sleep", "lost"):
        if behaviour == "lost" and ranks.rank == 1:
            while (
                len(list(folder.glob("task*.json"))) < ranks.world_size
            ):  # the others would be ended before they are there
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(300)
    return fake_run.main(path) if ranks.is_main else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[-1]))
