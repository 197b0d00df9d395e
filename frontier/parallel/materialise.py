"""meta -> memory: every rank computes its own piece of the same initial weights, without communication."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from frontier.models.init import initial_buffer, initial_value, parameter_generator


def local_piece(full: torch.Tensor, like: DTensor) -> torch.Tensor:
    """The part of `full` (global shape) that this rank holds of `like`."""
    shape, offset = compute_local_shape_and_global_offset(like.shape, like.device_mesh, like.placements)
    return full[tuple(slice(o, o + s) for o, s in zip(offset, shape, strict=True))]


def materialise(module: nn.Module, device: torch.device, home: torch.device, seed: int) -> None:
    """Allocate `module` (on meta, sharded or not) and fill it with the weights of `seed`: parameters on `home`, buffers on
    `device`.

    One whole parameter is held at a time, in host memory; each comes from its own generator, so the weights do not
    depend on the number of ranks or the order of parameters.
    """
    module.to_empty(device=home)
    for owner in module.modules():
        for name, buffer in owner.named_buffers(recurse=False):
            owner._buffers[name] = torch.empty_like(buffer, device=device)
    with torch.no_grad():
        for prefix, owner in module.named_modules():
            for name, parameter in owner.named_parameters(recurse=False):
                fqn = f"{prefix}.{name}" if prefix else name
                full = initial_value(owner, name, parameter_generator(seed, fqn))
                if isinstance(parameter, DTensor):
                    parameter.to_local().copy_(local_piece(full, parameter))
                else:
                    parameter.copy_(full)
            for name, buffer in owner.named_buffers(recurse=False):
                buffer.copy_(initial_buffer(owner, name))
