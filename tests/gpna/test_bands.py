"""Bands of an input chosen by name."""

import numpy as np
import pytest
import torch

from frontier.errors import UserError
from gpna.config import GPNASection, SourceSection
from gpna.predict import stored_batches
from gpna.reader import GPNAReader
from gpna.sources import open_source
from tests.data.sets import write_set


@pytest.fixture
def shards(tmp_path):
    rng = np.random.default_rng(0)
    there = rng.random((5, 4, 8, 8)) < 0.8
    images = {"image": (rng.integers(1, 4000, (5, 4, 8, 8)).astype(np.uint16), "CHW")}
    means = {"image": {"mean": [1.0, 2.0, 3.0, 4.0], "std": [10.0, 20.0, 30.0, 40.0]}}
    arrays = {"there": (there.astype(np.uint8), "CHW")}
    return write_set(tmp_path, images, arrays=arrays, masks={"image": "there"}, statistics=means)


def opened(shards, bands):
    section = SourceSection.model_validate({"shards": str(shards), "inputs": {"image": {"bands": bands}}})
    return open_source("here", section, {}, check=False)


def values(source):
    section = GPNASection.model_validate({"preset": "gpna_debug", "masked": {}})
    reader = GPNAReader(section, {"here": source}, torch.device("cpu"), 0, training=False)
    placed = reader.place({"here": next(stored_batches(source, 5))})["here"]
    return placed.values["image"], placed.pixels["image"]


def test_chosen_bands_are_those_of_all_in_the_order_asked_for(shards):
    whole, mask = values(opened(shards, None))
    source = opened(shards, ["b3", "b1"])
    some, some_mask = values(source)
    assert torch.equal(some, whole[:, [3, 1]]) and torch.equal(some_mask, mask[:, [3, 1]])
    spec = source.inputs["image"]
    assert [band.name.split()[-1] for band in spec.bands] == ["b3", "b1"]
    assert (spec.shape, spec.mean, spec.std) == ((2, 8, 8), (4.0, 2.0), (40.0, 20.0))


def test_all_bands_by_name_are_all_bands(shards):
    assert opened(shards, ["b0", "b1", "b2", "b3"]).picks == {}


@pytest.mark.parametrize(
    ("bands", "words"), [(["b9"], "no band 'b9'"), ([], "at least one"), (["b1", "b1"], "each once")]
)
def test_wrong_bands_are_refused(shards, bands, words):
    with pytest.raises((UserError, ValueError), match=words):
        opened(shards, bands)
