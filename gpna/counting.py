"""Floating-point operations of a sample, from sizes alone: products and convolutions, two operations a multiply-add.

forward = stem + token projections + input attention + stack + heads; a step is three times that, the usual convention (each product
of the forward pass has two in the backward pass). Encodings, norms, softmax and activations are not counted. A batch of several sources
counts as the mean over their shares.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from frontier.models.counting import block_flops
from gpna.head_sections import SMALLEST, STATISTICS, MaskedTask, PixelTask, Task
from gpna.sensors import InputSpec
from gpna.stems import STRIDES, shapes

if TYPE_CHECKING:
    from gpna.model import GPNAConfig


def flops_per_sample(config: GPNAConfig) -> int:
    """Forward and backward, mean over the sources by their shares of a batch."""
    total = sum(source.per_batch for source in config.sources.values())
    return round(3 * sum(forward(config, name) * s.per_batch for name, s in config.sources.items()) / total)


def forward(config: GPNAConfig, source: str) -> int:
    """Of a sample of `source` all of whose tokens are there."""
    return sum(parts(config, source).values())


def parts(config: GPNAConfig, source: str) -> dict[str, int]:
    """Forward operations of a sample of `source` by part: tokenizer, input, stack, heads."""
    size, specs = config.size, list(config.sources[source].inputs.values())
    tokens = sum(spec.tokens for spec in specs)
    seen = sum(kept(config, spec) for spec in specs)
    tokenizer = sum(stem_flops(spec, config.tokens.hidden) for spec in specs)
    tokenizer += 2 * tokens * config.tokens.hidden[1] * size.token_width
    heads = [head(config, task) for task in config.tasks.values() if task.source == source]
    if config.masked is not None:
        asked = [min(config.masked.queries, max(1, spec.tokens - kept(config, spec))) for spec in specs]
        widest = max(spec.patch_values for spec in specs)
        settings = config.masked
        widest += statistics_of(settings.texture, widest)
        heads.append(
            queries(config, sum(asked), size.token_width, widest, settings.layers, settings.hidden or size.width)
        )
    return {
        "tokenizer": tokenizer,
        "input": input_attention(seen, size.token_width, size.latents, size.width),
        "stack": size.depth * block_flops(size.latents, size.width, 4 * size.width, "plain"),
        "heads": sum(heads),
    }


def statistics_of(texture: float, values: int) -> int:
    """Statistics asked for beside so many values of a footprint."""
    return STATISTICS if texture and values >= SMALLEST else 0


def stem_flops(spec: InputSpec, hidden: tuple[int, int]) -> int:
    """Forward operations of the three convolutions over an input of a sample."""
    steps, _, _, bands = spec.grid
    rows, columns = spec.sides
    total = 0
    for stride, shape in zip(STRIDES[spec.footprint], shapes(spec.form, hidden)[::2], strict=True):
        tall, wide = shape[2:]
        rows, columns = (-(-n // (stride if size > 1 else 1)) for n, size in ((rows, tall), (columns, wide)))
        total += 2 * math.prod(shape) * rows * columns
    return steps * bands * total


def kept(config: GPNAConfig, spec: InputSpec) -> int:
    """Tokens of an input that the model sees."""
    return spec.tokens if config.masked is None else max(1, spec.tokens - round(spec.tokens * config.masked.ratio))


def input_attention(tokens: int, token_width: int, latents: int, width: int) -> int:
    """Keys and values of the tokens, scores and their product, output projection and MLP of the latents (queries: once a batch)."""
    projections = 2 * tokens * token_width * 2 * width
    attention = 4 * tokens * latents * width
    return projections + attention + 2 * latents * width * width + 2 * 2 * latents * width * 4 * width


def head(config: GPNAConfig, task: Task) -> int:
    """Forward operations of a task's head for a sample."""
    width = config.size.width
    hidden = getattr(task, "hidden", None) or width
    if isinstance(task, PixelTask):
        rows, columns = task.side()
        count = task.train_pixels or rows * columns
        outputs = getattr(task, "classes", None) or 1
        return queries(config, count, task.features, outputs, task.layers, hidden)
    if isinstance(task, MaskedTask):
        raise AssertionError("counted with the inputs")
    count = len(task.texts) if task.head == "text" else 1
    outputs = getattr(task, "classes", None) or getattr(task, "outputs", None) or 1
    return queries(config, count, 0, 1 if task.head == "text" else outputs, getattr(task, "layers", 1), hidden)


def queries(config: GPNAConfig, count: int, query_width: int, outputs: int, layers: int, hidden: int) -> int:
    """A decoder's: `count` queries on the latents."""
    latents, width = config.size.latents, config.size.width
    embedding = 2 * count * query_width * width
    each = 2 * count * width * width * 2 + 2 * latents * width * 2 * width + 4 * count * latents * width
    between = (layers - 1) * 4 * count * width * hidden
    return embedding + layers * each + between + 2 * count * hidden * (width + outputs)
