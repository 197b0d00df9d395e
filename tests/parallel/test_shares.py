"""What a rank holds of a tensor: every element in exactly one box, and through a checkpoint to any other cut."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from frontier.parallel.shares import Share
from frontier.train.checkpoint import writing_ranks


@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 4), (7, 1, 3), (1, 6), (2, 2, 2, 3)])
def test_a_range_is_cut_into_few_boxes_that_hold_it(shape: tuple[int, ...]) -> None:
    count = torch.Size(shape).numel()
    whole = torch.arange(count).view(shape)
    for start in range(count + 1):
        for stop in range(start, count + 1):
            share = Share.of_range(shape, start, torch.arange(start, stop))
            assert len(share.boxes) <= 2 * len(shape) - 1
            seen = torch.full(shape, -1)
            for offsets, values in share.boxes:
                region = tuple(slice(o, o + n) for o, n in zip(offsets, values.shape, strict=True))
                assert (seen[region] == -1).all(), "two boxes hold one element"
                seen[region] = values
            assert torch.equal(seen, torch.where((whole >= start) & (whole < stop), whole, -1))


def test_boxes_are_views_of_live_memory() -> None:
    flat = torch.zeros(7)
    share = Share.of_range((3, 4), 2, flat)
    for _, box in share.boxes:
        box.fill_(1)
    assert torch.equal(flat, torch.ones(7))
    staged = share.staged()
    flat.zero_()
    assert all((box == 1).all() for _, box in staged.boxes)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_one_cut_loads_into_another(tmp_path: Path) -> None:
    """Saved as three flat ranges by one rank, loaded as rows and as other ranges."""
    import torch.distributed.checkpoint as dcp

    from frontier.parallel.shares import LoadPlanner, SavePlanner
    from frontier.train.storage import Reader, Writer, read_index, read_tensors

    whole = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    pieces = [Share.of_range((5, 7), a, whole.flatten()[a:b].clone()) for a, b in ((0, 9), (9, 11), (11, 35))]
    saved = Share(whole.shape, whole.dtype, tuple(box for piece in pieces for box in piece.boxes))
    writer = Writer(tmp_path / "ckpt", 0, lambda: None)
    dcp.save({"x": saved}, storage_writer=writer, planner=SavePlanner(), no_dist=True)
    assert torch.equal(read_tensors(tmp_path / "ckpt", "")["x"], whole)
    flat, rows = torch.zeros(20), torch.zeros(2, 7)
    for target in (Share.of_range((5, 7), 3, flat), Share(whole.shape, whole.dtype, (((2, 0), rows),))):
        reader = Reader(tmp_path / "ckpt", read_index(tmp_path / "ckpt"))
        dcp.load({"x": target}, storage_reader=reader, planner=LoadPlanner(), no_dist=True)
    assert torch.equal(flat, whole.flatten()[3:23])
    assert torch.equal(rows, whole[2:4])


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_file_is_opened_once_for_all_that_is_read_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names are the dear thing on a parallel file system: not one open for each of hundreds of tensors."""
    import torch.distributed.checkpoint as dcp

    from frontier.parallel.shares import LoadPlanner, SavePlanner
    from frontier.train import storage

    state = {f"x{i}": Share.of(torch.full((4, 3), float(i))) for i in range(20)}
    folder = tmp_path / "ckpt"
    dcp.save(state, storage_writer=storage.Writer(folder, 0, lambda: None), planner=SavePlanner(), no_dist=True)
    index = storage.read_index(folder)
    # As if two ranks had written, every other tensor each.
    shutil.copy(folder / "rank_00000.bin", folder / "rank_00001.bin")
    for entry in list(index.values())[::2]:
        entry["pieces"][0]["file"] = "rank_00001.bin"
    storage.write_json(folder / storage.INDEX, {"schema": storage.SCHEMA, "tensors": index})
    opened: list[str] = []
    monkeypatch.setattr(
        storage, "open", lambda path, *how: opened.append(Path(path).name) or open(path, *how), raising=False
    )
    fresh = {name: Share.of(torch.zeros(4, 3)) for name in state}
    dcp.load(fresh, storage_reader=storage.Reader(folder, index), planner=LoadPlanner(), no_dist=True)
    assert sorted(opened) == ["rank_00000.bin", "rank_00001.bin"]
    assert all(torch.equal(fresh[name].boxes[0][1], state[name].boxes[0][1]) for name in state)
    opened.clear()
    assert torch.equal(storage.read_tensors(folder, "x")["7"], torch.full((4, 3), 7.0))
    assert sorted(name for name in opened if name.endswith(".bin")) == ["rank_00000.bin", "rank_00001.bin"]


def test_whole_copies_write_up_to_the_limit() -> None:
    assert writing_ranks(512, replicate=9408, copy=8) == 512  # hybrid_8 on 75,264 ranks
    assert writing_ranks(512, replicate=4, copy=1) == 4
    assert writing_ranks(3, replicate=4, copy=2) == 2
    assert writing_ranks(512, replicate=1, copy=1024) == 1024  # one copy is always written whole
