"""What a model asks of a device for a sample, for `frontier plan`: encoders, cross-encoders and decoder as stacks of blocks, the rest as the part
outside of them.

Numbers of values are what autograd keeps, in the computing precision, under the attention that a GPU takes (of `attention: eager`, which keeps
tables of pairs, it says too little). With n tokens that the first sensor's encoder keeps, D wide, n_s of the sensor s of P_s values a patch, L
patches of the first sensor and V values of all sensors in each:

* an encoder: its patches n_s P_s before its blocks; after them the operand and the result of its norm, 2 n_s D;
* a cross-encoder: the operand of its norm, n D; the result is the next one's input;
* decoder: operand and result of its norm, the predictions L V; the loss: targets and both sides of what is hidden, float32.

Left out: places of tokens and log-sum-exps of attention (8 and 4 x heads bytes a token), and the unit vectors of the global batch, 4 S D bytes a sample
of it for S sensors. `tests/profiling/predict/test_scale_alibi.py` holds it against a pass on meta.
"""

from __future__ import annotations

from torch import nn

from frontier.models.workload import Embedding, Workload
from scale_alibi.counting import cell_values, embedded_values, embedding_flops, forward_flops, stacks
from scale_alibi.model import ScaleALiBi
from scale_alibi.sizes import ScaleALiBiConfig


def workload(module: ScaleALiBi) -> Workload:
    """Of a module, on whatever device."""
    config = module.config
    parts = stacks(config)
    every = tuple(stack for of in parts.values() for stack in of)
    in_blocks = {part: sum(stack.blocks * stack.block_flops for stack in of) for part, of in parts.items()}
    inside = {id(p) for unit in module.shard_units() for p in unit.parameters()}
    root = tuple(tuple(p.shape) for p in module.parameters() if id(p) not in inside)
    parameters = sum(p.numel() for p in module.parameters())
    flops = sum(forward_flops(config).values())
    compared = Embedding(len(parts["encoders"]), embedding_flops(config) - in_blocks["encoders"])
    return Workload(
        name="scale_alibi",
        stacks=every,
        parameters=parameters,
        root_parameters=parameters - sum(stack.blocks * stack.block_parameters for stack in every),
        flops=flops,
        outside_flops=flops - sum(in_blocks.values()),
        outside_values=kept_outside(config),
        loss_values=loss_values(config),
        root_shapes=root,
        buffer_values=sum(b.numel() for b in module.buffers()),
        tokens=sum(stack.tokens for stack in parts["encoders"]),
        image_size=None,
        pending=pending(module),
        embedding=compared if config.contrastive else None,
        outside="embedding of patches, summaries, projections, prediction",
    )


def kept_outside(config: ScaleALiBiConfig) -> tuple[int, ...]:
    """See `Workload.outside_values`."""
    width, names = config.size.width, list(config.sensors)
    tokens = {name: config.kept(name) * width for name in names}
    first = tokens[names[0]]
    before = [embedded_values(config, name) for name in names]
    for place, name in enumerate(names[:-1]):
        before[place + 1] += 2 * tokens[name]
    # Mean, norm, and both sides of GELU of each summary.
    after = 2 * tokens[names[-1]] + (len(names) * 10 * width if config.contrastive else 0)
    if config.decoder is None:
        return (*before, after)
    # The first sensor's tokens are the input of the first cross-encoder, which counts them.
    joint = [after - first, *[first] * (len(names) - 2)]
    cells = config.grid(names[0]) ** 2
    predicted = cells * (2 * config.decoder.width + cell_values(config)) + finer_values(config)
    return (*before, *joint, 2 * first, predicted)


def loss_values(config: ScaleALiBiConfig) -> int:
    """See `Workload.loss_values`, which counts each twice: as targets are made, the patches and those normalised, of "joint" also the
    cells of finer sensors and all together; or later the targets and both sides of the hidden ones.
    """
    if config.decoder is None:
        return 0
    every = sum(config.grid(name) ** 2 * config.patch_values(name) for name in config.sensors)
    hidden = every - sum(embedded_values(config, name) for name in config.sensors)
    made = 2 * every if config.norm_scope == "modality" else 3 * every + finer_values(config)
    return max(made, every + 2 * hidden) // 2


def finer_values(config: ScaleALiBiConfig) -> int:
    """Of the sensors whose patches are smaller on the ground than the first one's: bringing them into cells, or back, is a copy."""
    return sum(config.grid(n) ** 2 * config.patch_values(n) for n in config.sensors if config.ratio(n) > 1)


def pending(module: ScaleALiBi) -> tuple[tuple[int, int], ...]:
    """See `Workload.pending`. Gradients of a context come from every block of its cross-encoder; those of an encoder's tokens wait for the
    encoders after it.
    """
    config = module.config
    tokens = [config.kept(name) * config.size.width for name in config.sensors]

    def count(*parts: nn.Module | None) -> int:
        return sum(p.numel() for part in parts if part is not None for p in part.parameters())

    decoder = module.decoder
    contrast = count(module.summaries, module.projections)
    if decoder is None:
        return tuple((contrast, sum(tokens[:place])) for place in range(len(tokens)))
    late, after = count(decoder.pred), count(decoder) - count(decoder.blocks)
    encoders = [(contrast + after, sum(tokens[:place])) for place in range(len(tokens))]
    return (*encoders, *[(after, context) for context in tokens[1:]], (late, 0))
