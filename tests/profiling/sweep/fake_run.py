"""Stands in for `frontier pretrain CONFIG`: does what the point's strategy word says in FAKE_RUNS (JSON: strategy -> behaviour)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import yaml

from tests.profiling.runs import rows, start, write_lines


def main(path: str) -> int:
    config = yaml.safe_load(Path(path).read_text())
    run = Path(config["run"]["dir"])
    run.mkdir(parents=True)  # fails where an earlier attempt left something
    with open(run.parent / "attempts.txt", "a") as file:
        file.write(f"{os.getpid()}\n")
    behaviour = json.loads(os.environ.get("FAKE_RUNS", "{}")).get(config["parallel"]["strategy"], "done")
    if behaviour == "oom":
        print("[rank1]: torch.OutOfMemoryError: HIP out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1 GiB")
        return 1
    if behaviour == "failed":
        print("frontier pretrain: data.column 'x' is not in shards", file=sys.stderr)
        return 2
    if behaviour == "hang":  # as ranks do that wait for a lost one, deaf to SIGTERM
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        rank = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
        (run / "rank.pid").write_text(str(rank.pid))
        time.sleep(300)
    steps = config["train"]["steps"]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    write_lines(run / "starts.jsonl", [{**start(0, None), "world_size": 2}])
    write_lines(run / "metrics.jsonl", rows(steps, (), 0))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
