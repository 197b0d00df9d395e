"""Masked autoencoding (He et al., arXiv 2111.06377) of square multi-channel images.

The maths is that of the paper; three pieces of its usual implementation that cannot change the result are
left out: masked patches are not embedded, decoder tokens stay in shuffled order ([cls], kept, masked:
attention does not care), and the last decoder block, the final norm and the prediction are computed for
masked tokens only, as nothing else enters the loss.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frontier.errors import UserError
from frontier.models.layers import Block, gather_rows
from frontier.models.linear import Linear
from frontier.models.mae_config import MAEConfig
from frontier.models.pointwise import LayerNorm
from frontier.models.posembed import sincos_2d
from frontier.models.vit import ViT, patchify, unpatchify


class Decoder(nn.Module):
    """Kept tokens and positions of the masked ones -> predicted patches of the masked ones."""

    pos_embed: Tensor

    def __init__(self, config: MAEConfig) -> None:
        super().__init__()
        shape = config.decoder
        self.width, self.grid = shape.width, config.image_size // config.encoder.patch
        self.embed = Linear(config.encoder.width, shape.width)
        self.mask_token = nn.Parameter(torch.empty(shape.width))
        self.register_buffer("pos_embed", torch.empty(1 + config.patches, shape.width), persistent=False)
        self.blocks = nn.ModuleList(
            Block(shape.width, shape.heads, 4 * shape.width, eps=config.norm_eps) for _ in range(shape.depth)
        )
        self.norm = LayerNorm(shape.width, eps=config.norm_eps)
        self.pred = Linear(shape.width, config.patch_values)

    def initial_value(self, local_name: str, generator: torch.Generator) -> Tensor:
        """The mask token is drawn from N(0, 0.02**2), as in MAE."""
        return torch.empty(getattr(self, local_name).shape, device="cpu").normal_(0.0, 0.02, generator=generator)

    def initial_buffer(self, local_name: str) -> Tensor:
        return sincos_2d(self.width, self.grid)

    def forward(self, latent: Tensor, ids: Tensor) -> Tensor:
        """latent [B, 1 + K, D], ids [B, L] (kept positions first) -> prediction [B, L - K, C * patch**2]."""
        return self.pred(self.tokens(latent, ids, latent.shape[1]))

    def tokens(self, latent: Tensor, ids: Tensor, first: int) -> Tensor:
        """Decoded tokens after the final norm [B, 1 + L - first, width], from token `first` on ([cls] is 0)."""
        kept = latent.shape[1] - 1
        x = self.embed(latent)
        positions = self.pos_embed.to(x.dtype)
        patch_positions = positions[1:]
        x = torch.cat(
            [
                x[:, :1] + positions[0],
                x[:, 1:] + patch_positions[ids[:, :kept]],
                self.mask_token.to(x.dtype) + patch_positions[ids[:, kept:]],
            ],
            dim=1,
        )
        for block in self.blocks[:-1]:
            x = block(x)
        return self.norm(self.blocks[-1](x, first))


class MAE(nn.Module):
    """A masked autoencoder. Build it anywhere, also on `meta`; `models.init.initialise` fills it."""

    def __init__(self, config: MAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = ViT(config.encoder, config.image_size, config.channels, config.norm_eps)
        self.decoder = Decoder(config)

    def shard_units(self) -> list[nn.Module]:
        """The blocks, encoder then decoder: the units of sharding, checkpointing and compilation."""
        return [*self.encoder.blocks, *self.decoder.blocks]

    def order(self, noise: Tensor) -> Tensor:
        """noise [B, L] -> positions [B, L] by rising noise: the first K are kept. Equal noise keeps position
        order.
        """
        return torch.argsort(noise, dim=1, stable=True)

    def forward(self, images: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """images [B, C, H, W], already normalised; noise [B, L], lower is kept -> {"loss": scalar float32}.

        The loss is the squared error, averaged over the values of masked patches (equation of the paper's
        section 3.2); with `norm_pix_loss` against patches normalised by their own mean and (unbiased)
        variance. Keep `images` and `noise` in float32 under a bf16 policy: rounded noise has ties, and so
        other masks.
        """
        ids, kept = self._positions(images, noise), self.config.kept
        patches = patchify(images, self.config.encoder.patch)
        latent = self.encoder(gather_rows(patches, ids[:, :kept]), ids[:, :kept])
        prediction = self.decoder(latent, ids)
        return {"loss": self._loss(prediction, gather_rows(patches, ids[:, kept:]))}

    def encode(self, images: Tensor) -> Tensor:
        """Unmasked tokens after the final norm [B, 1 + L, D], [cls] first."""
        self._check(images)
        return self.encoder(patchify(images, self.config.encoder.patch))

    def encode_layers(self, images: Tensor, layers: Sequence[int], norm: bool = True) -> list[Tensor]:
        """Unmasked tokens [B, 1 + L, D] after encoder blocks `layers`; see `ViT.intermediate`."""
        self._check(images)
        return self.encoder.intermediate(patchify(images, self.config.encoder.patch), layers, norm)

    def reconstruct(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """-> (images [B, C, H, W] with masked patches replaced by the prediction, mask [B, L], 1 is masked).

        With `norm_pix_loss` the prediction is put back on each masked patch's own mean and deviation.
        """
        patches, ids = self._shuffled(images, noise)
        kept = self.config.kept
        prediction = self.decoder(self.encoder(patches[:, :kept], ids[:, :kept]), ids).float()
        if self.config.norm_pix_loss:
            mean, deviation = patch_statistics(patches[:, kept:].float())
            prediction = prediction * deviation + mean
        filled = torch.cat([patches[:, :kept].float(), prediction], dim=1)
        inverse = torch.argsort(ids, dim=1)
        mask = torch.ones_like(noise, dtype=torch.float32).scatter_(1, ids[:, :kept], 0.0)
        return unpatchify(gather_rows(filled, inverse), self.config.encoder.patch, self.config.channels), mask

    def _check(self, images: Tensor) -> None:
        expected = (self.config.channels, self.config.image_size, self.config.image_size)
        if tuple(images.shape[1:]) != expected:
            raise UserError(f"images of shape {tuple(images.shape[1:])}: the model was built for {expected} (C, H, W)")

    def _positions(self, images: Tensor, noise: Tensor) -> Tensor:
        """Positions [B, L], kept first, of checked inputs."""
        self._check(images)
        if noise.shape != (images.shape[0], self.config.patches):
            raise UserError(
                f"noise of shape {tuple(noise.shape)}: {self.config.patches} values for each of "
                f"{images.shape[0]} images are needed"
            )
        return self.order(noise)

    def _shuffled(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """All patches in order of noise [B, L, C * patch**2], and their positions [B, L]."""
        ids = self._positions(images, noise)
        return gather_rows(patchify(images, self.config.encoder.patch), ids), ids

    def _loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        target = target.float()
        if self.config.norm_pix_loss:
            target = normalise_patches(target)
        return F.mse_loss(prediction.float(), target)


def normalise_patches(patches: Tensor, known: Tensor | None = None) -> Tensor:
    """(patches - mean) / sqrt(var + 1e-6) over the last dimension, with the unbiased variance var.

    One layer norm does it: with n values the biased variance is (n - 1) / n of the unbiased one, so its epsilon
    and its result take the factor that is left.

    known: bool like `patches`, of the values that count; the others become 0.
    """
    if known is not None:
        mean, deviation = patch_statistics(patches, known)
        return torch.where(known, (patches - mean) / deviation, 0.0)
    n = patches.shape[-1]
    share = (n - 1) / n
    return F.layer_norm(patches, (n,), eps=1e-6 * share).mul_(share**0.5)


def patch_statistics(patches: Tensor, known: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean and deviation sqrt(var + 1e-6), unbiased variance, of each patch: [..., n] -> two of [..., 1].

    known: bool like `patches`, of the values that count; where none does, the mean is 0.
    """
    if known is not None:
        count = known.sum(dim=-1, keepdim=True)
        mean = torch.where(known, patches, 0.0).sum(dim=-1, keepdim=True) / count.clamp(min=1)
        squares = torch.where(known, patches - mean, 0.0).square().sum(dim=-1, keepdim=True)
        return mean, (squares / (count - 1).clamp(min=1) + 1e-6).sqrt()
    mean = patches.mean(dim=-1, keepdim=True)
    # Two passes: as exact as torch.var, and many times faster on a CPU.
    variance = (patches - mean).square().sum(dim=-1, keepdim=True) / (patches.shape[-1] - 1)
    return mean, (variance + 1e-6).sqrt()
