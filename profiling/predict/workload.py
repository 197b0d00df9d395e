"""What a model asks of a device for one image, from its sizes alone: products, elementwise bytes, kept activations, parameters.

Nothing is built and torch is not imported. The counts of kept bytes are those of `frontier.models.layers.Block` with a fused
attention; a test holds them against a forward pass on meta.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from frontier.errors import UserError
from frontier.models.counting import (
    block_flops,
    block_parameters,
    encoder_parameter_count,
    flops_per_image,
    parameter_count,
)
from frontier.models.mae_config import MAEConfig
from frontier.models.presets import check_image_size, get_shape

WorkloadName = Literal["vit", "mae"]


@dataclass(frozen=True)
class Stack:
    """Equal transformer blocks on `tokens` tokens of an image."""

    blocks: int
    tokens: int
    width: int
    heads: int
    hidden: int
    mlp: str
    last_queries: int | None = None
    """Tokens that leave the last block, where not all do (the masked ones of the MAE decoder)."""

    @property
    def block_parameters(self) -> int:
        return block_parameters(self.width, self.hidden, self.mlp)

    @property
    def block_flops(self) -> int:
        """Forward products of one block and image."""
        return block_flops(self.tokens, self.width, self.hidden, self.mlp)

    @property
    def elementwise_values(self) -> float:
        """Values that one forward pass of a block reads and writes outside its products' arithmetic, an image.

        A token: norms 2 x 2 D, residuals 2 x 3 D, q k v brought into heads 6 D, scaled 2 D, result brought back 2 D, operands and
        results of the products 8 D; activation 2 H (gated: 5 H) and operands of the MLP's products 2 H (3 H). A pair of tokens
        and a head: 5 for scores that are written, scaled, normalised and read.
        """
        gated = self.mlp == "gated"
        token = 28 * self.width + (8 if gated else 4) * self.hidden
        return self.tokens * token + 5 * self.heads * self.tokens**2

    @property
    def attention_flops(self) -> int:
        """Of `block_flops`, those of scores and their product with the values."""
        return 4 * self.tokens**2 * self.width

    @property
    def plain_values(self) -> int:
        """Of `elementwise_values`, what is neither an operand of a product nor part of attention: norms, residuals, activation."""
        return self.tokens * (10 * self.width + (5 if self.mlp == "gated" else 2) * self.hidden)

    def kept_values(self) -> float:
        """Values that a block keeps for its backward pass, an image: input, norm, q k v on all its tokens; attention's result, second
        residual, its norm and the MLP's (two of `hidden`, gated four) on those that go on.
        """
        return 5 * self.tokens * self.width + self._going_on * self.tokens

    def kept_in_last(self) -> float:
        """Of the last block, whose queries alone go on."""
        return self.kept_values() - self._going_on * self._less

    @property
    def _less(self) -> int:
        return 0 if self.last_queries is None else self.tokens - self.last_queries

    @property
    def _going_on(self) -> int:
        return 3 * self.width + (4 if self.mlp == "gated" else 2) * self.hidden

    def kept_dear(self) -> float:
        """What `selective` checkpointing keeps of a block beside its input: results of products and attention."""
        return self.tokens * (6 * self.width + (2 if self.mlp == "gated" else 1) * self.hidden)

    def dear_in(self, last: bool) -> float:
        """What `selective` checkpointing keeps of a block, its input included."""
        going_on = 3 * self.width + (2 if self.mlp == "gated" else 1) * self.hidden
        return self.input_values() + self.kept_dear() - (going_on * self._less if last else 0)

    def shapes(self, tensor: int) -> list[tuple[int, ...]]:
        """Of one block's parameters, as a rank of a tensor group holds them."""
        d, h = self.width, self.hidden // tensor
        up = [(h, d), (h,)] * (2 if self.mlp == "gated" else 1)
        own = 3 * d // tensor
        return [(own, d), (own,), (d, d // tensor), (d,), *up, (d, h), (d,), *([(d,)] * 4)]

    def input_values(self) -> int:
        return self.tokens * self.width


@dataclass(frozen=True)
class Workload:
    """A model on images of one size.

    Attributes:
        parameters: all trained ones.
        root_parameters: those outside the blocks (embedding, tokens, norms, prediction).
        flops: products of a forward pass of one image, by the project's convention.
        outside_flops: the part of them outside the blocks.
        outside_values: values kept outside the blocks, an image, in the computing precision: before the first, between two stacks, after the
            last.
        loss_values: values that the loss keeps, float32.
        root_shapes: of the parameters outside the blocks.
        buffer_values: of fixed positions.
    """

    name: WorkloadName
    stacks: tuple[Stack, ...]
    parameters: int
    root_parameters: int
    flops: int
    outside_flops: int
    outside_values: tuple[int, int, int]
    loss_values: int
    root_shapes: tuple[tuple[int, ...], ...]
    buffer_values: int
    tokens: int
    image_size: int

    @property
    def blocks(self) -> int:
        return sum(stack.blocks for stack in self.stacks)


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
    shape = get_shape(model)
    check_image_size(image_size, shape.patch)
    patches = (image_size // shape.patch) ** 2
    values = channels * shape.patch**2
    if name == "vit":
        stack = Stack(shape.depth, 1 + patches, shape.width, shape.heads, shape.mlp_hidden, shape.mlp)
        embedding = 2 * patches * values * shape.width
        parameters = encoder_parameter_count(shape, channels, position_image_size=image_size)
        return Workload(
            "vit", (stack,), parameters, parameters - stack.blocks * stack.block_parameters,
            stack.blocks * stack.block_flops + embedding, embedding, (patches * values, 0, 2 * (1 + patches) * shape.width),
            0, _root(shape.width, values), (1 + patches) * shape.width, 1 + patches, image_size,
        )  # fmt: skip
    if name != "mae":
        raise UserError(f"workload '{name}' is unknown: vit (all tokens) or mae (masked pretraining)")
    config = MAEConfig.preset(model, image_size=image_size, channels=channels, mask_ratio=mask_ratio)
    decoder = config.decoder
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
        (1 + patches) * (shape.width + decoder.width), encoder.tokens, image_size,
    )  # fmt: skip
