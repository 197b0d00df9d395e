"""The tokenizer against a plain reading of the paper's section 7.1.1, and what it promises about weights and gradients."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from frontier.errors import UserError
from frontier.models.init import initialise
from gpna import stems
from gpna.fourier import position_features, spectral_features
from gpna.sensors import Band, InputSpec, find_sensor
from gpna.stems import GELU_POWER, Stem, convolve, scales, shapes, side_by_side
from gpna.tokenizer import Constants, Tokenizer, TokenizerSettings, patches

SMALL = TokenizerSettings(width=24, hidden=(4, 6), place=8, time=6, position=8, spectral=8, gsd=4, generator=16)


def bands(sensor, *names):
    return tuple(find_sensor(sensor).bands[name] for name in names)


def optical(name, centre, width=30.0, stem="optical_other"):
    return Band(name, "optical", stem, centre, width)


IMAGE = InputSpec("TCHW", (2, 3, 20, 36), bands("sentinel2", "B02", "B04", "B08"), 10.0, 8)
RADAR = InputSpec("CHW", (2, 16, 16), bands("sentinel1", "VV", "VH"), 10.0, 4)
SERIES = InputSpec(
    "TC",
    (5, 4),
    (*bands("sentinel2", "B04"), *bands("era5", "temperature_2m", "total_precipitation"), *bands("sentinel1", "VV")),
    None,
    1,
)
LINE = InputSpec("TCK", (3, 2, 32), bands("modis", "sur_refl_b01", "LST_Day_1km"), 500.0, 8)
TABLE = InputSpec(
    "C",
    (2,),
    (Band("age", "variable", "variable_age"), Band("height", "variable", "tall", vector=(1.0, -2.0, 0.5))),
    None,
    1,
)
INPUTS = {"image": IMAGE, "radar": RADAR, "series": SERIES, "line": LINE, "table": TABLE}


def built(inputs=INPUTS, settings=SMALL, seed=0):
    with torch.device("meta"):
        model = Tokenizer(inputs, settings)
    model = model.to_empty(device="cpu")
    initialise(model, seed)
    return model


def given(spec, settings=SMALL, batch=2, seed=1):
    random = torch.Generator().manual_seed(seed)
    draw = (
        torch.randn(size, generator=random)
        for size in ((batch, *spec.shape), (batch, settings.place), (batch, spec.steps, settings.time))
    )
    return tuple(draw)


@torch.no_grad()
def reference(model, spec, values, place, time):
    """Token by token, in loops, by the text of 7.1.1."""
    axes = dict(zip(spec.axes, spec.shape, strict=True))
    weights = dict(model.named_parameters())
    out = []
    for b in range(len(values)):
        for t in range(axes.get("T", 1)):
            frame = values[b]
            if "T" in axes:
                frame = frame.select(spec.axes.index("T"), t)
            maps = []
            for number, band in enumerate(spec.bands):
                x = frame[number].reshape(1, 1, *spec.sides)
                name = f"stems.{spec.form}_{band.stem}."
                last = {8: 3, 4: 2, 2: 1, 1: 0}[spec.footprint]
                for layer in (1, 2, 3):
                    weight, bias = weights[f"{name}weight{layer}"], weights[f"{name}bias{layer}"]
                    high, wide = (size // 2 for size in weight.shape[2:])
                    stride = 2 if layer <= last else 1
                    if layer == last:  # as far as it takes behind, nothing before
                        x = F.pad(x, (0, 2 * wide, 0, 2 * high))
                        rows, columns = (
                            (-(-size // 2) if high_ else 1)
                            for size, high_ in zip(
                                (x.shape[2] - 2 * high, x.shape[3] - 2 * wide), (high, wide), strict=True
                            )
                        )
                    else:
                        x = F.pad(x, (wide, wide, high, high))
                    x = F.conv2d(x, weight, bias, (stride if high else 1, stride if wide else 1))
                    if layer == last:
                        x = x[:, :, :rows, :columns]
                    if layer < 3:
                        x = 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
                maps.append(x[0])
            _, rows, columns, _ = spec.grid
            for row in range(rows):
                for column in range(columns):
                    for number, band in enumerate(spec.bands):
                        token = model.values(maps[number][:, row, column])
                        token = token + weights["projections.place.weight"] @ place[b]
                        token = token + weights["projections.time.weight"] @ time[b, t]
                        constants = model._all()[list(INPUTS.values()).index(spec)]
                        if spec.form != "point":
                            token = token + weights["projections.position.weight"] @ constants.position[row, column]
                        token = token + weights["projections.gsd.weight"] @ constants.gsd[0]
                        if band.kind == "optical":
                            token = (
                                token
                                + weights["projections.spectral.weight"]
                                @ spectral_features([band.centre_nm], [band.width_nm], 8)[0]
                            )
                        elif band.kind == "sar":
                            table = dict(
                                zip(
                                    ["P", "L", "S", "C", "X", "Ku", "K", "Ka", "W", *"HVRL", *"hvrl"],
                                    weights["sar"],
                                    strict=True,
                                )
                            )
                            token = (
                                token
                                + table[band.radar_band]
                                + table[band.polarisation[0]]
                                + table[band.polarisation[1].lower()]
                            )
                        elif band.vector:
                            vector = torch.tensor(band.vector)
                            token = token + weights["vectors.3.weight"] @ (vector / vector.square().mean().sqrt())
                        else:
                            token = token + weights[f"variables.is_{band.name.lower()}"]
                        out.append(token)
    return torch.stack(out).view(len(values), spec.tokens, -1)


@pytest.mark.parametrize("key", INPUTS)
def test_tokens_are_those_of_the_text(key):
    model, spec = built(), INPUTS[key]
    values, place, time = given(spec)
    tokens = model(key, values, place, time)
    assert tokens.shape == (2, spec.tokens, 24)
    assert torch.allclose(tokens, reference(model, spec, values, place, time), atol=1e-5)


def test_neither_bands_nor_dates_nor_samples_mix():
    model = built()
    values, place, time = given(IMAGE)
    before = model("image", values, place, time).view(2, *IMAGE.grid, -1)
    values[1, 0, 2] += 1.0
    moved = (model("image", values, place, time).view(2, *IMAGE.grid, -1) - before).abs().amax((2, 3, 5)) > 1e-6
    assert moved.nonzero().tolist() == [[1, 0, 2]]


def test_one_date_for_all_steps_and_unknown_encodings_add_nothing():
    model = built()
    values, place, time = given(IMAGE)
    once = time[:, :1]
    assert torch.equal(model("image", values, place, once), model("image", values, place, once.expand(-1, 2, -1)))
    with_place = model("image", values, place, time) - model("image", values, torch.zeros_like(place), time)
    assert torch.allclose(with_place, model.projections["place"](place)[:, None].expand_as(with_place), atol=1e-5)


@pytest.mark.parametrize("join", ["add", "concat"])
def test_queries_are_tokens_with_a_learned_vector_for_values(join):
    settings = TokenizerSettings(**{**vars(SMALL), "join": join, "width": 48})
    model = built(settings=settings)
    for key, spec in INPUTS.items():
        values, place, time = given(spec)
        content = [model(key, values, p, time) - model.queries(key, p, time) for p in (place, place.flip(0))]
        assert torch.allclose(*content, atol=1e-5) and content[0].abs().max() > 0.1
        assert not torch.allclose(model.queries(key, place, time)[0], model.queries(key, place, time)[1])


def test_concatenated_encodings_keep_their_own_channels():
    model = built(settings=TokenizerSettings(**{**vars(SMALL), "join": "concat", "width": 48}))
    values, place, time = given(IMAGE)
    tokens = model("image", values, place, time).view(2, *IMAGE.grid, 48)
    _, p, t, position, identity, gsd = tokens.split([14, 8, 6, 8, 8, 4], -1)
    assert torch.equal(p[1, 1, 2, 3, 0], place[1]) and torch.equal(t[1, 1, 2, 3, 0], time[1, 1])
    assert torch.equal(
        identity[0, 0, 0, 0],
        spectral_features([b.centre_nm for b in IMAGE.bands], [b.width_nm for b in IMAGE.bands], 8),
    )
    assert torch.equal(position[0, 0, :, :, 0], model._all()[0].position) and gsd.abs().max() > 0
    with pytest.raises(UserError, match="leaves no room for values beside 34 columns"):
        TokenizerSettings(**{**vars(SMALL), "join": "concat", "width": 34})


def test_inputs_share_weights_where_bands_share_a_stem():
    landsat = InputSpec("CHW", (2, 64, 64), bands("landsat_oli", "B2", "B4"), 30.0, 8)
    model = built({"image": IMAGE, "other": landsat})
    assert {name.split(".")[1] for name, _ in model.named_parameters() if name.startswith("stems")} == {
        "image_optical_blue",
        "image_optical_red",
        "image_optical_nir",
    }
    assert sum(p.numel() for p in built({"image": IMAGE}).parameters()) == sum(p.numel() for p in model.parameters())


def test_a_stem_starts_the_same_whatever_else_there_is():
    alone, together = built({"radar": RADAR}), built()
    for name, value in alone.state_dict().items():
        assert torch.equal(value, together.state_dict()[name]), name
    assert not any("constants" in name for name in together.state_dict())


@pytest.mark.parametrize("stem", ["band", "generated"])
@pytest.mark.parametrize("join", ["add", "concat"])
def test_every_parameter_gets_a_gradient(stem, join):
    model = built(settings=TokenizerSettings(**{**vars(SMALL), "stem": stem, "join": join, "width": 48}))
    sum(model(key, *given(spec)).square().sum() for key, spec in INPUTS.items()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    zero = [name for name, p in model.named_parameters() if not p.grad.any()]
    assert zero == ["query"]  # only queries use it
    model.zero_grad()
    loss = model("radar", *given(RADAR)).sum()
    loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_bands_one_by_one_and_together_are_the_same(monkeypatch):
    model = built()
    together = model("image", *given(IMAGE))
    together.sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    monkeypatch.setattr(stems, "ONE_BY_ONE", 1)
    single = model("image", *given(IMAGE))
    single.sum().backward()
    assert torch.allclose(single, together, atol=1e-5)
    assert all(torch.allclose(p.grad, gradients[name], rtol=1e-4, atol=1e-3) for name, p in model.named_parameters())


@pytest.mark.parametrize(("footprint", "reach"), [(8, (-3, 11)), (4, (-5, 9)), (2, (-4, 6)), (1, (-3, 3))])
def test_a_token_looks_at_its_footprint(footprint, reach):
    weights = [torch.ones(shape) for shape in shapes("image", (1, 1))]
    values = torch.zeros(1, 1, 64, 64, requires_grad=True)
    convolve(
        values,
        weights,
        "image",
        footprint,
    )[0, 3, 4, 0, 0].backward()
    rows, columns = values.grad[0, 0].abs().sum(1).nonzero(), values.grad[0, 0].abs().sum(0).nonzero()
    first = torch.tensor([3, 4]) * footprint
    assert [rows.min() - first[0], columns.min() - first[1]] == [reach[0]] * 2
    assert [rows.max() - first[0], columns.max() - first[1]] == [reach[1]] * 2
    assert abs(sum(reach) / 2 - (footprint - 1) / 2) <= 0.5


def test_positions_are_measured_by_the_tile():
    whole = Constants(InputSpec("CHW", (1, 32, 64), bands("naip", "red"), None, 8), SMALL)
    assert torch.equal(whole.initial_buffer("position"), position_features(4, 8, 8, "first"))
    part = Constants(InputSpec("CHW", (1, 255, 255), bands("naip", "red"), None, 8), SMALL)
    larger = Constants(InputSpec("CHW", (1, 256, 256), bands("naip", "red"), None, 8), SMALL)
    difference = (part.initial_buffer("position") - larger.initial_buffer("position")).abs()
    assert 0 < difference[0, 0].max() < difference[-1, -1].max() < 0.5


def test_patches_are_the_values_of_the_tokens():
    for spec in INPUTS.values():
        values = given(spec)[0]
        found = patches(values, spec).view(2, *spec.grid, *spec.cell)
        assert found.shape[1:5] == spec.grid and spec.patch_values == math.prod(spec.cell)
        assert torch.isclose(found.sum(), values.sum(), rtol=1e-4)
    image = given(IMAGE)[0]
    found = patches(image, IMAGE).view(2, *IMAGE.grid, 8, 8)
    assert torch.equal(found[1, 1, 0, 2, 1], image[1, 1, 1, 0:8, 16:24])
    assert torch.equal(found[0, 1, 2, 4, 2, :4, :4], image[0, 1, 2, 16:20, 32:36])
    assert not found[0, 1, 2, 4, 2, 4:].any() and not found[0, 1, 2, 4, 2, :, 4:].any()
    line = given(LINE)[0]
    assert torch.equal(patches(line, LINE).view(2, 3, 4, 2, 8)[1, 2, 3, 0], line[1, 2, 0, 24:32])
    there = torch.zeros(1, *IMAGE.shape, dtype=torch.bool)
    there[0, 1, 2, 19, 35] = True
    assert patches(there, IMAGE).any(-1).nonzero().tolist() == [[0, IMAGE.tokens - 1]]


def spread(model, key, spec, settings):
    values, place, time = given(spec, settings, batch=32)
    tokens = model(key, values, torch.zeros_like(place), torch.zeros_like(time))
    return (tokens - tokens.mean(0)).std().item()


def test_generated_stems_begin_at_the_scale_of_plain_ones():
    found = {}
    for stem in ("band", "generated"):
        settings = TokenizerSettings(width=64, stem=stem)
        model = built({"image": IMAGE, "series": SERIES}, settings)
        found[stem] = [spread(model, key, spec, settings) for key, spec in (("image", IMAGE), ("series", SERIES))]
    ratio = np.array(found["generated"]) / np.array(found["band"])
    assert (abs(np.log(ratio)) < math.log(1.5)).all()
    assert min(found["band"]) > 0.3 and max(found["band"]) < 2


def test_gelu_power_and_stem_scales():
    assert (
        abs(F.gelu(torch.randn(1_000_000, generator=torch.Generator().manual_seed(0))).square().mean() - GELU_POWER)
        < 0.005
    )
    made = []
    for seed in range(64):
        stem = Stem("image", (16, 32))
        random = torch.Generator().manual_seed(seed)
        values = [
            stem.initial_value(name, random) for name in ("weight1", "bias1", "weight2", "bias2", "weight3", "bias3")
        ]
        made.append(convolve(torch.randn(1, 1, 64, 64, generator=random), values, "image", 8)[:, 1:-1, 1:-1])
    assert 0.7 < torch.stack(made).std() < 1.4
    assert len(scales("point", (2, 3))) == 6


GENERATED = TokenizerSettings(**{**vars(SMALL), "stem": "generated"})


def test_generated_stems_take_bands_that_were_never_seen():
    model = built({"image": IMAGE}, GENERATED)
    parameters = {name: p.clone() for name, p in model.named_parameters()}
    unseen = [InputSpec("CHW", (1, 24, 24), (optical("x", centre),), 20.0, 8) for centre in (664.6, 1613.7)]
    model.extend({"near": unseen[0], "far": unseen[1]})
    assert all(torch.equal(p, parameters[name]) for name, p in model.named_parameters())
    values, place, time = given(unseen[0], GENERATED)
    near, far = model("near", values, place, time), model("far", values, place, time)
    assert near.shape == (2, 9, 24) and not torch.allclose(near, far)
    # The weights are a function of the descriptor alone: the same band in an input that was built with it gives the same token.
    again = built({"image": IMAGE, "near": unseen[0]}, GENERATED)
    assert torch.allclose(again("near", values, place, time), near, atol=1e-6)
    with pytest.raises(UserError, match="an input 'near' already"):
        model.extend({"near": unseen[0]})


def test_extending_refuses_what_was_not_trained():
    plain = built({"image": IMAGE})
    swir = InputSpec("CHW", (1, 24, 24), bands("sentinel2", "B11"), None, 8)
    with pytest.raises(
        UserError, match=r"band B11: no stem 'image_optical_swir16' was trained .*did you mean image_optical_"
    ):
        plain.extend({"swir": swir})
    red = InputSpec("CHW", (1, 24, 24), bands("landsat_oli", "B4"), 30.0, 8)
    plain.extend({"landsat": red})
    assert plain("landsat", *given(red)).shape == (2, 9, 24)
    made = built({"image": IMAGE, "table": TABLE}, GENERATED)
    refused = {
        "no SAR band": RADAR,
        "no line was trained": LINE,
        "no such variable was trained .*did you mean age": InputSpec(
            "C", (1,), (Band("ages", "variable", "v"),), None, 1
        ),
        "no vector of 2 numbers": InputSpec("C", (1,), (Band("a", "variable", "v", vector=(1.0, 2.0)),), None, 1),
    }
    for message, spec in refused.items():
        with pytest.raises(UserError, match=message):
            made.extend({"new": spec})
    told = InputSpec("C", (1,), (Band("outage", "variable", "v", vector=(0.1, 2.0, -1.0)),), None, 1)
    made.extend({"told": told})
    assert made("told", *given(told, GENERATED)).shape == (2, 1, 24)
    no_space = built({"table": TABLE, "series": SERIES}, GENERATED)
    with pytest.raises(UserError, match="no image was trained"):
        no_space.extend({"image": IMAGE})


def test_encodings_can_be_left_out():
    settings = TokenizerSettings(width=16, hidden=(4, 4), place=0, time=0, position=0, gsd=0, spectral=4)
    model = built(settings=settings)
    assert set(model.projections) == {"spectral"}
    tokens = model("image", *given(IMAGE, settings))
    assert tokens.shape == (2, IMAGE.tokens, 16)


def test_bf16_stays_close():
    model = built()
    values, place, time = given(IMAGE)
    exact = model("image", values, place, time)
    rough = model.bfloat16()("image", values, place, time)
    assert rough.dtype == torch.bfloat16 and (rough - exact).abs().max() < 0.1


def test_what_does_not_fit_is_refused():
    model = built()
    values, place, time = given(IMAGE)
    with pytest.raises(UserError, match="no input 'imgae': did you mean image"):
        model("imgae", values, place, time)
    with pytest.raises(ValueError, match="place"):
        model("image", values, place[:, 1:], time)
    with pytest.raises(ValueError, match="time"):
        model("image", values, place, time[:, :1].expand(-1, 3, -1))
    with pytest.raises(ValueError, match="expected"):
        model("image", values.transpose(1, 2), place, time)
    for change, message in (
        ({"join": "plus"}, "join: 'plus'"),
        ({"region": "second"}, "region"),
        ({"stem": "genrated"}, "did you mean generated"),
        ({"place": 7}, "place: 7"),
        ({"hidden": (4,)}, "hidden"),
    ):
        with pytest.raises(UserError, match=message):
            TokenizerSettings(**{**vars(SMALL), **change})


def test_stems_side_by_side():
    model = built()
    made = side_by_side([model.stems["image_optical_red"], model.stems["image_optical_nir"]])
    assert [tuple(part.shape) for part in made] == [(8, 1, 3, 3), (8,), (12, 4, 3, 3), (12,), (12, 6, 3, 3), (12,)]
    assert torch.equal(made[2][6:], model.stems["image_optical_nir"].weight2)
