"""CROMA's weights (arXiv 2311.00566), the two-sensor case of this family: released files read, and written.

A released file is a dict of five state dicts: `s1_encoder`, `s1_GAP_FFN`, `s2_encoder`, `s2_GAP_FFN`, `joint_encoder`. The same tensors have other
names in the authors' training code (`create_qkv`, `out`, `net.2`), and a saved module has them in one flat dict: all of these are read, the
released names are written. Two things differ from our layout. Rows of a fused projection are [3, heads, head_dim] there and [heads, 3, head_dim] here,
so that tensor parallelism cuts whole heads; keys and values of cross-attention are two tensors there. Patches are flattened alike: channel, row, column.
The biases of distance are no parameters: both sides compute them for the size of the image.
"""

from __future__ import annotations

import pickle
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from frontier.errors import UserError
from frontier.models.init import clean_name
from frontier.models.presets import check_heads
from scale_alibi.config import PAPER_DECODER, PRESETS, Position, Size
from scale_alibi.model import ScaleALiBi
from scale_alibi.sizes import ScaleALiBiConfig, SensorShape

GROUPS = ("s1_encoder", "s1_GAP_FFN", "s2_encoder", "s2_GAP_FFN", "joint_encoder")
PATCH = 8
S1_BANDS = ("VV", "VH")
S2_BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
"""In the order of the released weights: Sentinel-2's without B10."""
REFERENCE_M = 80.0
"""Metres of one unit of distance: a patch of the 10 m images that CROMA was trained on."""
IMAGE_SIZE = 120
"""Side in pixels of its training images. A loaded model takes any multiple of the patch."""
SAME_DISTANCES: tuple[Position, ...] = ("ground", "grid")
"""Positions at which our model computes what CROMA does."""

Weights = Mapping[str, Mapping[str, Tensor]]
"""Tensors by group and name."""

_ALIASES = {
    **{"radar_encoder": "s1_encoder", "optical_encoder": "s2_encoder", "cross_encoder": "joint_encoder"},
    **{"GAP_FFN_radar": "s1_GAP_FFN", "GAP_FFN_optical": "s2_GAP_FFN"},
    **{"GAP_FFN_s1": "s1_GAP_FFN", "GAP_FFN_s2": "s2_GAP_FFN"},
}
"""Names of the five parts in modules of the training and the inference code -> in a released file."""
_TRAINING_NAMES = ((r"\bcreate_", "to_"), (r"\.out\.", ".to_out."), (r"\bnet\.2\.", "net.3."))
_SELF = {"norm1": ("0.input_norm",), "attn.qkv": ("0.to_qkv",), "attn.proj": ("0.to_out",)}
_CROSS = {
    **{"norm_cross": ("1.input_norm",), "cross.q": ("1.to_q",), "cross.kv": ("1.to_k", "1.to_v")},
    "cross.proj": ("1.to_out",),
}
_FUSED = {"attn.qkv": 3, "cross.kv": 2}


def _mlp(step: int) -> dict[str, tuple[str, ...]]:
    return {"norm2": (f"{step}.input_norm",), "mlp.fc1": (f"{step}.net.0",), "mlp.fc2": (f"{step}.net.3",)}


_KINDS: dict[str, tuple[str, str, dict[str, str], dict[str, tuple[str, ...]]]] = {
    "encoders": (
        "_encoder",
        "transformer.",
        {"embed": "linear_input", "norm": "transformer.norm_out"},
        _SELF | _mlp(1),
    ),
    "joint": ("joint_encoder", "", {"norm": "norm_out"}, _SELF | _CROSS | _mlp(2)),
    "summaries": ("_GAP_FFN", "", {"norm": "0", "fc1": "1", "fc2": "3"}, {}),
}
"""Our part -> group, what is before its blocks' names, modules beside the blocks, modules of a block."""


@dataclass(frozen=True)
class Entry:
    """Where one of our parameters is in a released file.

    Attributes:
        names: of the tensor there, or of those which are one after another in ours.
        fused: projections in it. Of more than one, rows are [heads, fused, head_dim] in ours and [fused, heads, head_dim] there.
    """

    group: str
    names: tuple[str, ...]
    fused: int


def entries(model: ScaleALiBi) -> dict[str, Entry]:
    """By our parameter names: encoders and summaries of the first two sensors, and the cross-encoder between them."""
    radar, lores = list(model.config.sensors)[:2]
    found = {}
    for name in model.encoder_names():
        kind, sensor, rest = name.split(".", 2)
        if sensor not in (radar, lores):
            continue
        part, _, leaf = rest.rpartition(".")
        group, trunk, single, block = _KINDS[kind]
        side = "" if kind == "joint" else "s1" if sensor == radar else "s2"
        if part.startswith("blocks."):
            _, number, part = part.split(".", 2)
            names = tuple(f"{trunk}layers.{number}.{one}.{leaf}" for one in block[part])
        else:
            names = (f"{single[part]}.{leaf}",)
        found[name] = Entry(side + group, names, _FUSED.get(part, 1))
    return found


def to_released(model: ScaleALiBi) -> dict[str, dict[str, Tensor]]:
    """The five state dicts, float32 copies, under the names of released files."""
    heads, own = model.config.size.heads, dict(model.named_parameters())
    found: dict[str, dict[str, Tensor]] = {group: {} for group in GROUPS}
    for name, entry in entries(model).items():
        value = own[name].detach().float()
        if entry.fused > 1:
            value = value.unflatten(0, (heads, entry.fused, -1)).transpose(0, 1).flatten(0, 2)
        for theirs, piece in zip(entry.names, value.chunk(len(entry.names)), strict=True):
            found[entry.group][theirs] = piece.clone()
    return found


def from_released(config: ScaleALiBiConfig, weights: Weights, where: str | Path) -> dict[str, Tensor]:
    """Our parameters (name -> float32 tensor) of what `read_croma` gives, for a model of two sensors.

    Raises:
        UserError: `where` a tensor is missing, too many, or of another shape; the first one is named.
    """
    with torch.device("meta"):
        model = ScaleALiBi(config)
    _check(to_released(model), weights, config, where)
    heads, found = config.size.heads, {}
    for name, entry in entries(model).items():
        value = torch.cat([weights[entry.group][theirs].float() for theirs in entry.names])
        if entry.fused > 1:
            value = value.unflatten(0, (entry.fused, heads, -1)).transpose(0, 1).flatten(0, 2)
        found[name] = value
    return found


def _check(wanted: Weights, given: Weights, config: ScaleALiBiConfig, where: str | Path) -> None:
    depths = [shape.depth for shape in config.sensors.values()]
    told = f"a model of width {config.size.width} with {depths[0]} radar and {depths[1]} optical blocks"
    for some, others, words in ((wanted, given, "is missing"), (given, wanted, "is there")):
        names = [f"{g}.{name}" for g, tensors in some.items() for name in tensors if name not in others.get(g, {})]
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise UserError(f"{where}: {names[0]} {words}{more}, unlike in {told}: give a whole CROMA file")
    for group, tensors in wanted.items():
        for name, like in tensors.items():
            shape = given[group][name].shape
            if shape != like.shape:
                raise UserError(
                    f"{where}: {group}.{name} is {list(shape)}, and {list(like.shape)} in {told}, {len(S1_BANDS)} and {len(S2_BANDS)} bands "
                    f"and patches of {PATCH} pixels: give a file of that layout"
                )


def read_croma(path: str | Path) -> tuple[dict[str, dict[str, Tensor]], list[str]]:
    """(tensors of the five groups on the host, under released names; words on what else the file holds, which is left out).

    Nothing in the file is executed. Raises UserError for a file that is not CROMA's, or that holds more than tensors.
    """
    loaded = _load(Path(path))
    if not isinstance(loaded, Mapping):
        raise UserError(f"{path} holds a {type(loaded).__name__}, no dict of state dicts: give a CROMA file")
    found: dict[str, dict[str, Tensor]] = {group: {} for group in GROUPS}
    left: Counter[str] = Counter()
    for key, value in _flat(loaded):
        group, _, name = clean_name(key).partition(".")
        group = _ALIASES.get(group, group)
        if group not in found or not isinstance(value, Tensor) or name == "attn_bias":
            left[key if group in found else group] += 1
            continue
        if group.endswith("_encoder"):
            for training, released in _TRAINING_NAMES:
                name = re.sub(training, released, name)
        if name in found[group]:
            raise UserError(f"{path} holds {group}.{name} twice, under two names: give a file of one layout")
        found[group][name] = value
    missing = [group for group in GROUPS if not found[group]]
    if missing:
        held = ", ".join(list(left)[:5]) or "nothing"
        raise UserError(f"{path}: no {missing[0]} (it holds {held}): CROMA files have {', '.join(GROUPS)}")
    return found, [f"{name} ({count} entries)" if count > 1 else name for name, count in left.items()]


def _flat(loaded: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    """Dotted names and values of a dict of dicts, or of a flat one."""
    for group, value in loaded.items():
        if isinstance(value, Mapping):
            yield from ((f"{group}.{name}", tensor) for name, tensor in value.items())
        else:
            yield str(group), value


def _load(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"{path} is {'a folder' if path.is_dir() else 'not there'}: give a file such as CROMA_base.pt")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found:
            raise UserError(
                f"{path} asks to run {found[1]}, so it was not loaded: give a file of tensors alone"
            ) from None
        raise UserError(f"{path} is no file of torch.save: give a file such as CROMA_base.pt") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): mend the access rights") from None
    except (RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is no file of torch.save, or damaged ({type(error).__name__}): fetch it again"
        ) from None


def sizes_of(weights: Weights, where: str | Path) -> tuple[str | None, int, int]:
    """(preset of these sizes or None, width, blocks of the optical encoder). Raises UserError where they cannot be told."""
    optical = weights["s2_encoder"]
    if "linear_input.weight" not in optical or optical["linear_input.weight"].dim() != 2:
        raise UserError(f"{where}: s2_encoder.linear_input.weight is missing or no matrix: give a whole CROMA file")
    width = len(optical["linear_input.weight"])
    depth = len({found[1] for name in optical if (found := re.match(r"transformer\.layers\.(\d+)\.", name))})
    if not depth:
        raise UserError(f"{where}: s2_encoder has no transformer.layers: give a whole CROMA file")
    known = (name for name, size in PRESETS.items() if (size.width, size.depth) == (width, depth))
    return next(known, None), width, depth


def load_croma(
    path: str | Path, *, position: Position = "ground", reference_m: float = REFERENCE_M, heads: int | None = None
) -> ScaleALiBi:
    """The model of a CROMA file: sensors "radar" (Sentinel-1) and "lores" (Sentinel-2), on the host, float32, in eval mode.

    `encode`, `summarise` and `join` give CROMA's encodings and GAPs. The file has neither decoder nor projections of the
    contrastive loss, so the model has none, and cannot be trained as it is: `frontier import` makes a checkpoint that can.

    Args:
        position: "ground" sees the GSD of images (the same as CROMA at reference_m / 8 = 10 m a pixel), "grid" counts patches as CROMA does.
        heads: of attention, which a file does not say; default: those of the preset of its width and depth (16 in both releases).

    Raises:
        UserError: for a file that is not CROMA's.
    """
    if position not in SAME_DISTANCES:
        raise UserError(f"position={position}: CROMA's weights go with {' or '.join(SAME_DISTANCES)}")
    weights, _ = read_croma(path)
    preset, width, depth = sizes_of(weights, path)
    if heads is None and preset is None:
        raise UserError(f"{path}: width {width} with {depth} blocks is no size of CROMA's: give the number of heads")
    size = Size(width, depth, heads or PRESETS[str(preset)].heads)
    check_heads(width, size.heads, "heads")
    with torch.device("meta"):
        model = ScaleALiBi(_config(size, position, reference_m))
    model.decoder, model.projections = None, None
    model.load_state_dict(from_released(model.config, weights, path), assign=True)
    return model.eval()


def _config(size: Size, position: Position, reference_m: float) -> ScaleALiBiConfig:
    shapes = {
        "radar": SensorShape(len(S1_BANDS), IMAGE_SIZE, max(1, size.depth // 2), 0.75),
        "lores": SensorShape(len(S2_BANDS), IMAGE_SIZE, size.depth, 0.75),
    }
    return ScaleALiBiConfig(size, PATCH, shapes, position, reference_m, "auto", "joint", PAPER_DECODER, 1.0, 1.0)
