"""Collectives against their closed forms, and what each setting does to a step."""

import math

import pytest

from frontier.errors import UserError
from frontier_profiling.predict.case import Case
from frontier_profiling.predict.compute import compute
from frontier_profiling.predict.constants import defaults
from frontier_profiling.predict.links import Axis, all_reduce, gather
from frontier_profiling.predict.predict import predict
from frontier_profiling.predict.step import moved, step
from frontier_profiling.predict.system import load_system, system_names

FRONTIER, C = load_system("frontier"), defaults()


def test_every_shipped_system_predicts():
    assert {"frontier", "lumi", "perlmutter", "aurora", "jupiter", "h200"} <= set(system_names())
    for name in system_names():
        row = predict(Case("vit_base", load_system(name), 1, "full_shard"))
        assert row.images_per_s and row.images_per_s > 0 and row.mfu and 0 < row.mfu < 0.7, name


def test_a_ring_inside_a_module_a_node_and_between_nodes():
    gib = 2.0**30
    pair, node, nodes = Axis(FRONTIER, 2), Axis(FRONTIER, 8), Axis(FRONTIER, 16)
    assert gather(pair, gib, C) == pytest.approx(5e-6 + gib / 2 / (200e9 * C.link_efficiency))
    assert gather(node, gib, C) == pytest.approx(7 * 5e-6 + gib * 7 / 8 / (50e9 * C.link_efficiency))
    rate = min(50e9 * C.link_efficiency, 100e9 * C.network_efficiency)
    hop = C.hop_s * (1 + (16 / C.ring_congestion) ** 2)
    assert gather(nodes, gib, C) == pytest.approx(15 * hop + gib * 15 / 16 / rate)
    assert gather(Axis(FRONTIER, 1), gib, C) == 0.0


def test_groups_of_a_node_share_its_network():
    alone, eight = Axis(FRONTIER, 16, stride=1), Axis(FRONTIER, 16, stride=8)
    assert eight.bandwidth(C) == pytest.approx(100e9 * C.network_efficiency / 8)
    assert alone.bandwidth(C) > eight.bandwidth(C)


def test_an_all_reduce_takes_the_quicker_of_ring_and_tree():
    small, large = 1e6, 1e10
    axis = Axis(FRONTIER, 1024)
    wire = 2 * small * 1023 / 1024 / axis.bandwidth(C)
    assert all_reduce(axis, small, C) == pytest.approx(wire * C.tree_slowdown + 2 * math.log2(1024) * C.hop_s)
    wire = 2 * large * 1023 / 1024 / axis.bandwidth(C)
    assert all_reduce(axis, large, C) == pytest.approx(wire + 2 * 1023 * C.hop_s)


def test_parts_add_up_to_the_step():
    for strategy in ("ddp", "no_shard", "hybrid_8", "shard_grad_op", "full_shard", "zero_1", "zero_2", "zero_3"):
        row = predict(Case("vit_1b", FRONTIER, 16, strategy))
        parts = row.step_parts_s
        whole = sum(parts[name] for name in ("compute", "launch", "optimizer", "exposed", "data"))
        assert whole == pytest.approx(row.step_s), strategy
        assert parts["exposed"] <= parts["gather"] + parts["reduce"] + 1e-9


def test_nothing_moves_on_one_device():
    row = predict(Case("vit_1b", FRONTIER, 1, "no_shard", ranks=1))
    assert row.devices == 1
    assert row.step_parts_s["gather"] == row.step_parts_s["reduce"] == row.step_parts_s["exposed"] == 0.0


def test_traffic_by_strategy():
    """Weights move twice under full_shard, once under shard_grad_op; hybrid_8's gathers stay in the node."""
    full, once, hybrid, none = (
        moved(Case("vit_3b", FRONTIER, 8, s), C) for s in ("full_shard", "shard_grad_op", "hybrid_8", "hybrid_1")
    )
    assert full.gathers == pytest.approx(2 * once.gathers)
    assert hybrid.gathers < full.gathers and hybrid.reduces > 0.0
    assert none.gathers == none.scatters == 0.0
    assert hybrid.between_nodes == pytest.approx(hybrid.reduces)
    assert full.between_nodes == pytest.approx(full.gathers + full.scatters)


def test_accumulation_gathers_every_time_and_reduces_once():
    case = Case("vit_3b", FRONTIER, 8, "full_shard", micro_batch=8)
    one, four = moved(case, C), moved(case.but(accumulation=4), C)
    assert four.gathers == pytest.approx(4 * one.gathers)
    assert four.scatters == pytest.approx(one.scatters)


def test_each_setting_acts_in_its_direction():
    base = Case("vit_3b", FRONTIER, 16, "full_shard")
    seconds = step(base, C).seconds
    assert step(base.but(prefetch=0), C).seconds > seconds
    assert step(base.but(activation_checkpointing="none"), C).seconds < seconds
    assert seconds > step(base.but(activation_checkpointing="selective"), C).seconds
    assert step(base.but(precision="fp32"), C).seconds > seconds
    assert step(base.but(micro_batch=64), C).seconds > seconds
    assert step(base.but(workload="mae"), C).seconds < seconds
    assert (
        predict(base.but(strategy="ddp", precision="fp32")).images_per_s
        < predict(base.but(strategy="no_shard")).images_per_s
    )


def test_tensor_parallelism_pays_inside_a_node_and_not_across():
    inside = step(Case("vit_15b", FRONTIER, 8, "hybrid_8", tensor=8), C)
    across = step(Case("vit_15b", FRONTIER, 8, "hybrid_4", tensor=16), C)
    assert across.moved.tensor > 1.5 * inside.moved.tensor
    whole = compute(Case("vit_15b", FRONTIER, 8, "hybrid_8"), C)
    assert inside.compute.products == pytest.approx(whole.products / C.tensor_products**3, rel=0.01)


def test_mfu_and_flops_follow_from_the_rate():
    row = predict(Case("vit_3b", FRONTIER, 4, "hybrid_2"))
    assert row.mfu == pytest.approx(row.images_per_s / 32 * row.flops_per_image / 191.5e12)
    assert row.hfu == pytest.approx(row.mfu * 4 / 3)
    assert row.joules_per_image == pytest.approx(row.power_w / row.images_per_s)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"strategy": "hybrid_3"}, "choose among"),
        ({"strategy": "fulll_shard"}, "no strategy"),
        ({"tensor": 5, "strategy": "hybrid_1", "nodes": 5}, "heads"),
        ({"nodes": 10**6}, "largest job"),
        ({"image_size": 225}, "multiple of patch"),
        ({"micro_batch": 0}, "positive"),
        ({"precision": "fp8"}, "peak"),
        ({"model": "vit_4b"}, "did you mean"),
    ],
)
def test_what_cannot_work_is_refused_with_the_mend(changes, said):
    with pytest.raises(UserError, match=said):
        predict(Case(**{"model": "vit_3b", "system": FRONTIER, "nodes": 8} | changes))
