"""CROMA written out from its description, for comparison: five state dicts of released names, in plain torch."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]
PATCH = 8


def random_weights(width: int, depth: int, seed: int = 0) -> dict[str, State]:
    """The names and shapes of such a file; the values are large enough for every part to matter."""
    generator = torch.Generator().manual_seed(seed)

    def linear(inside: int, outside: int, bias: bool = True) -> State:
        weight = torch.randn(outside, inside, generator=generator) / math.sqrt(inside)
        return {"weight": weight, "bias": torch.randn(outside, generator=generator) / 3} if bias else {"weight": weight}

    def norm() -> State:
        weight, bias = (torch.randn(width, generator=generator) / 4 for _ in range(2))
        return {"weight": 1 + weight, "bias": bias}

    def named(parts: dict[str, State]) -> State:
        return {f"{part}.{leaf}": value for part, state in parts.items() for leaf, value in state.items()}

    def attention(at: str) -> dict[str, State]:
        qkv, out = linear(width, 3 * width, bias=False), linear(width, width)
        return {f"{at}.input_norm": norm(), f"{at}.to_qkv": qkv, f"{at}.to_out": out}

    def cross(at: str) -> dict[str, State]:
        projections = {f"{at}.to_{letter}": linear(width, width, bias=False) for letter in "qkv"}
        return {f"{at}.input_norm": norm(), **projections, f"{at}.to_out": linear(width, width)}

    def mlp(at: str) -> dict[str, State]:
        first, second = linear(width, 4 * width), linear(4 * width, width)
        return {f"{at}.input_norm": norm(), f"{at}.net.0": first, f"{at}.net.3": second}

    def encoder(bands: int, blocks: int) -> State:
        parts = {"linear_input": linear(bands * PATCH**2, width)}
        for n in range(blocks):
            parts |= attention(f"transformer.layers.{n}.0") | mlp(f"transformer.layers.{n}.1")
        return named(parts | {"transformer.norm_out": norm()})

    def joint(blocks: int) -> State:
        parts: dict[str, State] = {}
        for n in range(blocks):
            parts |= attention(f"layers.{n}.0") | cross(f"layers.{n}.1") | mlp(f"layers.{n}.2")
        return named(parts | {"norm_out": norm()})

    def gap() -> State:
        return named({"0": norm(), "1": linear(width, 4 * width), "3": linear(4 * width, width)})

    return {
        "s1_encoder": encoder(2, depth // 2),
        "s1_GAP_FFN": gap(),
        "s2_encoder": encoder(12, depth),
        "s2_GAP_FFN": gap(),
        "joint_encoder": joint(depth // 2),
    }


def training_names(weights: dict[str, State]) -> dict[str, State]:
    """The same tensors under the names of the training code: create_qkv, create_q, out, net.2."""

    def renamed(name: str) -> str:
        name = name.replace(".net.3.", ".net.2.").replace(".to_out.", ".out.")
        for letters in ("qkv", "q", "k", "v"):
            name = name.replace(f".to_{letters}.", f".create_{letters}.")
        return name

    return {group: {renamed(name): value for name, value in state.items()} for group, state in weights.items()}


def bias(grid: int, heads: int) -> Tensor:
    """[heads, grid**2, grid**2]: minus slope times distance in patches, pair by pair; heads a power of two."""
    table = torch.zeros(heads, grid**2, grid**2)
    for h in range(heads):
        for a in range(grid**2):
            for b in range(grid**2):
                distance = math.hypot(a // grid - b // grid, a % grid - b % grid)
                table[h, a, b] = -(2 ** (-8 * (h + 1) / heads)) * distance
    return table


def forward(
    weights: dict[str, State], sar: Tensor, optical: Tensor, heads: int, stretch: float = 1.0
) -> dict[str, Tensor]:
    """Encodings [B, N, D] and GAPs [B, D] of images [B, 2, S, S] and [B, 12, S, S]; distances times `stretch`."""
    grid = sar.shape[-1] // PATCH
    table = bias(grid, heads) * stretch

    def norm(state: State, at: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{at}.weight"], state[f"{at}.bias"], 1e-5)

    def linear(state: State, at: str, x: Tensor) -> Tensor:
        return F.linear(x, state[f"{at}.weight"], state.get(f"{at}.bias"))

    def mix(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (t.reshape(*t.shape[:2], heads, -1) for t in (q, k, v))
        scores = torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(q.shape[-1]) + table
        return torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v).flatten(2)

    def attention(state: State, at: str, x: Tensor) -> Tensor:
        qkv, width = linear(state, f"{at}.to_qkv", norm(state, f"{at}.input_norm", x)), x.shape[-1]
        return linear(state, f"{at}.to_out", mix(qkv[..., :width], qkv[..., width : 2 * width], qkv[..., 2 * width :]))

    def cross(state: State, at: str, x: Tensor, context: Tensor) -> Tensor:
        x, context = norm(state, f"{at}.input_norm", x), norm(state, f"{at}.input_norm", context)
        q = linear(state, f"{at}.to_q", x)
        k, v = (linear(state, f"{at}.to_{letter}", context) for letter in "kv")
        return linear(state, f"{at}.to_out", mix(q, k, v))

    def mlp(state: State, at: str, x: Tensor) -> Tensor:
        hidden = F.gelu(linear(state, f"{at}.net.0", norm(state, f"{at}.input_norm", x)))
        return linear(state, f"{at}.net.3", hidden)

    def encode(state: State, images: Tensor) -> Tensor:
        cells = []
        for r in range(0, grid * PATCH, PATCH):
            for c in range(0, grid * PATCH, PATCH):
                cells.append(images[:, :, r : r + PATCH, c : c + PATCH].flatten(1))
        x, n = linear(state, "linear_input", torch.stack(cells, 1)), 0
        while f"transformer.layers.{n}.0.to_qkv.weight" in state:
            x = x + attention(state, f"transformer.layers.{n}.0", x)
            x = x + mlp(state, f"transformer.layers.{n}.1", x)
            n += 1
        return norm(state, "transformer.norm_out", x)

    def gap(state: State, tokens: Tensor) -> Tensor:
        return linear(state, "3", F.gelu(linear(state, "1", norm(state, "0", tokens.mean(1)))))

    s1, s2 = encode(weights["s1_encoder"], sar), encode(weights["s2_encoder"], optical)
    state, x, n = weights["joint_encoder"], s1, 0
    while f"layers.{n}.0.to_qkv.weight" in state:
        x = x + attention(state, f"layers.{n}.0", x)
        x = x + cross(state, f"layers.{n}.1", x, s2)
        x = x + mlp(state, f"layers.{n}.2", x)
        n += 1
    joint = norm(state, "norm_out", x)
    return {
        "SAR_encodings": s1,
        "SAR_GAP": gap(weights["s1_GAP_FFN"], s1),
        "optical_encodings": s2,
        "optical_GAP": gap(weights["s2_GAP_FFN"], s2),
        "joint_encodings": joint,
        "joint_GAP": joint.mean(1),
    }
