"""What a model asks of a device for one sample, from sizes alone: products, elementwise bytes, kept activations, parameters.

Torch is not imported. The counts of kept bytes are those of `frontier.models.layers.Block` with a fused attention, and of such a block with a
cross-attention between self-attention and MLP (`scale_alibi.layers.CrossBlock`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from frontier.models.counting import block_flops, block_parameters, cross_flops, cross_parameters

WorkloadName = Literal["vit", "mae", "gpna", "scale_alibi"]


@dataclass(frozen=True)
class Stack:
    """Equal transformer blocks on `tokens` tokens of a sample.

    Attributes:
        last_queries: tokens that leave the last block, where not all do (the masked ones of the MAE decoder).
        context: tokens of another stream to which each block has a cross-attention (its own norm of both streams, its own projections,
            without bias but for the last); 0: none.
        qkv_bias: whether the projection to queries, keys and values has one.
        mask_bytes: attention keeps a mask of a value for each sample, head and pair of tokens where it has at most so many bytes; 0: never.
        fused: no scores are written: they stay inside the kernel, as a table of so many tokens would not fit.
        further_dims: of each head of queries, keys, values and result, beside its own: those are then copies.
    """

    blocks: int
    tokens: int
    width: int
    heads: int
    hidden: int
    mlp: str
    last_queries: int | None = None
    context: int = 0
    qkv_bias: bool = True
    mask_bytes: int = 0
    further_dims: int = 0
    fused: bool = False

    @property
    def block_parameters(self) -> int:
        cross = cross_parameters(self.width) if self.context else 0
        without = 0 if self.qkv_bias else 3 * self.width
        return block_parameters(self.width, self.hidden, self.mlp) - without + cross

    @property
    def block_flops(self) -> int:
        """Forward products of one block and image."""
        cross = cross_flops(self.tokens, self.context, self.width) if self.context else 0
        return block_flops(self.tokens, self.width, self.hidden, self.mlp) + cross

    @property
    def _pairs(self) -> int:
        """Of a query and a key."""
        return self.tokens * (self.tokens + self.context)

    @property
    def elementwise_values(self) -> float:
        """Values that one forward pass of a block reads and writes outside its products' arithmetic, an image.

        A token: norms 2 x 2 D, residuals 2 x 3 D, q k v brought into heads 6 D, scaled 2 D, result brought back 2 D, operands and
        results of the products 8 D; activation 2 H (gated: 5 H) and operands of the MLP's products 2 H (3 H). A pair of tokens
        and a head: 5 for scores that are written, scaled, normalised and read. A cross-attention: 15 D a token (norm 2, residual 3, q 2,
        scaled 2, result 2, operands 4) and 9 D a token of the context (norm 2, k and v 4, operands 3).
        """
        gated = self.mlp == "gated"
        token = 28 * self.width + (8 if gated else 4) * self.hidden
        cross = (15 * self.tokens + 9 * self.context) * self.width if self.context else 0
        return self.tokens * token + cross + (0 if self.fused else 5 * self.heads * self._pairs)

    @property
    def attention_flops(self) -> int:
        """Of `block_flops`, those of scores and their product with the values."""
        return 4 * self._pairs * self.width

    @property
    def plain_values(self) -> int:
        """Of `elementwise_values`, what is neither an operand of a product nor part of attention: norms, residuals, activation."""
        cross = (5 * self.tokens + 2 * self.context) * self.width if self.context else 0
        return self.tokens * (10 * self.width + (5 if self.mlp == "gated" else 2) * self.hidden) + cross

    def kept_values(self) -> float:
        """Values that a block keeps for its backward pass, an image: input, norm, q k v on all its tokens; attention's result, second
        residual, its norm and the MLP's (two of `hidden`, gated four) on those that go on. A cross-attention: residual, norm, q and result,
        and norm, k and v of the context; the context itself is kept once, by whoever made it.
        """
        return 5 * self.input_values() + self._cross(4, 3) + self._going_on * self.tokens + self._copies()

    def masks(self, batch: int, element_bytes: int) -> int:
        """Bytes of the masks that a block keeps for its backward pass; their rows begin at multiples of 8 elements."""
        keys = (self.tokens, self.context) if self.context else (self.tokens,)
        sizes = (batch * self.heads * self.tokens * (-(-n // 8) * 8) * element_bytes for n in keys)
        return sum(size for size in sizes if size <= self.mask_bytes)

    def _copies(self) -> int:
        """Values of `further_dims` of q, k, v and the result, and of the result without them, which is a copy."""
        if not self.further_dims:
            return 0
        further = self.heads * self.further_dims
        cross = self.tokens * (2 * further + self.width) + self.context * 2 * further if self.context else 0
        return self.tokens * (4 * further + self.width) + cross

    def kept_in_last(self) -> float:
        """Of the last block, whose queries alone go on."""
        return self.kept_values() - self._going_on * self._less

    def _cross(self, own: int, of_context: int) -> int:
        """So many values a token and feature of the stream, and of the context; 0 without one."""
        return (own * self.tokens + of_context * self.context) * self.width if self.context else 0

    @property
    def _less(self) -> int:
        return 0 if self.last_queries is None else self.tokens - self.last_queries

    @property
    def _going_on(self) -> int:
        return 3 * self.width + (4 if self.mlp == "gated" else 2) * self.hidden

    def kept_dear(self) -> float:
        """What `selective` checkpointing keeps of a block beside its input: results of products and attention."""
        dear = self.tokens * (6 * self.width + (2 if self.mlp == "gated" else 1) * self.hidden)
        return dear + self._cross(3, 2) + self.tokens * self.heads * self.further_dims * (self.parts - 1)

    def dear_in(self, last: bool) -> float:
        """What `selective` checkpointing keeps of a block, its input included."""
        going_on = 3 * self.width + (2 if self.mlp == "gated" else 1) * self.hidden
        return self.input_values() + self.kept_dear() - (going_on * self._less if last else 0)

    def norm_rows(self) -> int:
        """Tokens that a block normalises, with a mean and a deviation each."""
        return 2 * self.tokens + (self.tokens + self.context if self.context else 0)

    def gathered(self) -> tuple[int, ...]:
        """Values of each input that a tensor group gathers in a forward pass of a block."""
        return (self.input_values(),) * self.parts + ((self.context * self.width,) if self.context else ())

    @property
    def parts(self) -> int:
        """Of a block, that a tensor group splits: attention, cross-attention, MLP. Each one's result is scattered again."""
        return 3 if self.context else 2

    def shapes(self, tensor: int) -> list[tuple[int, ...]]:
        """Of one block's parameters, as a rank of a tensor group holds them."""
        d, h = self.width, self.hidden // tensor
        up = [(h, d), (h,)] * (2 if self.mlp == "gated" else 1)
        own = d // tensor
        bias = [(3 * own,)] if self.qkv_bias else []
        cross = [(own, d), (2 * own, d), (d, own), (d,), (d,), (d,)] if self.context else []
        return [(3 * own, d), *bias, (d, own), (d,), *cross, *up, (d, h), (d,), *([(d,)] * 4)]

    def input_values(self) -> int:
        return self.tokens * self.width


@dataclass(frozen=True)
class Embedding:
    """A part of a forward pass: so many stacks from the first on, and products outside the blocks."""

    stacks: int
    outside_flops: int


@dataclass(frozen=True)
class Workload:
    """A model on samples of one kind, or of a mix of kinds, as means over their shares.

    Values are numbers in the computing precision.

    Attributes:
        parameters: all trained ones.
        root_parameters: those outside the blocks (embedding, tokens, norms, prediction).
        flops: products of a forward pass of one image, by the project's convention.
        outside_flops: the part of them outside the blocks.
        outside_values: values kept outside the blocks, an image, in the computing precision: before each stack, and after the last.
        loss_values: values that the loss keeps, float32.
        root_shapes: of the parameters outside the blocks.
        buffer_values: of fixed positions.
        tokens: of a sample in the first stack; of several encoders, in all of them.
        image_size: side in pixels; None where samples are more than one image.
        outside_passes: products outside the blocks, forward and backward, in units of their forward pass: 2.5 where the input needs no
            gradient.
        outside_moved: values that the part outside the blocks reads and writes in forward and backward pass beside its products.
        before_working: (forward, backward) the most values that are alive there before the first block, beyond what it keeps.
        after_working: likewise after the last block, backward.
        after_first: of what is kept after the last block, what comes last and so goes first in the backward pass, before `rows`.
        rows: (rows a sample, most at once, values of a row) of each head that works through rows, such as pixels, in chunks.
        pending: of each stack, gradients outside the blocks that lie there through its backward pass: (of parameters; values a sample, of
            tokens whose maker comes later).
        embedding: what runs once more for each micro-batch of a step that has several, without gradients, where the loss compares samples
            across them (`frontier.models.peers.ComparesSamples`).
        outside: the names of what lies outside the blocks.
    """

    name: WorkloadName
    stacks: tuple[Stack, ...]
    parameters: int
    root_parameters: int
    flops: int
    outside_flops: int
    outside_values: tuple[int, ...]
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
    pending: tuple[tuple[int, int], ...] = ()
    embedding: Embedding | None = None
    outside: str = ""

    @property
    def blocks(self) -> int:
        return sum(stack.blocks for stack in self.stacks)

    def compared(self, accumulation: int) -> tuple[tuple[Stack, ...], int]:
        """(stacks, products outside the blocks) that run once more for each of so many micro-batches of a step."""
        if self.embedding is None or accumulation == 1:
            return (), 0
        return self.stacks[: self.embedding.stacks], self.embedding.outside_flops
