"""`frontier evaluate`, `report` and `export` of a short run: figures found again by other means, pictures, lines that run."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from frontier.cli import main as frontier
from frontier.data.shards import ShardSet
from frontier.models import registry
from frontier.train.checkpoint import build_model, load_model
from scale_alibi.contrast import compare
from scale_alibi.evaluation import contrastive_terms
from scale_alibi.family import FAMILY
from scale_alibi.held_out import open_held_out
from scale_alibi.pictures import SAMPLES, pictures
from tests.scale_alibi.sizes import SMALL, inputs, small

SENSORS = {
    "radar": {"column": "s1"},
    "lores": {"column": "s2", "bands": ["B04", "B03", "B02"]},
    "hires": {"column": "naip", "bands": ["red", "green", "blue"], "size": 64},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scale_alibi")
    words = ["shards", "write", "--scenes", "40", "--size", "32", "--sensors", "s2,s1,naip", "--test-fraction", "0.5"]
    assert frontier([*words, str(folder / "scenes")]) == 0
    values = {
        "run": {"dir": str(folder / "run")},
        "model": {"family": "scale_alibi", "preset": "scale_alibi_debug", "sensors": SENSORS},
        "data": {"shards": str(folder / "scenes")},
        "train": {"steps": 3, "global_batch": 8, "base_lr": 1e-3},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    assert frontier(["pretrain", str(folder / "run.yaml")]) == 0
    return folder / "run"


def rows_of(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text())


def one(rows: list[dict[str, Any]], **wanted: Any) -> dict[str, Any]:
    (found,) = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    return found


def test_rows_are_found_again(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert frontier(["evaluate", "--split", "test", str(run), "--batch", "7"]) == 0
    told = capsys.readouterr().out
    rows = rows_of(run / "evaluation.json")
    n = len(ShardSet(yaml.safe_load((run / "config.yaml").read_text())["data"]["shards"], "test"))
    assert {row["n"] for row in rows if row["method"] != "loss_contrastive"} == {n} and n > 8
    module, config, _ = load_model(run)
    random_config = {**config, "run": {**config["run"], "seed": 1}}
    for encoder, model in (("pretrained", module), ("random", build_model(random_config).eval())):
        held_out = open_held_out(config, "test")
        reader = held_out.reader("cpu", 0)
        given = reader.inputs(model, reader.place({"": held_out.batch(range(n))}), 0, 1)
        with torch.no_grad():
            terms = model(**given)
            z = {
                name: model.projections.of[name](
                    model.summarise(name, model.encode(name, images, given["gsd"][name]).x)
                )
                for name, images in given["images"].items()
            }
        mine = [row for row in rows if row["encoder"] == encoder]
        for name in SENSORS:
            found = one(mine, method="loss_reconstruction", sensors=[name])
            assert found["value"] == pytest.approx(float(terms[f"loss_{name}"]), rel=1e-4)
            assert found["ci95"][0] < found["value"] < found["ci95"][1]
            for other in set(SENSORS) - {name}:
                cosines = torch.cosine_similarity(z[name][:, None], z[other][None], dim=-1)
                for top in (1, 5):
                    hits = [i in cosines[i].topk(top).indices.tolist() for i in range(n)]
                    found = one(mine, method=f"retrieval_top{top}", sensors=[name, other], gallery=n)
                    assert found["value"] == pytest.approx(np.mean(hits)) and found["chance"] == top / n
        assert one(mine, method="loss_contrastive")["n"] == n // 8 * 8
        assert one(mine, method="loss_contrastive")["chance"] == pytest.approx(math.log(8))
    assert f"{one(rows, method='loss_contrastive', encoder='random')['value']:.3f}" in told


def test_contrastive_terms_are_those_of_the_loss() -> None:
    model, given = small(), inputs(6)
    with torch.no_grad():
        found = model(**given, embed_only=True)
        expected = compare(found["z"], found["log_scale"], model.peers).loss
    terms = contrastive_terms(found["z"], found["log_scale"].exp())
    assert terms.shape == (6,) and float(terms.detach().mean()) == pytest.approx(float(expected), rel=1e-5)


def test_cropped_images_have_other_gsd_and_other_rows(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    words = ["evaluate", str(run), "--crop-scale", "0.2,0.4", "--limit", "9", "--out", str(out), "--json"]
    assert frontier(words) == 0
    rows = rows_of(out)
    assert {row["n"] for row in rows} == {9, 8} and {row["gallery"] for row in rows} == {9, None}
    whole, cropped = (
        one(rows, method="loss_reconstruction", sensors=["hires"], encoder="pretrained", crop_scale=view)
        for view in (None, [0.2, 0.4])
    )
    assert whole["value"] != cropped["value"]


def test_other_shards_say_their_own_gsd(run: Path, tmp_path: Path) -> None:
    """The same pixels, said to be twice as large on the ground: places of tokens go with it, so losses differ."""
    _, config, _ = load_model(run)
    other = tmp_path / "other"
    other.mkdir()
    source = Path(config["data"]["shards"])
    for file in source.glob("*.h5"):
        (other / file.name).symlink_to(file)
    manifest = json.loads((source / "manifest.json").read_text())
    for image in manifest["images"].values():
        image["gsd_m"] *= 2
    (other / "manifest.json").write_text(json.dumps(manifest))
    sensors = open_held_out(config, "test", str(other)).sensors
    for name, section in config["model"]["sensors"].items():
        assert sensors[name].gsd_m == 2 * section["gsd_m"] and sensors[name].mean == section["mean"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--split", "tets"], "no split 'tets'"),
        (["--limit", "1"], "give 2 samples or more"),
        (["--crop-scale", "0.9,0.1"], "give two shares"),
        (["--crop-scale", "x"], "give two shares"),
        (["--batch", "0"], "give a positive number"),
        (["--data", "nowhere"], "does not exist"),
        (["--baselines"], "unrecognized arguments: --baselines"),
    ],
)
def test_mistakes_are_one_line(run: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert frontier(["evaluate", str(run), *words]) == 2
    told = capsys.readouterr().err
    assert message in told and len(told.splitlines()) == 1


def test_the_verb_goes_by_family(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        frontier(["evaluate", str(run), "--help"])
    assert "--crop-scale" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        frontier(["evaluate", "--help"])
    told = capsys.readouterr().out
    assert "--crop-scale" not in told and "--batch" in told
    assert frontier(["evaluate", "--batch", "3", str(tmp_path)]) == 2
    assert f"no checkpoint in {tmp_path}" in capsys.readouterr().err
    monkeypatch.setattr(registry, "family", lambda name: replace(FAMILY, evaluate=None))
    assert frontier(["evaluate", str(run)]) == 2
    told = capsys.readouterr().err
    assert "use frontier probe" in told and len(told.splitlines()) == 1


def test_pictures_of_hidden_patches(run: Path) -> None:
    module, config, _ = load_model(run)
    groups = pictures(module.eval(), config)
    assert [group.title.split()[-1] for group in groups] == list(SENSORS)
    shards = ShardSet(config["data"]["shards"], "test")
    for group, (bands, side) in zip(groups, ((2, 32), (3, 32), (3, 64)), strict=True):
        assert len(group.rows) == SAMPLES and len(group.bands) == bands
        for row in group.rows:
            original, shown, predicted, both = row.pictures
            assert original.shape == (bands, side, side)
            gone = np.isnan(shown)
            patches = gone.reshape(bands, side // 8, 8, side // 8, 8).any((0, 2, 4))
            assert patches.sum() == patches.size - int(patches.size * 0.6) and gone.mean() == patches.mean()
            assert (np.isnan(predicted) == ~gone).all() and np.isfinite(both).all()
            np.testing.assert_array_equal(shown[~gone], original[~gone])
            np.testing.assert_allclose(both[~gone], original[~gone], rtol=1e-5)
            np.testing.assert_array_equal(both[gone], predicted[gone])
    stored = shards.take("s1", [0])[0]
    np.testing.assert_allclose(groups[0].rows[0].pictures[0], stored, atol=1e-3, rtol=1e-3)
    assert [band["name"] for band in groups[1].bands] == SENSORS["lores"]["bands"]


def test_the_report_shows_both(run: Path) -> None:
    assert frontier(["evaluate", str(run)]) == 0 and frontier(["report", str(run)]) == 0
    page, record = (run / "report.html").read_text(), json.loads((run / "report.json").read_text())
    assert page.count('src="data:image/png;base64,') == len(SENSORS) * SAMPLES * 4
    assert record["held_out"] == rows_of(run / "evaluation.json") and not record["notes"]
    section = re.sub(r"<[^>]+>", " ", page[page.index('id="held_out"') : page.index('id="pictures"')])
    text = (run / "report.md").read_text()
    for row in record["held_out"]:
        told = f"{row['value']:.3f} ({row['ci95'][0]:.3f} to {row['ci95'][1]:.3f})"
        assert told in section and told in text
    assert "radar → hires" in section and "random encoder" in section
    assert any("frontier evaluate" in line for line in record["reproduce"])


def test_nothing_to_show_without_reconstruction() -> None:
    module = small(reconstruction=0.0, decoder=None)
    with pytest.raises(Exception, match="reconstructs nothing"):
        pictures(module, {"data": {"shards": "x"}})
    assert SMALL.decoder is not None


def test_the_lines_of_the_card_run(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "exported"
    assert frontier(["export", str(run), "--format", "safetensors", "--out", str(out)]) == 0
    card = (out / "README.md").read_text()
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {}
    exec(card.split("```python\n")[1].split("```")[0], space)
    module, config, _ = load_model(run)
    with torch.no_grad():
        expected = module.encode("radar", torch.zeros(1, 2, 32, 32), torch.full((1, 2), 10.0)).x
    torch.testing.assert_close(space["tokens"].x, expected)
    assert space["pooled"].shape == (1, 32) and config["model"]["sensors"]["radar"]["nominal_gsd_m"] == 10
    assert "| generated-scenes | VV |" in card and "| generated-scenes | B04 |" in card
