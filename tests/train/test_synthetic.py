"""Images made on the device: the same run at any number of ranks, stopped and resumed; mistakes told in one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from frontier.config.load import load_config
from frontier.data.loader import Loader
from frontier.data.sampler import Sampler
from frontier.data.shards import ShardSet
from frontier.data.synthetic import SyntheticLoader, SyntheticSet
from frontier.errors import UserError
from frontier.train.plan import resolve
from tests.conftest import curve, read_jsonl, run_frontier, toy_config


@pytest.fixture
def synthetic(tmp_path: Path, shards: Path) -> Path:
    values = toy_config(tmp_path / "run", shards)
    values["data"] = {"synthetic": {"channels": 2, "samples": 640}, "image_size": 24, "augment": {"symmetries": True}}
    values["train"] |= {"steps": 8, "warmup_steps": 2}
    path = tmp_path / "synthetic.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.slow
def test_same_curve_on_two_ranks_and_over_a_stop(synthetic: Path, tmp_path: Path) -> None:
    alone, two, stopped = (tmp_path / name for name in ("alone", "two", "stopped"))
    assert run_frontier("pretrain", synthetic, f"run.dir={alone}").returncode == 0
    assert run_frontier("pretrain", synthetic, "--ranks", "2", f"run.dir={two}").returncode == 0
    np.testing.assert_allclose(curve(two), curve(alone), rtol=1e-5)
    first = ("train.steps=4", "checkpoint.every_steps=4")
    assert run_frontier("pretrain", synthetic, "--ranks", "2", f"run.dir={stopped}", *first).returncode == 0
    done = run_frontier("pretrain", synthetic, f"run.dir={stopped}", "checkpoint.every_steps=4")
    assert done.returncode == 0, done.stderr
    assert [row["start"] for row in read_jsonl(stopped / "metrics.jsonl")] == [0] * 4 + [1] * 4
    rows = read_jsonl(alone / "metrics.jsonl")
    assert all(row["data_supply_ratio"] is None for row in rows), "nothing was read, so nothing was measured"
    assert "samples in synthetic" in done.stdout
    other = run_frontier("pretrain", synthetic, f"run.dir={stopped}", "train.steps=9", "data.synthetic.samples=700")
    assert other.returncode == 2 and "the data's fingerprint" in other.stderr
    # From the saved config, and reported.
    again = run_frontier("pretrain", alone / "config.yaml", f"run.dir={tmp_path / 'again'}")
    assert again.returncode == 0, again.stderr
    assert curve(tmp_path / "again") == curve(alone)
    assert run_frontier("report", alone).returncode == 0


def test_members_are_those_of_shards(shards: Path) -> None:
    images = ShardSet(shards)
    sampler = Sampler.plan(len(images), 16, 3, 100, None, None)
    assert sampler.window > 1
    made = SyntheticLoader(SyntheticSet({"image": (3, 8)}, len(images)), sampler, 1, 2, torch.device("cpu"), 3)
    read = Loader(images, "image", sampler, 1, 2, 0)
    first = 3
    steps = range(first, first + 3 * sampler.window)
    for step, ours, theirs in zip(steps, made.batches(first), read.batches(first), strict=False):
        assert torch.equal(ours.members, torch.from_numpy(sampler.members(step, 1, 2))), "places are the sampler's"
        assert sorted(ours.members.tolist()) == sorted(theirs.members.tolist())
        assert ours.images is made.columns["image"]


def test_images_belong_to_places_of_the_global_batch() -> None:
    sampler = Sampler.plan(1000, 16, 3, 100, None, None)
    made = [
        SyntheticLoader(SyntheticSet({"image": (3, 32)}, 1000), sampler, rank, ranks, torch.device("cpu"), 5).columns[
            "image"
        ]
        for ranks in (1, 2)
        for rank in range(ranks)
    ]
    assert torch.equal(made[0], torch.cat(made[1:]))
    values = made[0].double()
    assert values.unique(dim=0).shape[0] == 16
    mean, std = SyntheticSet({"image": (3, 32)}, 1000).statistics("image")
    assert float((values.mean() - mean[0]) / std[0]) == pytest.approx(0, abs=0.02)
    assert float(values.std() / std[0]) == pytest.approx(1, abs=0.02)


def test_several_images_of_a_sample_are_drawn_apart(synthetic: Path) -> None:
    sampler = Sampler.plan(1000, 4, 3, 100, None, None)
    shapes = {"a": (2, 16), "b": (1, 32), "image": (3, 16)}
    made = SyntheticLoader(SyntheticSet(shapes, 1000), sampler, 0, 1, torch.device("cpu"), 5)
    batch = next(made.batches(0))
    assert {name: tuple(values.shape[1:]) for name, values in batch.columns.items()} == {
        name: (channels, side, side) for name, (channels, side) in shapes.items()
    }
    a, b, _ = (values.double().flatten(1)[:, :512] for values in batch.columns.values())
    assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.1
    with pytest.raises(UserError, match="model.family=mae takes one image a sample"):
        resolve(
            load_config(synthetic, ["data.synthetic={channels: 3, images: {image: [3, 24]}}", "data.image_size=null"]),
            1,
        )


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.shards=somewhere", "shards and synthetic given"),
        ("data.synthetic=null", "none given"),
        ("data.image_size=null", "needs data.image_size"),
        ("data.workers=4", "data.workers has no effect"),
        ("data.split=test", "data.split has no effect"),
        ("data.stage=/mnt/bb", "data.stage has no effect"),
        ("data.synthetic.chanels=3", "did you mean 'data.synthetic.channels'"),
        ("data.synthetic.samples=0", "data.synthetic.samples"),
        ("data.synthetic.images={a: [3, 8]}", "data.synthetic.channels has no effect with data.synthetic.images"),
        (
            "data.synthetic={channels: 3, images: {a: [3, 8]}}",
            "data.image_size has no effect with data.synthetic.images",
        ),
        ("data.synthetic={images: {a: [3, 0]}}", "data.synthetic.images.a.1"),
        ("data.synthetic={images: {}}", "data.synthetic.images"),
    ],
)
def test_mistakes(synthetic: Path, override: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as told:
        load_config(synthetic, [override])
    assert "\n" not in str(told.value)


def test_dry_run(synthetic: Path) -> None:
    done = run_frontier("pretrain", synthetic, "--dry-run", "--nodes", "1", "--samples", "100000", "--json")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["config"]["data"]["mean"] == [127.5, 127.5]
    assert figures["scale"]["reader"]["shard_files_first_window"] == 0
    assert figures["scale"]["reader"]["bytes_a_window"] == 0
    plan = resolve(load_config(synthetic), 2)
    assert (plan.sampler.samples, len(plan.shards)) == (640, 640)
