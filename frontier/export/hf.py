"""The format `hf`: a folder that transformers' `ViTMAEForPreTraining.from_pretrained` loads. transformers is not needed to write it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from frontier.errors import UserError
from frontier.export.layout import RUN_CONFIG, Layout, Source, as_json
from frontier.export.mae import mae_sizes
from frontier.export.parts import parameters
from frontier.models.mae import MAE
from frontier.models.mae_config import MAEConfig

PARTS = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.o_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_ON_FILE = {
    "vit.layers.": "vit.encoder.layer.",
    ".attention.q_proj.": ".attention.attention.query.",
    ".attention.k_proj.": ".attention.attention.key.",
    ".attention.v_proj.": ".attention.attention.value.",
    ".attention.o_proj.": ".attention.output.dense.",
    ".mlp.fc1.": ".intermediate.dense.",
    ".mlp.fc2.": ".output.dense.",
}
"""Names in the module of transformers 5 -> names in published files, which transformers 4 and 5 both read."""

_USAGE = """\
import torch
from transformers import AutoImageProcessor, ViTMAEForPreTraining, ViTMAEModel

processor = AutoImageProcessor.from_pretrained("FOLDER")
model = ViTMAEForPreTraining.from_pretrained("FOLDER")  # masks and reconstructs; model(pixel_values=…).loss
encoder = ViTMAEModel.from_pretrained("FOLDER", mask_ratio=0.0).eval()  # sees every patch
# rising noise keeps the patches in order: tokens [B, 1 + PATCHES, width], [cls] first
tokens = encoder(pixel_values=images, noise=torch.arange(PATCHES.0).expand(len(images), -1)).last_hidden_state
"""
_NOTES = (
    "The processor normalises and nothing else: `(stored - image_mean) / image_std` by band, with `image_mean` and `image_std` in the "
    "units in which the training images were stored (0 to 255 for 8-bit images, digital numbers, reflectances, dB), so `do_rescale` is "
    "off. Give images in those units, not scaled to 0..1.",
    "It does not resize (resampling changes the ground distance of a pixel): give images of the size in `config.json`.",
    f"`{RUN_CONFIG}` is the resolved config of the run.",
)


def hf_settings(config: MAEConfig) -> dict[str, Any]:
    """Arguments of the `ViTMAEConfig` of the same sizes (plain MLPs only)."""
    shape, decoder = config.encoder, config.decoder
    assert shape.mlp == "plain"
    return {
        "hidden_size": shape.width,
        "num_hidden_layers": shape.depth,
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.mlp_hidden,
        "patch_size": shape.patch,
        "image_size": config.image_size,
        "num_channels": config.channels,
        "decoder_hidden_size": decoder.width,
        "decoder_num_hidden_layers": decoder.depth,
        "decoder_num_attention_heads": decoder.heads,
        "decoder_intermediate_size": 4 * decoder.width,
        "mask_ratio": config.mask_ratio,
        "norm_pix_loss": config.norm_pix_loss,
        "layer_norm_eps": config.norm_eps,
    }


def split_qkv(value: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows [heads, 3, head_dim] of our fused projection -> rows of q, k and v, each [heads, head_dim]."""
    rows = value.unflatten(0, (heads, 3, -1))
    return rows[:, 0].flatten(0, 1), rows[:, 1].flatten(0, 1), rows[:, 2].flatten(0, 1)


def to_hf(values: dict[str, Tensor], config: MAEConfig) -> dict[str, Tensor]:
    """Our named parameters, or their gradients, under the names (transformers 5) and in the layouts of `ViTMAEForPreTraining`."""
    channels, patch, out = config.channels, config.encoder.patch, {}
    for name, value in values.items():
        side, _, rest = name.partition(".")
        encoder = side == "encoder"
        if rest.startswith("blocks."):
            _, number, part = rest.split(".", 2)
            prefix = f"vit.layers.{number}." if encoder else f"decoder.decoder_layers.{number}."
            part, _, leaf = part.rpartition(".")
            if part == "attn.qkv":
                heads = config.encoder.heads if encoder else config.decoder.heads
                for letter, piece in zip("qkv", split_qkv(value, heads), strict=True):
                    out[f"{prefix}attention.{letter}_proj.{leaf}"] = piece
            else:
                out[f"{prefix}{PARTS[part]}.{leaf}"] = value
        elif rest == "patch_embed.weight":
            out["vit.embeddings.patch_embeddings.projection.weight"] = value.view(-1, channels, patch, patch)
        elif rest == "patch_embed.bias":
            out["vit.embeddings.patch_embeddings.projection.bias"] = value
        elif rest == "cls_token":
            out["vit.embeddings.cls_token"] = value.view(1, 1, -1)
        elif rest == "mask_token":
            out["decoder.mask_token"] = value.view(1, 1, -1)
        elif rest.startswith("norm."):
            out[("vit.layernorm." if encoder else "decoder.decoder_norm.") + rest[5:]] = value
        elif rest.startswith("embed."):
            out["decoder.decoder_embed." + rest[6:]] = value
        elif rest.startswith("pred."):
            # Values of a patch: ours channel first, theirs channel last.
            pixels = value.unflatten(0, (channels, patch, patch))
            out["decoder.decoder_pred." + rest[5:]] = pixels.movedim(0, 2).flatten(0, 2)
        else:
            raise KeyError(name)
    return out


def hf_state(model: MAE) -> dict[str, Tensor]:
    """The state of `ViTMAEForPreTraining` (names of transformers 5) that computes what `model` does: parameters and positions."""
    state = to_hf(parameters(model, "all"), model.config)
    state["vit.embeddings.position_embeddings"] = model.encoder.pos_embed[None]
    state["decoder.decoder_pos_embed"] = model.decoder.pos_embed[None]
    return state


def on_file(name: str) -> str:
    """The name in a file of a tensor of the module."""
    for new, old in _ON_FILE.items():
        name = name.replace(new, old)
    return name


def check(config: dict[str, Any]) -> None:
    """Raises UserError for a run whose model `ViTMAEForPreTraining` cannot express."""
    mae_sizes(config, "hf")
    if config["model"].get("texture") is not None:
        raise UserError(
            "the run has texture targets (model.texture), which --format hf cannot express: use --format timm for the "
            "encoder, or --format safetensors"
        )


def layout(source: Source, part: str) -> Layout:
    """The whole model; config.json and preprocessor_config.json of transformers."""
    module: nn.Module = source.module
    assert isinstance(module, MAE)
    data = source.config["data"]
    config = {
        "architectures": ["ViTMAEForPreTraining"],
        "model_type": "vit_mae",
        "hidden_act": "gelu",
        "qkv_bias": True,
        **hf_settings(module.config),
    }
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": False,
        "size": {"height": data["image_size"], "width": data["image_size"]},
        "do_rescale": False,
        "rescale_factor": 1.0,
        "do_normalize": True,
        "image_mean": data["mean"],
        "image_std": data["std"],
    }
    return Layout(
        part="all",
        tensors={on_file(name): value.detach().float().contiguous() for name, value in hf_state(module).items()},
        metadata={
            "format": "pt",
            "layout": "hf",
            "family": source.family,
            "step": str(source.record["step"]),
            "config_hash": source.record["config_hash"],
        },
        texts={
            "config.json": as_json(config),
            "preprocessor_config.json": as_json(processor),
            RUN_CONFIG: as_json(source.config),
        },
        usage=_USAGE.replace("PATCHES", str(module.config.patches)),
        notes=_NOTES,
        tags={"library_name": "transformers"},
    )
