"""Faults in files: checkpoints, shards, disks. Each takes the scene and notes what it did and what undoes it."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np

from tests.faults.checks import Problem, check_rows, rows_of

if TYPE_CHECKING:
    from tests.faults.lab import Scene

NEWEST = 21


class CannotHere(Exception):
    """This machine does not let the fault be made; the scenario is skipped and says so."""


def flip(path: Path, position: int, bit: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= bit
    path.write_bytes(data)


def truncate(path: Path, share: float) -> None:
    with open(path, "r+b") as file:
        file.truncate(int(path.stat().st_size * share))


def stop_file(scene: Scene) -> None:
    (scene.run.dir / "STOP").touch()
    scene.undo.append((scene.run.dir / "STOP").unlink)
    scene.attempt.hurt("touch RUN/STOP")


# -- checkpoints


def _newest(scene: Scene, name: str) -> Path:
    scene.half_done()
    scene.damaged.add(NEWEST)
    scene.file = f"step_{NEWEST:08d}"
    return scene.run.checkpoints / scene.file / name


def flip_data(scene: Scene) -> None:
    path = _newest(scene, f"rank_{scene.victim:05d}.bin")
    position, bit = int(scene.random.integers(path.stat().st_size)), 1 << int(scene.random.integers(8))
    flip(path, position, bit)
    scene.hurt(f"bit {bit:#x} of byte {position} of {path.name}")


def truncate_data(scene: Scene) -> None:
    path = _newest(scene, f"rank_{scene.victim:05d}.bin")
    share = float(scene.random.uniform())
    truncate(path, share)
    scene.hurt(f"{path.name} cut to {share:.0%}")


def lose_data(scene: Scene) -> None:
    path = _newest(scene, f"rank_{scene.victim:05d}.bin")
    path.unlink()
    scene.hurt(f"{path.name} removed")


def truncate_index(scene: Scene) -> None:
    truncate(_newest(scene, "index.json"), float(scene.random.uniform()))
    scene.hurt("index.json cut")


def truncate_record(scene: Scene) -> None:
    truncate(_newest(scene, "complete.json"), float(scene.random.uniform(0, 0.99)))
    scene.hurt("complete.json cut")


def lose_record(scene: Scene) -> None:
    _newest(scene, "complete.json").unlink()
    scene.hurt("complete.json removed")


def _text(name: str, pattern: str) -> Callable[[Scene], None]:
    """One bit of the character after a random match of `pattern`: the JSON stays valid, its meaning does not."""

    def fault(scene: Scene) -> None:
        path = _newest(scene, name)
        places = [m.end() for m in re.finditer(pattern, path.read_text())]
        place = places[int(scene.random.integers(len(places)))]
        flip(path, place, 2)
        scene.hurt(f"a bit of byte {place} of {name}")

    return fault


index_crc = _text("index.json", r'"crc32": \d')
index_name = _text("index.json", r'"model\.\w')
index_dtype = _text("index.json", r'"dtype": "floa')
index_shape = _text("index.json", r'"shape": \[\s*(?=\d)')
index_offset = _text("index.json", r'"offset": (?=\d)')
record_step = _text("complete.json", r'"step": \d')
record_updates = _text("complete.json", r'"updates": \d')
record_name = _text("complete.json", r'"mae\w*|"encoder\.\w|"decoder\.\w')


def three_newest(scene: Scene) -> None:
    truncate_data(scene)
    for step, name in ((18, "index.json"), (15, "complete.json")):
        truncate(scene.run.checkpoints / f"step_{step:08d}" / name, 0.5)
        scene.damaged.add(step)


def two_newest(scene: Scene) -> None:
    truncate_data(scene)
    truncate(scene.run.checkpoints / "step_00000018/index.json", 0.5)
    scene.damaged.add(18)


# -- shards


def _shard(scene: Scene) -> Path:
    scene.half_done()
    paths = sorted(scene.shards.glob("train-*.h5"))
    path = paths[int(scene.random.integers(len(paths)))]
    whole = path.read_bytes()
    scene.file = path.name
    scene.undo.append(lambda: path.write_bytes(whole) and None)
    return path


def truncate_shard(scene: Scene) -> None:
    truncate(_shard(scene), 0.5)
    scene.hurt(f"{scene.file} cut to half")


def lose_shard(scene: Scene) -> None:
    _shard(scene).unlink()
    scene.hurt(f"{scene.file} removed")


def truncate_shard_live(scene: Scene) -> None:
    path = sorted(scene.shards.glob("train-*.h5"))[int(scene.random.integers(4))]
    whole = path.read_bytes()
    scene.file = path.name
    scene.undo.append(lambda: path.write_bytes(whole) and None)
    truncate(path, 0.3)
    scene.attempt.hurt(f"{path.name} cut to 30 %")


def flip_shard(scene: Scene) -> None:
    path = _shard(scene)
    flip(path, path.stat().st_size // 2)
    scene.hurt(f"a bit in the middle of {path.name}")


def verify_names_it(scene: Scene) -> list[Problem]:
    """Training promises nothing here (it does not hash); `frontier shards verify` must name the shard."""
    done = scene.lab.frontier("shards", "verify", "--deep", scene.shards)
    if done.returncode != 2 or scene.file not in done.stdout + done.stderr:
        return [Problem("verify", f"`shards verify` exits {done.returncode} and does not name {scene.file}")]
    return []


# -- disks


def _small_disk(scene: Scene, where: Path, options: str) -> None:
    where.mkdir(parents=True, exist_ok=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", where], capture_output=True).returncode:
        raise CannotHere("mounting a small file system needs root")
    scene.mounts.append(where)


def _with_checkpoints(scene: Scene, options: str) -> None:
    """A half-done run whose checkpoints, up to step 15, lie on a small disk of their own."""
    scene.half_done(newest=15)
    aside = scene.run.dir / "aside"
    shutil.move(scene.run.checkpoints, aside)
    _small_disk(scene, scene.run.checkpoints, options)
    for step in (12, 15):
        shutil.copytree(aside / f"step_{step:08d}", scene.run.checkpoints / f"step_{step:08d}")
    shutil.rmtree(aside)


def no_room(scene: Scene) -> None:
    _with_checkpoints(scene, "size=4m")
    filler = scene.run.checkpoints / "filler"
    filler.write_bytes(b"0" * (shutil.disk_usage(scene.run.checkpoints).free - 200_000))
    scene.undo.append(filler.unlink)
    scene.hurt("200 kB left on the disk")


def no_inodes(scene: Scene) -> None:
    _with_checkpoints(scene, "size=16m,nr_inodes=13")
    remount = ["mount", "-o", "remount,nr_inodes=1000", str(scene.run.checkpoints)]
    scene.undo.append(lambda: subprocess.run(remount, check=True) and None)
    scene.hurt("room, but for one more file only")


def run_on_small_disk(scene: Scene) -> None:
    _small_disk(scene, scene.run.dir, "size=16m")


def fill_disk(scene: Scene) -> None:
    filler = scene.run.dir / "filler"
    scene.undo.append(filler.unlink)
    with open(filler, "wb", buffering=0) as file:
        try:
            while True:
                file.write(b"0" * 4096)
        except OSError:
            pass
    scene.attempt.hurt("every byte of the disk taken")


# -- numbers


def _floats(scene: Scene, change: Callable[[np.ndarray], None], which: slice, unnoticed: bool = False) -> None:
    """The scene's train shards as float32, `change` applied to some of their samples: bad data as a user would have it.

    `unnoticed`: the data rotted, so that its fingerprint is the old one and a run goes on with it.
    """
    path = scene.shards / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["images"]["image"]["dtype"] = "float32"
    digest, seen = hashlib.sha256(b"floats"), 0
    for entry in manifest["shards"]:
        file = scene.shards / entry["file"]
        with h5py.File(file, "r") as old:
            columns = {name: old[name][...] for name in old}
        images = columns["image"].astype(np.float32)
        if entry["split"] == "train":
            for place in range(*which.indices(128)):
                if seen <= place < seen + len(images):
                    change(images[place - seen])
            seen += len(images)
        with h5py.File(file, "w") as new:
            for name, values in {**columns, "image": images}.items():
                new.create_dataset(name, data=values)
        data = file.read_bytes()
        entry["bytes"], entry["sha256"] = len(data), hashlib.sha256(data).hexdigest()
        digest.update(data)
    if not unnoticed:
        manifest["fingerprint"] = digest.hexdigest()
    path.write_text(json.dumps(manifest))
    scene.poisoned = list(range(*which.indices(128)))


def _wild(image: np.ndarray) -> None:
    """So large that no loss of it is finite (NaN in the data is a missing value, and harmless)."""
    image[:] = 3e38  # all of it: a crop may leave any one pixel out


def _spike(image: np.ndarray) -> None:
    image *= 1e8


def one_wild(scene: Scene) -> None:
    _floats(scene, _wild, slice(100, 101))
    scene.hurt("3e38 in sample 100 of float32 shards")


def all_wild(scene: Scene) -> None:
    _floats(scene, _wild, slice(None))
    scene.hurt("3e38 in every sample of float32 shards")


def one_spike(scene: Scene) -> None:
    """Late in a run: spikes are told by the steps before."""
    scene.run.overrides += ("checkpoint.keep=100",)
    done, scene.reference = scene.undisturbed("undisturbed")
    scene.half_done(done=done)
    scene.resumed = NEWEST
    coming = _members(scene)
    sample = coming[min(coming) + 1][0]
    _floats(scene, _spike, slice(sample, sample + 1), unnoticed=True)
    scene.hurt(f"sample {sample} of float32 shards times 1e8")


def _members(scene: Scene) -> dict[int, list[int]]:
    """Samples of the global batch of each step that is still to come."""
    from frontier.config.load import load_config
    from frontier.train.plan import resolve

    plan = resolve(load_config(str(scene.run.config), scene.run.overrides), 1)
    found = {}
    for step in range(scene.resumed, plan.steps):
        part = plan.sampler.turn(step)
        members = [b.members[part] for b in plan.sampler.blocks(step // plan.sampler.window)]
        found[step + 1] = np.concatenate(members)[:, 1].tolist()
    return found


def _poisoned_steps(scene: Scene) -> list[int]:
    """Steps whose global batch holds a poisoned sample."""
    return [step for step, members in _members(scene).items() if set(members) & set(scene.poisoned)]


def skipped_and_went_on(scene: Scene) -> list[Problem]:
    """Exactly the poisoned steps are skipped and counted; before the first the curve is that of clean data."""
    wanted, rows, problems = _poisoned_steps(scene), rows_of(scene.run), []
    counts = [row["skipped"] for row in rows]
    skipped = [row["step"] for row, before in zip(rows, [0, *counts], strict=False) if row["skipped"] > before]
    if skipped != wanted or not wanted:
        problems.append(Problem("skipped", f"skipped {skipped}, the poisoned steps are {wanted}"))
    if [row["step"] for row in rows] != sorted(scene.reference.losses):
        problems.append(Problem("row-lost", "the run did not go on to its end"))
    if any(row["loss"] is None for row in rows if row["step"] not in wanted):
        problems.append(Problem("curve", "a step without the poisoned sample has no finite loss"))
    clean = [row["step"] for row in rows if row["step"] < wanted[0]] if wanted else []
    if any(row["loss"] != scene.reference.losses[row["step"]] for row in rows if row["step"] in clean):
        problems.append(Problem("curve", "the curve differs before the first poisoned step"))
    return problems


def as_wild_alone(scene: Scene) -> list[Problem]:
    """Killed and started again, a run with skipped steps equals the same run undisturbed, counts included."""
    alone, reference = scene.undisturbed("alone")
    again = scene.run.finish(90)
    if again.code != 0:
        return [Problem("resume", f"the next start exits {again.code}: {again.err[-200:]}")]
    problems, scene.difference = check_rows(scene.run, reference, max(reference.losses))
    if [row["skipped"] for row in rows_of(scene.run)] != [row["skipped"] for row in rows_of(alone)]:
        problems.append(Problem("skipped", "the counts of skipped steps differ"))
    return problems


def nothing(scene: Scene) -> list[Problem]:
    return []
