"""The same float32 curve at any scale: ranks x strategies, stop and resume elsewhere, bit-identical on the same ranks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from frontier.train.storage import read_tensors
from tests.conftest import curve, run_frontier, toy_config


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    """50 steps on one rank, alone."""
    folder = tmp_path_factory.mktemp("reference")
    config = folder / "toy.yaml"
    config.write_text(yaml.safe_dump(toy_config(folder / "run", shards)))
    done = run_frontier("pretrain", config)
    assert done.returncode == 0, done.stderr
    losses = curve(folder / "run")
    assert len(losses) == 50
    assert losses[-1] < losses[0] - 0.02, "the toy model does not learn, so equal curves would mean little"
    return folder


def relative(a: list[float], b: list[float]) -> float:
    return float(np.max(np.abs(np.array(a) - np.array(b)) / np.array(b)))


def assert_same_weights(run: Path, other: Path) -> None:
    """After 50 steps, to 1e-5."""
    ours = read_tensors(run / "checkpoints/step_00000050", "model.")
    theirs = read_tensors(other / "checkpoints/step_00000050", "model.")
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        if name.endswith("attn.qkv.bias"):
            # Rows are [heads, 3, head_dim]. Softmax does not see the bias of the keys: its true gradient is 0, and
            # AdamW scales what rounding leaves of it up to full steps.
            heads = 2
            value = value.view(heads, 3, -1)[:, [0, 2]]
            ours[name] = ours[name].view(heads, 3, -1)[:, [0, 2]]
        torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


CASES = [
    ("full_shard", 2, ()),
    ("shard_grad_op", 2, ()),
    ("no_shard", 2, ()),
    ("ddp", 2, ("train.micro_batch=8",)),
    ("hybrid_2", 2, ("parallel.activation_checkpointing=full",)),
    ("full_shard", 4, ("train.micro_batch=4", "data.workers=0")),
    ("hybrid_2", 4, ()),
]


@pytest.mark.parametrize(("strategy", "ranks", "more"), CASES, ids=[f"{s}-{r}" for s, r, _ in CASES])
def test_same_curve_and_weights(
    reference: Path, tmp_path: Path, strategy: str, ranks: int, more: tuple[str, ...]
) -> None:
    done = run_frontier(
        "pretrain",
        reference / "toy.yaml",
        "--ranks",
        str(ranks),
        f"run.dir={tmp_path}",
        f"parallel.strategy={strategy}",
        *more,
    )
    assert done.returncode == 0, done.stderr
    assert relative(curve(tmp_path), curve(reference / "run")) < 1e-5
    assert_same_weights(tmp_path, reference / "run")


@pytest.mark.slow  # tests/parallel/test_matrix_fast.py has others of its kind
def test_stop_on_two_resume_on_four(reference: Path, tmp_path: Path) -> None:
    """20 of 50 steps on 2 ranks fully sharded, the rest on 4 ranks in hybrid groups."""
    base = ("pretrain", reference / "toy.yaml", f"run.dir={tmp_path}")
    first = run_frontier(*base, "--ranks", "2", "checkpoint.every_steps=20", "checkpoint.keep=5")
    assert first.returncode == 0, first.stderr
    for later in ("step_00000040", "step_00000050"):
        (tmp_path / "checkpoints" / later / "complete.json").unlink()
    done = run_frontier(*base, "--ranks", "4", "parallel.strategy=hybrid_2")
    assert done.returncode == 0, done.stderr
    assert "resumed from step 20" in done.stdout
    assert done.stdout.count("passed over:") == 2
    assert relative(curve(tmp_path), curve(reference / "run")) < 1e-5


def test_resume_on_the_same_ranks_is_bit_identical(reference: Path, tmp_path: Path) -> None:
    base = ("pretrain", reference / "toy.yaml", "--ranks", "2", "checkpoint.every_steps=20", "checkpoint.keep=5")
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    assert run_frontier(*base, f"run.dir={straight}").returncode == 0
    assert run_frontier(*base, f"run.dir={broken}").returncode == 0
    (broken / "checkpoints/step_00000050/complete.json").unlink()
    (broken / "checkpoints/step_00000040/complete.json").unlink()
    assert run_frontier(*base, f"run.dir={broken}").returncode == 0
    assert curve(broken) == curve(straight)
    ours = read_tensors(broken / "checkpoints/step_00000050", "")
    theirs = read_tensors(straight / "checkpoints/step_00000050", "")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_bf16_stays_near_float32(reference: Path, tmp_path: Path) -> None:
    """Both ways of bf16 (FSDP's policy, autocast under DDP) follow the float32 curve to about their precision."""
    for strategy in ("full_shard", "ddp"):
        run = tmp_path / strategy
        done = run_frontier(
            "pretrain",
            reference / "toy.yaml",
            f"run.dir={run}",
            "parallel.precision=bf16",
            f"parallel.strategy={strategy}",
        )
        assert done.returncode == 0, done.stderr
        difference = relative(curve(run), curve(reference / "run"))
        assert 1e-7 < difference < 2e-2, "no difference at all would mean that nothing ran in bf16"


def test_compiled_blocks_give_the_same_curve(reference: Path, tmp_path: Path) -> None:
    done = run_frontier(
        "pretrain",
        reference / "toy.yaml",
        "--ranks",
        "2",
        f"run.dir={tmp_path}",
        "parallel.compile=true",
        "train.steps=50",
    )
    assert done.returncode == 0, done.stderr
    assert relative(curve(tmp_path), curve(reference / "run")) < 1e-5
