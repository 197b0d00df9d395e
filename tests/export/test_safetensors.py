"""`frontier export --format safetensors`: what comes back, what is written, what is refused."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open

from frontier.cli import main as frontier
from frontier.errors import UserError
from frontier.export import load_exported
from frontier.export.command import main
from frontier.export.folder import write_folder
from frontier.export.layout import Source
from frontier.export.native import layout
from frontier.export.parts import encoder_names
from frontier.models import registry
from frontier.train.checkpoint import build_model, load_model
from tests.conftest import read_jsonl
from tests.export import toy_family


@pytest.fixture(scope="module")
def whole(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "model"
    assert main([str(run), "--format", "safetensors", "--part", "all", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def encoder(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("encoder") / "model"
    assert main([str(run), "--format", "safetensors", "--out", str(out)]) == 0
    return out


def metadata(folder: Path) -> dict[str, str]:
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return file.metadata()


def test_whole_model_comes_back_bit_for_bit(run: Path, whole: Path) -> None:
    trained, config, step = load_model(run)
    loaded = load_exported(whole)
    assert not loaded.training
    expected, found = dict(trained.named_parameters()), dict(loaded.named_parameters())
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    images, noise = torch.randn(3, 3, 32, 32), torch.rand(3, 16)
    assert torch.equal(loaded(images, noise)["loss"], trained(images, noise)["loss"])
    assert json.loads((whole / "config.json").read_text()) == config
    told = metadata(whole)
    assert (told["family"], told["step"], told["part"]) == ("mae", str(step), "all")
    record = json.loads((run / f"checkpoints/step_{step:08d}/complete.json").read_text())
    assert told["config_hash"] == record["config_hash"]


def test_encoder_alone_gives_the_same_features_and_an_untrained_decoder(run: Path, encoder: Path) -> None:
    trained, config, _ = load_model(run)
    loaded, initial = load_exported(encoder), build_model(config)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded.encode(images), trained.encode(images))
    assert not torch.equal(loaded.encode(images), initial.encode(images))
    assert torch.equal(loaded.decoder.pred.weight, initial.decoder.pred.weight)
    with safe_open(encoder / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
        count = sum(math.prod(file.get_slice(name).get_shape()) for name in names)
    assert names == {n for n, _ in trained.named_parameters() if n.startswith("encoder.")}
    assert count == registry.family("mae").encoder_parameters(trained)


def test_same_bytes_every_time_and_the_printed_sum(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sums = []
    for name in "abcd":
        out = tmp_path / name
        assert main([str(run), "--format", "safetensors", "--out", str(out)]) == 0
        digest = hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
        assert f"{digest}  {out / 'model.safetensors'}" in capsys.readouterr().out
        assert digest in (out / "README.md").read_text()
        sums.append(digest)
    assert len(set(sums)) == 1
    modes = {path.stat().st_mode & 0o777 for path in out.iterdir()}
    assert len(modes) == 1, "weights as readable as the rest"


def test_an_earlier_checkpoint_by_its_folder(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "made/with/parents"
    assert main([str(run / "checkpoints/step_00000006"), "--format", "safetensors", "--out", str(out)]) == 0
    assert metadata(out)["step"] == "6"
    last = load_model(run)[0]
    assert not torch.equal(load_exported(out).encoder.norm.weight, last.encoder.norm.weight)


def test_card_says_what_was_recorded_and_measured(run: Path, whole: Path, shards: Path) -> None:
    card = (whole / "README.md").read_text()
    manifest = json.loads((shards / "manifest.json").read_text())
    losses = [row["loss"] for row in read_jsonl(run / "metrics.jsonl")]
    assert manifest["name"] in card and manifest["fingerprint"] in card and "| train | 160 |" in card
    for low, high in pairwise((0, 2, 5, 7, 10, 12)):  # fifths of 12 steps
        mean = sum(losses[low:high]) / (high - low)
        assert f"| {low + 1} to {high} | {mean:.4f} | {high - low} |" in card
    assert f"| samples seen | {12 * 32} |" in card


def test_the_lines_of_the_card_run(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = (whole / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(whole.parent)
    space = {"images": torch.randn(2, 3, 32, 32)}
    exec(code, space)
    assert space["tokens"].shape == (2, 17, 32)


def test_card_without_run_or_shards(run: Path, tmp_path: Path) -> None:
    """A checkpoint that was copied elsewhere, its shards gone: said so, nothing made up."""
    moved = tmp_path / "copied"
    shutil.copytree(run / "checkpoints/step_00000012", moved)
    loaded = load_model(moved)[0]
    record = json.loads((moved / "complete.json").read_text())
    record["config"]["data"]["shards"] = str(tmp_path / "gone")
    from frontier.export.card import model_card

    source = Source(moved, record, loaded)
    card = model_card(source, layout(source, "all"), "copied", "0" * 64)
    assert "no longer where they were" in card and "losses of the run are not at hand" in card
    assert record["fixed"]["the data's fingerprint"] in card


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--format", "terra"], "format 'terra' does not exist, --format: there are safetensors, hf, timm, croma"),
        (["--format", "croma"], "a model of the family mae does not fit --format croma"),
        (["--format", "safetensor"], "did you mean safetensors?"),
        (["--format", "safetensors", "--part", "decoder"], "there are encoder and all"),
        (["--format", "hf", "--part", "all"], "--part has no effect with --format hf"),
        (["--format", "safetensors", "--step", "3"], "unrecognized arguments: --step 3"),
        ([], "required: --format"),
    ],
)
def test_wrong_words_are_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert frontier(["export", str(run), "--out", str(tmp_path / "out"), *arguments]) == 2
    told = capsys.readouterr().err
    assert words in told and len(told.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_places_that_are_refused(run: Path, tmp_path: Path) -> None:
    def refused(out: Path, words: str, *more: str, source: Path = run) -> None:
        with pytest.raises(UserError, match=words):
            main([str(source), "--format", "safetensors", "--out", str(out), *more])

    refused(tmp_path / "a", "no checkpoint in", source=tmp_path / "no_run")
    (tmp_path / "file").write_text("x")
    refused(tmp_path / "file", "no folder", "--force")
    refused(tmp_path / "file/below", "file is no folder")
    refused(Path("/proc/export"), "GiB are needed|could not be written|cannot be written")
    (tmp_path / "home").mkdir()
    (tmp_path / "home/thesis.txt").write_text("x")
    refused(tmp_path / "home", "thesis.txt, which is no part of an export", "--force")
    assert (tmp_path / "home/thesis.txt").read_text() == "x"
    assert not (tmp_path / "a").exists()


def test_an_export_is_replaced_by_force_alone(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()  # empty: nothing to lose
    arguments = [str(run), "--format", "safetensors", "--out", str(out)]
    assert main(arguments) == 0
    with pytest.raises(UserError, match="--force"):
        main([*arguments, "--part", "all"])
    assert metadata(out)["part"] == "encoder"
    assert main([*arguments, "--part", "all", "--force"]) == 0
    assert metadata(out)["part"] == "all"
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "nothing temporary is left"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(run: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(UserError, match="cannot be written"):
        main([str(run), "--format", "safetensors", "--out", str(tmp_path / "locked/out")])


def test_a_failed_write_leaves_what_was_there(
    run: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    rename = os.rename

    def fails(a: Path, b: Path) -> None:
        if str(a).endswith(".tmp"):
            raise OSError(28, "No space left on device")
        rename(a, b)

    monkeypatch.setattr("frontier.export.folder.os.rename", fails)
    with pytest.raises(UserError, match="No space left on device"):
        main([str(run), "--format", "safetensors", "--out", str(out), "--force"])
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_no_room(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("frontier.export.folder.shutil.disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(UserError, match="GiB are needed"):
        main([str(run), "--format", "safetensors", "--out", str(tmp_path / "out")])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["truncate", "flip"])
def test_a_damaged_checkpoint(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str) -> None:
    copy = tmp_path / "step"
    shutil.copytree(run / "checkpoints/step_00000012", copy)
    path = copy / "rank_00000.bin"
    data = bytearray(path.read_bytes())
    if damage == "truncate":
        del data[-100:]
    else:
        data[50] ^= 1
    path.write_bytes(data)
    assert frontier(["export", str(copy), "--format", "safetensors", "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 1 and "use another checkpoint" in told
    assert not (tmp_path / "out").exists()


def test_what_the_loader_refuses(whole: Path, encoder: Path, run: Path, tmp_path: Path) -> None:
    def copy(name: str, source: Path = whole) -> Path:
        shutil.copytree(source, tmp_path / name)
        return tmp_path / name

    with pytest.raises(UserError, match="no .*model.safetensors"):
        load_exported(tmp_path)
    cut = copy("cut")
    (cut / "model.safetensors").write_bytes((whole / "model.safetensors").read_bytes()[:-7])
    with pytest.raises(UserError, match="is damaged"):
        load_exported(cut)
    wider = copy("wider")
    config = json.loads((wider / "config.json").read_text())
    config["model"]["width"] = 64
    (wider / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"not of the model in config.json \(.* differs\)"):
        load_exported(wider)
    assert main([str(run), "--format", "hf", "--out", str(tmp_path / "hf")]) == 0
    with pytest.raises(UserError, match="format hf"):
        load_exported(tmp_path / "hf")


def test_another_family_needs_its_names_alone(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._BUILT_IN, "toy", "tests.export.toy_family:FAMILY")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["model"] = {"family": "toy", "width": 12}
    model = build_model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    record = {"step": 3, "samples": 96, "config": config, "config_hash": "c0ffee", "fixed": {}}
    for part, trained in (("encoder", False), ("all", True)):
        source = Source(tmp_path / "step", record, model)
        made = layout(source, part)
        write_folder(tmp_path / part, made, lambda digest: digest)
        loaded = load_exported(tmp_path / part)
        assert torch.equal(loaded.latents, model.latents) and torch.equal(loaded.again.weight, model.first.weight)
        assert torch.equal(loaded.head.weight, model.head.weight) == trained
    assert set(layout(source, "encoder").tensors) == {"latents", "first.weight", "first.bias"}


def test_a_model_without_a_word_on_its_encoder() -> None:
    with pytest.raises(UserError, match="use --part all"):
        encoder_names(toy_family.WithoutWord())
    odd = toy_family.Toy(4)
    odd.encoder_names = lambda: ["firts.weight"]  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="firts.weight"):
        encoder_names(odd)
