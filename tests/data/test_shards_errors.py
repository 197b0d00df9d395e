"""What the reader says of directories and files that are not as they should be."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from data_prep.plan import PlanOptions
from data_prep.scenes import SceneSource
from data_prep.writer import write
from frontier.data.manifest import load_manifest
from frontier.data.shards import ShardSet
from frontier.errors import UserError


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("original") / "shards"
    write(SceneSource(16, size=16), path, PlanOptions(test_fraction=0.5, samples_per_shard=4))
    return path


@pytest.fixture
def shards(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "shards"))


def refused(path: Path, *words: str, **options: Any) -> None:
    with pytest.raises(UserError) as caught:
        ShardSet(path, **options)
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text, text


def change(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    edit(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


def replace(path: Path, edit: Callable[[h5py.File], None], *, fit: bool = True) -> None:
    """Edit a shard and, with `fit`, make the manifest's size agree."""
    file = path / "train-00000.h5"
    with h5py.File(file, "r+", libver=("v110", "v110")) as opened:
        edit(opened)
    if fit:
        size = file.stat().st_size
        change(path, lambda m: next(s for s in m["shards"] if s["file"] == file.name).update(bytes=size))


def test_no_directory(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "nowhere", "does not exist", "frontier shards write")
    (tmp_path / "file").write_text("x")
    refused(tmp_path / "file", "is a file")


def test_no_manifest(shards: Path, tmp_path: Path) -> None:
    (shards / "manifest.json").unlink()
    refused(shards, str(shards), "no manifest.json", "did not finish", "again")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "no manifest.json", "make one with")


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe\x00", b"[" * 100000])
def test_manifest_not_json(shards: Path, content: bytes) -> None:
    (shards / "manifest.json").write_bytes(content)
    refused(shards, "manifest.json", "not valid JSON", "again")


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ("frontier-shards/2", ("frontier-shards/2", "reads 'frontier-shards/1'")),
        ("mds/2", ("another kind",)),
        (None, ("not a shard manifest",)),
    ],
)
def test_manifest_of_another_schema(shards: Path, schema: str | None, words: tuple[str, ...]) -> None:
    change(shards, lambda m: m.update(schema=schema))
    refused(shards, "manifest.json", *words)


def test_manifest_is_a_list(shards: Path) -> None:
    (shards / "manifest.json").write_text("[]")
    refused(shards, "not a shard manifest")


@pytest.mark.parametrize(
    "edit",
    [
        lambda m: m.pop("images"),
        lambda m: m.update(samples=m["samples"] + 1),
        lambda m: m["splits"]["train"].update(samples=1),
        lambda m: m["splits"]["train"]["shards"].append("test-00000.h5"),
        lambda m: m["shards"][0].update(file="../other.h5"),
        lambda m: m["shards"][0].update(file="/etc/passwd"),
        lambda m: m["shards"][0].pop("bytes"),
        lambda m: m["shards"][1].update(file=m["shards"][0]["file"]),
        lambda m: m["images"]["image"].update(shape=[3, 16]),
        lambda m: m["images"].update(other=None),
    ],
)
def test_manifest_that_contradicts_itself(shards: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    change(shards, edit)
    refused(shards, "manifest.json", "edited or damaged")


def test_shard_missing(shards: Path) -> None:
    (shards / "train-00001.h5").unlink()
    refused(shards, "train-00001.h5", "missing", "again")
    assert len(ShardSet(shards, "test")) == 8, "another split can still be read"


def test_shard_truncated(shards: Path) -> None:
    file = shards / "train-00000.h5"
    file.write_bytes(file.read_bytes()[:-100])
    refused(shards, "train-00000.h5", "truncated", "the manifest says")
    with pytest.raises(UserError, match="truncated"):
        ShardSet(shards, check=False).read("image", 0, 1)


def test_shard_not_hdf5(shards: Path) -> None:
    file = shards / "train-00000.h5"
    file.write_bytes(b"\0" * file.stat().st_size)
    refused(shards, "train-00000.h5", "not a readable HDF5 file")


def test_dataset_missing(shards: Path) -> None:
    replace(shards, lambda f: f.__delitem__("image"))
    refused(shards, "train-00000.h5", "no dataset 'image'")


def test_dataset_of_other_shape_or_type(shards: Path) -> None:
    def other_shape(file: h5py.File) -> None:
        del file["image"]
        file["image"] = np.zeros((4, 3, 16, 17), np.uint8)

    def other_type(file: h5py.File) -> None:
        del file["image"]
        file["image"] = np.zeros((4, 3, 16, 16), np.int8)

    replace(shards, other_shape)
    refused(shards, "train-00000.h5", "[4, 3, 16, 17]", "[4, 3, 16, 16]")
    replace(shards, other_type)
    refused(shards, "train-00000.h5", "int8", "uint8")


def test_links_are_not_followed(shards: Path, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["image"] = np.zeros((4, 3, 16, 16), np.uint8)

    def external(file: h5py.File) -> None:
        del file["image"]
        file["image"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "image")

    def soft(file: h5py.File) -> None:
        del file["image"]
        file["image"] = h5py.SoftLink("/label")

    for edit in (external, soft):
        replace(shards, edit)
        refused(shards, "train-00000.h5", "'image'", "never followed")


def test_foreign_storage_is_refused(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "raw.bin").write_bytes(bytes(4 * 3 * 16 * 16))
    layout = h5py.VirtualLayout((4, 3, 16, 16), np.uint8)
    layout[:] = h5py.VirtualSource(str(tmp_path / "x.h5"), "image", (4, 3, 16, 16))

    def external(file: h5py.File) -> None:
        del file["image"]
        file.create_dataset(
            "image", (4, 3, 16, 16), np.uint8, external=[(str(tmp_path / "raw.bin"), 0, 4 * 3 * 16 * 16)]
        )

    def virtual(file: h5py.File) -> None:
        del file["image"]
        file.create_virtual_dataset("image", layout)

    for edit in (external, virtual):
        replace(shards, edit)
        refused(shards, "train-00000.h5", "other files")


def test_variable_length_is_refused(shards: Path) -> None:
    def edit(file: h5py.File) -> None:
        del file["sample_id"]
        file.create_dataset("sample_id", data=["a"] * 4, dtype=h5py.string_dtype())

    replace(shards, edit)
    refused(shards, "train-00000.h5", "'sample_id'", "variable-length")


def test_unknown_split_and_columns(shards: Path) -> None:
    refused(shards, "no split 'tests'", "did you mean test?", split="tests")
    opened = ShardSet(shards)
    with pytest.raises(UserError, match="no image column 'imgae'.*did you mean image"):
        opened.read("imgae", 0, 1)
    with pytest.raises(UserError, match="no per-sample column 'labels'.*did you mean label"):
        opened.column("labels")
    with pytest.raises(UserError, match="use read or take"):
        opened.column("image")


def test_no_statistics_without_a_train_split(shards: Path) -> None:
    change(shards, lambda m: m["images"]["image"].update(statistics=None))
    with pytest.raises(UserError, match="no statistics of 'image'"):
        ShardSet(shards).statistics("image")


def test_more_keys_are_allowed(shards: Path) -> None:
    change(shards, lambda m: m.update(future=1))
    assert load_manifest(shards)["future"] == 1
    ShardSet(shards)


def test_truncated_while_in_use_is_an_error_not_a_crash(shards: Path) -> None:
    opened = ShardSet(shards)
    before = opened.read("image", 0, 2)
    assert (opened.take("image", [1, 0]) == before[::-1]).all()
    path = shards / "train-00000.h5"
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size // 2)
    for use in (lambda: opened.read("image", 0, 2), lambda: opened.take("image", [0])):
        with pytest.raises(UserError, match="train-00000.h5: truncated while it was in use"):
            use()


def test_torn_metadata_is_one_line(shards: Path) -> None:
    """Each 512 bytes of a shard overwritten in turn: it is read, or refused with its name; h5py's errors stay inside."""
    file = shards / "train-00000.h5"
    whole, refusals = file.read_bytes(), []
    for start in range(0, len(whole), 512):
        file.write_bytes(whole[:start] + bytes(len(whole[start : start + 512])) + whole[start + 512 :])
        try:
            ShardSet(shards).column("label")
        except UserError as error:
            refusals.append(str(error))
    assert len(refusals) > 1
    assert all("train-00000.h5" in text and "again" in text for text in refusals)


def test_a_shard_that_is_no_file(shards: Path) -> None:
    file = shards / "train-00000.h5"
    file.unlink()
    os.mkfifo(file)
    change(shards, lambda m: m["shards"][0].update(bytes=0))
    refused(shards, "train-00000.h5", "no regular file")
