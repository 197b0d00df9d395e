"""`frontier export --format croma`: what the folder holds, what its card says, which models are refused."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch

from frontier.errors import UserError
from frontier.export.card import model_card
from frontier.export.folder import write_folder
from frontier.export.layout import Source
from frontier.train.checkpoint import build_model
from scale_alibi.croma import S1_BANDS, S2_BANDS, load_croma, to_released
from scale_alibi.croma_export import check, layout
from tests.scale_alibi import plain_croma


def sensor(column: str, bands: tuple[str, ...], size: int = 32, gsd: float = 10.0) -> dict[str, Any]:
    return {
        **{"column": column, "bands": list(bands), "channels": len(bands), "size": size, "stored_size": size},
        **{"gsd_m": gsd, "nominal_gsd_m": gsd, "mean": [1.5] * len(bands), "std": [2.5] * len(bands)},
    }


def resolved(**model: Any) -> dict[str, Any]:
    """The resolved config of a run with three sensors, as a checkpoint records it."""
    sensors = {
        "sar": sensor("s1", S1_BANDS),
        "optical": sensor("s2", S2_BANDS),
        "hires": sensor("naip", ("R", "G", "B", "N"), 128, 2.5),
    }
    family = {"family": "scale_alibi", "preset": "scale_alibi_debug", "reference_m": 80.0, "sensors": sensors}
    return {
        "run": {"dir": "nowhere", "seed": 1},
        "model": family | model,
        "data": {"shards": "gone"},
        "parallel": {"precision": "fp32"},
        "train": {"steps": 4, "global_batch": 8, "base_lr": 1e-3, "weight_decay": 0.05},
    }


def source_of(config: dict[str, Any], tmp_path: Path) -> Source:
    model = build_model(config).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) / 10)
    record = {"step": 4, "samples": 32, "config": config, "config_hash": "c0ffee", "fixed": {}}
    return Source(tmp_path / "step", record, model)


@torch.no_grad()
def test_the_first_two_sensors_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By our loader, by CROMA's maths written out, and by the lines of the card."""
    config = resolved()
    source = source_of(config, tmp_path)
    check(config)
    made = layout(source, "encoder")
    for name in ("one", "two"):
        write_folder(tmp_path / name, made, lambda digest: model_card(source, made, "one", digest))
    sums = {hashlib.sha256((tmp_path / name / "CROMA_like.pt").read_bytes()).hexdigest() for name in ("one", "two")}
    assert len(sums) == 1 and sums.pop() in (tmp_path / "one/README.md").read_text()
    assert not (tmp_path / "one/model.safetensors").exists()

    held = torch.load(tmp_path / "one/CROMA_like.pt", weights_only=True)
    loaded, own = load_croma(tmp_path / "one/CROMA_like.pt"), dict(source.module.named_parameters())
    theirs = {"sar": "radar", "optical": "lores"}
    for name, value in loaded.named_parameters():
        kind, place, rest = name.split(".", 2)
        ours = next(o for o, t in theirs.items() if t == place)
        assert torch.equal(value, own[f"{kind}.{ours}.{rest}"]), name

    radar, optical = torch.randn(2, 2, 32, 32), torch.randn(2, 12, 32, 32)
    gsd = torch.full((2, 2), 10.0)
    expected = plain_croma.forward(held, radar, optical, heads=4)
    streams = {"sar": source.module.encode("sar", radar, gsd), "optical": source.module.encode("optical", optical, gsd)}
    torch.testing.assert_close(streams["optical"].x, expected["optical_encodings"], rtol=0, atol=1e-5)
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {"radar": radar, "optical": optical, "gsd": gsd}
    card = (tmp_path / "one/README.md").read_text()
    exec(card.split("```python\n")[1].split("```")[0], space)
    torch.testing.assert_close(space["radar_gap"], expected["SAR_GAP"], rtol=0, atol=1e-5)
    torch.testing.assert_close(space["joint"], expected["joint_encodings"], rtol=0, atol=1e-5)
    assert "further sensors (hires)" in card and "a pixel spans 10 m" in card
    assert "| s1 | VH | 1.5 | 2.5 |" in card and "| s2 | B8A | 1.5 | 2.5 |" in card


def test_tensors_do_not_share_memory_with_the_model(tmp_path: Path) -> None:
    """Keys and values are slices of one parameter: saved as such, the file would hold each twice."""
    source = source_of(resolved(), tmp_path)
    made = layout(source, "encoder")
    made.save(tmp_path / "file.pt")
    values = sum(t.nbytes for t in made.tensors.values())
    assert (tmp_path / "file.pt").stat().st_size < values * 1.1 + 2**16
    own = {p.data_ptr() for p in source.module.parameters()}
    assert not own & {t.data_ptr() for tensors in to_released(source.module).values() for t in tensors.values()}


def changed(path: str, value: Any) -> dict[str, Any]:
    config = copy.deepcopy(resolved())
    *keys, last = path.split(".")
    node = config
    for key in keys:
        node = node.setdefault(key, {})
    node[last] = value
    return config


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("model.position", "gaussian", "model.position=gaussian does not fit CROMA's layout"),
        ("model.weights.contrastive", 0, "contrastive=0 .no summaries. does not fit"),
        ("model.weights.reconstruction", 0, "reconstruction=0 .no cross-encoder. does not fit"),
        ("model.patch", 4, "model.patch=4 .not 8."),
        ("model.sensors.sar", sensor("s1", ("VV",)), "sar, the first sensor, of 1 bands .not 2."),
        ("model.sensors.optical", sensor("s2", ("B02", "B03", "B04")), "optical, the second sensor, of 3 bands .not 12."),
        ("model.sensors.optical", sensor("s2", S2_BANDS, 64, 5.0), "optical of 8x8 patches beside sar of 4x4"),
        ("model.sensors.sar.depth", 2, "sar of 2 blocks .not 1."),
        ("model.sensors.optical.depth", 3, "optical of 3 blocks .not 2."),
    ],
)  # fmt: skip
def test_models_that_do_not_fit_are_one_line(path: str, value: Any, words: str) -> None:
    config = changed(path, value)
    with pytest.raises(UserError, match=words) as told:
        check(config)
    assert "use --format safetensors" in str(told.value) and "\n" not in str(told.value)
