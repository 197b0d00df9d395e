"""`frontier …` of one rank, watched: `python -m tests.parallel.watched OUT pretrain CONFIG …` runs it with faults put in and writes OUT.<rank>.

Faults, by step counted from 0: 2 has a NaN image on the last rank, 4 a limit on the gradient norm that every gradient exceeds,
6 such a limit on the loss.

OUT.<rank> holds one JSON line a step, {made, norm, changed, grown}: whether weights or moments changed, and by how much AdamW's
count of steps grew. The last line is {config, whole_at_start, whole_in_use}: what DeepSpeed was given, and the largest share of a
ZeRO-3 model's parameters that this rank held whole while the model was filled, and while modules ran.
"""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import torch

import frontier.parallel.zero as zero
import frontier.train.trainer as trainer
from frontier.cli import main
from frontier.data.image_feed import ImageReader

RANK, WORLD = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
NAN, NORM, LOSS = 2, 4, 6
lines: list[dict[str, Any]] = []
last: dict[str, Any] = {"config": None, "whole_at_start": 0.0, "whole_in_use": 0.0}
steps = {"prepared": 0}


def held(module: torch.nn.Module, total: int, key: str) -> None:
    parameters = [p for p in module.parameters() if p.device.type != "meta"]
    last[key] = max(last[key], sum(p.numel() for p in parameters) / total)


def watch_filling() -> None:
    original = zero.partition

    def partition(module: torch.nn.Module, *args: Any) -> None:
        total = sum(p.numel() for p in module.parameters())
        value = zero.initial_value

        def initial_value(*inner: Any) -> torch.Tensor:
            held(module, total, "whole_at_start")
            return value(*inner)

        zero.initial_value = initial_value  # type: ignore[assignment]
        original(module, *args)
        held(module, total, "whole_at_start")
        zero.initial_value = value  # type: ignore[assignment]

    zero.partition = partition  # type: ignore[assignment]


def watch_engine(build: Any) -> Any:
    def built(*args: Any) -> Any:
        engine = build(*args)
        if hasattr(engine, "blueprint"):
            last["config"] = engine.engine.config
            total = sum(p.numel() for p in engine.blueprint.parameters())
            for module in engine.module.modules():
                module.register_forward_pre_hook(lambda *_: held(engine.module, total, "whole_in_use"))
        update = engine.update

        def watched(values: torch.Tensor, lr: float, norm_limit: float, loss_limit: float) -> Any:
            step = len(lines)
            before = {n: [t.clone() for _, t in s.boxes] for n, s in engine.state().items()}
            counts = counted(engine)
            result = update(values, lr, 1e-9 if step == NORM else norm_limit, 1e-9 if step == LOSS else loss_limit)
            after = {n: [t for _, t in s.boxes] for n, s in engine.state().items()}
            changed = any(not torch.equal(a, b) for n in before for a, b in zip(before[n], after[n], strict=True))
            norm = result.norm if math.isfinite(result.norm) else None
            grown = sorted({b - a for a, b in zip(counts, counted(engine), strict=True)})
            lines.append({"made": result.made, "norm": norm, "changed": changed, "grown": grown})
            return result

        engine.update = watched
        return engine

    return built


def counted(engine: Any) -> list[float]:
    """AdamW's counts of steps."""
    optimizer = engine.optimizer
    states = optimizer.state.values() if hasattr(optimizer, "state") else None
    return [float(s["step"]) for s in states] if states else [float(c) for c in optimizer.updates.values()]


def spoiled(place: Any) -> Any:
    def placed(*args: Any) -> Any:
        images, members = place(*args)
        if steps["prepared"] == NAN and RANK == WORLD - 1:
            images[-1, 0, 0, 0] = math.nan
        steps["prepared"] += 1
        return images, members

    return placed


if __name__ == "__main__":
    watch_filling()
    trainer.build_engine = watch_engine(trainer.build_engine)
    ImageReader.place = spoiled(ImageReader.place)  # type: ignore[method-assign]
    code = main(sys.argv[2:])
    out = Path(f"{sys.argv[1]}.{RANK}")
    out.write_text("".join(json.dumps(line) + "\n" for line in [*lines, last]))
    sys.exit(code)
