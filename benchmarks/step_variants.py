"""One process that owns training steps to be timed: ours through the engine, and ViTMAEForPreTraining.

A process is the unit because allocator settings are its own. The parent asks for one step at a time, so that
steps of all variants and of all processes take turns on the machine.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from frontier.launch.host_memory import keep_freed_memory, settle_objects
from frontier.models.init import initialise
from frontier.models.mae import MAE, MAEConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "models"))

CATEGORIES = {
    "attention": ("cpu_attention", "scaled_dot", "flash", "efficient", "bmm", "baddbmm", "softmax"),
    "matrix products": (
        "mm",
        "addmm",
        "linear_pointwise",
        "product",
        "cpu_by_weights",
        "cpu_weight_gradient",
        "convolution",
        "mkldnn_convolution",
    ),
    "matrix products with GELU or its derivative": ("cpu_linear_gelu", "cpu_scale_by_weights"),
    "norms": ("cpu_norm", "layer_norm", "native_layer_norm"),
    "GELU": ("cpu_gelu", "cpu_multiply", "gelu"),
    "optimizer and clipping": ("fused_adam", "foreach", "linalg_vector_norm"),
    "gather and sort": ("index", "gather", "scatter", "sort", "argsort", "cat", "stack", "embedding"),
    "copies and fills": (
        "copy_",
        "clone",
        "fill_",
        "zero_",
        "empty",
        "resize",
        "constant_pad",
        "split_with_sizes_copy",
    ),
    "sums and elementwise": (
        "cpu_column_sums",
        "add",
        "mul",
        "sub",
        "div",
        "pow",
        "sum",
        "mean",
        "var",
        "mse",
        "sqrt",
        "neg",
        "rsub",
    ),
}
OTHER = "other (framework, engine, views, compiled kernels)"


@dataclass(frozen=True)
class Variant:
    """One way to run the step. `who`: ours | hf; `mode`: fp32 | bf16 (ours: the engine's policy; HF:
    .to(bfloat16)) | autocast; `attention` of HF: sdpa | eager."""

    who: str
    mode: str
    attention: str = "sdpa"
    compiled: bool = False

    @property
    def name(self) -> str:
        words = [self.who, self.mode] + ([self.attention] if self.who == "hf" else [])
        return " ".join(words + (["compile"] if self.compiled else []))


@dataclass(frozen=True)
class Setup:
    config: MAEConfig
    batch: int
    device: str
    threads: int
    keep_memory: bool
    cpu_clock: bool = False
    """Count the process's processor seconds: steadier on a shared machine, meaningful with one thread."""


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def build_step(variant: Variant, setup: Setup) -> Callable[[], torch.Tensor]:
    """Forward, loss, backward, clip to norm 1, AdamW, as one function that returns the loss."""
    from hf import build_hf, same_inputs

    device = torch.device(setup.device)
    images, noise = (t.to(device) for t in same_inputs(setup.config, setup.batch))
    if variant.who == "ours":
        return _our_step(variant, setup, images, noise)
    reference = MAE(setup.config)
    initialise(reference, seed=0)
    model = build_hf(reference, variant.attention).to(device)
    if variant.mode == "bf16":
        model, images = model.to(torch.bfloat16), images.bfloat16()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
    run = torch.compile(model, dynamic=False) if variant.compiled else model

    def step() -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=variant.mode == "autocast"):
            loss = run(pixel_values=images, noise=noise).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    return step


def _our_step(variant: Variant, setup: Setup, images: torch.Tensor, noise: torch.Tensor) -> Callable[[], torch.Tensor]:
    """The trainer's own engine (FSDP2 at world size 1, float32 master weights)."""
    from frontier.config.schema import ParallelConfig, TrainConfig
    from frontier.launch.mesh import ParallelDims
    from frontier.parallel.engine import TorchEngine

    parallel = ParallelConfig.model_validate(
        {"strategy": "no_shard", "precision": variant.mode, "compile": variant.compiled}
    )
    train = TrainConfig.model_validate({"steps": 1, "global_batch": setup.batch, "clip_norm": 1.0})
    with torch.device("meta"):
        meta = MAE(setup.config)
    dims = ParallelDims.from_strategy("no_shard", 1)
    engine = TorchEngine(meta, parallel, train, dims, torch.device(setup.device), seed=0)

    def step() -> torch.Tensor:
        loss = engine.forward({"images": images, "noise": noise}, last=True)["loss"]
        engine.backward(loss, times=1)
        engine.update(loss.detach().reshape(1), 1e-4, float("inf"), float("inf"))
        return loss

    return step


def profile(step: Callable[[], Any], device: str, steps: int = 5) -> dict[str, float]:
    """Milliseconds of a step by category: median of each operator and shape times its count."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities, record_shapes=True) as trace:
        for _ in range(steps):
            step()
        synchronise(device)
    times = defaultdict(list)
    for event in trace.events():
        spent = event.self_device_time_total if device == "cuda" else event.self_cpu_time_total
        if spent > 0:
            times[event.name, str(event.input_shapes)].append(spent)
    out: dict[str, float] = defaultdict(float)
    for (name, _), spent in times.items():
        out[categorise(name)] += statistics.median(spent) * len(spent) / steps / 1e3
    return dict(out)


def categorise(operator: str) -> str:
    """The category of a profiler event such as `aten::native_layer_norm_backward`."""
    space, _, plain = operator.rpartition("::")
    if space not in ("aten", "mkldnn", "frontier", "fsdp"):
        return OTHER
    plain = plain.lstrip("_").removeprefix("native_")
    for category, starts in CATEGORIES.items():
        if plain.startswith(starts):
            return category
    return OTHER


def matmul_seconds(mode: str, device: str, clock: Callable[[], float], onednn: bool) -> float:
    """Of one 2048^3 product in the precision of `mode`: torch.matmul, or our linear layer's oneDNN product."""
    from frontier.models.linear import product

    dtype = torch.float32 if mode == "fp32" else torch.bfloat16
    a, b = (torch.randn(2048, 2048, device=device).to(dtype) for _ in range(2))
    run = (lambda: product(a, b)) if onednn else (lambda: a @ b)
    run()
    synchronise(device)
    repeats = 3 if device == "cpu" else 50
    start = clock()
    for _ in range(repeats):
        run()
    synchronise(device)
    return (clock() - start) / repeats


def serve(connection: Connection, setup: Setup) -> None:
    """Answer requests (verb, argument) until "stop"; an error is answered as text and ends nothing."""
    torch.set_num_threads(setup.threads)
    clock = time.process_time if setup.cpu_clock else time.perf_counter
    kept = keep_freed_memory() if setup.keep_memory else False
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group(
        "nccl" if setup.device == "cuda" else "gloo", store=store, rank=0, world_size=1
    )
    connection.send(kept)
    steps: dict[str, Callable[[], torch.Tensor]] = {}
    while True:
        verb, argument = connection.recv()
        try:
            if verb == "stop":
                break
            if verb == "build":
                steps[argument.name] = build_step(argument, setup)
                loss = float(steps[argument.name]().detach())
                steps[argument.name]()
                synchronise(setup.device)
                settle_objects()
                connection.send(loss)
            elif verb == "step":
                start = clock()
                steps[argument]()
                synchronise(setup.device)
                connection.send(clock() - start)
            elif verb == "matmul":
                connection.send(matmul_seconds(argument, setup.device, clock, onednn=False))
            elif verb == "onednn":
                connection.send(matmul_seconds(argument, setup.device, clock, onednn=True))
            elif verb == "profile":
                connection.send(profile(steps[argument], setup.device))
            elif verb == "drop":
                steps.pop(argument, None)
                gc.collect()
                if setup.device == "cuda":
                    torch.cuda.empty_cache()
                connection.send(None)
        except Exception as error:  # out of memory, a compiler that fails: a row of the table, not the end
            connection.send(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200])
    torch.distributed.destroy_process_group()
