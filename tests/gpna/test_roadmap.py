"""Steps 4 and 5 of the roadmap, tiny: a band told by its wavelength, classes told by descriptions."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from frontier.data.shards import ShardSet
from frontier.errors import UserError
from frontier.models.init import initialise
from gpna.descriptor import Band
from gpna.sensors import InputSpec
from gpna.tokenizer import Tokenizer, TokenizerSettings
from tests.data.sets import write_set

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from gpna_roadmap import one_band_set, record, seen_set

WAVELENGTHS = (450.0, 550.0, 610.0, 650.0, 740.0, 830.0, 950.0)


def scalar(centre):
    band = Band(f"at {centre:g}", "optical", f"at_{centre:g}".replace(".", "_"), centre, 20.0)
    return InputSpec("C", (1,), (band,), None, 1, (0.0,), (1.0,))


def tokenizer(stem, inputs):
    settings = TokenizerSettings(
        width=24, hidden=(8, 8), place=2, time=2, position=0, gsd=0, spectral=16, highest_spectral=2, stem=stem
    )
    with torch.device("meta"):
        made = Tokenizer(inputs, settings)
    made.to_empty(device="cpu")
    initialise(made, 0)
    return made


def test_an_unseen_band_is_read_by_its_wavelength():
    """A value means one thing below 690 nm and the opposite above: what is right for 630 nm and 785 nm was never shown."""
    module = tokenizer("generated", {str(w): scalar(w) for w in WAVELENGTHS})
    read = torch.nn.Linear(24, 1)
    optimizer = torch.optim.Adam([*module.parameters(), *read.parameters()], lr=5e-3)
    draw = torch.Generator().manual_seed(0)

    def answer(key, values):
        blank = torch.zeros(len(values), 2)
        return read(module(key, values, blank, blank[:, None])).flatten()

    for _ in range(150):
        loss = torch.zeros(())
        for wave in WAVELENGTHS:
            values = torch.randn(16, 1, generator=draw)
            loss = loss + F.mse_loss(answer(str(wave), values), values[:, 0] * (1 if wave > 690 else -1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    module.extend({"630": scalar(630.0), "785": scalar(785.0)})
    values = torch.randn(200, 1, generator=draw)
    with torch.no_grad():
        low, high = answer("630", values), answer("785", values)

    assert F.mse_loss(low, -values[:, 0]) < 0.5 and F.mse_loss(high, values[:, 0]) < 0.5  # the other's wavelength: 4


def test_stems_of_bands_refuse_an_unseen_band():
    module = tokenizer("band", {str(w): scalar(w) for w in WAVELENGTHS})
    with pytest.raises(UserError, match="stem: generated needs none"):
        module.extend({"630": scalar(630.0)})


@pytest.fixture
def scenes(tmp_path):
    """(folder, values, labels): two bands and three classes, in shards as `frontier shards write --scenes` makes them."""
    rng = np.random.default_rng(0)
    values, labels = (
        rng.integers(100, 4000, (6, 2, 64, 64)).astype(np.uint16),
        np.repeat(np.arange(3, dtype=np.int32), 2),
    )
    path = write_set(tmp_path / "scenes", {"s2": (values, "CHW")}, columns={"label": labels}, nodata={"s2": 0})
    manifest = json.loads((path / "manifest.json").read_text())
    for band, name in zip(manifest["images"]["s2"]["bands"], ("B04", "B08"), strict=True):
        band["name"] = name
    (shard,) = manifest["shards"]
    (path / "test.h5").write_bytes((path / shard["file"]).read_bytes())
    manifest["shards"].append(shard | {"file": "test.h5", "split": "test"})
    manifest["splits"]["test"] = {"samples": 6, "shards": ["test.h5"]}
    manifest |= {"samples": 12, "classes": ["water", "forest", "bare"]}
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path, values, labels


def test_unseen_classes_are_not_in_training(scenes, tmp_path):
    path, values, labels = scenes
    made = seen_set(path, tmp_path / "made", ["forest"])
    train, test = ShardSet(made, "train"), ShardSet(made, "test")
    assert np.array_equal(train.column("seen"), np.repeat([0, 0, 1, 1], 4))
    assert np.array_equal(test.column("seen"), np.repeat(labels, 4))
    assert np.array_equal(train.read("s2", 9, 10)[0], values[4, :, :32, 32:])


def test_samples_of_one_band_keep_that_band_and_what_is_asked(scenes, tmp_path):
    path, values, _ = scenes
    made = one_band_set(path, tmp_path / "made", ["B08"])
    train, test = ShardSet(made, "train"), ShardSet(made, "test")
    images = train.read("s2", 0, len(train))
    assert len(images) == 4 * len(values) and images[:, 0].all() and not images[:, 1].any()
    assert np.array_equal(test.read("s2", 0, 1)[0], values[0, :, :32, :32])
    red, infrared = values[0, :, :32, :32].astype(float)
    assert train.column("greenness")[0] == pytest.approx(((infrared - red) / (infrared + red)).mean(), abs=1e-6)


def test_results_of_one_step_leave_those_of_the_other(tmp_path):
    path = tmp_path / "roadmap.md"
    record(path, [["## Step 5: b", "", "old"]])
    record(path, [["## Step 4: a", "", "first"]])
    record(path, [["## Step 5: b", "", "new"]])
    assert path.read_text().split("\n")[0] == "# GPNA: steps of the roadmap"
    assert path.read_text().index("first") < path.read_text().index("new") and "old" not in path.read_text()
