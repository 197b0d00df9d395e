"""What a step measures: waits in collectives, FLOPs with recomputation, and the requests for traces that are refused."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.utils.flop_counter import FlopCounterMode

from frontier.config.load import load_config
from frontier.config.schema import ParallelConfig
from frontier.errors import UserError
from frontier.models.counting import flops_per_image
from frontier.models.mae import MAE, MAEConfig
from frontier.models.presets import get_shape
from frontier.parallel.apply import checkpoint_activations
from frontier.train import waits as waits_module
from frontier.train.plan import resolve
from frontier.train.timing import StepClock
from frontier.train.waits import DDP, HOST, STREAM, Waits, way
from tests.conftest import read_jsonl, run_frontier

SMALL = MAEConfig(encoder=get_shape("vit_debug"), image_size=32)
GATED = MAEConfig.preset("vit_5b", image_size=56)


@pytest.mark.parametrize("kind", ["none", "selective", "full"])
@pytest.mark.parametrize("config", [SMALL, GATED], ids=["small", "gated"])
def test_hardware_flops_against_the_counter(config: MAEConfig, kind: str) -> None:
    with torch.device("meta"):
        model = MAE(config)
        images, noise = torch.empty(2, 3, config.image_size, config.image_size), torch.empty(2, config.patches)
    if kind != "none":
        checkpoint_activations(model.shard_units(), kind)
    counter = FlopCounterMode(display=False)
    with counter:
        model(images, noise)["loss"].backward()
    assert counter.get_total_flops() == 2 * flops_per_image(config, True, kind).hardware


def test_plan_tells_both_counts(toy: Path) -> None:
    plain, full = (resolve(load_config(toy, [f"parallel.activation_checkpointing={k}"]), 1) for k in ("none", "full"))
    assert plain.flops_per_image == full.flops_per_image
    assert plain.hardware_flops_per_image < full.hardware_flops_per_image


@pytest.mark.parametrize(
    ("device", "parallel", "expected"),
    [
        ("cpu", {}, HOST),
        ("cpu", {"strategy": "zero_3"}, HOST),
        ("cpu", {"tensor": 2}, HOST),
        ("cpu", {"tensor": 2, "compile": True}, None),
        ("cpu", {"strategy": "ddp"}, DDP),
        ("cuda", {}, STREAM),
        ("cuda", {"strategy": "ddp"}, None),
        ("cuda", {"strategy": "zero_1"}, None),
        ("cuda", {"tensor": 2}, None),
        ("xpu", {}, None),
    ],
)
def test_way(device: str, parallel: dict, expected: str | None) -> None:
    assert way(torch.device(device), ParallelConfig(**parallel)) == expected


def test_waits_are_counted_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock of our own: 2 s computing and 3 s waiting forward, 5 s waiting backward, of which another thread's do not count."""
    now = [0.0]
    monkeypatch.setattr(waits_module.time, "perf_counter", lambda: now[0])
    untouched = dist.Work.wait

    class Work:
        def wait(self, seconds: float) -> None:
            now[0] += seconds

    monkeypatch.setattr(dist, "Work", Work)
    waits = Waits(HOST)
    clock = StepClock(torch.device("cpu"), waits)
    with waits.counting():
        clock.start()
        clock.mark("data_s")
        now[0] += 2
        Work().wait(3)
        clock.mark("forward_s")
        Work().wait(5)
        saving = threading.Thread(target=lambda: Work().wait(7))
        saving.start()
        saving.join()
        clock.mark("backward_s")
    Work().wait(11)
    clock.mark("optimizer_s")
    assert clock.parts() == {"data_s": 0, "forward_s": 5, "backward_s": 12, "optimizer_s": 11}
    assert clock.exposed() == {
        "exposed_s": 8,
        "exposed_forward_s": 3,
        "exposed_backward_s": 5,
        "exposed_optimizer_s": 0,
    }
    monkeypatch.undo()
    assert dist.Work.wait is untouched
    silent = StepClock(torch.device("cpu"), Waits(None))
    silent.start()
    silent.mark("data_s")
    assert silent.exposed() == {"exposed_s": None}


def test_stalls_are_those_of_the_compute_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """With streams and events of our own: the device's clock moves by what a stream waits."""
    now = [0.0]

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self, stream: Stream) -> None:
            self.at = now[0]

        def elapsed_time(self, later: Event) -> float:
            return later.at - self.at

    class Stream:
        def wait_event(self, event: float) -> None:
            now[0] += event

        def wait_stream(self, stream: Stream) -> None:
            self.wait_event(100)

    compute, other = Stream(), Stream()
    untouched = Stream.wait_event
    monkeypatch.setattr(torch, "Event", Event)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: compute)
    waits = Waits(STREAM)
    with waits.counting():
        compute.wait_event(30)
        other.wait_event(1000)
        compute.wait_stream(other)
    compute.wait_event(7)
    assert Stream.wait_event is untouched
    assert waits.stalled() == pytest.approx(0.130)
    assert waits.stalled() == 0


@pytest.mark.parametrize("strategy", ["ddp", "hybrid_2"])
def test_ranks_that_wait_are_seen(toy: Path, tmp_path: Path, strategy: str) -> None:
    done = run_frontier("pretrain", toy, "--ranks", "2", "train.steps=6", f"parallel.strategy={strategy}")
    assert done.returncode == 0, done.stderr
    rows = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    # Gradients cross the ranks in the backward pass; only sharded weights are gathered in the forward one.
    assert all(row["exposed_backward_s"] > 0 for row in rows)
    assert all((row["exposed_forward_s"] > 0) == (strategy == "hybrid_2") for row in rows)
    assert all(row["profiled"] is False and row["hfu"] is None and row["hardware_tflops"] > 0 for row in rows)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["log.profile_ranks=[0,1]"], "no effect without log.profile_steps"),
        (["log.memory_snapshot=true"], "no effect without log.profile_steps"),
        (["log.profile_steps=[4,3]"], "first <= last"),
        (["log.profile_steps=[1,2]", "log.profile_ranks=[]"], "one or more ranks"),
        (["log.profile_steps=[49,51]"], "beyond the 50 steps"),
        (["log.profile_steps=[1,2]", "log.profile_ranks=[0,4]"], "ranks 0 to 3"),
    ],
)
def test_refused_profiles(toy: Path, overrides: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        resolve(load_config(toy, overrides), 4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU keeps a record of its memory")
def test_no_memory_snapshot_on_a_cpu(toy: Path) -> None:
    done = run_frontier("pretrain", toy, "log.profile_steps=[1,2]", "log.memory_snapshot=true")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and "log.memory_snapshot" in done.stderr
