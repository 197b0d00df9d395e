"""Parameters and floating-point operations from sizes alone. No tensor is made.

Convention of FLOPs: matrix products only, 2 a multiply-add, backward = 2 x forward, no recomputation counted.
"""

from dataclasses import dataclass

from frontier.models.mae_config import MAEConfig
from frontier.models.presets import ViTShape


def block_parameters(width: int, hidden: int, mlp: str = "plain") -> int:
    """qkv and output projection (4 D^2 + 4 D), MLP of two or three matrices with biases, two norms (4 D)."""
    up = 2 if mlp == "gated" else 1
    return 4 * width * width + 4 * width + up * (width * hidden + hidden) + hidden * width + width + 4 * width


def cross_parameters(width: int) -> int:
    """What a cross-attention adds to a block: q, k and v without bias and the output projection (4 D^2 + D), one norm for both streams."""
    return 4 * width * width + 3 * width


def encoder_parameter_count(shape: ViTShape, channels: int = 3, position_image_size: int = 0) -> int:
    """Trained parameters of the encoder: patch embedding, [cls], blocks, final norm.

    Our positions are fixed. Published counts include a table of them: `position_image_size`, e.g. 224,
    adds it.
    """
    width = shape.width
    embedding = channels * shape.patch**2 * width + width
    if position_image_size:
        embedding += (1 + (position_image_size // shape.patch) ** 2) * width
    return embedding + width + shape.depth * block_parameters(width, shape.mlp_hidden, shape.mlp) + 2 * width


def parameter_count(config: MAEConfig) -> int:
    """Trained parameters of encoder and decoder."""
    width, decoder = config.encoder.width, config.decoder.width
    head = (width * decoder + decoder) + decoder + 2 * decoder + (decoder * config.patch_values + config.patch_values)
    blocks = config.decoder.depth * block_parameters(decoder, 4 * decoder)
    return encoder_parameter_count(config.encoder, config.channels) + head + blocks


@dataclass(frozen=True)
class Flops:
    """Forward FLOPs of one image by part."""

    encoder: int
    decoder: int
    embedding: int
    """The part of `encoder` that has no gradient for its input: the patch embedding."""

    @property
    def forward(self) -> int:
        return self.encoder + self.decoder

    recomputed: int = 0
    """What activation checkpointing adds to the backward pass."""

    @property
    def hardware(self) -> int:
        """What forward and backward run: the backward pass twice the forward one, but for the input of the embedding, plus
        what is computed again. For HFU; what fused attention kernels recompute inside is left out.
        """
        return 3 * self.forward - self.embedding + self.recomputed

    @property
    def step(self) -> int:
        """Forward and backward by the convention, 3 x forward."""
        return 3 * self.forward


def block_flops(tokens: int, width: int, hidden: int, mlp: str = "plain", queries: int | None = None) -> int:
    """Forward FLOPs of one block on `tokens` tokens of which the last `queries` (None: all) go on."""
    queries = tokens if queries is None else queries
    matrices = 3 if mlp == "gated" else 2
    products = tokens * 3 * width * width + queries * (width * width + matrices * width * hidden)
    return 2 * (products + 2 * tokens * queries * width)


def cross_flops(tokens: int, context: int, width: int) -> int:
    """Forward FLOPs of a cross-attention of `tokens` tokens to `context` tokens: q and output, k and v, scores and their product."""
    return 2 * (2 * tokens * width * width + 2 * context * width * width + 2 * tokens * context * width)


def flops_per_image(config: MAEConfig, executed: bool = False, checkpointing: str = "none") -> Flops:
    """FLOPs of one masked image.

    By default the *reference formulation*: patch embedding of kept patches and prediction of masked patches
    (the rest enters no loss), and every block on all of its tokens. This is the count for throughput in
    FLOP/s and for MFU. `executed` counts what `MAE.forward` runs: its last decoder block goes on with masked
    tokens only. With activation `checkpointing` "full" every block runs again in the backward pass but for its last
    product, of which nothing is needed there (PyTorch stops before it); "selective" keeps all products.
    """
    shape, decoder = config.encoder, config.decoder
    tokens, masked = 1 + config.kept, config.patches - config.kept
    embedding = 2 * config.kept * config.patch_values * shape.width
    encoder = embedding + shape.depth * block_flops(tokens, shape.width, shape.mlp_hidden, shape.mlp)
    hidden, everything = 4 * decoder.width, 1 + config.patches
    head = 2 * (tokens * shape.width * decoder.width + masked * decoder.width * config.patch_values)
    queries = masked if executed else everything
    last = block_flops(everything, decoder.width, hidden, queries=queries)
    blocks = (decoder.depth - 1) * block_flops(everything, decoder.width, hidden) + last
    recomputed = 0
    if checkpointing == "full":
        last_products = shape.depth * tokens * shape.width * shape.mlp_hidden
        last_products += ((decoder.depth - 1) * everything + queries) * decoder.width * hidden
        recomputed = encoder - embedding + blocks - 2 * last_products
    return Flops(encoder=encoder, decoder=head + blocks, embedding=embedding, recomputed=recomputed)
