"""Fields of France: the image, its two masks, and the split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_prep.readers import sustainbench_delineation as delineation
from frontier.errors import UserError
from tests.data_prep.readers.sustainbench_folders import open_source, read_all, write_shards, write_table

INDICES = {7: "train", 40: "val", 41: "test"}


def rows() -> list[dict[str, Any]]:
    return [
        {"ids": k, "indices": index, "split": split}
        | {"max_lat": 46.02, "max_lon": 2.03 + k, "min_lat": 46.0, "min_lon": 2.0 + k}
        for k, (index, split) in enumerate(INDICES.items())
    ]


def mask(index: int) -> np.ndarray:
    return (np.add.outer(np.arange(224), np.arange(224)) % index < 3).astype(np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "in"
    write_table(root / "clean_data.csv", rows())
    for name in ("imgs", "masks", "masks_filled"):
        (root / name).mkdir()
    for index in INDICES:
        pixels = np.random.default_rng(index).integers(0, 255, (224, 224, 3), np.uint8)
        Image.fromarray(pixels).save(root / "imgs" / f"{index}.jpeg")
        # Masks of 0 and 255, grey or of three equal bands, and one of 0 and 1.
        boundary = mask(index) if index == 41 else mask(index) * 255
        Image.fromarray(boundary if index != 40 else np.repeat(boundary[..., None], 3, 2)).save(
            root / "masks" / f"{index}.png"
        )
        Image.fromarray((1 - mask(index)) * 255).save(root / "masks_filled" / f"{index}.png")
    return root


def test_images_and_masks(folder: Path, tmp_path: Path) -> None:
    manifest = write_shards("delineation", folder, tmp_path / "out", "partial=yes")
    samples = read_all(tmp_path / "out")
    assert {name: target["metric"] for name, target in manifest["targets"].items()} == {
        "boundary": "dice",
        "area": "f1",
    }
    assert [band["name"] for band in manifest["images"]["image"]["bands"]] == ["B04", "B03", "B02"]
    assert manifest["notes"]["splits"]["published"] == {"train": 1572, "val": 198, "test": 196}
    for k, (index, split) in enumerate(INDICES.items()):
        sample = samples[str(index)]
        assert sample["split"] == split
        expected = np.asarray(Image.open(folder / "imgs" / f"{index}.jpeg"))
        assert np.array_equal(sample["image"], expected.transpose(2, 0, 1))
        assert np.array_equal(sample["boundary"], mask(index))
        assert np.array_equal(sample["area"], 1 - mask(index))
        assert (sample["lon"], sample["lat"]) == pytest.approx((2.015 + k, 46.01))


def test_incomplete_copies_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"1 images of 'train', 1,572 were published"):
        open_source("delineation", folder)
    monkeypatch.setattr(delineation, "PUBLISHED", {"train": 1, "val": 1, "test": 1})
    assert len(open_source("delineation", folder).listing().ids) == 3
    (folder / "masks_filled" / "40.png").unlink()
    with pytest.raises(UserError, match=r"1 of 3 images are absent \(such as imgs/40.jpeg\)"):
        open_source("delineation", folder)
    assert open_source("delineation", folder, "partial=yes").listing().ids == [b"7", b"41"]


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("imgs/7.jpeg", b"no image", "imgs/7.jpeg: not a JPEG, PNG or TIFF"),
        ("masks/7.png", np.zeros((223, 224), np.uint8), "masks/7.png: is 224x223, 224x224 is expected"),
    ],
)
def test_bad_images_are_named(folder: Path, file: str, content: Any, expected: str) -> None:
    if isinstance(content, bytes):
        (folder / file).write_bytes(content)
    else:
        Image.fromarray(content).save(folder / file)
    with pytest.raises(UserError, match=rf"imgs/7.jpeg \(.*{expected}"):
        open_source("delineation", folder, "partial=yes")
    assert len(open_source("delineation", folder, "partial=yes", on_error="skip").listing().ids) == 2


def test_bad_lines_are_named(folder: Path) -> None:
    for change, expected in (
        ({"indices": "../../a"}, "line 2: indices is '../../a', not a number"),
        ({"max_lat": 45.0}, "line 2: min_lat or min_lon is above"),
        ({"split": ""}, "line 2: split is '', no split"),
        ({"indices": 40}, "line 3: the same indices as line 2"),
    ):
        write_table(folder / "clean_data.csv", [rows()[0] | change, *rows()[1:]])
        with pytest.raises(UserError, match=expected):
            open_source("delineation", folder, "partial=yes")
