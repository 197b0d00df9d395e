"""Counts of products and parameters against PyTorch's counter and published numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from frontier.models.registry import family
from frontier.parallel.apply import checkpoint_activations
from scale_alibi.counting import embedding_flops, flops_per_sample, forward_flops, hardware_flops
from scale_alibi.model import ScaleALiBi
from scale_alibi.sizes import ScaleALiBiConfig, SensorShape
from tests.scale_alibi.sizes import SMALL

UNEVEN = replace(
    SMALL,
    sensors={"a": SensorShape(1, 32, 3, 0.75), "b": SensorShape(12, 64, 1, 0.5), "c": SensorShape(4, 96, 2, 0.3)},
)
# Without a bias attention is PyTorch's own, whose products the counter knows on meta; they are the same with one.
RUNS = {
    "three sensors": SMALL,
    "uneven sensors": UNEVEN,
    "contrast alone": replace(SMALL, reconstruction=0.0, decoder=None),
    "reconstruction alone": replace(SMALL, contrastive=0.0),
}
BATCH = 2


def on_meta(config: ScaleALiBiConfig) -> tuple[ScaleALiBi, dict[str, dict[str, torch.Tensor]]]:
    with torch.device("meta"):
        model = ScaleALiBi(replace(config, position="sincos"))
        given = {
            "images": {n: torch.empty(BATCH, s.channels, s.size, s.size) for n, s in config.sensors.items()},
            "gsd": {n: torch.empty(BATCH, 2) for n in config.sensors},
            "noise": {n: torch.empty(BATCH, config.grid(n) ** 2) for n in config.sensors},
        }
    return model, given


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("kind", ["none", "full"])
@pytest.mark.parametrize("run", RUNS)
def test_what_runs_against_the_counter(run: str, kind: str, accumulation: int) -> None:
    config = RUNS[run]
    model, given = on_meta(config)
    if kind != "none":
        checkpoint_activations(model.shard_units(), kind)
    first, both, further = FlopCounterMode(display=False), FlopCounterMode(display=False), {}
    if config.contrastive:  # the comparison of samples itself is not counted
        with torch.no_grad(), first:
            embedded = model(**given, embed_only=True)
        further = model.compare([embedded])[0]
        assert first.get_total_flops() == BATCH * embedding_flops(config)
    with both:
        model(**given, **further)["loss"].backward()
    counted = both.get_total_flops() + (first.get_total_flops() if accumulation > 1 and config.contrastive else 0)
    assert counted == BATCH * hardware_flops(config, kind, accumulation)
    pixels = forward_flops(config)["embedding"]
    assert flops_per_sample(config) == hardware_flops(config, "selective", 1) + pixels


def test_croma_has_its_published_size() -> None:
    """194.365 M parameters of encoders, joint encoder and summaries: as the released CROMA-base."""
    chosen = family("scale_alibi")
    sensors = {"radar": {"column": "s1"}, "optical": {"column": "s2"}}
    section = chosen.config(preset="scale_alibi_base", sensors=sensors)
    with torch.device("meta"):
        model = chosen.build(section, {"radar": (2, 120), "optical": (12, 120)})
    assert chosen.encoder_parameters(model) == 194_365_440
