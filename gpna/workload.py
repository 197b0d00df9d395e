"""What a model asks of a device for a sample, for `frontier plan`: the stack as blocks, everything else as the part outside of them.

Values are numbers in the computing precision that autograd keeps, all tokens of a sample being there; means over the sources by their
shares of a batch. N tokens of which the model sees n (all without masking), C wide; M latents, D wide:

* tokenizer: what its convolutions keep (`stem_values`);
* input attention: token and its norm 2 C, key and value 2 D a seen token; result, projection's input, sum, norm and MLP 12 D a latent;
* a head: norm, keys and values of the latents 3 M D a cross-attention, and its queries' rows (`row_values`).

`tests/profiling/predict/test_gpna.py` holds them against a pass on meta.
"""

from __future__ import annotations

from typing import Any

from frontier.models.workload import Stack, Workload
from gpna.counting import forward, kept, parts
from gpna.head_sections import PixelTask, TaskSection
from gpna.model import GPNA, GPNAConfig
from gpna.sensors import InputSpec
from gpna.stems import STRIDES, shapes

MOVES = 5
"""Of each kept value: written and read in the forward pass, read in the backward pass, its gradient written and read. Assumed."""


def workload(module: GPNA) -> Workload:
    """Of a module, on whatever device."""
    config, size = module.config, module.config.size
    latents = size.latents * size.width
    stack = Stack(size.depth, size.latents, size.width, size.heads, 4 * size.width, "plain")
    inside = {id(p) for p in module.blocks.parameters()}
    root = tuple(tuple(p.shape) for p in module.parameters() if id(p) not in inside)
    parameters = sum(p.numel() for p in module.parameters())
    shares = {name: source.per_batch for name, source in config.sources.items()}

    def mean(values: dict[str, int]) -> int:
        return round(sum(values[name] * share for name, share in shares.items()) / sum(shares.values()))

    ingoing = {name: before(config, name) for name in shares}
    outgoing = {name: after(config, name) for name in shares}
    hidden = {name: masked(config, name) for name in shares}
    flops = mean({name: forward(config, name) for name in shares})
    kept_before, kept_tasks, kept_masked = (
        mean({name: found[name][0] for name in shares}) for found in (ingoing, outgoing, hidden)
    )
    kept_after = kept_tasks + kept_masked
    return Workload(
        name="gpna",
        stacks=(stack,),
        parameters=parameters,
        root_parameters=parameters - stack.blocks * stack.block_parameters,
        flops=flops,
        outside_flops=flops - mean({name: parts(config, name)["stack"] for name in shares}),
        outside_values=(kept_before, kept_after + 2 * latents),
        loss_values=mean({name: outgoing[name][1] + hidden[name][1] for name in shares}),
        root_shapes=root,
        buffer_values=sum(b.numel() for b in module.buffers()),
        tokens=size.latents,
        image_size=None,
        outside_passes=3.0,
        outside_moved=MOVES * (kept_before + kept_after),
        before_working=(
            mean({n: f[1] for n, f in ingoing.items()}),
            mean({n: f[2] - kept_before for n, f in ingoing.items()}),
        ),
        after_working=5 * latents,
        after_first=kept_masked,
        rows=tuple(row for name in shares for row in chunked(config, name)),
        outside="tokenizer, input attention, heads",
    )


def before(config: GPNAConfig, source: str) -> tuple[int, int, int]:
    """(kept, beyond that in the forward pass, the most in the backward pass) of a sample before the first block."""
    size, specs = config.size, list(config.sources[source].inputs.values())
    latents = size.latents * size.width
    tokens, seen = sum(s.tokens for s in specs), sum(kept(config, s) for s in specs)
    stems = sum(stem_values(s, config.tokens.hidden) for s in specs)
    # Tokens lie source after source, input after input: those of a sample are gathered unless they are all of its only input.
    gathered = config.masked is not None or len(specs) > 1
    holds = stems + seen * (2 * size.token_width + 2 * size.width) + 12 * latents
    copies = size.token_width * (tokens if gathered else 0)
    # Keys, values, their gradients apart and together; then the gradient of all tokens.
    attention = stems + seen * ((3 if gathered else 2) * size.token_width + 4 * size.width) + 3 * latents
    scattered = stems + (seen + 2 * tokens) * size.token_width
    return holds, copies + 2 * latents, max(attention, scattered)


def after(config: GPNAConfig, source: str) -> tuple[int, int]:
    """(kept, of the loss) of a sample by its tasks, beside the norm of its latents and what is chunked."""
    size = config.size
    latents = size.latents * size.width
    values = loss = 0
    for task in _tasks(config, source):
        values += 3 * latents * getattr(task, "layers", 1)
        if isinstance(task, PixelTask):
            loss += _pixels(task) * (getattr(task, "classes", None) or 1)
        else:
            values += _rows(task) * row_values(task, size.width, getattr(task, "classes", None) or 1)
    return values, loss


def masked(config: GPNAConfig, source: str) -> tuple[int, int]:
    """(kept, of the loss) of a sample by the prediction of hidden tokens, which comes last."""
    settings, size = config.masked, config.size
    if settings is None:
        return 0, 0
    hidden = settings.hidden or size.width
    specs = config.sources[source].inputs.values()
    values = settings.layers * (3 + 2 * len(specs)) * size.latents * size.width
    loss = 0
    for spec in specs:
        asked = min(settings.queries, max(1, spec.tokens - kept(config, spec)))
        values += asked * (size.token_width + settings.layers * (6 * size.width + 2 * hidden) + spec.patch_values)
        loss += 2 * asked * spec.patch_values
    return values, loss


def chunked(config: GPNAConfig, source: str) -> list[tuple[int, int, int]]:
    """See `Workload.rows`; a source's rows count by its share of a batch."""
    share = config.sources[source].per_batch / sum(s.per_batch for s in config.sources.values())
    return [
        (
            round(_pixels(task) * share),
            task.chunk,
            row_values(task, config.size.width, getattr(task, "classes", None) or 1),
        )
        for task in _tasks(config, source)
        if isinstance(task, PixelTask)
    ]


def row_values(task: TaskSection, width: int, outputs: int) -> int:
    """Values that a head keeps of a query of a sample."""
    hidden = getattr(task, "hidden", None) or width
    own = 3 * width + 2 * hidden + outputs
    if isinstance(task, PixelTask) and task.train_pixels is not None:  # other queries in each sample
        own += task.features + 3 * width
    return own + (getattr(task, "layers", 1) - 1) * (6 * width + 2 * hidden)


def stem_values(spec: InputSpec, hidden: tuple[int, int]) -> int:
    """What the three convolutions over an input keep: operands of each, and GELU's."""
    steps, _, _, bands = spec.grid
    rows, columns = spec.sides
    strides = STRIDES[spec.footprint]
    turn = strides.count(2) - 1
    total, channels = 0, 1
    for layer, (stride, shape) in enumerate(zip(strides, shapes(spec.form, hidden)[::2], strict=True)):
        tall, wide = shape[2:]
        # The last strided layer takes a padded copy.
        more = [1 + side % 2 if layer == turn and kernel > 1 else 0 for side, kernel in ((rows, tall), (columns, wide))]
        total += channels * (rows + more[0]) * (columns + more[1])
        rows, columns = (-(-n // (stride if kernel > 1 else 1)) for n, kernel in ((rows, tall), (columns, wide)))
        channels = shape[0]
        total += channels * rows * columns  # GELU's operand; of the last layer what the projection takes
    return steps * bands * total


def _tasks(config: GPNAConfig, source: str) -> list[Any]:
    return [task for task in config.tasks.values() if task.source == source]


def _pixels(task: PixelTask) -> int:
    rows, columns = task.side()
    return task.train_pixels or rows * columns


def _rows(task: Any) -> int:
    return len(task.texts) if task.head == "text" else 1
