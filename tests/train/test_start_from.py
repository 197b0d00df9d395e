"""train.start_from: a run that begins with the weights of another."""

from pathlib import Path

import pytest
import torch

from frontier.train.checkpoint import load_model
from frontier.train.storage import read_tensors
from tests.conftest import curve, read_jsonl, run_frontier


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    return read_tensors(run / "checkpoints" / f"step_{step:08d}", "model.")


@pytest.fixture(scope="module")
def first(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A config and the run that it made of three steps."""
    import yaml

    from tests.conftest import toy_config

    folder = tmp_path_factory.mktemp("start")
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump(toy_config(folder / "run", shards)))
    done = run_frontier("pretrain", path, "train.steps=3", "train.warmup_steps=1")
    assert done.returncode == 0, done.stderr
    return path, folder / "run"


def test_begins_with_the_weights_and_nothing_else(first: tuple[Path, Path], tmp_path: Path) -> None:
    config, run = first
    again = tmp_path / "again"
    words = [
        f"train.start_from={run}",
        f"run.dir={again}",
        "train.steps=1",
        "train.base_lr=1e-12",
        "train.warmup_steps=0",
    ]
    done = run_frontier("pretrain", config, *words, "--ranks", "2")
    assert done.returncode == 0, done.stderr
    assert "start from" in done.stdout and "begin anew" not in done.stdout
    # A step too small to see: the weights are those that were loaded, on every rank's part.
    found, given = weights(again, 1), weights(run, 3)
    assert set(found) == set(given)
    for name in given:
        torch.testing.assert_close(found[name], given[name], rtol=0, atol=1e-8)
    row = read_jsonl(again / "metrics.jsonl")[0]
    assert (row["step"], row["samples"]) == (1, 32)  # its own samples, from the first
    assert read_jsonl(again / "starts.jsonl")[0]["start_from"] == str(run / "checkpoints" / "step_00000003")


def test_what_has_another_shape_begins_anew(first: tuple[Path, Path], tmp_path: Path) -> None:
    config, run = first
    again = tmp_path / "again"
    words = [
        f"train.start_from={run}",
        f"run.dir={again}",
        "train.steps=1",
        "train.base_lr=1e-12",
        "train.warmup_steps=0",
    ]
    done = run_frontier("pretrain", config, *words, "model.decoder.width=32", "model.decoder.heads=2")
    assert done.returncode == 0, done.stderr
    assert "begin anew: decoder." in done.stdout
    found, given = weights(again, 1), weights(run, 3)
    kept = {name for name in found if found[name].shape == given[name].shape}
    assert "encoder.blocks.0.attn.qkv.weight" in kept and len(kept) < len(found)
    torch.testing.assert_close(found["encoder.norm.weight"], given["encoder.norm.weight"], rtol=0, atol=1e-8)


def test_its_own_checkpoints_come_first(first: tuple[Path, Path], tmp_path: Path) -> None:
    config, run = first
    again = tmp_path / "again"
    words = [f"train.start_from={run}", f"run.dir={again}", "train.warmup_steps=1"]
    assert run_frontier("pretrain", config, *words, "train.steps=2").returncode == 0
    done = run_frontier("pretrain", config, *words, "train.steps=3")
    assert done.returncode == 0, done.stderr
    assert "resumed from step 2" in done.stdout and "start from" not in done.stdout
    assert len(curve(again)) == 3


@pytest.mark.parametrize(
    ("word", "said"),
    [("/nowhere", "train.start_from: no checkpoint in /nowhere"), ("MODEL", "holds no parameter of this model")],
)
def test_mistakes(first: tuple[Path, Path], tmp_path: Path, word: str, said: str) -> None:
    config, run = first
    more = []
    if word == "MODEL":
        # Only parameters of another width: none fits.
        word, more = str(run), ["model.width=16", "model.decoder.width=8", "model.mlp_hidden=40", "model.patch=4"]
    done = run_frontier("pretrain", config, f"train.start_from={word}", f"run.dir={tmp_path / 'x'}", *more)
    assert done.returncode == 2
    assert said in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "x" / "metrics.jsonl").exists()


def test_load_model_is_what_was_saved(first: tuple[Path, Path]) -> None:
    module, _, step = load_model(first[1])
    assert step == 3
    torch.testing.assert_close(
        dict(module.named_parameters())["encoder.norm.bias"].data, weights(first[1], 3)["encoder.norm.bias"]
    )
