"""GPNA: tokenizers -> Perceiver IO backbone -> task heads, on one device (arXiv 2211.02348, Fig. 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from frontier.errors import UserError
from frontier.models.layers import Block
from frontier.models.pointwise import LayerNorm
from gpna.config import BatchingSection, MaskedSection, Size, TokenSection
from gpna.head_sections import MaskedTask, PixelTask, Task
from gpna.heads import Answers, Head, Masked, Queries, build_head
from gpna.heads.pixels import PixelHead
from gpna.input_attention import InputAttention
from gpna.places import Begun, Places
from gpna.sensors import InputSpec
from gpna.tokenizer import Tokenizer, TokenizerSettings


@dataclass(frozen=True)
class SourceShape:
    """What the model knows of a source: its inputs by column, and its samples in a global batch."""

    inputs: dict[str, InputSpec]
    per_batch: int


@dataclass(frozen=True)
class GPNAConfig:
    """All that the module is made of. `tasks` are settled: `gpna.targets.settle`."""

    size: Size
    tokens: TokenSection
    batching: BatchingSection
    sources: dict[str, SourceShape]
    tasks: dict[str, Task]
    masked: MaskedSection | None
    latents_start: str = "random"

    def keys(self) -> dict[str, InputSpec]:
        """All inputs, by "source/column"."""
        return {
            key(name, column): spec for name, source in self.sources.items() for column, spec in source.inputs.items()
        }


def _head(where: str, *given: Any) -> nn.Module:
    """`build_head`; its UserErrors begin with `where`."""
    try:
        return build_head(*given)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def key(source: str, column: str) -> str:
    """Of an input, for the tokenizer."""
    return f"{source}/{column}"


class GPNA(nn.Module):
    """Tokens of all samples -> latents [B, M, D] -> heads. Samples are those of the sources one after another, in the config's order."""

    def __init__(self, config: GPNAConfig) -> None:
        super().__init__()
        self.config = config
        size, inputs = config.size, config.keys()
        self.tokenizer = Tokenizer(inputs, TokenizerSettings(width=size.token_width, **config.tokens.model_dump()))
        self.input_attention = InputAttention(size.token_width, size.latents, size.width, size.heads, 4 * size.width)
        self.blocks = nn.ModuleList(Block(size.width, size.heads, 4 * size.width) for _ in range(size.depth))
        self.norm = LayerNorm(size.width, eps=1e-6)
        self.heads = nn.ModuleDict()
        for name, task in config.tasks.items():
            if hasattr(self.heads, name):
                raise UserError(
                    f"model.tasks: a task cannot be called {name}, as PyTorch's modules use the word: rename it"
                )
            self.heads[name] = _head(f"model.tasks.{name}", task, size.width)
        self.masked: Masked | None = None
        if config.masked is not None:
            settings = config.masked.model_dump(exclude={"ratio", "together", "queries"})
            task = MaskedTask(source="*", head="masked", **settings)
            values = [spec.patch_values for spec in inputs.values()]
            self.masked = _head("model.masked", task, size.width, size.token_width, values)  # type: ignore[assignment]
        if config.latents_start == "places":
            self._begin_as_places()

    def _begin_as_places(self) -> None:
        """Replace initial values, those that the engine asks the modules for."""
        if "position" not in self.tokenizer.projections:
            raise UserError("model.latents_start: places: no input has positions: use images, or leave it out")
        size, tokens = self.config.size, self.config.tokens
        places = Places(tokens.position, tokens.region, tokens.highest, size.token_width, size.width, size.heads)
        self.input_attention.begin = places.latents
        places.begin_input(self.input_attention.q, self.input_attention.kv)
        Begun(self.tokenizer.projections["position"], lambda generator: places.tokens())  # type: ignore[arg-type]
        for head in self.heads.values():
            if isinstance(head, PixelHead):
                places.begin_decoder(head.decoder, partial(places.fitted, head.features, head.region, head.highest))
        if self.masked is not None:
            places.begin_decoder(self.masked.decoder, places.widened)

    def shard_units(self) -> list[nn.Module]:
        """The self-attention blocks. What sees tokens stays whole for a step: ranks call it different numbers of times."""
        return list(self.blocks)

    def encoder_names(self) -> list[str]:
        """Parameters that are kept after training: all but the heads."""
        return [name for name, _ in self.named_parameters() if not name.startswith(("heads.", "masked."))]

    def tokens(self, sources: Mapping[str, Mapping[str, Any]]) -> Tensor:
        """[all tokens of the batch, C]: source after source, input after input, sample after sample."""
        found = [
            self.tokenizer(key(name, column), values, given["place"], given["time"][column]).flatten(0, 1)
            for name, given in sources.items()
            for column, values in given["values"].items()
        ]
        return torch.cat(found) if len(found) > 1 else found[0]

    def encode(self, sources: Mapping[str, Mapping[str, Any]], clusters: Sequence[Mapping[str, Any]]) -> Tensor:
        """Latents [B, M, D] after the stack and its norm.

        Args:
            sources: by name {"values": {column: [B, *axes]}, "place": [B, P], "time": {column: [B, T or 1, Q]}}.
            clusters: `gpna.batching.Packing.plain()` of the samples' tokens.
        """
        return self.encode_layers(sources, clusters)[0]

    def encode_layers(
        self,
        sources: Mapping[str, Mapping[str, Any]],
        clusters: Sequence[Mapping[str, Any]],
        layers: Sequence[int] | None = None,
    ) -> list[Tensor]:
        """Latents [B, M, D] after each of the blocks `layers` (0 is the first; None: after the last alone), their norm applied.

        Raises UserError for a block that is not there.
        """
        last = len(self.blocks) - 1
        wanted = [last] if layers is None else layers
        for layer in wanted:
            if not 0 <= layer <= last:
                raise UserError(f"layer {layer} of {last + 1} blocks: give numbers from 0 to {last}")
        x = self.input_attention(self.tokens(sources), clusters)
        found = {}
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in wanted:
                found[number] = self.norm(x)
        return [found[layer] for layer in wanted]

    def outputs(
        self, latents: Tensor, rows: Mapping[str, slice], labels: Mapping[str, Mapping[str, Tensor]] | None = None
    ) -> dict[str, Tensor]:
        """Of each task's head, for the samples of its source, whose rows of `latents` are in `rows`."""
        found = {}
        for name, task in self.config.tasks.items():
            if task.source in rows:
                asked = (labels or {}).get(name, {}).get("pixels")
                own = latents[rows[task.source]]
                found[name] = self.heads[name](own, asked) if isinstance(task, PixelTask) else self.heads[name](own)
        return found

    def forward(
        self,
        sources: Mapping[str, Mapping[str, Any]],
        clusters: Sequence[Mapping[str, Any]],
        labels: Mapping[str, Mapping[str, Tensor]],
        masked: Sequence[Mapping[str, Any]] = (),
    ) -> dict[str, Tensor]:
        """Losses of a micro-batch: {"loss", "loss_<task>", "loss_masked"}.

        loss = sum over tasks of weight * (mean over all samples of the batch of their loss, 0 where they have no label) / (share of the
        samples of its source that are labelled), so that a task counts by the samples that it has a part in, on any number of ranks.
        loss_<task>: the mean over labelled samples of its source, in expectation.
        """
        latents = self.encode(sources, clusters)
        rows = rows_of(sources)
        total = torch.zeros((), device=latents.device)
        terms: dict[str, Tensor] = {}
        for name, outputs in self.outputs(latents, rows, labels).items():
            task, head = self.config.tasks[name], self.heads[name]
            assert isinstance(head, Head)
            each = head.loss(outputs, labels[name]["target"]) / (getattr(task, "labelled", None) or 1.0)
            terms[f"loss_{name}"] = each.mean()
            total = total + task.weight * each.sum() / len(latents)
        if masked:
            assert self.masked is not None and self.config.masked is not None
            loss = self._masked_loss(latents, sources, masked)
            terms["loss_masked"] = loss
            total = total + self.config.masked.weight * loss
        return {"loss": total, **terms}

    def _masked_loss(
        self, latents: Tensor, sources: Mapping[str, Mapping[str, Any]], masked: Sequence[Mapping[str, Any]]
    ) -> Tensor:
        assert self.masked is not None
        queries, answers = [], []
        for one in masked:
            given, name = sources[one["source"]], key(one["source"], one["column"])
            encodings = self.tokenizer.queries(name, given["place"], given["time"][one["column"]], one["tokens"])
            queries.append(Queries(encodings, self.tokenizer.spec(name).patch_values, one["samples"]))
            answers.append(Answers(one["values"], one["known"], one["samples"]))
        return self.masked.loss(self.masked(latents, queries), answers, len(latents)).mean()


def rows_of(sources: Mapping[str, Mapping[str, Any]]) -> dict[str, slice]:
    """Where the samples of each source lie in a batch."""
    found, first = {}, 0
    for name, given in sources.items():
        found[name] = slice(first, first + len(given["place"]))
        first += len(given["place"])
    return found
