"""Attention that looks away from what is far on the ground: softmax(q k^T / sqrt(d) - m g^power) v.

| backend   | what runs                                                          | bias held at once             | where     |
|-----------|--------------------------------------------------------------------|-------------------------------|-----------|
| eager     | the formula in float32, the reference                              | all, and the probabilities    | anywhere  |
| sdpa      | PyTorch's fused kernels with a mask, made again for the backward    | a chunk of queries            | anywhere  |
| products  | matrix products, chunk by chunk (`attention_products`)             | a chunk of queries, no heads  | CPU       |
| flex      | FlexAttention, compiled (`attention_flex`)                         | none                          | GPU       |
| augmented | plain fused attention with further dims (`attention_gaussian`)     | none                          | power 2   |
"""

from __future__ import annotations

import functools
from typing import cast

import torch
from torch import Tensor

from frontier.errors import UserError
from frontier.models.attention import AttentionOnMeta, counted_on_meta
from scale_alibi.attention_flex import flex
from scale_alibi.attention_gaussian import augmented, with_extra_dims
from scale_alibi.attention_products import products
from scale_alibi.attention_table import chunk_length, eager, mask_dtype, row_length, sdpa
from scale_alibi.geometry import slopes as head_slopes

BACKENDS = {"eager": eager, "sdpa": sdpa, "products": products, "flex": flex, "augmented": augmented}

FEW_SCORES = 128 * 128
"""Scores of a head and sample up to which float32 on a CPU takes `sdpa`: smaller matrix products cost more than they save."""


def choose(q: Tensor, k: Tensor, power: int, device_type: str) -> str:
    """The backend that "auto" means, by what was measured (docs/scale_alibi_attention.md).

    CPU: `sdpa` in float32 up to `FEW_SCORES`, else `products`. GPU: `augmented` for power 2, which needs no mask; for power 1 `sdpa`
    while the mask of all queries has at most `attention_table.MASK_BYTES`, else `flex`.
    """
    if device_type == "cpu":
        few = q.dtype == torch.float32 and q.shape[2] * k.shape[2] <= FEW_SCORES
        return "sdpa" if few and power == 1 else "products"
    if power == 2:
        return "augmented"
    return "sdpa" if chunk_length(q, k, device_type) == q.shape[2] else "flex"


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_at: Tensor,
    k_at: Tensor,
    slopes: Tensor,
    *,
    power: int = 1,
    backend: str = "auto",
) -> Tensor:
    """out_i = sum_j softmax_j(q_i.k_j / sqrt(d) - m_h |q_at_i - k_at_j|^power) v_j.

    Under autocast q, k and v are taken in its precision; places and slopes stay in float32. On meta inside `fused_on_meta`
    nothing is computed and what the backend keeps is kept.

    Args:
        q: [B, H, N, d], float32 or bfloat16.
        k, v: [B, H, M, d] of the same precision; M may differ from N.
        q_at, k_at: places [B or 1, N, 2] and [B or 1, M, 2], float32, in units of the reference length.
        slopes: m [H], float32, positive (`scale_alibi.geometry.slopes`).
        power: 1, Scale-ALiBi, or 2, a Gaussian of the distance.
        backend: a key of `BACKENDS`, or "auto" (`choose`).

    Returns:
        [B, H, N, d]. Gradients flow to q, k and v.

    Raises:
        UserError: for a backend that is not one, or that cannot work on the device or with the power.
    """
    device_type = q.device.type if q.device.type != "meta" else counted_on_meta()
    if backend == "auto":
        backend = choose(q, k, power, device_type) if device_type else "eager"
    check_possible(backend, power, device_type)
    if q.device.type == "meta" and device_type:
        return _on_meta(q, k, v, q_at, k_at, slopes, power, backend, device_type)
    if torch.is_autocast_enabled(q.device.type):
        dtype = torch.get_autocast_dtype(q.device.type)
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    with torch.autocast(q.device.type, enabled=False):  # what is in float32 from here on has its reasons
        return BACKENDS[backend](q, k, v, q_at, k_at, slopes, power)


def check_possible(backend: str, power: int, device_type: str) -> None:
    """Refuse a backend that does not exist, or cannot work there.

    Raises:
        UserError: with the mend.
    """
    where = f"model.attention={backend}"
    if backend not in ("auto", *BACKENDS):
        raise UserError(f"{where}: no such backend: set one of auto, {', '.join(BACKENDS)}")
    if backend == "augmented" and power != 2:
        raise UserError(f"{where}: only position gaussian is a product of further dims: set model.attention=auto")
    if backend == "flex" and device_type == "cpu":
        raise UserError(f"{where}: FlexAttention has no backward pass on a CPU: set model.attention=auto")
    if backend == "products" and device_type not in ("cpu", ""):
        raise UserError(f"{where}: it is made for CPUs, and this device is {device_type}: set model.attention=auto")


def _on_meta(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_at: Tensor,
    k_at: Tensor,
    slopes: Tensor,
    power: int,
    backend: str,
    device_type: str,
) -> Tensor:
    """Keeps what the backend keeps on such a device, for those that count memory."""
    if backend in ("eager", "products"):  # both run on meta as they are
        return BACKENDS[backend](q, k, v, q_at, k_at, slopes, power)
    logs = q.new_empty(q.shape[:3], dtype=torch.float32)
    if backend == "augmented":
        dim = q.shape[-1]
        q, k, v = with_extra_dims(q, k, v, q_at, k_at, slopes, device_type)
        return cast(Tensor, AttentionOnMeta.apply(q, k, v, logs))[..., :dim]
    if backend == "flex":
        return cast(Tensor, AttentionOnMeta.apply(q, k, v, logs))
    length = chunk_length(q, k, device_type)
    mask = q.new_empty((*q.shape[:2], length, row_length(k.shape[2])), dtype=mask_dtype(q, device_type))
    kept = (logs, mask) if length == q.shape[2] else ()  # of a chunk the mask is gone with it
    return cast(Tensor, AttentionOnMeta.apply(q, k, v, *kept))


@functools.cache
@torch.inference_mode(False)  # it needs gradients, whoever asks
def check_backend(device: torch.device, dtype: torch.dtype, backend: str, power: int = 1) -> None:
    """Compare output and gradients of a backend with the float32 formula on a small random problem: a kernel that is wrong on some
    device or driver is found before a run, not after. For "auto", all that it may choose there. Once for the same arguments in a process.

    Raises:
        UserError: where they differ by more than the precision explains, or the backend fails.
    """
    if backend == "auto":
        for name in _choices(device.type, dtype, power):
            check_backend(device, dtype, name, power)
        return
    check_possible(backend, power, device.type)
    random = torch.Generator().manual_seed(0)
    batch, heads, queries, keys, dim = 2, 3, 37, 150, 48
    q, grad = (torch.randn(batch, heads, queries, dim, generator=random) for _ in range(2))
    k, v = (torch.randn(batch, heads, keys, dim, generator=random) for _ in range(2))
    q_at, k_at = 4 * torch.randn(batch, queries, 2, generator=random), 4 * torch.randn(1, keys, 2, generator=random)
    places = q_at.to(device), k_at.to(device), head_slopes(heads).to(device)
    given = [t.to(device, dtype) for t in (q, k, v, grad)]

    def results(name: str, tensors: list[Tensor]) -> list[Tensor]:
        q, k, v, grad = (t.detach().requires_grad_() for t in tensors)
        out = attend(q, k, v, *places, power=power, backend=name)
        return [t.detach().float() for t in (out, *torch.autograd.grad(out, (q, k, v), grad))]

    mend = "set model.attention=" + ("sdpa" if backend != "sdpa" else "eager")
    where = f"model.attention={backend} on {device} in {str(dtype).removeprefix('torch.')}"
    with torch.autocast(device.type, enabled=False), torch.enable_grad():
        right = results("eager", [t.float() for t in given])
        try:
            found = results(backend, given)
        except Exception as error:  # of a compiler or a driver: whatever it is, a run cannot use this backend
            told = str(error).strip().split("\n")[0][:200]
            raise UserError(f"{where} fails ({type(error).__name__}: {told}): {mend}") from error
    allowed = 1e-3 if dtype == torch.float32 else 3e-2
    for name, a, b in zip(("output", "gradient of q", "gradient of k", "gradient of v"), found, right, strict=True):
        off = float((a - b).norm() / b.norm())
        if not off <= allowed:
            raise UserError(f"{where} gives wrong results here ({name} off by {off:.1e} of its norm): {mend}")


def _choices(device_type: str, dtype: torch.dtype, power: int) -> tuple[str, ...]:
    """All that `choose` may answer."""
    if device_type == "cpu":
        return ("sdpa", "products") if dtype == torch.float32 and power == 1 else ("products",)
    return ("augmented",) if power == 2 else ("sdpa", "flex")
