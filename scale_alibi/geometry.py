"""Where tokens are on the ground, and how fast each head looks away from far ones.

A token stands at the centre of its patch, in metres from an origin that all sensors of a sample share:

    x = ((r + 1/2) p gsd_y, (c + 1/2) p gsd_x)

for row r and column c of the grid, patches of p pixels, and gsd metres a pixel. Attention sees x / reference_m, by default the side of
a patch of the first sensor at its nominal GSD; so the first sensor's grid at that GSD has distances 1 between neighbours, those of
2D-ALiBi (CROMA, arXiv 2311.00566, section 3.1), and scaling every GSD and the reference together changes nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor


def slopes(heads: int) -> Tensor:
    """The fixed slope m(h) of each head [heads], float32: ALiBi's geometric sequence (arXiv 2108.12409, section 3).

    For a power of two n it begins at 2^(-8/n), which is its ratio as well. Else the sequence of the next lower power of two is followed by every
    other element of that of the next higher one, as in ALiBi's published code.
    """

    def geometric(n: int) -> list[float]:
        ratio = 2.0 ** (-8.0 / n)
        return [ratio ** (i + 1) for i in range(n)]

    lower = 1 << (heads.bit_length() - 1)
    values = geometric(lower) + geometric(2 * lower)[0::2][: heads - lower]
    return torch.tensor(values, dtype=torch.float32, device="cpu")


def patch_centres(grid: int, patch: int, gsd: Tensor, reference_m: float) -> Tensor:
    """Places [B, grid**2, 2] (y, x), float32, of a square grid of patches, row-major, in units of `reference_m`.

    gsd [B, 2]: metres a pixel along y and x, float32.
    """
    steps = torch.arange(grid, dtype=torch.float32, device=gsd.device) + 0.5
    rows, columns = torch.meshgrid(steps, steps, indexing="ij")
    cells = torch.stack([rows.flatten(), columns.flatten()], dim=-1)
    return cells * (gsd * (patch / reference_m))[:, None, :]


def squared_distances(q_at: Tensor, k_at: Tensor) -> Tensor:
    """Squared Euclidean distances [B, N, M] between places [B, N, 2] and [B, M, 2]: summed squares, not the inexact
    expansion |a|^2 - 2 a b + |b|^2. An axis at a time, in place: 7 times as fast on a CPU as a table of differences.
    """
    y, x = (
        q_axis.contiguous()[:, :, None] - k_axis.contiguous()[:, None, :]
        for q_axis, k_axis in zip(q_at.unbind(-1), k_at.unbind(-1), strict=True)
    )
    return y.square_().addcmul_(x, x)


def distances(q_at: Tensor, k_at: Tensor) -> Tensor:
    """Euclidean distances [B, N, M] between places [B, N, 2] and [B, M, 2]."""
    return squared_distances(q_at, k_at).sqrt_()


def sincos_at(places: Tensor, width: int) -> Tensor:
    """Sinusoidal embeddings [B, N, width] of places [B, N, 2] (y, x); width a multiple of 4.

    At whole places those of `frontier.models.posembed.sincos_2d`; with places in metres over a reference the idea of Scale-MAE
    (arXiv 2212.14532, Eq. 2).
    """
    omega = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float32, device=places.device) / (width // 4))
    angles = places.flip(-1)[..., None] * omega
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)
