"""Weights of our MAE for transformers' `ViTMAEForPreTraining`: the key mapping, as a helper of tests and benchmarks."""

from typing import Any

import torch
from torch import Tensor

from frontier.models.mae import MAE, MAEConfig

PARTS = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.o_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def hf_config(config: MAEConfig, attention: str = "sdpa") -> Any:
    """The `ViTMAEConfig` of the same sizes (plain MLPs only)."""
    from transformers import ViTMAEConfig

    shape, decoder = config.encoder, config.decoder
    assert shape.mlp == "plain"
    return ViTMAEConfig(
        hidden_size=shape.width,
        num_hidden_layers=shape.depth,
        num_attention_heads=shape.heads,
        intermediate_size=shape.mlp_hidden,
        patch_size=shape.patch,
        image_size=config.image_size,
        num_channels=config.channels,
        decoder_hidden_size=decoder.width,
        decoder_num_hidden_layers=decoder.depth,
        decoder_num_attention_heads=decoder.heads,
        decoder_intermediate_size=4 * decoder.width,
        mask_ratio=config.mask_ratio,
        norm_pix_loss=config.norm_pix_loss,
        layer_norm_eps=config.norm_eps,
        attn_implementation=attention,
    )


def _split_qkv(value: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows [heads, 3, head_dim] -> rows of q, k and v."""
    rows = value.unflatten(0, (heads, 3, -1))
    return rows[:, 0].flatten(0, 1), rows[:, 1].flatten(0, 1), rows[:, 2].flatten(0, 1)


def to_hf(values: dict[str, Tensor], config: MAEConfig) -> dict[str, Tensor]:
    """Our named parameters, or their gradients, under the names and in the layouts of `ViTMAEForPreTraining`."""
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
                for letter, piece in zip("qkv", _split_qkv(value, heads), strict=True):
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


def build_hf(model: MAE, attention: str = "sdpa") -> Any:
    """A float32 `ViTMAEForPreTraining` in training mode with the weights of `model`."""
    from transformers import ViTMAEForPreTraining

    theirs = ViTMAEForPreTraining(hf_config(model.config, attention)).float().train()
    state = to_hf(dict(model.named_parameters()), model.config)
    state["vit.embeddings.position_embeddings"] = model.encoder.pos_embed[None]
    state["decoder.decoder_pos_embed"] = model.decoder.pos_embed[None]
    theirs.load_state_dict({name: value.detach().clone() for name, value in state.items()}, strict=True)
    return theirs


def same_inputs(config: MAEConfig, batch: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random pixels [B, C, H, W] and mask noise [B, L]."""
    generator = torch.Generator().manual_seed(seed)
    size = config.image_size
    images = torch.randn(batch, config.channels, size, size, generator=generator)
    return images, torch.rand(batch, config.patches, generator=generator)
