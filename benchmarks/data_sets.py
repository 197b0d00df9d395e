"""What benchmarks/data_reading.py reads: two sets of images, written once in every peer's format with the same decoded bytes."""

from __future__ import annotations

import hashlib
import io
import json
import sys
import tarfile
import types
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import h5py
import numpy as np

PER_SHARD_BYTES = 64 << 20


def eurosat(data: Path, count: int) -> tuple[np.ndarray, str]:
    """[count, 3, 64, 64] uint8 from the real images, repeated with noise of up to 2 levels; and what they are."""
    from PIL import Image

    files = sorted((data / "eurosat_rgb").glob("*/*.jpg"))[:count]
    random = np.random.default_rng(0)
    if not files:
        return random.integers(0, 256, (count, 3, 64, 64), dtype=np.uint8), "noise (EuroSAT is not here)"
    real = np.stack([np.asarray(Image.open(file).convert("RGB")).transpose(2, 0, 1) for file in files])
    return perturbed(real, count, 2, random), f"EuroSAT RGB, {len(files):,} images repeated with noise"


def sentinel(data: Path, count: int) -> tuple[np.ndarray, str]:
    """[count, 12, 64, 64] uint16 from the real chips, repeated with noise of up to 8 digital numbers."""
    files = sorted((data / "s2_l2a_12band").glob("*.npy"))
    random = np.random.default_rng(1)
    if not files:
        return random.integers(0, 6000, (count, 12, 64, 64), dtype=np.uint16), "noise (the chips are not here)"
    real = np.stack([np.load(file, allow_pickle=False).transpose(2, 0, 1) for file in files])
    return perturbed(real, count, 8, random), f"Sentinel-2 L2A 12 bands, {len(files)} chips repeated with noise"


def perturbed(real: np.ndarray, count: int, noise: int, random: np.random.Generator) -> np.ndarray:
    out = np.empty((count, *real.shape[1:]), real.dtype)
    top = int(np.iinfo(real.dtype).max)
    for start in range(0, count, len(real)):
        part = real[: count - start].astype(np.int32)
        if start:
            part += random.integers(-noise, noise + 1, part.shape, dtype=np.int32)
        out[start : start + len(part)] = part.clip(0, top)
    return out


def once(folder: Path, write: Callable[[Path], None]) -> Path:
    """Make `folder` unless an earlier call has finished it."""
    if not (folder / "DONE").exists():
        folder.mkdir(parents=True, exist_ok=True)
        write(folder)
        (folder / "DONE").write_text("")
    return folder


def write_shards(folder: Path, values: np.ndarray, **layout: Any) -> None:
    """A shard directory as `frontier shards write` makes it, in any HDF5 layout; `chunks` in samples."""
    per_shard = max(1, PER_SHARD_BYTES // values[0].nbytes)
    shards = []
    for index, start in enumerate(range(0, len(values), per_shard)):
        file, part = folder / f"train-{index:05d}.h5", values[start : start + per_shard]
        version = {"libver": ("v110", "v110"), "alignment_threshold": 4096, "alignment_interval": 4096}
        with h5py.File(file, "w", **version) as opened:
            how = dict(layout)
            if "chunks" in how:
                how["chunks"] = (min(how["chunks"], len(part)), *values.shape[1:])
            opened.create_dataset("image", data=part, track_times=False, **how)
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        size = file.stat().st_size
        shards.append({"file": file.name, "split": "train", "samples": len(part), "bytes": size, "sha256": digest})
    bands = [{"name": str(band)} for band in range(values.shape[1])]
    manifest = {
        "schema": "frontier-shards/1",
        "name": "bench",
        "samples": len(values),
        "fingerprint": hashlib.sha256(json.dumps(shards).encode()).hexdigest(),
        "splits": {"train": {"samples": len(values), "shards": [s["file"] for s in shards]}},
        "shards": shards,
        "images": {"image": {"shape": list(values.shape[1:]), "dtype": values.dtype.name, "bands": bands}},
        "columns": {},
        "classes": [],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def write_files(folder: Path, values: np.ndarray) -> None:
    for index, value in enumerate(values):
        path = folder / f"{index // 1000:04d}" / f"{index:07d}.npy"
        path.parent.mkdir(exist_ok=True)
        np.save(path, value)


def write_jpegs(folder: Path, values: np.ndarray) -> None:
    from PIL import Image

    for index, value in enumerate(values):
        path = folder / f"{index // 1000:04d}" / f"{index:07d}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(value.transpose(1, 2, 0)).save(path, quality=95)


def write_tars(folder: Path, values: np.ndarray) -> None:
    per_shard = max(1, PER_SHARD_BYTES // values[0].nbytes)
    for shard, start in enumerate(range(0, len(values), per_shard)):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for index, value in enumerate(values[start : start + per_shard], start):
                entry = tarfile.TarInfo(f"{index:07d}.bin")
                entry.size = value.nbytes
                tar.addfile(entry, io.BytesIO(value.tobytes()))


def write_litdata(folder: Path, values: np.ndarray) -> None:
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(folder), chunk_bytes=PER_SHARD_BYTES)
    for index, value in enumerate(values):
        writer.add_item(index, value)
    writer.done()
    writer.merge(1)


def write_mds(folder: Path, values: np.ndarray) -> None:
    streaming = import_streaming()
    shape = ",".join(map(str, values.shape[1:]))
    with streaming.MDSWriter(
        out=str(folder / "mds"), columns={"x": f"ndarray:{values.dtype}:{shape}"}, size_limit=PER_SHARD_BYTES
    ) as out:
        for value in values:
            out.write({"x": value})


def import_streaming() -> Any:
    """MosaicML Streaming. It imports torchvision for its ready-made vision data sets, of which none is used here: where
    torchvision is not installed, empty modules of its name stand in."""
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        for name, attribute in (("", ""), (".transforms", ""), (".transforms.functional", "to_tensor"), (".datasets", "VisionDataset")):  # fmt: skip
            module = types.ModuleType("torchvision" + name)
            module.__spec__, module.__path__ = ModuleSpec("torchvision" + name, None), []
            if attribute:
                setattr(module, attribute, type(attribute, (), {}))
            sys.modules["torchvision" + name] = module
    import streaming

    return streaming


def collated(samples: Iterator[np.ndarray], batch: int, like: np.ndarray) -> Iterator[np.ndarray]:
    """Samples -> batches [batch, *shape] in memory of their own."""
    while True:
        out = np.empty((batch, *like.shape), like.dtype)
        for place in range(batch):
            value = next(samples, None)
            if value is None:
                return
            out[place] = value
        yield out
