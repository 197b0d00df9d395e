"""Fixed two-dimensional sine-cosine position embeddings (MAE, arXiv 2111.06377)."""

import torch
from torch import Tensor


def sincos_2d(width: int, grid: int, cls_token: bool = True) -> Tensor:
    """Embeddings of a `grid` x `grid` lattice, float32 [(1 +) grid**2, width]; `width` is a multiple of 4.

    Row-major positions. The first half of the channels holds (sin, cos) of the column, the second half of the
    row, each at frequencies 10000**(-i / (width / 4)), i = 0 ... width / 4 - 1: the layout of the released
    MAE weights. With `cls_token` a zero row comes first.
    """
    omega = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64, device="cpu") / (width // 4))
    angles = torch.arange(grid, dtype=torch.float64, device="cpu")[:, None] * omega
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)
    column = axis[None, :, :].expand(grid, grid, -1)
    row = axis[:, None, :].expand(grid, grid, -1)
    table = torch.cat([column, row], dim=2).reshape(grid * grid, width)
    if cls_token:
        table = torch.cat([table.new_zeros(1, width), table])
    return table.float()
