"""The tokenizer: values and where, when and what they measure -> tokens [B, T*H'*W'*L, C] (arXiv 2211.02348, 7.1.1).

A token is the features of a three-layer convolution of its band, projected to the width C, plus the projected Fourier encodings of
the sample's place, its date, its position in the tile, its band and its ground sampling distance. What is unknown is encoded as zeros
and projected without a bias: it adds nothing. Place and time come as features; the other encodings are fixed by the inputs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frontier.data.manifest import nearest
from frontier.errors import UserError
from frontier.models.linear import Linear
from gpna.descriptor import POLARISATIONS, RADAR_BANDS, Band, slug, vector_of
from gpna.fourier import (
    HIGHEST_POSITION,
    HIGHEST_SPECTRAL,
    Region,
    gsd_features,
    position_features_at,
    spectral_features,
)
from gpna.sensors import InputSpec
from gpna.stems import Generated, Stem, convolve, side_by_side

SAR_WORDS = (*RADAR_BANDS, *(f"send {p}" for p in POLARISATIONS), *(f"receive {p}" for p in POLARISATIONS))
"""Rows of the learned table of radar bands and polarisations; a SAR band is the sum of three of them."""
IDENTITY_STD = 0.4
"""Of a learned identity at the start: about that of a projected encoding."""
_CHOICES = {"region": ("axis", "first", "half_plane"), "join": ("add", "concat"), "stem": ("band", "generated")}


@dataclass(frozen=True)
class TokenizerSettings:
    """Sizes and choices of a tokenizer.

    `width`: C. `hidden`: channels of the stem's first layer, and of its second and third. `place` … `gsd`: columns of the encodings, even, 0 =
    without. `region`, `highest`: frequencies of positions (`gpna.fourier.plane_frequencies`); `highest_spectral`: of wavelengths. `join`: `add` projects the encodings to C and adds them, as the
    paper's text has it; `concat` puts them beside the values' projection, unprojected, as its Fig. 3 has it (C must exceed their sum).
    `stem`: `band` has weights for each stem key; `generated` makes them from what describes a band, by a network `generator` wide.
    """

    width: int = 256
    hidden: tuple[int, int] = (16, 32)
    place: int = 64
    time: int = 32
    position: int = 64
    spectral: int = 64
    gsd: int = 16
    region: Region = "first"
    highest: float = HIGHEST_POSITION
    highest_spectral: float = HIGHEST_SPECTRAL
    join: str = "add"
    stem: str = "band"
    generator: int = 64

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise UserError(
                    f"tokenizer: {name}: '{getattr(self, name)}': {nearest(str(getattr(self, name)), known)}"
                )
        for name in ("place", "time", "position", "spectral", "gsd"):
            if getattr(self, name) < 0 or getattr(self, name) % 2:
                raise UserError(
                    f"tokenizer: {name}: {getattr(self, name)}: give an even number of columns, 0 to leave it out"
                )
        if min(self.width, self.generator, *self.hidden) < 1 or len(self.hidden) != 2 or not self.spectral:
            raise UserError("tokenizer: width, hidden (two numbers), generator and spectral must be at least 1")
        if self.join == "concat" and self.width <= self.encodings:
            raise UserError(
                f"tokenizer: width: {self.width} leaves no room for values beside {self.encodings} columns of encodings "
                "(join: concat): make it larger, or place, time, position, spectral and gsd smaller"
            )

    @property
    def encodings(self) -> int:
        """Columns of all encodings together."""
        return self.place + self.time + self.position + self.spectral + self.gsd

    @property
    def identity(self) -> int:
        """Width of what tells a band."""
        return self.width if self.join == "add" else self.spectral

    @property
    def content(self) -> int:
        """Width of the values' projection."""
        return self.width if self.join == "add" else self.width - self.encodings


class Constants(nn.Module):
    """What the tokenizer knows of one input before it sees values: fixed encodings as buffers, computed in float64.

    `position` [H', W', P]; `spectral` [L, S], zeros where not optical; `sar` [L, words], three ones a SAR band; `variable` [L, names];
    `gsd` [1, G]; `vector_<d>` [L, d] for every length d of the variables' vectors. Each only where the input has such.
    """

    def __init__(self, spec: InputSpec, settings: TokenizerSettings) -> None:
        super().__init__()
        self.spec, self.settings = spec, settings
        self.names = [identity(band) for band in spec.bands if band.kind == "variable" and band.vector is None]
        self.vectors = {band.name: vector_of(band) for band in spec.bands if band.vector is not None}
        _, rows, columns, bands = spec.grid
        sizes: dict[str, tuple[int, ...]] = {}
        if settings.position and spec.form != "point":
            sizes["position"] = (rows, columns, settings.position)
        kinds = {band.kind for band in spec.bands}
        if "optical" in kinds:
            sizes["spectral"] = (bands, settings.spectral)
        if "sar" in kinds:
            sizes["sar"] = (bands, len(SAR_WORDS))
        if self.names:
            sizes["variable"] = (bands, len(self.names))
        if settings.gsd:
            sizes["gsd"] = (1, settings.gsd)
        for length in {len(vector) for vector in self.vectors.values()}:
            sizes[f"vector_{length}"] = (bands, length)
        for name, size in sizes.items():
            self.register_buffer(name, torch.empty(size), persistent=False)

    def buffer(self, name: str, like: Tensor) -> Tensor | None:
        """The buffer `name` in the type of `like`; None where the input has none."""
        found = getattr(self, name, None)
        return None if found is None else found.to(like.dtype)

    def initial_buffer(self, local_name: str) -> Tensor:
        """The buffer's value, float32 on the CPU."""
        spec, settings = self.spec, self.settings
        if local_name == "position":
            # Cells are measured by the tile, not by the grid: the last one may reach beyond 1.
            (high, wide), (tall, broad) = spec.sides, spec.cell
            y, x = ((torch.arange(n, dtype=torch.float64, device="cpu") + 0.5) for n in spec.grid[1:3])
            halves = 0.5 * broad / wide, 0.5 * tall / high
            return position_features_at(
                x[None] * broad / wide,
                y[:, None] * tall / high,
                *halves,
                settings.position,
                settings.region,
                settings.highest,
            )
        if local_name == "gsd":
            return gsd_features([math.nan if spec.gsd_m is None else spec.gsd_m], settings.gsd)
        if local_name == "spectral":
            centres = [band.centre_nm if band.kind == "optical" else math.nan for band in spec.bands]
            widths = [band.width_nm or 0.0 for band in spec.bands]
            return spectral_features(centres, widths, settings.spectral, highest=settings.highest_spectral)
        out = torch.zeros(getattr(self, local_name).shape, device="cpu")
        for row, band in enumerate(spec.bands):
            if local_name == "sar" and band.kind == "sar":
                letters = str(band.polarisation)
                for word in (str(band.radar_band), f"send {letters[0]}", f"receive {letters[1]}"):
                    out[row, SAR_WORDS.index(word)] = 1
            if local_name == "variable" and band.kind == "variable" and band.vector is None:
                out[row, self.names.index(identity(band))] = 1
            if band.name in self.vectors and local_name == f"vector_{len(self.vectors[band.name])}":
                out[row] = torch.from_numpy(self.vectors[band.name])
        return out


def identity(band: Band) -> str:
    """The name under which a variable's learned identity is kept."""
    return f"is_{slug(band.name)}"


def stem_name(band: Band, form: str) -> str:
    """The name under which a band's convolutions are kept: kernels over images, lines and points are not the same."""
    return f"{form}_{band.stem}"


class Identities(nn.Module):
    """One learned vector a variable. Other modules read them; it is never called."""

    def __init__(self, names: Sequence[str], width: int) -> None:
        super().__init__()
        self.width = width
        for name in names:
            self.register_parameter(name, nn.Parameter(torch.empty(width)))

    def initial_value(self, local_name: str, generator: torch.Generator) -> Tensor:
        return torch.randn(self.width, generator=generator, device="cpu") * IDENTITY_STD


class Tokenizer(nn.Module):
    """Tokens of any of `inputs` (by key). Parameters are shared between inputs wherever bands share a stem key or a name."""

    gathered_once = True

    def __init__(self, inputs: Mapping[str, InputSpec], settings: TokenizerSettings | None = None) -> None:
        super().__init__()
        self.settings = settings = settings or TokenizerSettings()
        if not inputs:
            raise UserError("tokenizer: no inputs: name at least one")
        self.constants = nn.ModuleList(Constants(spec, settings) for spec in inputs.values())
        self._place = {key: place for place, key in enumerate(inputs)}
        specs, width = list(inputs.values()), settings.identity
        bands = [band for spec in specs for band in spec.bands]
        if settings.stem == "generated":
            forms = sorted({spec.form for spec in specs})
            made = {form: Generated(form, settings.hidden, width, settings.generator) for form in forms}
            self.generators = nn.ModuleDict(made)
        else:
            stems = {stem_name(band, spec.form): spec.form for spec in specs for band in spec.bands}
            self.stems = nn.ModuleDict({name: Stem(form, settings.hidden) for name, form in sorted(stems.items())})
        self.values = Linear(settings.hidden[1], settings.content)
        self.query = nn.Parameter(torch.empty(settings.content))
        sizes: dict[str, int] = {}
        if settings.join == "add":
            sizes = {"place": settings.place, "time": settings.time, "gsd": settings.gsd}
            if any(spec.form != "point" for spec in specs):
                sizes["position"] = settings.position
            if any(band.kind == "optical" for band in bands):
                sizes["spectral"] = settings.spectral
        self.projections = nn.ModuleDict({n: Linear(size, width, bias=False) for n, size in sizes.items() if size})
        self.sar = nn.Parameter(torch.empty(len(SAR_WORDS), width)) if any(b.kind == "sar" for b in bands) else None
        named = {identity(band) for band in bands if band.kind == "variable" and band.vector is None}
        self.variables = Identities(sorted(named), width)
        lengths = {len(vector) for one in self._all() for vector in one.vectors.values()}
        self.vectors = nn.ModuleDict({str(length): Linear(length, width, bias=False) for length in sorted(lengths)})

    def initial_value(self, local_name: str, generator: torch.Generator) -> Tensor:
        settings = self.settings
        if local_name == "sar":
            size: tuple[int, ...] = len(SAR_WORDS), settings.identity
            return torch.randn(size, generator=generator, device="cpu") * (IDENTITY_STD / math.sqrt(3))
        return torch.randn(settings.content, generator=generator, device="cpu") * IDENTITY_STD

    def _all(self) -> list[Constants]:
        return [one for one in self.constants if isinstance(one, Constants)]

    def spec(self, key: str) -> InputSpec:
        """The input called `key`. Raises UserError."""
        if key not in self._place:
            raise UserError(f"tokenizer: no input '{key}': {nearest(key, self._place)}")
        return self._all()[self._place[key]].spec

    def extend(self, inputs: Mapping[str, InputSpec]) -> None:
        """Take further inputs with the parameters that are there, for use after training. Call it once parameters have values.

        A band needs its stem key among the trained ones (`stem: generated` makes up for that), and its kind, variable name or
        length of vector. Raises UserError for what the parameters do not cover, and for a key that is taken.
        """
        device = self.query.device
        for key, spec in inputs.items():
            if key in self._place:
                raise UserError(f"tokenizer: there is an input '{key}' already: give the new one another name")
            one = Constants(spec, self.settings)
            self._check(key, one)
            one = one.to_empty(device=device)
            for name, buffer in one.named_buffers():
                buffer.copy_(one.initial_buffer(name))
            self._place[key] = len(self.constants)
            self.constants.append(one)

    def _check(self, key: str, one: Constants) -> None:
        """Raise UserError where parameters lack for an input."""
        settings, form = self.settings, one.spec.form
        if settings.stem == "generated" and form not in self.generators:
            raise UserError(f"tokenizer: {key}: no {form} was trained: {nearest(form, self.generators)}")
        if settings.join == "add" and form != "point" and settings.position and "position" not in self.projections:
            raise UserError(f"tokenizer: {key}: no positions were trained, only inputs without space")
        for band in one.spec.bands:
            name, where = stem_name(band, form), f"tokenizer: {key}: band {band.name}"
            if settings.stem == "band" and name not in self.stems:
                raise UserError(
                    f"{where}: no stem '{name}' was trained (stem: generated needs none): {nearest(name, self.stems)}"
                )
            if band.kind == "optical" and settings.join == "add" and "spectral" not in self.projections:
                raise UserError(f"{where}: no optical band was trained")
            if band.kind == "sar" and self.sar is None:
                raise UserError(f"{where}: no SAR band was trained")
            if band.vector is not None:
                length = str(len(one.vectors[band.name]))
                if length not in self.vectors:
                    raise UserError(
                        f"{where}: no vector of {length} numbers was trained: {nearest(length, self.vectors)}"
                    )
            elif band.kind == "variable" and not hasattr(self.variables, identity(band)):
                known = [name.removeprefix("is_") for name, _ in self.variables.named_parameters()]
                raise UserError(
                    f"{where}: no such variable was trained (give it a vector): {nearest(band.name, known)}"
                )

    def forward(
        self, key: str, values: Tensor | None, place: Tensor, time: Tensor, index: Tensor | None = None
    ) -> Tensor:
        """Tokens [B, N, C] of the input `key`; see `queries` for values None and `index`.

        values [B, *axes]: normalised, 0 where missing (the caller drops tokens of which nothing is there). place [B, P]: features of the
        sample's place. time [B, T, Q] or [B, 1, Q]: features of the dates. Raises ValueError for other shapes, UserError for an unknown key.
        """
        spec, settings = self.spec(key), self.settings
        one = self._all()[self._place[key]]
        steps, rows, columns, bands = spec.grid
        batch = place.shape[0]
        if place.shape[1:] != (settings.place,) or time.shape not in {(batch, n, settings.time) for n in (1, steps)}:
            raise ValueError(
                f"{key}: place {tuple(place.shape)}, time {tuple(time.shape)}; expected [{batch}, {settings.place}], "
                f"[{batch}, {steps} or 1, {settings.time}]"
            )
        whole = (batch, steps, rows, columns, bands)
        identities = self._identities(one)
        # Every parameter takes part in every forward: a missing gradient would differ between ranks.
        content = (self.query if values is None else 0 * self.query) + self._touch()
        if values is not None:
            # As a matrix: a product of more axes is a view inside its autograd function, which nothing may be added to in place.
            made = self.values(self._features(one, values, identities).flatten(0, -2)).view(*whole, -1)
        if settings.join == "concat":
            made = content.expand(*whole, -1) if values is None else made.add_(content)
            parts = {
                "place": place[:, None, None, None, None],
                "time": time[:, :, None, None, None],
                "position": one.buffer("position", made),
                "identity": identities,
                "gsd": one.buffer("gsd", made),
            }
            blocks = [made]
            for name, part in parts.items():
                size = settings.identity if name == "identity" else getattr(settings, name)
                if name == "position" and part is not None:
                    part = part[:, :, None]
                blocks.append(
                    made.new_zeros(*whole, size) if part is None else part.to(made.dtype).expand(*whole, size)
                )
            made = torch.cat(blocks, -1).flatten(1, 4)
            return made if index is None else made.gather(1, index[..., None].expand(-1, -1, made.shape[-1]))
        weight = self.values.weight
        fixed = identities + content
        if settings.gsd:
            fixed = fixed + self.projections["gsd"](one.buffer("gsd", weight))
        if "position" in self.projections and (position := one.buffer("position", weight)) is not None:
            fixed = fixed + self.projections["position"](position)[:, :, None]
        sample = fixed.new_zeros(batch, 1, 1)
        if settings.place:
            sample = sample + self.projections["place"](place.to(weight.dtype))[:, None]
        if settings.time:
            sample = sample + self.projections["time"](time.to(weight.dtype))
        if values is None and index is not None:
            cells = rows * columns * bands
            date = (index // cells).clamp(max=sample.shape[1] - 1)[..., None].expand(-1, -1, sample.shape[-1])
            known = fixed.expand(rows, columns, bands, -1).reshape(cells, -1)
            return known[index % cells] + sample.expand(batch, -1, -1).gather(1, date)
        sample = sample.view(*sample.shape[:2], 1, 1, 1, -1)
        if values is None:
            return (fixed + sample).expand(*whole, -1).reshape(batch, spec.tokens, -1)
        # In place: one array of the tokens' size, not three.
        return made.add_(fixed).add_(sample).flatten(1, 4)

    def queries(self, key: str, place: Tensor, time: Tensor, index: Tensor | None = None) -> Tensor:
        """[B, N, C]: what the tokens of `key` would be told of where, when and which band, with a learned vector instead of values.

        index [B, Q] int64: of these tokens alone, [B, Q, C].
        """
        return self(key, None, place, time, index)

    def _touch(self) -> Tensor:
        """A zero that depends on every parameter, whatever input this is: each gets a gradient. Only inside `forward`, where they are whole."""
        return torch.stack([parameter.reshape(-1)[0].float() for parameter in self.parameters()]).sum() * 0

    def _identities(self, one: Constants) -> Tensor:
        """[L, E]: what tells the bands of an input."""
        weight = self.values.weight
        found = weight.new_zeros(len(one.spec.bands), self.settings.identity)
        if (spectral := one.buffer("spectral", weight)) is not None:
            found = found + (self.projections["spectral"](spectral) if self.settings.join == "add" else spectral)
        if (sar := one.buffer("sar", weight)) is not None and self.sar is not None:
            found = found + sar @ self.sar
        if (variable := one.buffer("variable", weight)) is not None:
            found = found + variable @ torch.stack([getattr(self.variables, name) for name in one.names])
        for length, project in self.vectors.items():
            if (vector := one.buffer(f"vector_{length}", weight)) is not None:
                found = found + project(vector)
        return found

    def _features(self, one: Constants, values: Tensor, identities: Tensor) -> Tensor:
        """[B*T, H', W', L, c2]: the convolutions' features."""
        spec = one.spec
        if self.settings.stem == "generated":
            weights = self.generators[spec.form](identities)
        else:
            stems = [self.stems[stem_name(band, spec.form)] for band in spec.bands]
            weights = side_by_side([stem for stem in stems if isinstance(stem, Stem)])
        x = arranged(values, spec).flatten(0, 1).to(weights[0].dtype)
        return convolve(x, weights, spec.form, spec.footprint)


def arranged(values: Tensor, spec: InputSpec) -> Tensor:
    """values [B, *axes] -> [B, T, L, rows, columns], with axes of 1 where the input has none. Raises ValueError."""
    if tuple(values.shape[1:]) != spec.shape:
        raise ValueError(f"values {tuple(values.shape)}: expected [B, {', '.join(map(str, spec.shape))}]")
    letters = "TC" + ("K" if spec.form == "line" else "HW")
    x = values.permute(0, *(1 + spec.axes.index(axis) for axis in letters if axis in spec.axes))
    return x.reshape(values.shape[0], spec.steps, len(spec.bands), *spec.sides)


def over_values(tokens: Tensor, spec: InputSpec) -> Tensor:
    """[B, N], something of each token -> [B, *axes]: the same for every value that the token stands for."""
    steps, rows, columns, bands = spec.grid
    (tall, broad), (high, wide) = spec.cell, spec.sides
    x = tokens.view(-1, steps, rows, columns, bands).permute(0, 1, 4, 2, 3)
    x = x.repeat_interleave(tall, 3)[..., :high, :].repeat_interleave(broad, 4)[..., :wide]
    letters = "TC" + ("K" if spec.form == "line" else "HW")
    sizes = dict(zip(letters, x.shape[1:] if spec.form != "line" else (steps, bands, wide), strict=True))
    x = x.reshape(-1, *(sizes[letter] for letter in letters if letter in spec.axes))
    there = [letter for letter in letters if letter in spec.axes]
    return x.permute(0, *(1 + there.index(letter) for letter in spec.axes))


def patches(values: Tensor, spec: InputSpec) -> Tensor:
    """[B, N, patch_values]: the values that each token stands for, in the tokens' order; 0 beyond the edge.

    Serves masks too: `patches(there, spec).any(-1)` are the tokens of which something is there.
    """
    x = arranged(values, spec)
    steps, rows, columns, bands = spec.grid
    tall, broad = spec.cell
    x = F.pad(x, (0, columns * broad - x.shape[4], 0, rows * tall - x.shape[3]))
    x = x.view(-1, steps, bands, rows, tall, columns, broad)
    return x.permute(0, 1, 3, 5, 2, 4, 6).reshape(-1, spec.tokens, tall * broad)
