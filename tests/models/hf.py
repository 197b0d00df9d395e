"""transformers' `ViTMAEForPreTraining` with the weights of our MAE, and inputs for both: a helper of tests and benchmarks."""

from typing import Any

import torch
from torch import Tensor

from frontier.export.hf import hf_settings, hf_state
from frontier.models.mae import MAE, MAEConfig


def build_hf(model: MAE, attention: str = "sdpa") -> Any:
    """A float32 `ViTMAEForPreTraining` in training mode with the weights of `model`."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    theirs = ViTMAEForPreTraining(ViTMAEConfig(**hf_settings(model.config), attn_implementation=attention)).float()
    theirs.load_state_dict({name: value.clone() for name, value in hf_state(model).items()}, strict=True)
    return theirs.train()


def same_inputs(config: MAEConfig, batch: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random pixels [B, C, H, W] and mask noise [B, L]."""
    generator = torch.Generator().manual_seed(seed)
    size = config.image_size
    images = torch.randn(batch, config.channels, size, size, generator=generator)
    return images, torch.rand(batch, config.patches, generator=generator)
