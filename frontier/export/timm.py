"""The format `timm`: the encoder for timm's `VisionTransformer`. timm is not needed to write it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from frontier.errors import UserError
from frontier.export.hf import split_qkv
from frontier.export.layout import RUN_CONFIG, Layout, Source, as_json
from frontier.export.mae import mae_sizes
from frontier.models.mae import MAE
from frontier.models.mae_config import MAEConfig
from frontier.models.vit import ViT

EPS = 1e-6
"""Of timm's layer norms."""

_USAGE = """\
import timm

model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()
# images: float32 [B, C, H, W] = (stored - mean) / std by band, mean and std of frontier_config.json's `data`
tokens = model.forward_features(images)  # [B, 1 + patches, width], [cls] first; tokens[:, 1:].mean(1) is a good feature
"""
_NOTES = (
    "A timm that does not know `local-dir:`: `VisionTransformer(**json.load(open('FOLDER/config.json'))['model_args'])`, then "
    "`load_state_dict(safetensors.torch.load_file('FOLDER/model.safetensors'))`.",
    "`mean` and `std` in `config.json` are those of the run divided by 255: timm's own transforms bring 8-bit images to 0..1 first. For "
    "images in other units normalise by hand, as above.",
    f"`{RUN_CONFIG}` is the resolved config of the run.",
)


def model_args(config: MAEConfig) -> dict[str, Any]:
    """Arguments of timm's `VisionTransformer` for the encoder."""
    shape = config.encoder
    return {
        "img_size": config.image_size,
        "patch_size": shape.patch,
        "in_chans": config.channels,
        "embed_dim": shape.width,
        "depth": shape.depth,
        "num_heads": shape.heads,
        "mlp_ratio": shape.mlp_hidden / shape.width,
        "num_classes": 0,
        "global_pool": "token",
    }


def timm_state(encoder: ViT, heads: int) -> dict[str, Tensor]:
    """The state of timm's `VisionTransformer`: our names, q, k and v one after the other, positions as a parameter."""
    out: dict[str, Tensor] = {}
    patch, channels = encoder.shape.patch, encoder.channels
    for name, parameter in encoder.named_parameters():
        value = parameter.detach().float()
        if name.startswith("patch_embed."):
            name = name.replace("patch_embed.", "patch_embed.proj.")
            value = value.view(-1, channels, patch, patch) if value.dim() == 2 else value
        elif ".attn.qkv." in name:
            value = torch.cat(split_qkv(value, heads))
        elif name == "cls_token":
            value = value.view(1, 1, -1)
        out[name] = value.contiguous()
    out["pos_embed"] = encoder.pos_embed.detach().float()[None].contiguous()
    return out


def check(config: dict[str, Any]) -> None:
    """Raises UserError for a run whose encoder timm's `VisionTransformer` cannot express."""
    sizes = mae_sizes(config, "timm")
    shape = sizes.encoder
    if int(shape.width * (shape.mlp_hidden / shape.width)) != shape.mlp_hidden or sizes.norm_eps != EPS:
        raise UserError(
            f"an MLP of {shape.mlp_hidden} at width {shape.width} (norm eps {sizes.norm_eps}) is nothing that timm's mlp_ratio "
            "and norms give, --format timm: use --format safetensors"
        )


def layout(source: Source, part: str) -> Layout:
    """The encoder; config.json as timm's hub and `local-dir:` read it."""
    module: nn.Module = source.module
    assert isinstance(module, MAE)
    data, arguments = source.config["data"], model_args(module.config)
    config = {
        "architecture": "vit_base_patch16_224",  # the entry point; model_args give every size
        "num_classes": 0,
        "num_features": arguments["embed_dim"],
        "global_pool": "token",
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [arguments["in_chans"], arguments["img_size"], arguments["img_size"]],
            "fixed_input_size": True,
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "mean": [value / 255 for value in data["mean"]],
            "std": [value / 255 for value in data["std"]],
            "num_classes": 0,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }
    return Layout(
        part="encoder",
        tensors=timm_state(module.encoder, module.config.encoder.heads),
        metadata={
            "format": "pt",
            "layout": "timm",
            "family": source.family,
            "step": str(source.record["step"]),
            "config_hash": source.record["config_hash"],
        },
        texts={"config.json": as_json(config), RUN_CONFIG: as_json(source.config)},
        usage=_USAGE,
        notes=_NOTES,
        tags={"library_name": "timm"},
    )
