"""Masked reconstruction with a second objective for small data: two views of a sample should pool to the same vector.

Both views (each with its own augmentation and mask) are reconstructed as in MAE; the mean-pooled kept tokens of each go
through a small projector, and the variance-invariance-covariance loss (VICReg, arXiv 2105.04906, eqs 1-5, here with weights
1 : 1 : 1/25) ties them together:

    s = mean (z1 - z2)^2                                       the two views agree
    v = mean_view mean_dim relu(1 - sqrt(var(z_dim) + 1e-4))   no dimension collapses
    c = sum_view sum_{i != j} cov(z)_ij^2 / P                  dimensions carry different things
    loss = reconstruction + weight (s + v + c / 25)

The projector's batch norm, the variance and the covariance are those of the *global* batch: the engine sets `gather` to a
collective that carries gradients, every rank projects the pooled vectors of all ranks (a small product), and the curve
does not depend on the number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frontier.models.mae import MAE, MAEConfig


class Projector(nn.Module):
    """Pooled tokens [V, B, D] of V views of the global batch -> [V, B, P]: linear, batch norm (each view by itself, no
    gain, no running statistics), GELU, linear.
    """

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, out)
        self.fc2 = nn.Linear(out, out)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x.to(self.fc1.weight.dtype)).float()
        x = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
        return self.fc2(F.gelu(x).to(self.fc2.weight.dtype)).float()


def invariance_terms(z1: Tensor, z2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(s, v, c) of the module's docstring for z1, z2 [B, P], float32."""
    agree = (z1 - z2).square().mean()
    spread = z1.new_zeros(())
    overlap = z1.new_zeros(())
    for z in (z1, z2):
        centred = z - z.mean(0)
        covariance = centred.T @ centred / (len(z) - 1)
        variance = covariance.diagonal()
        spread = spread + F.relu(1 - (variance + 1e-4).sqrt()).mean() / 2
        overlap = overlap + (covariance.square().sum() - variance.square().sum()) / z.shape[1]
    return agree, spread, overlap


class TwoViewMAE(MAE):
    """An MAE with the second objective. Parameters are those of `MAE` and `projector.*`.

    Attributes:
        gather: [B, …] of this rank -> those of all ranks, with gradients; the identity on one device.
    """

    def __init__(self, config: MAEConfig, weight: float, projector_width: int) -> None:
        super().__init__(config)
        self.weight = weight
        self.projector = Projector(config.encoder.width, projector_width)
        self.gather: Callable[[Tensor], Tensor] = lambda z: z

    def forward(self, images: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """images [B, 2, C, H, W] and noise [B, 2, L]: two views of every sample.

        Returns "loss", and its parts "reconstruction" and "invariance" (unweighted).
        """
        patches, ids = self._shuffled(images.flatten(0, 1), noise.flatten(0, 1))
        kept = self.config.kept
        latent = self.encoder(patches[:, :kept], ids[:, :kept])
        reconstruction = self._loss(self.decoder(latent, ids), patches[:, kept:])
        pooled = self.gather(latent[:, 1:].float().mean(1).unflatten(0, (-1, 2)))
        with torch.autocast(pooled.device.type, enabled=False):
            agree, spread, overlap = invariance_terms(*self.projector(pooled.transpose(0, 1)))
        invariance = agree + spread + overlap / 25
        return {
            "loss": reconstruction + self.weight * invariance,
            "reconstruction": reconstruction,
            "invariance": invariance,
        }
