"""The phases of a step of a masked autoencoder by formula: no PyTorch, some microseconds a unit. `frontier.train.pass_on_meta` finds the same
by tracing; the test compares the two.

In units of x = batch * tokens * width * bytes, with h = hidden / width (a gated MLP in brackets), a pre-norm block

|                                       | none          | selective     | full          |
|---------------------------------------|---------------|---------------|---------------|
| keeps for its backward pass           | 8 + 2h (4h)   | 7 + h (2h)    | 1             |
| has alive at most in its forward pass | 9 + 2h (4h)   | 8 + 2h (7+4h) | 2 + 2h (3h)   |
| adds at most in its backward pass     | h (2h)        | 2 + 2h (4h)   | 7 + 3h (6h)   |

and there the gradient of its last matrix product, with all of its gradients at the end. Kept are the inputs of both norms (1 each; the
block's own output counts here, its input with what came before) and their outputs (1, 1), queries, keys and values (3), the attention's
output (1), the hidden layer before and after the activation (2h).
"""

from __future__ import annotations

from dataclasses import dataclass

from frontier.models.presets import DecoderShape, ViTShape
from frontier.parallel.footprint import ROOT, Phase, Shapes, count


@dataclass(frozen=True)
class Block:
    """Sizes of one block on one rank.

    Attributes:
        tokens: of a sample, as they enter.
        queries: of a sample, as they leave (a decoder's last block drops the others).
    """

    width: int
    hidden: int
    tokens: int
    queries: int
    gated: bool = False

    def shapes(self) -> Shapes:
        """Of its parameters."""
        d, h = self.width, self.hidden
        matrices = [(3 * d, d), (d, d), *([(h, d)] * (2 if self.gated else 1)), (d, h)]
        return [*matrices, *((rows,) for rows, _ in matrices), *([(d,)] * 4)]

    def alive(self, checkpointing: str) -> tuple[float, float, float]:
        """(kept, at most in the forward pass, added at most in the backward pass) in numbers of a sample: the table above."""
        x, q = float(self.tokens * self.width), float(self.queries * self.width)
        f = self.queries * self.hidden * (2.0 if self.gated else 1.0)
        if checkpointing == "none":
            return 4 * x + 4 * q + 2 * f, 4 * x + 5 * q + 2 * f, f
        if checkpointing == "selective":
            return 4 * x + 3 * q + f, 5 * x + 2 * q + 2 * f + (0 if self.gated else q), 2 * q + 2 * f
        return q, 2 * q + (1.5 if self.gated else 2.0) * f, 3 * x + 4 * q + 3 * f


def mae_blocks(encoder: ViTShape, decoder: DecoderShape, patches: int, kept: int) -> list[Block]:
    """All blocks of an MAE on images of so many patches, of which the encoder sees `kept`."""
    first = Block(encoder.width, encoder.mlp_hidden, 1 + kept, 1 + kept, encoder.mlp == "gated")
    second = Block(decoder.width, 4 * decoder.width, 1 + patches, 1 + patches)
    last = Block(decoder.width, 4 * decoder.width, 1 + patches, patches - kept)
    return [first] * encoder.depth + [second] * (decoder.depth - 1) + [last]


def mae_root(encoder: ViTShape, decoder: DecoderShape, patch_values: int) -> Shapes:
    """Shapes of the parameters outside of the blocks: embedding, [cls], norms, decoder embedding, mask token, prediction."""
    d, w = encoder.width, decoder.width
    return [(d, patch_values), (w, d), (patch_values, w), (patch_values,), *([(d,)] * 4), *([(w,)] * 4)]


def mae_phases(
    encoder: ViTShape,
    decoder: DecoderShape,
    patches: int,
    kept: int,
    patch_values: int,
    batch: int,
    precision: str,
    checkpointing: str,
    gradients: bool = True,
) -> list[Phase]:
    """Phases of a micro-batch of an MAE, for `frontier.parallel.footprint.walk`.

    Args:
        patch_values: numbers of a patch, channels * patch**2.
        gradients: as in `frontier.train.pass_on_meta.trace`.
    """
    size = 2 if precision == "bf16" else 4
    masked = patches - kept
    blocks = mae_blocks(encoder, decoder, patches, kept)
    held = [
        (batch * size * a, batch * size * b, batch * size * c) for a, b, c in (x.alive(checkpointing) for x in blocks)
    ]
    outputs = [float(batch * size * b.queries * b.width) for b in blocks]
    weights = [float(size * count(b.shapes())) if gradients else 0.0 for b in blocks]
    pixels = 4.0 * batch * patches * patch_values  # in float32, until the loss is there
    seen = 4.0 * batch * kept * patch_values  # likewise, until the encoder is through
    cast = batch * kept * patch_values * size if size == 2 else 0.0  # what the embedding keeps of it
    enter = float(batch * size * (1 + kept) * encoder.width)
    phases: list[Phase] = []

    def add(kind: str, unit: int, start: float, peak: float) -> None:
        phases.append(Phase(kind, unit, start, peak))  # type: ignore[arg-type]

    level = pixels + seen + cast + enter
    add("forward", ROOT, 0.0, level + enter)
    for number, (keeps, forward, _) in enumerate(held):
        if number == encoder.depth:
            # Final norm, embedding of the decoder, its tokens in order.
            tokens = float(batch * size * (1 + patches) * decoder.width)
            level += enter + tokens - (seen if size == 2 else 0.0)
            add("forward", ROOT, level, level + tokens)
        add("forward", number, level, level + forward)
        level += keeps
    # Final norm; prediction, target and its normalised form in float32.
    values = 4.0 * batch * masked * patch_values
    level += outputs[-1] + 2 * values
    add("forward", ROOT, level, level + values * (1 + size / 4))
    level -= pixels
    add("backward", ROOT, level, level + values * (1 + (size / 4 if size == 2 else 0)))
    level -= 2 * values  # the gradient of the last block's output has taken the place of what the norm kept
    for number in reversed(range(len(blocks))):
        block, (keeps, _, working) = blocks[number], held[number]
        if number == encoder.depth - 1:
            # The gradient of the encoder's output takes the place of what its norm kept.
            level -= float(batch * size * (1 + patches) * decoder.width) * 2
            add("backward", ROOT, level, level + enter)
        product = float(size * block.width * block.hidden) if gradients else 0.0
        # Recomputed to the end, the block then goes back in order; its gradients come as its activations go.
        add("backward", number, level, max(level + working + product, level - keeps + weights[number]))
        level -= keeps
        if number == len(blocks) - 1:
            level += float(batch * size * block.tokens * block.width) - outputs[-1]
        add("reduce", number, level + weights[number], level + weights[number])
    add("backward", ROOT, level, level + enter)
    add("reduce", ROOT, 0.0, 0.0)
    return phases
