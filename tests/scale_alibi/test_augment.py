"""What is seen of the ground: after any crop, symmetry and size, pixels are where their GSD says, in all sensors alike."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from frontier.config.schema import AugmentConfig
from frontier.data.transforms import apply_symmetry
from scale_alibi.augment import View, draw_view, see_gsd, see_images
from scale_alibi.geometry import distances, patch_centres

SIDE_M = 640.0
SENSORS = {"same": (32, 32), "finer": (32, 48), "coarser": (128, 64), "much coarser": (128, 16)}
"""Stored side, and side that the encoder sees."""


def views(count: int, scale: tuple[float, float] | None = (0.2, 1.0), symmetries: bool = True) -> View:
    members = torch.stack([torch.arange(count) % 3, torch.arange(count)], 1)
    return draw_view(members, AugmentConfig(symmetries=symmetries, crop_scale=scale), 3)


def ramps(stored: int, count: int) -> Tensor:
    """[count, 2, stored, stored]: where on the ground each pixel's centre is, in metres (y, x)."""
    at = (torch.arange(stored) + 0.5) * (SIDE_M / stored)
    return torch.stack(torch.meshgrid(at, at, indexing="ij")).expand(count, -1, -1, -1)


def seen(view: View, count: int) -> dict[str, tuple[Tensor, Tensor]]:
    """By sensor, places that its pixels show [B, size**2, 2], and those that its GSD says [B, size**2, 2], from the window's corner."""
    found = {}
    for name, (stored, size) in SENSORS.items():
        shown = see_images(ramps(stored, count), None, view, size)[0].flatten(2).transpose(1, 2)
        gsd = see_gsd(torch.full((count,), SIDE_M / stored), stored, size, view)
        found[name] = shown, patch_centres(size, 1, gsd, 1.0)
    return found


def inner(shown: Tensor) -> Tensor:
    """[size**2] pixels whose ground is away from the image's border, beyond which nothing is known."""
    return ((shown > 40) & (shown < SIDE_M - 40)).all(-1)


def errors(view: View, told: View, count: int) -> Tensor:
    """[count, sensors, sensors] the largest difference, over pixels of a sample, between distances on the ground that is shown under
    `view` and distances of the places of those pixels where GSD follows `told`; in pixels of the coarser of two sensors.
    """
    random, step, grids = torch.Generator().manual_seed(0), 40, [size for _, size in SENSORS.values()]
    shown, places = seen(view, count), seen(told, count)
    found = torch.zeros(count, len(SENSORS), len(SENSORS))
    for sample in range(count):
        real, model = [], []
        for name in SENSORS:
            inside = inner(shown[name][0][sample]).nonzero().squeeze(1)
            few = inside[torch.randperm(len(inside), generator=random)[:step]]
            assert len(few) == step
            real.append(shown[name][0][sample, few])
            model.append(places[name][1][sample, few])
        real_m, model_m = (distances(at[None], at[None])[0] for at in (torch.cat(real), torch.cat(model)))
        worst = F.max_pool2d((real_m - model_m).abs()[None], step)[0]
        found[sample] = worst / (SIDE_M / torch.minimum(*torch.meshgrid(*[torch.tensor(grids)] * 2, indexing="ij")))
    return found


def test_distances_on_the_ground_are_those_that_gsd_says() -> None:
    """Of a ramp of ground coordinates each pixel shows its place: all distances, within a sensor and between two, are those of the places that
    the model computes: exactly where a plain bilinear sample is taken, to a tenth of a pixel where pixels are averaged (a sampled triangle)."""
    count = 12
    found = errors(views(count), views(count), count)
    assert found[:, :2, :2].max() < 1e-4
    assert found.max() < 0.1


def test_distances_are_wrong_where_gsd_is_not_followed() -> None:
    """With the nominal GSD, or without the exchange of rows and columns, by pixels."""
    count = 12
    view = views(count)
    for wrong in (View(None, view.symmetries), View(view.windows, None)):
        assert errors(view, wrong, count).max() > 2


def test_gsd_follows_windows_and_symmetries() -> None:
    """A window of half the height and all the width, transposed: rows are then those that were columns."""
    view = View(torch.tensor([[0.5, 0.0, 0.5, 1.0]] * 2), torch.tensor([0, 4]))
    assert see_gsd(torch.tensor([10.0, 10.0]), 64, 128, view).tolist() == [[2.5, 5.0], [5.0, 2.5]]
    image = torch.arange(16.0).view(1, 1, 4, 4).expand(2, -1, -1, -1)
    out, _ = see_images(image, None, view, 4)
    torch.testing.assert_close(out[1], out[0].transpose(-1, -2))
    torch.testing.assert_close(out[0, 0, :, 1], torch.tensor([1.0 + 4 * y for y in (1.75, 2.25, 2.75, 3.0)]))
    assert see_gsd(torch.tensor([4.0]), 64, 64, View()).tolist() == [[4.0, 4.0]]


def test_views_of_a_sample_depend_on_nothing_else() -> None:
    members = torch.tensor([[0, 4], [1, 4], [0, 5]])
    config = AugmentConfig(symmetries=True, crop_scale=(0.2, 1.0))
    whole, alone = draw_view(members, config, 3), draw_view(members[1:2], config, 3)
    assert torch.equal(whole.windows[1:2], alone.windows) and torch.equal(whole.symmetries[1:2], alone.symmetries)
    assert len({tuple(w) for w in whole.windows.tolist()}) == 3
    y, x, height, width = views(500).windows.unbind(-1)
    assert (y.abs() + height <= 1 + 1e-6).all() and (x.abs() + width <= 1 + 1e-6).all()
    assert float((height * width).min()) >= 0.2 - 1e-6 and float((height / width).log().abs().max()) < 0.29
    plain = draw_view(members, AugmentConfig(), 3)
    assert plain == View()


@pytest.mark.parametrize(("stored", "size"), SENSORS.values())
def test_what_is_missing_is_not_mixed_in(stored: int, size: int) -> None:
    """Images of one value with holes: a pixel is that value or 0, and holes keep their area."""
    count = 8
    there = torch.ones(count, 1, stored, stored, dtype=torch.bool)
    there[:, :, : stored // 2, stored // 4 :] = False
    there[1] = False
    values = torch.where(there, 3.0, 0.0).expand(-1, 2, -1, -1)
    for view in (views(count), View(None, None)):
        out, known = see_images(values, there, view, size)
        assert known is not None and known.shape == (count, 1, size, size)
        is_there = (out - 3).abs() < 1e-4
        assert torch.equal(is_there, known.expand_as(out))
        assert (is_there | (out == 0)).all() and not is_there[1].any()
        assert torch.equal(is_there[:, 0], is_there[:, 1])
        if view.windows is None:
            expected = there.float().mean((1, 2, 3))
            assert ((is_there.float().mean((1, 2, 3)) - expected).abs() <= 4 / size).all()
    # Nothing is resampled: nothing is looked at.
    same, known = see_images(values, there, View(), stored)
    assert same is values and known is not None and torch.equal(known, there)


def test_a_hole_stays_where_it_is() -> None:
    """The first row of pixels that is there begins where the mask begins, to half a stored pixel."""
    there = torch.zeros(1, 1, 64, 64, dtype=torch.bool)
    there[:, :, 20:] = True
    for size in (16, 32, 48, 64, 128):
        rows = see_images(there.float(), there, View(torch.tensor([[0.0, 0.0, 1.0, 1.0]])), size)[0][0, 0, :, 0]
        begins = int((rows > 0.5).nonzero()[0])
        assert abs((begins + 0.0) * 64 / size - 20) <= 64 / size / 2 + 0.5, size


def test_symmetries_are_applied_after_the_window() -> None:
    view = views(8)
    image = torch.rand(8, 3, 32, 32)
    plain, _ = see_images(image, None, View(view.windows, None), 32)
    turned, nothing = see_images(image, None, view, 32)
    assert torch.equal(turned, apply_symmetry(plain, view.symmetries)) and nothing is None
    there = torch.rand(8, 1, 32, 32) < 0.9
    _, known = see_images(image, there, view, 32)
    _, upright = see_images(image, there, View(view.windows, None), 32)
    assert known is not None and upright is not None
    assert torch.equal(known, apply_symmetry(upright, view.symmetries)) and not known.all()
