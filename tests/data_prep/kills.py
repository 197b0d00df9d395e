"""`python -m tests.data_prep.kills`: the writer killed with -9 at random moments in a row, then the bytes compared.

Each attempt runs the real command on one target: alone, with two worker processes, or under mpiexec on 2 or 4 ranks.
After a random time its launcher, one of its processes, or all of them get SIGKILL. An attempt that ends before its kill
must have left exactly the bytes of the undisturbed run; the target is then removed and the row goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from data_prep.verify import verify

ROOT = Path(__file__).resolve().parents[2]


def make_images(folder: Path, count: int, size: int = 96) -> Path:
    """`count` JPEGs in 3 classes: real files to decode."""
    random = np.random.default_rng(0)
    for k in range(count):
        path = folder / f"class{k % 3}" / f"{k:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = random.integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(coarse).resize((size, size)).save(path, quality=90)
    return folder


def mpiexec() -> str | None:
    """MPICH's launcher beside this Python, or one on the path; None where there is none."""
    beside = Path(sys.executable).with_name("mpiexec")
    return str(beside) if beside.exists() else shutil.which("mpiexec")


def command(images: Path, out: Path, how: str) -> list[str]:
    launcher, number = how.split()
    words = [sys.executable, "-m", "frontier", "shards", "write", "--from", str(images), str(out)]
    words += ["--samples-per-shard", "24", "--test-fraction", "0.2", "--compression", "gzip", "--name", "kills"]
    if launcher == "workers":
        return [*words, "--workers", number]
    found = mpiexec()
    assert found is not None
    return [found, "-n", number, *words]


def digest(directory: Path) -> dict[str, str]:
    return {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def kill(process: subprocess.Popen[bytes], victim: str, random: np.random.Generator) -> None:
    """SIGKILL to the launcher, to one of its descendants, or to all."""
    try:
        below = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        below = []
    chosen = [process.pid] if victim == "launcher" or not below else [int(random.choice([p.pid for p in below]))]
    if victim == "all":
        chosen = [process.pid, *(p.pid for p in below)]
    for pid in chosen:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    process.wait(60)
    # What the launcher leaves behind must go by itself: workers and ranks watch for their parent.
    _, left = psutil.wait_procs(below, timeout=20)
    if left:
        raise AssertionError(f"{len(left)} processes outlived their launcher by 20 s ({victim})")


def run(kills: int, seed: int, folder: Path, images: int = 600) -> Counter[str]:
    """A row of kills in `folder`. Returns what happened, counted. Raises `AssertionError` where bytes differ."""
    random = np.random.default_rng(seed)
    pictures = make_images(folder / "images", images)
    ways = ["workers 1", "workers 2"] + (["mpi 2", "mpi 4"] if mpiexec() else [])
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    seconds = {}
    whole: dict[str, str] = {}
    for way in ways:
        begun = time.monotonic()
        subprocess.run(
            command(pictures, folder / "whole", way), check=True, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL
        )
        seconds[way] = time.monotonic() - begun
        found = digest(folder / "whole")
        if whole and found != whole:
            raise AssertionError(f"{way}: other bytes than {ways[0]}")
        whole = found
        shutil.rmtree(folder / "whole")
    seen: Counter[str] = Counter()
    out = folder / "out"
    number = 0
    while number < kills:
        way = str(random.choice(ways))
        victim = str(random.choice(["launcher", "one", "all"]))
        process = subprocess.Popen(
            command(pictures, out, way), cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            code = process.wait(float(random.uniform(0.3, 1.15)) * seconds[way])
            if code != 0 or digest(out) != whole:
                raise AssertionError(f"{way} ended with {code} before its kill, or left other bytes")
            seen["finished before its kill"] += 1
            shutil.rmtree(out)
            continue
        except subprocess.TimeoutExpired:
            kill(process, victim, random)
        number += 1
        finished = len(list(out.rglob("*.done"))) if out.exists() else 0
        seen[f"{way}, {victim}"] += 1
        seen["with shards finished"] += finished > 0
        if sys.stderr.isatty():
            print(f"\r{number} of {kills} kills, {finished} shards there ", end="", file=sys.stderr, flush=True)
    last = subprocess.run(
        command(pictures, out, "workers 1"), cwd=ROOT, env=environment, capture_output=True, text=True
    )
    if last.returncode or digest(out) != whole:
        raise AssertionError(f"the last run ended with {last.returncode}, or left other bytes: {last.stderr}")
    problems, _ = verify(out, deep=True)
    if problems:
        raise AssertionError(problems[0])
    return seen


def main() -> int:
    """Returns 0 where every byte was the undisturbed run's."""
    parser = argparse.ArgumentParser(prog="python -m tests.data_prep.kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        seen = run(arguments.kills, arguments.seed, Path(folder))
    for what, count in sorted(seen.items()):
        print(f"{what}: {count}")
    print(f"{arguments.kills} kills in {time.monotonic() - begun:.0f} s: the undisturbed run's bytes, ok")
    return 0


if __name__ == "__main__":
    sys.exit(main())
