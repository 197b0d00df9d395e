"""Devices of the ranks: the judgement on recorded facts (there is no GPU here), its way to all ranks for real."""

from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

from frontier.errors import UserError
from frontier.launch import devices
from frontier.launch.devices import Seen, agree, judge
from frontier.launch.local import free_port
from frontier.launch.ranks import Ranks
from tests.conftest import run_frontier


def gpus(*places: tuple[str, int, int, str, str]) -> list[Seen]:
    """Of (host, index, visible, identity, masks), a rank each."""
    return [Seen(rank, host, "cuda", *more) for rank, (host, *more) in enumerate(places)]


# As on Frontier: one GPU a task, index 0 everywhere; two halves of a card may have one UUID, not one PCI address.
BOUND = gpus(*((host, 0, 1, f"u{i // 2}:c{i}", f"ROCR_VISIBLE_DEVICES={i}") for host in ("n1", "n2") for i in range(8)))
# As on LUMI: all GPUs to all tasks, the index is the local rank.
OPEN = gpus(*((host, i, 4, f"u{i}:0", "") for host in ("n1", "n2") for i in range(4)))
RENUMBERED = gpus(*(("n1", 0, 1, f"u{i}:{i}", "CUDA_VISIBLE_DEVICES=0") for i in range(4)))
TILES = gpus(*(("x1", i, 12, "", "") for i in range(12)))
PARTS = gpus(*(("n1", i, 2, "same", "") for i in range(2)))  # of one card, told apart by their index alone
UNKNOWN = gpus(("n1", 0, 1, "", "ZE_AFFINITY_MASK=0"), ("n1", 0, 1, "", "ZE_AFFINITY_MASK=0"))
CPUS = [Seen(rank, "n1", "cpu") for rank in range(4)]


@pytest.mark.parametrize("seen", [BOUND, OPEN, RENUMBERED, TILES, PARTS, UNKNOWN, CPUS])
def test_good(seen: list[Seen]) -> None:
    assert judge(seen) == ""


BAD = [
    (
        gpus(*(("n1", i % 2, 2, f"u{i % 2}:0", "") for i in range(4))),
        "4 ranks and 2 GPUs on n1: ranks 0 and 2 would share one: start 2 a node (FRONTIER_RANKS_PER_NODE=2",
    ),
    (
        gpus(*(("n1", 0, 1, f"u{i}:{i}", f"X={i}") for i in (0, 1)), *(("n2", 0, 1, "u7:7", "X=0") for _ in (0, 1))),
        "2 ranks and 1 GPU on n2: ranks 2 and 3 would",
    ),
    (
        gpus(*((h, i % 6, 6, "", "") for h in ("x1", "x2") for i in range(12))),
        "12 ranks and 6 GPUs on x1 (and on 1 more",
    ),
    (
        [*OPEN[:3], Seen(3, "n1", "cuda", lacks="cuda device 3 does not answer"), Seen(4, "n2", "cpu", lacks="none")],
        "rank 3 on n1: cuda device 3 does not answer (and 1 more rank)",
    ),
    ([*OPEN[:3], Seen(3, "n2", "cpu")], "rank 3 on n2 finds cpu, rank 0 on n1 cuda: all need the same"),
    ([Seen(0, "n1", "cpu"), *OPEN[1:]], "rank 0 on n1 finds cpu, rank 1 on n1 cuda"),
]


@pytest.mark.parametrize(("seen", "words"), BAD)
def test_bad(seen: list[Seen], words: str) -> None:
    assert words in judge(seen)


@pytest.mark.parametrize(("seen", "words"), [(OPEN[:3], None), (BAD[0][0][:3], "3 ranks and 2 GPUs")])
def test_every_rank_hears_the_verdict(seen: list[Seen], words: str | None) -> None:
    port, open_stores = free_port(), []

    def rank(number: int) -> str | None:
        store = dist.TCPStore("127.0.0.1", port, 3, is_master=number == 0, timeout=timedelta(seconds=30))
        try:
            agree(store, Ranks(number, 3, number, 3, "torchrun"), seen[number])
        except UserError as error:
            return str(error)  # and rank 0 takes the store away with it
        open_stores.append(store)  # as the process group does
        return None

    with ThreadPoolExecutor(3) as pool:
        told = list(pool.map(rank, range(3)))
    assert len(set(told)) == 1
    assert told[0] is None if words is None else re.match(words, told[0] or "")


@pytest.mark.parametrize(
    ("built", "driver", "mend"),
    [
        ("cuda", "/dev/nvidia0", "ask the scheduler for GPUs"),
        ("cuda", "/dev/kfd", "install PyTorch for ROCm, as"),  # `pip install torch` on an AMD machine
        ("hip", "/dev/kfd", "ask the scheduler for GPUs"),
        ("hip", "/dev/nvidia0", "install PyTorch for CUDA, as"),
        ("", "", "install PyTorch for CUDA or ROCm, as"),
    ],
)
def test_the_build_for_this_driver_is_named(
    built: str, driver: str, mend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("cuda", "hip", "xpu"):
        monkeypatch.setattr(f"torch.version.{name}", "7.1" if name == built else None)
    monkeypatch.setattr(devices.Path, "exists", lambda path: str(path) == driver)
    assert mend in devices._nothing("cuda", "")


def test_a_rank_without_its_device(toy: Path, tmp_path: Path) -> None:
    began = time.monotonic()
    done = run_frontier(
        "pretrain", toy, "--ranks", "2", "run.device=cuda", CUDA_VISIBLE_DEVICES="", ROCR_VISIBLE_DEVICES="",
    )  # fmt: skip
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "run.device=cuda and no such device" in done.stderr and "and 1 more rank" in done.stderr
    assert "CUDA_VISIBLE_DEVICES=" in done.stderr
    assert not (tmp_path / "run").exists()
    assert time.monotonic() - began < 60  # parallel.timeout_s of this config
