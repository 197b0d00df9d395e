"""The readers of benchmarks/data_reading.py: each a function that starts an endless iterator over shuffled batches."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import data_sets as sets
import numpy as np
import torch

from frontier.data.loader import Loader
from frontier.data.sampler import Sampler
from frontier.data.shards import ShardSet

Start = Callable[[], Iterator[Any]]


@dataclass
class Reader:
    """`start` begins reading anew. `processes`: started before the clock, first batch included. `folder`: its files."""

    name: str
    start: Start | None
    folder: Path | None
    processes: bool = False
    why: str = ""
    cold: Start | None = None
    """How it starts in turns before which its files' pages are dropped, where that is not `start`."""
    close: Callable[[], None] | None = None
    """Lets go of the files after the warm turns: a page that is mapped cannot be dropped from the cache."""


def ours(shards: ShardSet, batch: int, workers: int, window: int | None = None, release: bool = False) -> Start:
    """The trainer's loader with its default plan; `window` batches mixed instead, so that slow layouts deliver often.

    `release`: close the files after a turn, for a page that is mapped cannot be dropped from the cache.
    """
    shape, dtype = shards.describe("image")
    sampler = Sampler.plan(len(shards), batch, 0, int(np.prod(shape)) * dtype.itemsize, None, window)
    loader = Loader(shards, "image", sampler, 0, 1, workers)
    first = 0

    def start() -> Iterator[Any]:
        nonlocal first
        first += sampler.window  # other samples than the turn before
        batches = loader.batches(first)
        try:
            for item in batches:
                yield item.images
        finally:
            batches.close()
            if release:
                shards.close()

    return start


def plain(folder: Path, batch: int, rows: int) -> Start:
    """The same bytes of the same files in order by `preadv`, a batch at a time, into one piece of memory for `rows` samples."""
    shards = ShardSet(folder)
    shape, dtype = shards.describe("image")
    offsets = [shards._shard(index)._offsets["image"] for index in range(len(shards.entries))]
    files = [os.open(folder / entry["file"], os.O_RDONLY) for entry in shards.entries]
    memory = np.zeros((rows, *shape), dtype)
    size = memory[0].nbytes
    raw = memoryview(memory.reshape(-1).view(np.uint8))

    def start() -> Iterator[Any]:
        at = 0
        while True:
            for file, offset, entry in zip(files, offsets, shards.entries, strict=True):
                for begin in range(0, entry["samples"] - batch + 1, batch):
                    position, want = offset + begin * size, batch * size
                    place = at * size
                    while want:
                        got = os.preadv(file, [raw[place : place + want]], position)
                        place, position, want = place + got, position + got, want - got
                    yield memory[at : at + batch]
                    at = (at + batch) % rows

    return start


def orders(count: int, batch: int) -> Iterator[np.ndarray]:
    epoch = 0
    while True:
        order = np.random.default_rng(epoch).permutation(count)
        yield from order[: count // batch * batch].reshape(-1, batch)
        epoch += 1


def memmap(file: Path, batch: int) -> Start:
    def start() -> Iterator[Any]:
        values = np.load(file, mmap_mode="r", allow_pickle=False)
        for chosen in orders(len(values), batch):
            yield values[chosen]

    return start


def one_file_each(folder: Path, batch: int, like: np.ndarray, jpeg: bool) -> Start:
    files = sorted(map(str, folder.glob("*/*.jpg" if jpeg else "*/*.npy")))

    def read(file: str) -> np.ndarray:
        if not jpeg:
            return np.load(file, allow_pickle=False)
        from PIL import Image

        with Image.open(file) as image:
            return np.asarray(image).transpose(2, 0, 1)

    def start() -> Iterator[Any]:
        return sets.collated((read(files[i]) for chosen in orders(len(files), batch) for i in chosen), batch, like)

    return start


def naive_h5py(folder: Path, batch: int, like: np.ndarray) -> Start:
    import h5py

    datasets = [h5py.File(file, "r", locking=False)["image"] for file in sorted(folder.glob("*.h5"))]
    ends = np.cumsum([len(dataset) for dataset in datasets])

    def read(index: int) -> np.ndarray:
        shard = int(np.searchsorted(ends, index, side="right"))
        return datasets[shard][index - (ends[shard - 1] if shard else 0)]

    def start() -> Iterator[Any]:
        samples = (read(int(i)) for chosen in orders(int(ends[-1]), batch) for i in chosen)
        return sets.collated(samples, batch, like)

    return start


def decode(sample: dict[str, Any], dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.frombuffer(sample["bin"], dtype).reshape(shape)


def webdataset(folder: Path, batch: int, like: np.ndarray, workers: int) -> Start:
    import webdataset as wds

    urls = sorted(map(str, folder.glob("*.tar")))

    def start() -> Iterator[Any]:
        data = wds.WebDataset(urls, shardshuffle=100, empty_check=False, seed=0).shuffle(1000)
        data = data.map(partial(decode, dtype=like.dtype.name, shape=like.shape)).repeat()
        if not workers:
            return sets.collated(iter(data), batch, like)
        loader = torch.utils.data.DataLoader(data.batched(batch, collation_fn=np.stack), None, num_workers=workers)
        return iter(loader)

    return start


def litdata(folder: Path, batch: int, like: np.ndarray, workers: int) -> Start:
    from litdata import StreamingDataLoader, StreamingDataset

    def samples() -> Iterator[np.ndarray]:
        epoch = 0
        while True:
            data = StreamingDataset(str(folder), shuffle=True, drop_last=False, seed=epoch, max_cache_size="30GB")
            yield from data
            epoch += 1

    def start() -> Iterator[Any]:
        if not workers:
            return sets.collated(samples(), batch, like)
        data = StreamingDataset(str(folder), shuffle=True, drop_last=False, max_cache_size="30GB")
        loader = StreamingDataLoader(data, batch_size=batch, num_workers=workers, collate_fn=np.stack)
        return (item for _ in iter(int, 1) for item in loader)

    return start


def mosaic(folder: Path, batch: int, like: np.ndarray, workers: int) -> Start:
    streaming = sets.import_streaming()
    with contextlib.suppress(Exception):
        streaming.base.util.clean_stale_shared_memory()
    data = streaming.StreamingDataset(local=str(folder / "mds"), shuffle=True, batch_size=batch)

    def start() -> Iterator[Any]:
        if not workers:
            return sets.collated((sample["x"] for _ in iter(int, 1) for sample in data), batch, like)
        loader = torch.utils.data.DataLoader(data, batch, num_workers=workers, collate_fn=stack_x)
        return (item for _ in iter(int, 1) for item in loader)

    return start


def stack_x(samples: list[dict[str, Any]]) -> np.ndarray:
    return np.stack([sample["x"] for sample in samples])


def all_readers(work: Path, values: np.ndarray, batch: int) -> list[Reader]:
    """Every reader of `values`, their files written under `work` where they are not there yet."""
    like = values[0]
    shards = sets.once(work / "shards", lambda f: sets.write_shards(f, values))
    array = sets.once(work / "npy", lambda f: np.save(f / "x.npy", values))
    files = sets.once(work / "files", lambda f: sets.write_files(f, values))
    opened = ShardSet(shards)
    window = batch * Sampler.plan(len(values), batch, 0, like.nbytes, None, None).window
    found = [
        Reader("plain reads in order, one batch of memory (the limit)", plain(shards, batch, batch), shards),
        Reader("plain reads in order, memory for a window", plain(shards, batch, window), shards),
        *(
            Reader(
                f"frontier, {n} thread{'s' * (n > 1)}",
                ours(opened, batch, n),
                shards,
                cold=ours(opened, batch, n, release=True),
                close=opened.close,
            )
            for n in (1, 2)
        ),
        Reader("numpy memmap, random samples", memmap(array / "x.npy", batch), array),
        Reader("one .npy file a sample", one_file_each(files, batch, like, False), files),
    ]
    if like.dtype == np.uint8 and len(like) == 3:
        jpegs = sets.once(work / "jpeg", lambda f: sets.write_jpegs(f, values))
        found.append(
            Reader("one .jpg file a sample, decoded (other bytes)", one_file_each(jpegs, batch, like, True), jpegs)
        )
    found.append(Reader("h5py, dataset[i] at random", naive_h5py(shards, batch, like), shards))
    for title, write, make in (
        ("WebDataset", sets.write_tars, webdataset),
        ("LitData", sets.write_litdata, litdata),
        ("MosaicML Streaming", sets.write_mds, mosaic),
    ):
        for workers in (0, 2):
            name = title + (f", {workers} processes" if workers else "")
            try:
                folder = sets.once(work / title.split()[0].lower(), lambda f, write=write: write(f, values))
                found.append(Reader(name, make(folder, batch, like, workers), folder, workers > 0))
            except ImportError as error:
                found.append(Reader(name, None, None, why=f"not installed: {error.name or error}"))
    return found
