"""Encoders of several sensors, cross-encoders that join them, a contrastive and a reconstructive loss (the paper's Fig. 1), on one device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from frontier.errors import UserError
from frontier.models.layers import gather_rows
from frontier.models.peers import Alone, Peers
from frontier.models.vit import patchify
from scale_alibi.attention import check_backend
from scale_alibi.contrast import Comparison, compare, scale_of, with_gradient
from scale_alibi.decoder import Decoder, hidden_error, known_patches, targets
from scale_alibi.encoders import CrossEncoder, Encoder, Masked, Projections, Summary, Tokens
from scale_alibi.sizes import POWER, ScaleALiBiConfig


class ScaleALiBi(nn.Module):
    """The whole model. `forward` gives the losses; `encode` and `join` what is kept after pretraining.

    Attributes:
        peers: among which samples are compared; the trainer sets those of the run.
    """

    def __init__(self, config: ScaleALiBiConfig) -> None:
        super().__init__()
        self.config = config
        names, width = list(config.sensors), config.size.width
        self.encoders = nn.ModuleDict({name: Encoder(config, name) for name in names})
        self.joint: nn.ModuleDict | None = None
        self.decoder: Decoder | None = None
        if config.reconstruction:
            self.joint = nn.ModuleDict({name: CrossEncoder(config) for name in names[1:]})
            self.decoder = Decoder(config)
        self.summaries: nn.ModuleDict | None = None
        self.projections: Projections | None = None
        if config.contrastive:
            self.summaries = nn.ModuleDict({name: Summary(width) for name in names})
            self.projections = Projections(names, width)
        self.peers: Peers = Alone()

    def shard_units(self) -> list[nn.Module]:
        """All blocks, in the order of the forward pass."""
        joint = self.joint.values() if self.joint is not None else ()
        decoder = self.decoder.blocks if self.decoder is not None else ()
        return [*(b for e in (*self.encoders.values(), *joint) for b in e.blocks), *decoder]

    def encoder_names(self) -> list[str]:
        """Parameters that are kept after training: encoders, cross-encoders, summaries."""
        return [n for n, _ in self.named_parameters() if n.startswith(("encoders.", "joint.", "summaries."))]

    def encode(self, sensor: str, images: Tensor, gsd: Tensor, ids: Tensor | None = None) -> Tokens:
        """Images [B, C, S, S], normalised, of any size that patches divide; gsd [B, 2] (y, x) metres a pixel -> all tokens, or those
        of the patches `ids` [B, N].

        Raises UserError for a sensor that the model does not have, or images or GSD that do not fit it.
        """
        patches, at, joint_at = self.patches(sensor, images, gsd)
        if ids is not None:
            patches, at, joint_at = (gather_rows(t, ids) for t in (patches, at, joint_at))
        return Tokens(self.encoders[sensor](patches, at), at, joint_at)

    def encode_layers(self, sensor: str, images: Tensor, gsd: Tensor, layers: Sequence[int] | None) -> list[Tensor]:
        """All tokens [B, L, D] after each of the blocks `layers` of a sensor's encoder; None: after the last."""
        encoder = cast(Encoder, self.encoders[sensor])
        patches, at, _ = self.patches(sensor, images, gsd)
        return encoder.after(patches, at, [len(encoder.blocks) - 1] if layers is None else layers)

    def patches(self, sensor: str, images: Tensor, gsd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of images as `encode` takes them: patches [B, L, C * patch**2], and both kinds of places [B, L, 2]."""
        if sensor not in self.config.sensors:
            raise UserError(f"sensor {sensor}: the model has {', '.join(self.config.sensors)}")
        shape, patch = self.config.sensors[sensor], self.config.patch
        if images.shape[1] != shape.channels or images.shape[2] != images.shape[3] or images.shape[3] % patch:
            raise UserError(
                f"{sensor} images of shape {tuple(images.shape[1:])}: {shape.channels} bands and equal sides that are "
                f"multiples of {patch} pixels are needed"
            )
        if gsd.shape != (len(images), 2):
            raise UserError(
                f"GSD of {sensor} of shape {tuple(gsd.shape)}: give metres a pixel along (y, x) of each of {len(images)} samples, "
                f"({len(images)}, 2)"
            )
        encoder = cast(Encoder, self.encoders[sensor])
        power, kind = POWER[self.config.position], images.device.type
        if power and kind != "meta":
            # What attention computes in: under autocast (DDP in bf16) that is not the precision of the weights.
            dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else encoder.embed.weight.dtype
            check_backend(images.device, dtype, self.config.attention, power)
        return patchify(images, patch), *encoder.places(images.shape[-1] // patch, gsd.float())

    def join(self, streams: Mapping[str, Tokens]) -> Tensor:
        """Tokens of the first sensor that have looked at those of all others [B, N, D]. All sensors must be there."""
        assert self.joint is not None
        first, *others = self.config.sensors
        x, at = streams[first].x, streams[first].joint_at
        for name in others:
            x = self.joint[name](x, streams[name].x, at, streams[name].joint_at)
        return x

    def summarise(self, sensor: str, tokens: Tensor) -> Tensor:
        """[B, N, D] -> [B, D]."""
        assert self.summaries is not None
        return self.summaries[sensor](tokens)

    def order(self, noise: Tensor) -> Tensor:
        """noise [B, L] -> positions [B, L] by rising noise: the first are kept. Equal noise keeps the order of positions."""
        return torch.argsort(noise, dim=1, stable=True)

    def encode_masked(
        self, images: Mapping[str, Tensor], gsd: Mapping[str, Tensor], noise: Mapping[str, Tensor]
    ) -> Masked:
        """Arguments as of `forward`."""
        config = self.config
        order = {name: self.order(noise[name]) for name in config.sensors}
        kept = {name: ids[:, : config.kept(name)] for name, ids in order.items()}
        return Masked({n: self.encode(n, images[n], gsd[n], kept[n]) for n in config.sensors}, order)

    def forward(
        self,
        images: Mapping[str, Tensor],
        gsd: Mapping[str, Tensor],
        noise: Mapping[str, Tensor],
        known: Mapping[str, Tensor] | None = None,
        embed_only: bool = False,
        compared: Comparison | None = None,
    ) -> dict[str, Tensor]:
        """Losses of a micro-batch.

        Args:
            images: [B, C, S, S] by sensor, normalised; gsd: [B, 2] (y, x) metres a pixel; noise: [B, L], lower is kept.
            known: bool [B, 1 or C, S, S] by sensor, of the pixels that are no missing values; a sensor that is not named misses none.
            embed_only: the unit vectors alone, {"z", "log_scale"}, or nothing where nothing is compared: see `frontier.models.peers.ComparesSamples`.
            compared: what `compare` gave for these samples; None: they are compared with those of `peers` here.

        Returns:
            "loss" = contrastive weight x "loss_contrastive" + reconstruction weight x "loss_reconstruction", the latter the sum of
            "loss_<sensor>", each the mean over samples of a sample's squared error over the known values of masked patches (0 where it has
            none); "matched": share of samples whose partner in another sensor is the nearest of the batch; "temperature".
        """
        config = self.config
        if embed_only and self.projections is None:
            return {}
        masked = self.encode_masked(images, gsd, noise)
        streams, order = masked.streams, masked.order
        terms: dict[str, Tensor] = {}
        total = torch.zeros((), device=noise[next(iter(noise))].device)
        if self.projections is not None:
            z, log_scale = self.projections({n: self.summarise(n, t.x) for n, t in streams.items()})
            if embed_only:
                return {"z": z, "log_scale": log_scale}
            found = compared or compare(z, log_scale, self.peers)
            loss = with_gradient(z, log_scale, found)
            total = total + config.contrastive * loss
            terms |= {
                "loss_contrastive": loss,
                "matched": found.right,
                "temperature": 1 / scale_of(log_scale.detach())[0],
            }
        if self.decoder is not None:
            first = next(iter(config.sensors))
            predictions = self.decoder(self.join(streams), order[first])
            there = known_patches(config, images, known)
            wanted = targets(config, {name: patchify(images[name], config.patch) for name in config.sensors}, there)
            losses = {}
            for name in config.sensors:
                hidden = order[name][:, config.kept(name) :]
                counted = gather_rows(there[name], hidden) if name in there else None
                guess = gather_rows(predictions[name], hidden)
                losses[name] = hidden_error(guess, gather_rows(wanted[name], hidden), counted).mean()
            loss = torch.stack(list(losses.values())).sum()
            total = total + config.reconstruction * loss
            terms |= {"loss_reconstruction": loss, **{f"loss_{name}": value for name, value in losses.items()}}
        return {"loss": total, **terms}

    def compare(self, embedded: list[dict[str, Tensor]]) -> list[dict[str, Any]]:
        """See `frontier.models.peers.ComparesSamples`. Collective."""
        if self.projections is None:
            return [{} for _ in embedded]
        found = compare(torch.cat([one["z"] for one in embedded]), embedded[0]["log_scale"], self.peers)
        cut = found.gradient.split([len(one["z"]) for one in embedded])
        return [{"compared": Comparison(found.loss, gradient, found.scale_gradient, found.right)} for gradient in cut]
