"""The config sections of the family: `model:` and the entries of `data.sources`, and the named sizes. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from frontier.config.schema import Section
from frontier.data.manifest import nearest
from frontier.errors import UserError
from frontier.models.presets import PRESETS as VIT
from frontier.models.presets import check_heads
from gpna.head_sections import TaskUnion


@dataclass(frozen=True)
class Size:
    """Sizes of a backbone.

    Attributes:
        latents: M, vectors that the input is brought to.
        width, depth, heads: of the self-attention stack on them; its MLP is four widths.
        token_width: C, of the tokens.
    """

    latents: int
    width: int
    depth: int
    heads: int
    token_width: int


def _like(vit: str, latents: int, token_width: int) -> Size:
    shape = VIT[vit]
    return Size(latents, shape.width, shape.depth, shape.heads, token_width)


PRESETS: dict[str, Size] = {
    "gpna_debug": Size(16, 32, 2, 2, 32),
    "gpna_tiny": Size(32, 128, 4, 4, 64),
    "gpna_small": Size(64, 256, 6, 8, 128),
    "gpna_base": _like("vit_base", 128, 256),
    "gpna_1b": _like("vit_1b", 256, 512),
    "gpna_3b": _like("vit_3b", 256, 512),
    "gpna_15b": _like("vit_15b", 512, 1024),
}
"""The paper gives no sizes; those from `gpna_base` on have the widths and depths of the ViTs of the Frontier study."""


def changed(section: Section, *names: str) -> list[str]:
    """Those of the keys `names` that have another value than their default."""
    fields = type(section).model_fields
    return [name for name in names if getattr(section, name) != fields[name].default]


class TokenSection(Section):
    """The tokenizer. Sizes of encodings are numbers of Fourier features: a sine and a cosine for each frequency."""

    hidden: tuple[int, int] = (16, 32)
    """Channels after the first and second convolution of a band's stem."""
    place: int = Field(64, ge=2, multiple_of=2)
    time: int = Field(32, ge=2, multiple_of=2)
    position: int = Field(64, ge=0, multiple_of=2)
    spectral: int = Field(64, ge=2, multiple_of=2)
    gsd: int = Field(16, ge=0, multiple_of=2)
    region: Literal["axis", "first", "half_plane"] = "half_plane"
    """Frequency vectors of positions: on the axes (Eq. 2), in the first quadrant (Eq. 4), in all directions (ours)."""
    highest: float = Field(16.0, gt=0)
    """Highest frequency of positions, in cycles a tile; waves beyond half the tokens of a side say little of them."""
    highest_spectral: float = Field(16.0, gt=0.0625)
    """Highest frequency of wavelengths, in cycles an octave. With about 2, bands that were never seen are read as their neighbours are."""
    join: Literal["add", "concat"] = "add"
    """Of value and encodings: added (the paper's text), or concatenated (its Fig. 3)."""
    stem: Literal["band", "generated"] = "band"
    """Convolutions of their own for each spectral band, or made by a network from what describes the band."""

    @model_validator(mode="after")
    def _positions(self) -> TokenSection:
        if not self.position and (idle := changed(self, "region", "highest")):
            raise ValueError(f"{idle[0]} has no effect with position: 0: leave it out")
        return self


class BatchingSection(Section):
    """How samples of different token counts go through the input attention together."""

    method: Literal["dbscan", "greedy", "one", "each"] = "dbscan"
    """dbscan: the paper's clusters, split so that the bound holds; greedy: the fewest that keep it; one batch; each sample alone."""
    max_padding: float = Field(0.1, gt=0)
    """Most padding of a sample in its cluster: a number of tokens, or below 1 a share of the mean token count of the batch."""
    max_tokens: int | None = Field(None, gt=0)
    """Of a cluster, padding included; a longer sample stands alone. Default: no limit."""

    @model_validator(mode="after")
    def _bounds(self) -> BatchingSection:
        if self.method in ("one", "each") and (idle := changed(self, "max_padding", "max_tokens")):
            raise ValueError(
                f"{idle[0]} has no effect with method {self.method}: leave it out, or choose dbscan or greedy"
            )
        return self

    @field_validator("max_padding")
    @classmethod
    def _whole(cls, value: float) -> float:
        if value >= 1 and value != int(value):
            raise ValueError("give a whole number of tokens, or a share below 1")
        return value


class MaskedSection(Section):
    """Self-supervision: hidden tokens are predicted by asking for their place, time and band."""

    ratio: float = Field(0.75, gt=0, lt=1)
    """Of a sample's tokens, hidden from the model."""
    together: bool = False
    """Hide all bands of a footprint and date, or none (but for the one where the ratio falls between): no band can be copied from another."""
    queries: int = Field(256, gt=0)
    """Hidden tokens asked for in a step, of each input of a sample."""
    weight: float = Field(1.0, gt=0)
    norm_pix: bool = False
    """Compare with each footprint's values normalised by their own mean and deviation, as MAE does."""
    texture: float = Field(0.0, ge=0)
    """Weight of what a footprint looks like (mean, contrast, oriented gradients, Laplacian) beside its pixels; footprints of 4 pixels and more."""
    attention_heads: int = Field(4, ge=1)
    hidden: int | None = Field(None, ge=1)
    layers: int = Field(1, ge=1)
    query_residual: bool = True


class GPNASection(Section):
    """`model:` of the GPNA family."""

    family: Literal["gpna"] = "gpna"
    preset: str
    latents: int | None = Field(None, gt=0)
    width: int | None = Field(None, gt=0)
    depth: int | None = Field(None, gt=0)
    heads: int | None = Field(None, gt=0)
    token_width: int | None = Field(None, gt=0)
    latents_start: Literal["random", "places"] = "random"
    """Latents begin as random vectors (the paper), or as places of the tile that read what is near: `gpna.places`."""
    tokens: TokenSection = TokenSection()
    batching: BatchingSection = BatchingSection()
    tasks: dict[str, TaskUnion] = Field(default_factory=dict)
    """By name: what is predicted from which source."""
    masked: MaskedSection | None = None
    """Learn from the inputs themselves, of all sources."""

    @model_validator(mode="after")
    def _something_to_learn(self) -> GPNASection:
        if not self.tasks and self.masked is None:
            raise ValueError("there is nothing to learn: give model.tasks, or model.masked: {} for self-supervision")
        if any(task.head == "masked" for task in self.tasks.values()):
            raise ValueError("masked tokens are no task of one source: give model.masked")
        return self

    @model_validator(mode="after")
    def _places(self) -> GPNASection:
        concat = self.tokens.join == "concat"
        if self.latents_start == "places" and (concat or not self.tokens.position):
            excluding = "join: concat" if concat else "position: 0"
            raise ValueError(
                f"latents_start: places needs positions that are added to the tokens, which tokens.{excluding} excludes: leave one out"
            )
        return self

    @field_validator("tasks")
    @classmethod
    def _names(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            if not name.isidentifier():
                raise ValueError(f"'{name}' cannot be a task's name: use letters, digits and _")
            if name == "masked":
                raise ValueError("'masked' stands for model.masked in logs: give the task another name")
        return value

    def size(self) -> Size:
        """UserError for an unknown preset, or sizes that do not go together."""
        if self.preset not in PRESETS:
            raise UserError(f'model preset "{self.preset}" is unknown: {nearest(self.preset, PRESETS)}')
        names = ("latents", "width", "depth", "heads", "token_width")
        changes = {name: value for name in names if (value := getattr(self, name)) is not None}
        size = replace(PRESETS[self.preset], **changes)
        check_heads(size.width, size.heads, "model.heads")
        return size


class InputSection(Section):
    """One input of a source."""

    sensor: str | None = None
    """A descriptor's name or YAML file; default: what the manifest says of the bands."""
    bands: list[str] | None = None
    """Only these of the shards' bands, by name, in this order; default: all."""
    footprint: Literal[1, 2, 4, 8] | None = None
    """Side of a token in pixels; default: 8 for images of 32 pixels and more."""
    spec: dict[str, Any] | None = None
    """Filled in from the data: what the tokenizer must know of the input."""

    @field_validator("bands")
    @classmethod
    def _each_band_once(cls, value: list[str] | None) -> list[str] | None:
        if value is not None and (not value or len(set(value)) < len(value)):
            raise ValueError("name at least one band, each once; or leave bands out for all")
        return value


class SourceSection(Section):
    """One of `data.sources`."""

    shards: str
    """Folder with manifest.json."""
    split: str = "train"
    weight: float | None = Field(None, gt=0)
    """Its part of a batch, relative to the other sources; default: see data.mixing."""
    samples: int | None = Field(None, gt=0)
    """Use only so many of the split, drawn at random."""
    samples_seed: int = Field(0, ge=0)
    """Of that draw."""
    inputs: dict[str, InputSection] | None = None
    """By column; default: every input of the shards."""
    symmetries: bool = False
    """Images and their target maps mirrored and turned at random, all of a sample alike."""
    place_uncertainty_m: float = Field(0.0, ge=0, allow_inf_nan=True)
    """How far coordinates may be off, such as the 10 km of survey clusters: added to half the extent of the sample. `.inf` hides the place."""
    block: int | None = Field(None, gt=0)
    window: int | None = Field(None, gt=0)
    """As data.block and data.window."""
    per_batch: int | None = Field(None, gt=0)
    """Filled in: its samples in a global batch."""

    @model_validator(mode="after")
    def _idle(self) -> SourceSection:
        if self.samples is None and self.samples_seed:
            raise ValueError("samples_seed has no effect without samples: leave it out")
        if self.inputs is not None and not self.inputs:
            raise ValueError("inputs is empty: name at least one column, or leave it out for all")
        return self
