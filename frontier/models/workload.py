"""What a model asks of a device for one sample, from sizes alone: products, elementwise bytes, kept activations, parameters.

Torch is not imported. The counts of kept bytes are those of `frontier.models.layers.Block` with a fused attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from frontier.models.counting import block_flops, block_parameters

WorkloadName = Literal["vit", "mae", "gpna"]


@dataclass(frozen=True)
class Stack:
    """Equal transformer blocks on `tokens` tokens of a sample."""

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
    """A model on samples of one kind, or of a mix of kinds, as means over their shares.

    Values are numbers in the computing precision.

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
        tokens: of a sample in the first stack.
        image_size: side in pixels; None where samples are more than one image.
        outside_passes: products outside the blocks, forward and backward, in units of their forward pass: 2.5 where the input needs no
            gradient.
        outside_moved: values that the part outside the blocks reads and writes in forward and backward pass beside its products.
        before_working: (forward, backward) the most values that are alive there before the first block, beyond what it keeps.
        after_working: likewise after the last block, backward.
        after_first: of what is kept after the last block, what comes last and so goes first in the backward pass, before `rows`.
        rows: (rows a sample, most at once, values of a row) of each head that works through rows, such as pixels, in chunks.
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
    image_size: int | None
    outside_passes: float = 2.5
    outside_moved: int = 0
    before_working: tuple[int, int] = (0, 0)
    after_working: int = 0
    after_first: int = 0
    rows: tuple[tuple[int, int, int], ...] = ()

    @property
    def blocks(self) -> int:
        return sum(stack.blocks for stack in self.stacks)
