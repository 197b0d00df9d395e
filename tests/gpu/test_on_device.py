"""What only a GPU can show. `bash benchmarks/gpu.sh` runs these where there is one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from frontier.data.random import stream_keys, uniform
from frontier.models.attention import padded_attention
from frontier.train.waits import STREAM, Waits
from tests.conftest import curve, read_jsonl, run_frontier

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")]


def test_random_numbers_are_those_of_the_cpu() -> None:
    members = torch.stack([torch.arange(100) % 7, torch.arange(100) * 12345], 1)
    on_cpu = uniform(stream_keys(5, 13, members), 256)
    on_gpu = uniform(stream_keys(5, 13, members.cuda()), 256)
    assert torch.equal(on_cpu, on_gpu.cpu())


@pytest.mark.parametrize("head_dim", [64, 88, 105, 112])
def test_padded_attention_against_float64(head_dim: int) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 65, head_dim, device="cuda", dtype=torch.bfloat16).unbind(0)
    exact = torch.softmax(q.double() @ k.double().transpose(-1, -2) / head_dim**0.5, -1) @ v.double()
    torch.testing.assert_close(padded_attention(q, k, v).double(), exact, atol=2e-2, rtol=2e-2)


def test_what_a_step_measures(toy: Path, tmp_path: Path) -> None:
    from frontier_profiling.measure.kineto import read_trace, shares
    from frontier_profiling.measure.summary import measured_row

    run = tmp_path / "run"
    words = ("log.profile_steps=[10,12]", "log.memory_snapshot=true", "train.steps=20", "parallel.precision=bf16")
    done = run_frontier("pretrain", toy, *words)
    assert done.returncode == 0, done.stderr
    last = read_jsonl(run / "metrics.jsonl")[-1]
    assert 0 < last["memory_allocated_gib"] <= last["memory_active_gib"] <= last["memory_reserved_gib"]
    assert last["allocation_retries"] == last["out_of_memory"] == 0
    assert last["exposed_s"] is not None and 0 <= last["exposed_s"] < last["step_s"]
    assert (run / "profile" / "memory_rank0.pickle").stat().st_size > 0
    (share,) = shares(read_trace(run / "profile" / "rank0.json.gz"))
    assert share.steps == 3 and 0 < share.compute_s < share.window_s
    row = measured_row(run)
    assert row.memory_gib.keys() == {"peak", "total_allocated", "active", "reserved"}
    assert (row.mfu is None) == (row.peak_tflops is None)


def test_stalls_of_the_compute_stream() -> None:
    """A wait for another stream's long work counts, one for finished work does not."""
    waits = Waits(STREAM)
    a, side = torch.ones(4096, 4096, device="cuda"), torch.cuda.Stream()
    for products in (50, 0):
        torch.cuda.synchronize()
        with waits.counting():
            with torch.cuda.stream(side):
                for _ in range(products):
                    a @ a
                event = side.record_event()
            torch.cuda.current_stream().wait_event(event)
        torch.cuda.synchronize()
        stalled = waits.stalled()
        assert stalled is not None
        if products:
            long = stalled
    assert long > 20 * stalled


def test_pretraining_in_both_precisions(toy: Path, tmp_path: Path) -> None:
    for precision in ("fp32", "bf16"):
        run = tmp_path / precision
        done = run_frontier("pretrain", toy, f"run.dir={run}", f"parallel.precision={precision}")
        assert done.returncode == 0, done.stderr
        assert curve(run)[-1] < curve(run)[0]
        assert read_jsonl(run / "starts.jsonl")[0]["device_type"] == "cuda"
        assert read_jsonl(run / "metrics.jsonl")[-1]["memory_kind"] == "device_peak"
    np.testing.assert_allclose(curve(tmp_path / "bf16"), curve(tmp_path / "fp32"), rtol=2e-2)


def test_gpna_trains_as_on_the_cpu(tmp_path: Path) -> None:
    """Several sources, clusters, hidden tokens and maps: the first losses are the CPU's, and bf16 learns."""
    import yaml

    from tests.gpna.toys import toy_values, write_scenes, write_series

    values = toy_values(write_scenes(tmp_path / "scenes"), write_series(tmp_path / "series"), tmp_path / "run")
    config = tmp_path / "gpna.yaml"
    config.write_text(yaml.safe_dump(values))
    curves = {}
    for name, words in (
        ("cpu", ["run.device=cpu"]),
        ("cuda", ["run.device=cuda"]),
        ("bf16", ["run.device=cuda", "parallel.precision=bf16", "train.steps=30"]),
    ):
        done = run_frontier("pretrain", config, f"run.dir={tmp_path / name}", *words)
        assert done.returncode == 0, done.stderr
        curves[name] = curve(tmp_path / name)
    np.testing.assert_allclose(curves["cuda"], curves["cpu"], rtol=1e-3)
    assert curves["bf16"][-1] < curves["bf16"][0]
