"""The MAE initialisation, one random stream a parameter: the same weights at every world size.

Every parameter is drawn from its own CPU generator, seeded by (seed, fully qualified name), so an engine that
holds only shards can make each full value, keep its slice and drop the rest, in any order.
"""

import hashlib
import math

import torch
from torch import Tensor, nn

WRAPPERS = ("_checkpoint_wrapped_module.", "_orig_mod.", "_fsdp_wrapped_module.", "module.")
"""Parts that wrappers (activation checkpointing, compile, FSDP, DDP) put into names."""


def clean_name(name: str) -> str:
    """`name` of a parameter or module without the parts that wrappers add."""
    for part in WRAPPERS[:-1]:
        name = name.replace(part, "")
    return name.removeprefix(WRAPPERS[-1])


def parameter_generator(seed: int, name: str) -> torch.Generator:
    """A CPU generator seeded by 63 bits of sha256("seed:name"); wrappers in `name` do not matter."""
    digest = hashlib.sha256(f"{seed}:{clean_name(name)}".encode()).digest()
    return torch.Generator(device="cpu").manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def xavier(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """A weight [out, in], uniform within sqrt(6 / (in + out)), float32 on the CPU."""
    bound = math.sqrt(6.0 / (shape[0] + shape[1]))
    return torch.empty(shape, device="cpu").uniform_(-bound, bound, generator=generator)


def initial_value(module: nn.Module, local_name: str, generator: torch.Generator) -> Tensor:
    """The full float32 value, on the CPU, of the parameter `local_name` that `module` itself owns.

    Linear weights [out, in] are xavier-uniform, biases 0, LayerNorm 1 and 0. A module with parameters of
    another kind has a method `initial_value(local_name, generator)`. The shape is the global one where the
    parameter is sharded.
    """
    own = getattr(module, "initial_value", None)
    if own is not None:
        return own(local_name, generator).contiguous()  # engines cut it into bytes
    shape = getattr(module, local_name).shape
    if isinstance(module, nn.LayerNorm):
        return torch.full(shape, 1.0 if local_name == "weight" else 0.0, device="cpu")
    if isinstance(module, nn.Linear):
        if local_name == "bias":
            return torch.zeros(shape, device="cpu")
        return xavier((shape[0], shape[1]), generator)
    raise TypeError(f"no initial value is known for {local_name} of {type(module).__name__}")


def initial_buffer(module: nn.Module, local_name: str) -> Tensor:
    """The value, on the CPU, of the fixed buffer `local_name` that `module` itself owns."""
    own = getattr(module, "initial_buffer", None)
    if own is not None:
        return own(local_name)
    raise TypeError(f"no initial value is known for buffer {local_name} of {type(module).__name__}")


@torch.no_grad()
def initialise(model: nn.Module, seed: int) -> None:
    """Fill all parameters and buffers of an unsharded, materialised `model` in place."""
    for prefix, module in model.named_modules():
        dot = f"{prefix}." if prefix else ""
        for name, parameter in module.named_parameters(recurse=False):
            parameter.copy_(initial_value(module, name, parameter_generator(seed, dot + name)))
        for name, buffer in module.named_buffers(recurse=False):
            buffer.copy_(initial_buffer(module, name))
