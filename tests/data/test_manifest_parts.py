"""A manifest whose parts are of other types than its readers count on is refused in one line, whatever reads it."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.command import main
from data_prep.plan import PlanOptions
from data_prep.scenes import SceneSource
from data_prep.writer import write
from frontier.data.manifest import load_manifest
from frontier.errors import UserError
from tests.data.sets import write_set

REMOVED = object()
WRONG: tuple[Any, ...] = (REMOVED, None, "x", "../é\n", -1, 10**30, [], {}, [None], 1.5, True)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("original") / "shards"
    write(SceneSource(4, size=16), path, PlanOptions(samples_per_shard=2))
    return path


def places(value: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in the manifest, of lists only the first entry."""
    yield here
    inner = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, one in inner:
        yield from places(one, (*here, key))


def test_any_part_may_be_wrong(original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every place of a manifest gets values of every kind: what is not refused, every command can live with."""
    manifest = json.loads((original / "manifest.json").read_text())
    for shard in manifest["shards"]:
        (tmp_path / shard["file"]).symlink_to(original / shard["file"])
    refused = []
    for place in places(
        {key: manifest[key] for key in ("splits", "shards", "images", "columns", "targets", "classes")}
    ):
        for value in WRONG if place else ():
            changed = copy.deepcopy(manifest)
            holder = changed
            for key in place[:-1]:
                holder = holder[key]
            if value is REMOVED:
                del holder[place[-1]]
            else:
                holder[place[-1]] = value
            (tmp_path / "manifest.json").write_text(json.dumps(changed))
            try:
                load_manifest(tmp_path)
            except UserError as error:
                refused.append(str(error))
                continue
            for verb in (["stats"], ["info"], ["card"], ["card", "--format", "croissant"]):
                try:
                    main([verb[0], str(tmp_path), *verb[1:]])
                except UserError:
                    pass
                except Exception as error:
                    raise AssertionError(f"{verb} with {place} = {value!r}") from error
    capsys.readouterr()
    assert len(refused) > 500
    assert [text for text in refused if len(text.splitlines()) != 1] == []


@pytest.mark.parametrize(
    ("axes", "shape", "words"),
    [("HW", (4, 4), ""), ("W", (4,), ""), ("HW", (4, 5), "another shape"), ("WH", (4, 4), "another shape")],
)
def test_mask_fits_its_image(tmp_path: Path, axes: str, shape: tuple[int, ...], words: str) -> None:
    images = {"image": (np.zeros((3, 2, 4, 4), np.uint8), "CHW")}
    arrays = {"there": (np.ones((3, *shape), np.uint8), axes)}
    path = write_set(tmp_path / "s", images, arrays=arrays, masks={"image": "there"})
    if not words:
        load_manifest(path)
        return
    with pytest.raises(UserError, match=words):
        load_manifest(path)


def test_a_shard_is_named_once_by_its_split(original: Path, tmp_path: Path) -> None:
    for edit, words in (
        (lambda m: m["splits"]["train"]["shards"].pop(), "each of its shards once"),
        (lambda m: m["splits"].pop("train"), "is of no split"),
    ):
        manifest = json.loads((original / "manifest.json").read_text())
        edit(manifest)
        (tmp_path / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(UserError, match=words):
            load_manifest(tmp_path)
