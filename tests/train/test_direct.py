"""Files written past the page cache hold the bytes given, whatever their sizes; a full disk is an error."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest

from frontier.train.direct import BUFFER, DirectFile


@pytest.mark.parametrize("folder", ["disk", "memory"])
def test_bytes_in_order(tmp_path: Path, folder: str) -> None:
    where = tmp_path if folder == "disk" else Path("/dev/shm")
    if not where.is_dir():
        pytest.skip("no file system in memory here")
    draw = random.Random(0)
    sizes = [0, 1, 4095, 4096, 4097, BUFFER - 1, BUFFER, BUFFER + 1, *(draw.randrange(1 << 16) for _ in range(20))]
    path = where / f"frontier_direct_test_{os.getpid()}"
    try:
        for group in (sizes, sizes[:1], sizes[1:2], [4096], [BUFFER, BUFFER]):
            pieces = [draw.randbytes(size) for size in group]
            with DirectFile(path) as file:
                for piece in pieces:
                    file.write(memoryview(piece))
            assert path.read_bytes() == b"".join(pieces)
    finally:
        path.unlink(missing_ok=True)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_full_disk() -> None:
    with pytest.raises(OSError) as found, DirectFile(Path("/dev/full")) as file:
        file.write(memoryview(bytes(100)))
    assert found.value.errno == errno.ENOSPC
