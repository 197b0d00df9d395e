"""Floating-point operations of Scale-ALiBi models from sizes alone, by the convention of `frontier.models.counting`: matrix products, 2 a
multiply-add, backward = 2 x forward. Distances between tokens are not counted, nor is the comparison of samples, which grows with the batch.
"""

from __future__ import annotations

import torch

from frontier.models.workload import Stack
from scale_alibi.attention_gaussian import with_extra_dims
from scale_alibi.attention_table import MASK_BYTES
from scale_alibi.sizes import POWER, ScaleALiBiConfig


def stacks(config: ScaleALiBiConfig) -> dict[str, list[Stack]]:
    """Blocks by part: encoders, joint (cross-encoders), decoder; in the order of the forward pass. Attention is that of a GPU."""
    size = config.size
    kept = {name: config.kept(name) for name in config.sensors}
    power, backend = POWER[config.position], config.attention
    mask = MASK_BYTES if (backend == "sdpa" and power) or (backend == "auto" and power == 1) else 0
    further = dims_of_gpus(size.width // size.heads) if backend == "auto" and power == 2 else 0

    def stack(blocks: int, tokens: int, context: int = 0) -> Stack:
        return Stack(
            blocks, tokens, size.width, size.heads, 4 * size.width, "plain", context=context, qkv_bias=False,
            mask_bytes=mask, further_dims=further, fused=True,
        )  # fmt: skip

    found = {
        "encoders": [stack(shape.depth, kept[name]) for name, shape in config.sensors.items()],
        "joint": [],
        "decoder": [],
    }
    if config.decoder is not None:
        first, *others = config.sensors
        decoder = config.decoder
        found["joint"] = [stack(config.joint_depth, kept[first], kept[name]) for name in others]
        cells = config.grid(first) ** 2
        found["decoder"] = [Stack(decoder.depth, cells, decoder.width, decoder.heads, 4 * decoder.width, "plain")]
    return found


def dims_of_gpus(head_dim: int) -> int:
    """That the squared distance adds to each head on a GPU."""
    q, at = torch.empty(1, 1, 1, head_dim, device="meta"), torch.empty(1, 1, 2, device="meta")
    return with_extra_dims(q, q, q, at, at, at[0, 0, :1], "cuda")[0].shape[-1] - head_dim


def embedded_values(config: ScaleALiBiConfig, sensor: str) -> int:
    """Of the patches that the sensor's encoder sees of a sample."""
    return config.kept(sensor) * config.patch_values(sensor)


def cell_values(config: ScaleALiBiConfig) -> int:
    """Values of all sensors that the decoder predicts for a patch of the first one."""
    return sum(config.ratio(name) ** 2 * config.patch_values(name) for name in config.sensors)


def forward_flops(config: ScaleALiBiConfig) -> dict[str, int]:
    """Of one training sample by part: embedding of patches, encoders, joint, decoder (with its embedding and prediction), contrast
    (summaries and projections).
    """
    width, names = config.size.width, list(config.sensors)
    found = {part: sum(s.blocks * s.block_flops for s in of) for part, of in stacks(config).items()}
    found["embedding"] = 2 * width * sum(embedded_values(config, name) for name in names)
    # An MLP of four widths and a projection on one vector a sensor.
    found["contrast"] = len(names) * 2 * (8 + 1) * width * width if config.contrastive else 0
    if config.decoder is not None:
        cells, narrow = config.grid(names[0]) ** 2, config.decoder.width
        found["decoder"] += 2 * narrow * (config.kept(names[0]) * width + cells * cell_values(config))
    return found


def embedding_flops(config: ScaleALiBiConfig) -> int:
    """Of the part of a forward pass that gives the vectors in which samples are compared."""
    found = forward_flops(config)
    return found["embedding"] + found["encoders"] + found["contrast"]


def flops_per_sample(config: ScaleALiBiConfig) -> int:
    """Forward and backward, 3 x forward."""
    return 3 * sum(forward_flops(config).values())


def hardware_flops(config: ScaleALiBiConfig, checkpointing: str, accumulation: int) -> int:
    """Those that really run for one sample: no gradient for pixels; with "full" checkpointing every block again but for its last product, of
    which nothing is needed (PyTorch stops before it); with several micro-batches a step, what is compared between them
    (`frontier.models.peers.ComparesSamples`) once more, without gradients.
    """
    total = flops_per_sample(config) - forward_flops(config)["embedding"]
    if accumulation > 1 and config.contrastive:
        total += embedding_flops(config)
    if checkpointing == "full":
        every = [stack for of in stacks(config).values() for stack in of]
        total += sum(s.blocks * (s.block_flops - 2 * s.tokens * s.hidden * s.width) for s in every)
    return total
