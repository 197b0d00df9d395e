"""The format `croma` of `frontier export`: the first two sensors of a model in the layout of CROMA's released weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch

from frontier.errors import UserError
from frontier.export.layout import RUN_CONFIG, Layout, Source, as_json
from scale_alibi.config import ScaleALiBiSection
from scale_alibi.croma import PATCH, S1_BANDS, S2_BANDS, SAME_DISTANCES, to_released
from scale_alibi.family import maths, shape
from scale_alibi.model import ScaleALiBi
from scale_alibi.sensors import SensorSection
from scale_alibi.sizes import ScaleALiBiConfig

FILE = "CROMA_like.pt"

_USAGE = f"""\
from scale_alibi.croma import load_croma

model = load_croma("FOLDER/{FILE}", heads=HEADS, DISTANCES)
# radar [B, 2, S, S] and optical [B, 12, S, S], normalised as below; gsd [B, 2]: metres a pixel along y and x
streams = {{"radar": model.encode("radar", radar, gsd), "lores": model.encode("lores", optical, gsd)}}
radar_gap = model.summarise("radar", streams["radar"].x)  # [B, width]; "lores" likewise
joint = model.join(streams)  # [B, patches, width]; its mean over patches is CROMA's joint_GAP
"""


def _sizes(config: dict[str, Any]) -> tuple[ScaleALiBiSection, ScaleALiBiConfig]:
    from frontier.config.load import validate

    checked = validate(config)
    return checked.model, maths(checked.model, shape(checked))


def check(config: dict[str, Any]) -> None:
    """Raises UserError, naming the first reason, for a run whose model is no CROMA in its first two sensors."""
    family, other = config["model"]["family"], "use --format safetensors"
    if family != "scale_alibi":
        raise UserError(
            f"a model of the family {family} does not fit --format croma, which holds two sensors of the family scale_alibi: {other}"
        )
    section, sizes = _sizes(config)
    (radar, first), (optical, second) = list(sizes.sensors.items())[:2]
    half = max(1, sizes.size.depth // 2)
    cells, own = sizes.grid(radar), sizes.grid(optical)
    for fits, what in (
        (section.position in SAME_DISTANCES, f"model.position={section.position}"),
        (sizes.contrastive > 0, "model.weights.contrastive=0 (no summaries)"),
        (sizes.reconstruction > 0, "model.weights.reconstruction=0 (no cross-encoder)"),
        (sizes.patch == PATCH, f"model.patch={sizes.patch} (not {PATCH})"),
        (
            first.channels == len(S1_BANDS),
            f"{radar}, the first sensor, of {first.channels} bands (not {len(S1_BANDS)})",
        ),
        (
            second.channels == len(S2_BANDS),
            f"{optical}, the second sensor, of {second.channels} bands (not {len(S2_BANDS)})",
        ),
        (own == cells, f"{optical} of {own}x{own} patches beside {radar} of {cells}x{cells}"),
        (first.depth == half, f"{radar} of {first.depth} blocks (not {half})"),
        (second.depth == sizes.size.depth, f"{optical} of {second.depth} blocks (not {sizes.size.depth})"),
    ):
        if not fits:
            raise UserError(f"{what} does not fit CROMA's layout, --format croma: {other}")


def layout(source: Source, part: str) -> Layout:
    """The five state dicts under released names, and the run's resolved config."""
    model = cast(ScaleALiBi, source.module)
    section, sizes = _sizes(source.config)
    weights = to_released(model)
    radar, optical, *rest = section.sensors.items()

    def save(path: Path) -> None:
        torch.save(weights, path)

    return Layout(
        part="encoder",
        tensors={f"{group}.{name}": value for group, tensors in weights.items() for name, value in tensors.items()},
        metadata={},
        texts={RUN_CONFIG: as_json(source.config)},
        usage=_USAGE.replace("HEADS", str(sizes.size.heads)).replace("DISTANCES", _distances(section)),
        notes=tuple(_notes(section, sizes, radar, optical, [name for name, _ in rest])),
        weights=FILE,
        save=save,
    )


def _distances(section: ScaleALiBiSection) -> str:
    """Arguments of `load_croma` for the distances of the model."""
    if section.position == "grid":
        return 'position="grid"'
    return f"reference_m={section.reference_m:g}"


def _notes(
    section: ScaleALiBiSection,
    sizes: ScaleALiBiConfig,
    radar: tuple[str, SensorSection],
    optical: tuple[str, SensorSection],
    rest: list[str],
) -> list[str]:
    size, half = sizes.size, max(1, sizes.size.depth // 2)
    distances = "CROMA counts distances in patches, and so does this model."
    if section.position == "ground":
        gsd = sizes.reference_m / section.patch
        distances = f"CROMA counts distances in patches. They are those of this model where a pixel spans {gsd:g} m: give images of that spacing."
    notes = [
        f'`{FILE}` is a dict of five state dicts of tensors, as in CROMA\'s releases: `torch.load("FOLDER/{FILE}", weights_only=True)`. Sensor '
        f"`{radar[0]}` is in `s1_encoder` and `s1_GAP_FFN`, `{optical[0]}` in `s2_encoder` and `s2_GAP_FFN`.",
        f"Width {size.width}, {size.depth} optical and {half} radar and joint blocks, {size.heads} heads, patches of {PATCH} pixels. "
        "CROMA's own `PretrainedCROMA` builds 768, 12, 6, 16 (`base`) and 1024, 24, 12, 16 (`large`) only; other sizes need a loader that takes them.",
        distances,
        "Normalise by the numbers below, in stored units, not over the batch; what is missing is 0 after that.",
        "\n".join(
            [
                "| encoder | band | subtract | divide by |",
                "|---|---|---|---|",
                *_bands("s1", radar[1]),
                *_bands("s2", optical[1]),
            ]
        ),
    ]
    if rest:
        notes.append(
            f"The model has further sensors ({', '.join(rest)}), which CROMA's layout cannot hold: they and their cross-encoders are left out. "
            "The joint encodings are those before they were looked at."
        )
    return notes


def _bands(encoder: str, sensor: SensorSection) -> list[str]:
    rows = zip(sensor.bands or [], sensor.mean or [], sensor.std or [], strict=True)
    return [f"| {encoder} | {name} | {mean:.6g} | {std:.6g} |" for name, mean, std in rows]
