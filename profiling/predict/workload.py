"""The workloads of presets on images of one size. Nothing is built and torch is not imported; a test holds the counts of kept bytes
against a forward pass on meta. Other families say their own: `frontier.models.registry.Family.workload`.
"""

from __future__ import annotations

from functools import lru_cache

from frontier.errors import UserError
from frontier.models.counting import encoder_parameter_count, flops_per_image, parameter_count
from frontier.models.mae_config import MAEConfig
from frontier.models.presets import ViTShape, check_image_size, get_shape
from frontier.models.workload import Stack, Workload, WorkloadName

__all__ = ["Stack", "Workload", "WorkloadName", "of_encoder", "of_mae", "workload"]


def _root(width: int, values: int) -> tuple[tuple[int, ...], ...]:
    """Patch embedding, [cls], final norm."""
    return ((width, values), (width,), (width,), (width,), (width,))


def _decoder_root(width: int, decoder: int, values: int) -> tuple[tuple[int, ...], ...]:
    """Embedding, mask token, norm, prediction."""
    return ((decoder, width), (decoder,), (decoder,), (decoder,), (decoder,), (values, decoder), (values,))


@lru_cache(maxsize=256)
def workload(
    model: str, name: WorkloadName, image_size: int = 224, channels: int = 3, mask_ratio: float = 0.75
) -> Workload:
    """The workload of a preset.

    `vit`: the encoder on all tokens, as the published scaling study is read here (its input size and masking are not
    published: 224 px without masking agrees with its memory and rates). `mae`: what `frontier pretrain` trains.

    Raises:
        UserError: an unknown preset, or a size that its patch does not divide.
    """
    if name == "vit":
        return of_encoder(get_shape(model), image_size, channels)
    if name != "mae":
        raise UserError(f"workload '{name}' is unknown: vit (all tokens) or mae (masked pretraining)")
    return of_mae(MAEConfig.preset(model, image_size=image_size, channels=channels, mask_ratio=mask_ratio))


def of_encoder(shape: ViTShape, image_size: int, channels: int) -> Workload:
    """An encoder on all tokens of its images."""
    check_image_size(image_size, shape.patch)
    patches, values = (image_size // shape.patch) ** 2, channels * shape.patch**2
    stack = Stack(shape.depth, 1 + patches, shape.width, shape.heads, shape.mlp_hidden, shape.mlp)
    embedding = 2 * patches * values * shape.width
    parameters = encoder_parameter_count(shape, channels, position_image_size=image_size)
    return Workload(
        "vit", (stack,), parameters, parameters - stack.blocks * stack.block_parameters,
        stack.blocks * stack.block_flops + embedding, embedding, (patches * values, 2 * (1 + patches) * shape.width),
        0, _root(shape.width, values), (1 + patches) * shape.width, 1 + patches, image_size,
    )  # fmt: skip


def of_mae(config: MAEConfig) -> Workload:
    """Masked pretraining with a model of these sizes."""
    shape, decoder = config.encoder, config.decoder
    patches, values = config.patches, config.patch_values
    encoder = Stack(shape.depth, 1 + config.kept, shape.width, shape.heads, shape.mlp_hidden, shape.mlp)
    masked = patches - config.kept
    after = Stack(decoder.depth, 1 + patches, decoder.width, decoder.heads, 4 * decoder.width, "plain", masked)
    stacks = (encoder, after)
    parameters, flops = parameter_count(config), flops_per_image(config).forward
    inside = sum(stack.blocks * stack.block_parameters for stack in stacks)
    block_work = sum(stack.blocks * stack.block_flops for stack in stacks)
    # Visible pixels, final norms' inputs and results; the loss keeps its difference and scale in float32.
    outside = (config.kept * values, 2 * encoder.input_values(), 2 * masked * decoder.width)
    return Workload(
        "mae", stacks, parameters, parameters - inside, flops, max(0, flops - block_work), outside, 2 * masked * values,
        (*_root(shape.width, values), *_decoder_root(shape.width, decoder.width, values)),
        (1 + patches) * (shape.width + decoder.width), encoder.tokens, config.image_size,
    )  # fmt: skip
