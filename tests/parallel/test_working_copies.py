"""One rank without FSDP against the same rank under FSDP: the same bits."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from frontier.config.schema import ParallelConfig, TrainConfig
from frontier.launch.mesh import ParallelDims
from frontier.models.mae import MAE, MAEConfig
from frontier.models.presets import get_shape
from frontier.parallel.engine import TorchEngine
from frontier.parallel.working_copies import WorkingCopies

CONFIG = MAEConfig(encoder=get_shape("vit_debug"), image_size=32)


@pytest.fixture(scope="module", autouse=True)
def one_rank() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def engine(**parallel: object) -> TorchEngine:
    config = ParallelConfig.model_validate({"strategy": "full_shard", **parallel})
    train = TrainConfig.model_validate({"steps": 3, "global_batch": 8, "clip_norm": 0.5})
    with torch.device("meta"):
        module = MAE(CONFIG)
    return TorchEngine(module, config, train, ParallelDims.from_strategy("full_shard", 1), torch.device("cpu"), seed=1)


def train(made: TorchEngine, micro_batches: int) -> list[torch.Tensor]:
    """Losses and norms of three steps, then all weights."""
    generator, seen = torch.Generator().manual_seed(3), []
    for _ in range(3):
        for turn in range(micro_batches):
            images = torch.randn(4, CONFIG.channels, 32, 32, generator=generator)
            noise = torch.rand(4, CONFIG.patches, generator=generator)
            loss = made.forward({"images": images, "noise": noise}, last=turn == micro_batches - 1)["loss"]
            made.backward(loss, micro_batches)
        update = made.update(loss.detach().reshape(1), 1e-2, float("inf"), float("inf"))
        seen += [loss.detach(), torch.tensor(update.norm)]
    return seen + [box.clone() for share in made.state().values() for _, box in share.boxes]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("micro_batches", "more"),
    [(1, {}), (3, {}), (2, {"activation_checkpointing": "full"}), (1, {"activation_checkpointing": "selective"})],
)
def test_the_same_bits_as_under_fsdp(
    precision: str, micro_batches: int, more: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = engine(precision=precision, **more)
    assert (alone.copies is not None) == (precision == "bf16")
    ours = train(alone, micro_batches)
    for place in ("apply", "engine"):
        monkeypatch.setattr(f"frontier.parallel.{place}.stands_alone", lambda *_: False)
    wrapped = engine(precision=precision, **more)
    assert wrapped.copies is None and type(wrapped.module).__name__ == "FSDPMAE"
    theirs = train(wrapped, micro_batches)
    assert len(ours) == len(theirs)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_parameters_are_back_after_the_update() -> None:
    made = engine(precision="bf16")
    before = dict(made.module.named_parameters())
    train(made, 1)
    after = dict(made.module.named_parameters())
    assert before.keys() == after.keys() and all(before[n] is after[n] for n in before)
    assert all(p.dtype == torch.float32 and p.grad is None for p in after.values())


def test_shared_parameters_stay_shared() -> None:
    first, second = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
    second.weight = first.weight
    model = torch.nn.Sequential(first, second)
    copies = WorkingCopies(model, torch.bfloat16)
    copies.install()
    assert first.weight is second.weight and first.weight.dtype == torch.bfloat16
    model(torch.ones(2, 4, dtype=torch.bfloat16)).sum().backward()
    copies.remove()
    assert first.weight is second.weight and first.weight.dtype == torch.float32
    assert first.weight.grad is not None and first.weight.grad.dtype == torch.float32
