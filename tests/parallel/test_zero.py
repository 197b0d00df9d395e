"""DeepSpeed's ZeRO stages beside PyTorch's engines: the same curve and weights, one kind of checkpoint, the same skipped steps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, curve, read_jsonl, run_frontier
from tests.train.test_one_curve import assert_same_weights, reference, relative

__all__ = ["reference"]  # the fixture


def zero(reference: Path, run: Path, strategy: str, ranks: int, *more: str) -> subprocess.CompletedProcess[str]:
    """A run of the reference's config; it says nothing but what every run says."""
    options = (f"run.dir={run}", f"parallel.strategy={strategy}", *more)
    done = run_frontier("pretrain", reference / "toy.yaml", "--ranks", str(ranks), *options)
    assert done.returncode == 0, done.stderr
    # On a busy machine a rank may be slow, and the run says so.
    assert [line for line in done.stderr.splitlines() if not line.startswith("slow rank")] == []
    said = (
        "mae ",
        "global batch",
        "data ",
        "run folder",
        "step ",
        "done: ",
        "passed over: ",
        "start-up",
        f"{ranks} ranks",
    )
    assert [line for line in done.stdout.splitlines() if not line.startswith(said)] == []
    return done


CASES = [
    ("zero_1", 2, ("train.micro_batch=8",)),
    ("zero_3", 2, ("train.micro_batch=8", "parallel.activation_checkpointing=full")),
    ("zero_3", 1, ("parallel.offload=true", "parallel.activation_checkpointing=selective")),
]


@pytest.mark.parametrize(("strategy", "ranks", "more"), CASES, ids=[f"{s}-{r}" for s, r, _ in CASES])
def test_same_curve_and_weights(
    reference: Path, tmp_path: Path, strategy: str, ranks: int, more: tuple[str, ...]
) -> None:
    zero(reference, tmp_path, strategy, ranks, *more)
    assert relative(curve(tmp_path), curve(reference / "run")) < 1e-5
    assert_same_weights(tmp_path, reference / "run")


@pytest.mark.slow
def test_one_run_under_four_engines(reference: Path, tmp_path: Path) -> None:
    """Begun under zero_2 on two ranks, gone on with under full_shard on one, ended under zero_3 and, again, under zero_1."""
    every = ("checkpoint.every_steps=20", "checkpoint.keep=5")
    turns: list[tuple[str, int, int | None, tuple[str, ...]]] = [
        ("zero_2", 2, None, ()),
        ("full_shard", 1, 20, ()),
        ("zero_3", 2, 40, ("parallel.offload=true",)),
        ("zero_1", 1, 40, ()),
    ]
    for strategy, ranks, resumed, more in turns:
        done = zero(reference, tmp_path, strategy, ranks, *every, *more)
        assert resumed is None or f"resumed from step {resumed}" in done.stdout
        assert relative(curve(tmp_path), curve(reference / "run")) < 1e-5
        assert_same_weights(tmp_path, reference / "run")
        for step in (50,) if resumed else (40, 50):
            (tmp_path / f"checkpoints/step_{step:08d}/complete.json").unlink()


@pytest.mark.parametrize(("strategy", "more"), [("zero_2", ()), ("zero_3", ("parallel.offload=true",))])
def test_bf16_stays_near_float32(reference: Path, tmp_path: Path, strategy: str, more: tuple[str, ...]) -> None:
    zero(reference, tmp_path, strategy, 1, "parallel.precision=bf16", *more)
    difference = relative(curve(tmp_path), curve(reference / "run"))
    assert 1e-7 < difference < 2e-2, "no difference at all would mean that nothing ran in bf16"


def watched(config: Path, run: Path, strategy: str, ranks: int, *more: str) -> tuple[list[list[dict]], list[dict]]:
    """(lines of each rank, metrics) of 9 steps of which three are spoiled: see `tests.parallel.watched`."""
    code = (
        "import sys; from frontier.launch.local import run_local; "
        f"sys.exit(run_local([sys.executable, '-m', 'tests.parallel.watched', *sys.argv[1:]], {ranks}))"
    )
    options = ("pretrain", config, f"run.dir={run}", f"parallel.strategy={strategy}", "train.steps=9", *more)
    done = subprocess.run(
        [sys.executable, "-c", code, f"{run}.out", *map(str, options)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("skipped: ") == 3
    return [read_jsonl(Path(f"{run}.out.{rank}")) for rank in range(ranks)], read_jsonl(run / "metrics.jsonl")


@pytest.fixture(scope="module")
def spoiled(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """Metrics of the spoiled run under PyTorch's engine."""
    run = tmp_path_factory.mktemp("spoiled") / "run"
    ranks, metrics = watched(reference / "toy.yaml", run, "full_shard", 1)
    assert [line["made"] for line in ranks[0][:-1]] == [step not in (2, 4, 6) for step in range(9)]
    return metrics


@pytest.mark.parametrize(
    ("strategy", "more", "tolerance"),
    [
        ("zero_1", ("parallel.precision=bf16",), 2e-3),
        pytest.param("zero_2", (), 1e-6, marks=pytest.mark.slow),
        ("zero_3", (), 1e-6),
    ],
    ids=["zero_1-bf16", "zero_2", "zero_3"],
)
def test_bad_steps_leave_no_trace(
    reference: Path, spoiled: list[dict], tmp_path: Path, strategy: str, more: tuple[str, ...], tolerance: float
) -> None:
    ranks, metrics = watched(reference / "toy.yaml", tmp_path / "run", strategy, 2, *more)
    for lines in ranks:
        for step, line in enumerate(lines[:-1]):
            fine = step not in (2, 4, 6)
            assert (line["made"], line["changed"], line["grown"]) == (fine, fine, [float(fine)]), f"step {step}"
            assert (line["norm"] is None) == (step == 2)
    for ours, theirs in zip(metrics, spoiled, strict=True):
        assert (ours["loss"] is None) == (theirs["loss"] is None)
        if ours["loss"] is not None:
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=tolerance)
            assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=30 * tolerance)
        assert ours["skipped"] == theirs["skipped"]
    last = ranks[0][-1]
    if strategy == "zero_3":
        # Of 38,800 elements, one module owns up to 6,176 itself, and a block has up to 12,704.
        assert 0 < last["whole_at_start"] < 0.2
        assert 0.1 < last["whole_in_use"] < 0.8
    options = ("--dry-run", "--json", "--world-size", "2", "train.steps=9", f"parallel.strategy={strategy}", *more)
    told = run_frontier("pretrain", reference / "toy.yaml", *options)
    assert last["config"] == json.loads(told.stdout)["deepspeed"], "what --dry-run shows is what DeepSpeed gets"


def test_dry_run_shows_the_config(toy: Path) -> None:
    options = ("--dry-run", "--world-size", "4", "train.micro_batch=4", "parallel.strategy=zero_2")
    figures = json.loads(run_frontier("pretrain", toy, *options, "--json").stdout)
    config, memory = figures["deepspeed"], figures["memory_gib"]
    whole = figures["parameters"] * 4 / 2**30
    assert memory["parameters"] == pytest.approx(whole + whole / 4), "working weights, and a part of their masters"
    assert (memory["gradients"], memory["optimizer"]) == pytest.approx((whole / 4, whole / 2))
    assert config["zero_optimization"]["stage"] == 2
    assert (config["train_batch_size"], config["gradient_accumulation_steps"]) == (32, 2)
    assert config["gradient_clipping"] == 0.2
    assert "stage: 2" in run_frontier("pretrain", toy, *options).stdout


def test_without_deepspeed(toy: Path, tmp_path: Path) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text("import sys\nsys.modules['deepspeed'] = None\n")
    for how in ((), ("--ranks", "2")):
        done = run_frontier("pretrain", toy, "parallel.strategy=zero_1", *how, PYTHONPATH=str(hidden))
        assert done.returncode == 2
        assert len(done.stderr.strip().splitlines()) == 1
        assert "pip install" in done.stderr
    assert not (tmp_path / "run").exists()
    done = run_frontier("pretrain", toy, "parallel.strategy=zero_1", "--dry-run", PYTHONPATH=str(hidden))
    assert done.returncode == 0, done.stderr
