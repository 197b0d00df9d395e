"""What only a GPU can show. `bash benchmarks/gpu.sh` runs these where there is one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from frontier.data.random import stream_keys, uniform
from frontier.models.attention import padded_attention
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


def test_pretraining_in_both_precisions(toy: Path, tmp_path: Path) -> None:
    for precision in ("fp32", "bf16"):
        run = tmp_path / precision
        done = run_frontier("pretrain", toy, f"run.dir={run}", f"parallel.precision={precision}")
        assert done.returncode == 0, done.stderr
        assert curve(run)[-1] < curve(run)[0]
        assert read_jsonl(run / "starts.jsonl")[0]["device_type"] == "cuda"
        assert read_jsonl(run / "metrics.jsonl")[-1]["memory_kind"] == "device_peak"
    np.testing.assert_allclose(curve(tmp_path / "bf16"), curve(tmp_path / "fp32"), rtol=2e-2)
