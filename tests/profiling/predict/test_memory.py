"""The closed form against counts on meta of the real model, and invariants."""

import pytest

from frontier.config.schema import ParallelConfig
from frontier.models.registry import ImageShape, family
from frontier.train.memory import MemoryCase, memory_of
from frontier_profiling.predict.case import Case
from frontier_profiling.predict.memory import memory, own_memory
from frontier_profiling.predict.system import load_system

SYSTEM = load_system("frontier")


def real(model: str, micro_batch: int = 4, size: int = 224, world: int = 8, **parallel) -> MemoryCase:
    config = ParallelConfig(**parallel)
    return MemoryCase.of_family(family("mae"), {"preset": model}, ImageShape(size, 3), config, world, micro_batch)


def planned(model: str, micro_batch: int = 4, size: int = 224, **parallel) -> Case:
    return Case(model, SYSTEM, workload="mae", micro_batch=micro_batch, image_size=size, **parallel)


@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("model", ["vit_small", "vit_base", "vit_5b"])
def test_the_peak_is_that_of_a_pass_on_meta(model, precision, checkpointing):
    settings = {"strategy": "full_shard", "precision": precision, "activation_checkpointing": checkpointing}
    counted, _ = memory_of(real(model, micro_batch=32, **settings))
    closed = own_memory(planned(model, micro_batch=32, **settings)).parts
    assert closed["total_allocated"] == pytest.approx(counted["peak"], rel=0.02)
    assert closed["activations"] == pytest.approx(counted["activations"], rel=0.06)


@pytest.mark.parametrize(
    "strategy", ["ddp", "no_shard", "hybrid_4", "shard_grad_op", "full_shard", "zero_1", "zero_2", "zero_3"]
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_strategy_as_in_the_dry_run(strategy, precision):
    settings = {"strategy": strategy, "precision": precision, "activation_checkpointing": "full"}
    counted, _ = memory_of(real("vit_base", **settings))
    closed = own_memory(planned("vit_base", **settings)).parts
    assert closed["total_allocated"] == pytest.approx(counted["peak"], rel=0.02)
    for part in ("parameters", "gradients", "optimizer", "gathered", "buffers"):
        assert closed[part] == pytest.approx(counted[part], rel=0.01, abs=1e-3), part


@pytest.mark.parametrize(("tensor", "accumulation", "prefetch"), [(2, 1, 1), (1, 4, 1), (1, 1, 3), (1, 1, 0)])
def test_tensor_parallelism_accumulation_and_prefetch(tensor, accumulation, prefetch):
    settings = {"strategy": "full_shard", "precision": "bf16", "tensor": tensor, "prefetch": prefetch}
    case = MemoryCase.of_family(
        family("mae"), {"preset": "vit_base"}, ImageShape(224, 3), ParallelConfig(**settings), 8, 8, accumulation
    )
    counted, _ = memory_of(case)
    closed = own_memory(
        planned("vit_base", micro_batch=8, accumulation=accumulation, activation_checkpointing="none", **settings)
    )
    assert closed.parts["total_allocated"] == pytest.approx(counted["peak"], rel=0.03)


@pytest.mark.parametrize("engine", ["fsdp1", "fsdp2"])
@pytest.mark.parametrize("k", [2, 4, 8, 16])
def test_hybrid_k_on_any_nodes_holds_what_full_shard_on_k_devices_holds(k, engine):
    alone = Case("vit_5b", SYSTEM, max(1, k // 8), "full_shard", ranks=k, engine=engine)
    for nodes in (2, 16, 128):
        hybrid = Case("vit_5b", SYSTEM, nodes, f"hybrid_{k}", engine=engine)
        assert memory(hybrid).parts == pytest.approx(memory(alone).parts)


def test_more_is_more():
    base = Case("vit_3b", SYSTEM, 8, "hybrid_8")
    peak = memory(base).peak
    assert memory(base.but(micro_batch=64)).peak > peak
    assert memory(base.but(activation_checkpointing="selective")).peak > peak
    assert memory(base.but(strategy="hybrid_2")).peak > peak
    assert memory(base.but(prefetch=3)).peak > peak
    assert memory(base.but(tensor=2, strategy="hybrid_4")).peak < peak * 1.3
    assert memory(base.but(image_size=448)).peak > peak


def test_offload_moves_the_states_to_the_host():
    base = Case("vit_5b", SYSTEM, 1, "full_shard")
    moved = memory(base.but(offload=True))
    assert moved.parts["optimizer"] == moved.parts["parameters"] == 0.0 and moved.peak < memory(base).peak
    assert sum(moved.on_host.values()) == pytest.approx(16 * base.work.parameters / 8 / 2**30, rel=0.01)
