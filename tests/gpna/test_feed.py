"""From shards to the module's arguments: shares of a batch, what is there, what is hidden, and that packing changes nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from frontier.config.load import validate
from frontier.config.schema import DataConfig
from frontier.data.feed import Loaders
from frontier.errors import UserError
from frontier.models.init import initialise
from frontier.train.plan import resolve
from gpna.config import SourceSection
from gpna.feed import share_out
from gpna.model import GPNA
from gpna.predict import open_split, predict
from gpna.reader import instants
from gpna.sensors import Band, InputSpec
from gpna.sources import Times, times_of
from gpna.tokenizer import over_values, patches
from tests.gpna.toys import toy_config

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return resolve(toy_config(tmp_path_factory.mktemp("gpna")), 1)


@pytest.fixture(scope="module")
def placed(plan: Any) -> tuple[Any, Any]:
    reader = plan.feed.reader(CPU, 3)
    batches = Loaders(plan.feed.streams, 0, 1, 0, CPU, 3).batches(0)
    return reader, reader.place(next(batches))


def model_of(plan: Any, seed: int = 0) -> GPNA:
    with torch.device("meta"):
        module = plan.family.build(plan.config.model, plan.family.shape(plan.config))
    module.to_empty(device="cpu")
    initialise(module, seed)
    return module


def sources(**weights: float | None) -> dict[str, SourceSection]:
    return {name: SourceSection(shards="x", weight=weight) for name, weight in weights.items()}


def test_the_plan_fills_in_what_the_data_say(plan: Any) -> None:
    tasks = plan.config.model.tasks
    assert tasks["area"].size == (16, 16) and tasks["area"].classes == 2
    numbers = plan.feed.sources["series"].shards.column("number")
    assert tasks["amount"].mean[0] == pytest.approx(np.nanmean(numbers), rel=1e-5)
    assert tasks["amount"].labelled == pytest.approx(np.isfinite(numbers).mean())
    assert tasks["kind"].labelled < 1
    # What was resolved resolves to itself: a checkpoint's config builds the same model without data.
    again = validate(plan.config.as_dict())
    assert again.as_dict() == plan.config.as_dict()
    assert plan.family.shape(again) == plan.family.shape(plan.config)


def test_shares_of_a_batch() -> None:
    def data(**weights: float | None) -> DataConfig:
        return DataConfig(sources=sources(**weights))

    sizes = {"a": 1000, "b": 10, "c": 10}
    assert share_out(64, sizes, data(a=None, b=None, c=None)) == {"a": 24, "b": 24, "c": 16}
    assert share_out(64, sizes, data(a=6, b=1, c=1)) == {"a": 48, "b": 8, "c": 8}
    assert share_out(64, sizes, data(a=1000, b=1, c=1)) == {"a": 48, "b": 8, "c": 8}  # never none
    mixed = data(a=None, b=None, c=None).model_copy(update={"mixing": 1.0, "granule": 1})
    assert share_out(102, sizes, mixed) == {"a": 100, "b": 1, "c": 1}
    for batch, granule in ((20, 8), (16, 8)):
        with pytest.raises(UserError, match="data.granule=8"):
            share_out(batch, sizes, data(a=None, b=None, c=None).model_copy(update={"granule": granule}))


@pytest.mark.parametrize("seed", range(20))
def test_shares_add_up_whatever_the_weights(seed: int) -> None:
    random = np.random.default_rng(seed)
    names = [f"s{i}" for i in range(int(random.integers(1, 6)))]
    weights = {name: float(random.exponential()) + 1e-3 for name in names}
    granule = int(random.choice([1, 2, 4]))
    batch = granule * int(random.integers(len(names), 40))
    found = share_out(batch, dict.fromkeys(names, 9), DataConfig(sources=sources(**weights), granule=granule))
    assert sum(found.values()) == batch
    assert all(count > 0 and count % granule == 0 for count in found.values())
    exact = {name: batch * weights[name] / sum(weights.values()) for name in names}
    assert all(found[n] >= exact[n] - granule * len(names) for n in names)


def test_tokens_that_are_there(plan: Any, placed: tuple[Any, Any]) -> None:
    _, batch = placed
    rows = batch["scenes"].members[:, 1].numpy()
    tokens = batch["scenes"].tokens["image"].reshape(len(rows), -1, 4)
    assert (tokens == ((rows % 3 != 0)[:, None, None] | (np.arange(4) < 2))).all()
    shards = plan.feed.sources["series"].shards
    rows = batch["series"].members[:, 1].numpy()
    there = shards.take("series_valid", rows)
    assert (batch["series"].tokens["series"].reshape(len(rows), 5, 2) == (there[..., None] > 0)).all()
    # A date that is not known is a zero vector.
    unknown = batch["series"].time["series"][torch.from_numpy(there == 0)]
    assert len(unknown) and not unknown.any()
    assert batch["series"].time["table"].shape[1] == 1 and not batch["series"].time["table"].any()


def test_what_cannot_be_is_told_with_its_source(plan: Any) -> None:
    reader = plan.feed.reader(CPU, 3)
    batches = next(Loaders(plan.feed.streams, 0, 1, 0, CPU, 3).batches(0))
    scenes = batches["scenes"]
    cover = scenes.columns["area"].clone()
    cover[1, 2, 3] = 7  # settled from the first samples of a split whose maps are many

    def told(**columns: torch.Tensor) -> str:
        with pytest.raises(UserError) as error:
            reader.place({"scenes": replace(scenes, columns={**scenes.columns, **columns})})
        return str(error.value)

    assert told(area=cover).startswith("data.sources.scenes: 'area' holds class 7 of 2: give more classes")
    far = torch.full((len(cover),), 95.0)
    assert told(lon=far, lat=far).startswith("data.sources.scenes: latitude 95 must lie in")


@pytest.mark.parametrize(
    ("stored", "what"),
    [
        (np.array([[17500, 17530]]), "'dates' holds 17500, which looks like a number of days"),
        (np.array([[0, 121]], np.int32), "'dates' holds 121, which looks like a number of days"),
        (np.array([[20200131, 20201231], [0, 20190101]]), "'dates' holds 20200131, which looks like a date such as"),
    ],
)
def test_times_that_are_no_unix_seconds(stored: np.ndarray, what: str) -> None:
    with pytest.raises(UserError, match=what):
        instants({"dates": torch.from_numpy(stored)}, Times("dates", None))


def test_unix_seconds_of_any_type_are_dates() -> None:
    seconds = [441763200, 0, 1709164800]  # 1984, unknown, a leap day
    for dtype in (np.int64, np.int32, np.float64):
        start, end = instants({"dates": torch.from_numpy(np.array([seconds], dtype))}, Times("dates", None))
        assert start.isnan().tolist() == [[False, True, False]] and torch.equal(start[:, ::2], end[:, ::2])


def test_dates_that_fit_no_input_are_refused() -> None:
    spec = InputSpec("TC", (5, 1), (Band("x", "variable", "x"),), None, 1)
    images = {"s": {"shape": [5, 1], "axes": "TC"}, "other": {"shape": [3, 1], "axes": "TC"}}

    def found(**shapes: list[int]) -> Times | None:
        arrays = {name: {"shape": shape} for name, shape in shapes.items()}
        return times_of({"images": images, "arrays": arrays}, "s", spec)

    assert found(s_time=[5]) == Times("s_time", None) and found(dates=[5, 2]) == Times("dates", None)
    assert found(dates=[3]) is None  # the other input's
    for name, shape in (("dates", [4]), ("s_time", [3]), ("s_time_start", [4])):
        with pytest.raises(UserError, match=f"'{name}' has shape .*, 's' has 5 dates"):
            found(**{name: shape})


def test_hidden_tokens_are_seen_from_nowhere(plan: Any, placed: tuple[Any, Any]) -> None:
    """Other values under the hidden tokens leave the latents as they are; the answers hold those values."""
    reader, batch = placed
    module = model_of(plan)
    first = reader.inputs(module, batch, 0, 1)
    scenes = batch["scenes"]
    hide = reader._hidden("scenes", "image", scenes.members, scenes.tokens["image"])
    there = scenes.tokens["image"]
    assert (hide.sum(1) == np.rint(there.sum(1) * 0.5)).all() and not (hide & ~there).any()
    spec = plan.feed.sources["scenes"].inputs["image"]
    noise = torch.randn_like(scenes.values["image"]) * over_values(torch.from_numpy(hide), spec)
    other = {**batch, "scenes": replace(scenes, values={"image": scenes.values["image"] + noise})}
    second = reader.inputs(module, other, 0, 1)
    with torch.no_grad():
        latents = [module.encode(i["sources"], i["clusters"]) for i in (first, second)]
    assert torch.equal(*latents)
    answer = second["masked"][0]
    wanted = patches(other["scenes"].values["image"], spec)
    chosen = wanted.gather(1, answer["tokens"][..., None].expand(-1, -1, wanted.shape[-1]))
    assert torch.equal(answer["values"], chosen)
    asked = torch.from_numpy(np.take_along_axis(hide, answer["tokens"].numpy(), 1))
    assert torch.equal(answer["known"].any(-1), asked)


def test_micro_batches_are_the_batch_in_parts(plan: Any, placed: tuple[Any, Any]) -> None:
    """The mean of the losses of equal parts is the loss of the whole, and gradients add up."""
    reader, batch = placed
    module = model_of(plan)

    def losses(turns: int) -> tuple[float, torch.Tensor]:
        module.zero_grad()
        total = 0.0
        for turn in range(turns):
            loss = module(**reader.inputs(module, batch, turn, turns))["loss"] / turns
            loss.backward()
            total += loss.item()
        return total, torch.cat([p.grad.flatten() for p in module.parameters()])  # every one has a gradient

    whole, parts = losses(1), losses(4)
    assert whole[0] == pytest.approx(parts[0], rel=1e-5)
    torch.testing.assert_close(whole[1], parts[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["dbscan", "greedy", "one"])
def test_clusters_change_nothing(plan: Any, placed: tuple[Any, Any], method: str) -> None:
    reader, batch = placed
    module = model_of(plan)

    def loss(how: str) -> dict[str, float]:
        batching = reader.model.batching.model_copy(update={"method": how, "max_padding": 2})
        reader_of = plan.feed.reader(CPU, 3)
        reader_of.model = reader.model.model_copy(update={"batching": batching})
        return {k: v.item() for k, v in module(**reader_of.inputs(module, batch, 0, 1)).items()}

    assert loss(method) == pytest.approx(loss("each"), rel=1e-5)


def test_predictions_are_those_of_each_sample_alone(plan: Any) -> None:
    module, config = model_of(plan), plan.config.as_dict()
    source = open_split(config, "scenes", "train")
    many, one = (predict(module, config, source, size=size) for size in (16, 1))
    assert set(many) == {"kind", "area"}
    for name in many:
        np.testing.assert_allclose(many[name].values, one[name].values, atol=1e-5)
        np.testing.assert_array_equal(many[name].labels, one[name].labels)
    assert many["area"].values.shape == (40, 2, 16, 16)
    np.testing.assert_array_equal(many["kind"].labels, source.shards.column("label"))
