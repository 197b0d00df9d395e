"""What the engine costs beside the maths, in one run each, on this machine's ranks.

    python benchmarks/engine.py overhead     # a step of the trainer against a bare PyTorch loop under the same strategy
    python benchmarks/engine.py checkpoint   # the step that saves, a model of 330 M parameters; write rate against dd

`overhead`: the bare loop is what one would write by hand: the same module under DistributedDataParallel or `fully_shard`, AdamW
(fused), clip_grad_norm_, one batch that stays in memory, its loss printed by nobody. The trainer's step reads shards,
normalises, masks, reduces the loss, judges the step and writes a line of metrics. Both take turns in the same ranks.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def launch(ranks: int, *words: str, threads: int = 1) -> dict[str, Any]:
    """Run this script as a worker on `ranks` ranks; rank 0 leaves its figures in a file."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        code = "import sys; from frontier.launch.local import run_local; sys.exit(run_local(sys.argv[2:], int(sys.argv[1])))"
        command = [sys.executable, "-c", code, str(ranks), sys.executable, __file__, *words, "--result", file.name]
        subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": str(threads)})
        return json.loads(Path(file.name).read_text())


def make_shards(folder: Path, scenes: int, pixels: int) -> Path:
    out = folder / f"scenes_{pixels}"
    if not (out / "manifest.json").exists():
        command = [sys.executable, "-m", "frontier", "shards", "write", "--scenes", str(scenes), "--sensors", "rgb"]
        subprocess.run([*command, "--size", str(pixels), "--seed", "0", str(out)], check=True, stdout=sys.stderr)
    return out


def config(shards: str, run_dir: str, **changes: Any) -> Any:
    """A resolved plan's config from nested dicts over a small default."""
    from frontier.config.load import validate

    base: dict[str, Any] = {
        "run": {"dir": run_dir},
        "model": {"family": "mae", "preset": "vit_tiny", "decoder": {"width": 96, "depth": 2, "heads": 3}},
        "data": {"shards": shards},
        "train": {"steps": 1000, "global_batch": 128, "clip_norm": 1.0},
    }
    for section, values in changes.items():
        base[section] = base.get(section, {}) | values
    return validate(base)


def bare_loop(plan: Any, images: Any) -> Any:
    """A hand-written step under the strategy of `plan`: a function without arguments."""
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    from frontier.models.init import initialise
    from frontier.models.mae import MAE

    module = MAE(plan.model.config)
    initialise(module, 0)
    module.train()
    model: Any = module
    if plan.config.parallel.strategy == "ddp":
        model = DistributedDataParallel(module, gradient_as_bucket_view=True)
    else:
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for block in module.shard_units():
            fully_shard(block, mesh=mesh)
        fully_shard(module, mesh=mesh, reshard_after_forward=False)
    decayed = [p for p in module.parameters() if p.ndim > 1]
    others = [p for p in module.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), fused=True)

    def step() -> None:
        loss = model(images, torch.rand(len(images), module.config.patches))["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()

    return step


def overhead_worker(args: argparse.Namespace) -> dict[str, Any] | None:
    import torch
    import torch.distributed as dist

    from frontier.data.feed import Loaders
    from frontier.launch.host_memory import keep_freed_memory
    from frontier.launch.process_group import process_group
    from frontier.launch.ranks import discover
    from frontier.train.guards import Guard
    from frontier.train.metrics import MetricsLog
    from frontier.train.plan import resolve
    from frontier.train.trainer import Stepper, _facts, _row

    keep_freed_memory()
    ranks, device = discover(), torch.device("cpu")
    with tempfile.TemporaryDirectory() as run_dir, process_group(ranks, device, 300):
        plan = resolve(config(args.shards, run_dir, parallel={"strategy": args.strategy}), ranks.world_size)
        bare_plan = resolve(plan.config, ranks.world_size)
        stepper = Stepper(plan, ranks, device)
        guard, log = Guard(10.0, 20), MetricsLog(Path(run_dir), 0)
        facts = _facts(plan, ranks, device, None)
        loader = Loaders(plan.feed.streams, ranks.rank, ranks.world_size, 1, device, 0)
        batches = loader.batches(0)
        images = torch.randn(plan.batch.local_batch, 3, *(2 * [plan.config.data.image_size]))
        bare = bare_loop(bare_plan, images)
        done = 0

        def ours() -> None:
            nonlocal done
            before = time.perf_counter()
            with stepper.waits.counting():
                result = stepper.step(batches, 1e-4, guard.limits(), False, False, [])
            done += 1
            guard.judge(done, result.update.made, result.update.norm, result.loss)
            if ranks.is_main:
                log.write(_row(plan, done, guard, result, 1e-4, time.perf_counter() - before, facts, device, 0))

        times: dict[str, list[float]] = {"trainer": [], "bare": []}
        for turn in range(args.repeats + 3):
            for name, step in (("trainer", ours), ("bare", bare)) if turn % 2 else (("bare", bare), ("trainer", ours)):
                dist.barrier()
                start = time.perf_counter()
                step()
                if turn >= 3:
                    times[name].append(time.perf_counter() - start)
        loader.close()
        log.close()
    return times if ranks.is_main else None


def checkpoint_worker(args: argparse.Namespace) -> dict[str, Any] | None:
    import torch

    from frontier.launch.host_memory import keep_freed_memory
    from frontier.launch.process_group import process_group
    from frontier.launch.ranks import discover
    from frontier.train.plan import resolve
    from frontier.train.preemption import StopFlag
    from frontier.train.trainer import train

    keep_freed_memory()
    ranks, device = discover(), torch.device("cpu")
    large = {"preset": "vit_base", "width": 1024, "depth": 24, "heads": 16, "mlp_hidden": 4096}
    with tempfile.TemporaryDirectory(dir=args.folder) as run_dir, process_group(ranks, device, 1200):
        wanted = config(
            args.shards,
            run_dir,
            model=large | {"decoder": {"width": 512, "depth": 4, "heads": 16}},
            data={"image_size": 224},
            parallel={"precision": "bf16", "activation_checkpointing": "full"},
            train={"steps": args.repeats, "global_batch": args.batch, "micro_batch": 16},
            checkpoint={"every_steps": 2, "keep": 1, "async_save": not args.blocking},
            log={"progress": "none"},
        )
        plan = resolve(wanted, ranks.world_size)
        train(plan, ranks, device, StopFlag())
        rows = [json.loads(line) for line in (Path(run_dir) / "metrics.jsonl").read_text().splitlines()]
        size = sum(f.stat().st_size for f in (Path(run_dir) / "checkpoints").rglob("*.bin"))
    return {
        "parameters": plan.parameters,
        "bytes": size,
        "steps": [(row["step_s"], row["checkpoint_s"], row["checkpoint_write_s"]) for row in rows],
    }


def dd_rate(folder: str) -> float:
    """Bytes a second of `dd` with fdatasync to the same disk."""
    path = Path(folder) / "dd.test"
    start = time.perf_counter()
    subprocess.run(
        ["dd", "if=/dev/zero", f"of={path}", "bs=64M", "count=64", "conv=fdatasync"], check=True, capture_output=True
    )
    spent = time.perf_counter() - start
    path.unlink()
    return 64 * 2**26 / spent


def overhead(args: argparse.Namespace, folder: Path) -> list[str]:
    shards = make_shards(folder, 800, 64)
    lines = [
        f"### Overhead: a trainer's step over a bare loop's ({args.repeats} of each in turn, medians)",
        "",
        "| strategy | ranks | bare, ms | trainer, ms | ratio | of medians of pairs (p10 - p90) |",
        "|---|---|---|---|---|---|",
    ]
    for strategy, ranks in (("full_shard", 1), ("ddp", 2), ("full_shard", 2)):
        found = launch(
            ranks, "overhead", "--worker", "--shards", str(shards), "--strategy", strategy, "--repeats", str(args.repeats),
            threads=max(1, len(os.sched_getaffinity(0)) // ranks),
        )  # fmt: skip
        bare, ours = (statistics.median(found[name]) for name in ("bare", "trainer"))
        pairs = sorted(o / b for o, b in zip(found["trainer"], found["bare"], strict=True))
        low, high = pairs[len(pairs) // 10], pairs[-1 - len(pairs) // 10]
        lines.append(
            f"| {strategy} | {ranks} | {1e3 * bare:.0f} | {1e3 * ours:.0f} | **{ours / bare:.3f}** "
            f"| {statistics.median(pairs):.3f} ({low:.3f} - {high:.3f}) |"
        )
    return lines


def checkpoint(args: argparse.Namespace, folder: Path) -> list[str]:
    shards = make_shards(folder, 400, 64)
    lines = []
    for blocking in (False, True):
        more = ["--blocking"] if blocking else []
        found = launch(
            1, "checkpoint", "--worker", "--shards", str(shards), "--folder", str(folder), "--repeats", str(args.repeats),
            "--batch", str(args.batch), *more, threads=len(os.sched_getaffinity(0)),
        )  # fmt: skip
        steps = found["steps"][1:]  # the first is a warm-up; a save counts in the step after it
        plain = [s for s, blocked, _ in steps if blocked < 1e-3]
        saving = [s for s, blocked, _ in steps if blocked >= 1e-3]
        blocked = statistics.median(b for _, b, _ in steps if b >= 1e-3)
        writes = [w for _, _, w in found["steps"] if w]
        gib = found["bytes"] / 2**30
        if not lines:
            lines = [
                f"### Checkpoint: {found['parameters'] / 1e6:.0f} M parameters, {gib:.2f} GiB, one rank, batch {args.batch}, every other step saves",
                "",
                "| save | plain step, s | step that saves, s | ratio | training held, s | written in, s | GiB/s | dd, GiB/s |",
                "|---|---|---|---|---|---|---|---|",
            ]
        rate = dd_rate(str(folder)) / 2**30
        a, b, w = statistics.median(plain), statistics.median(saving), statistics.median(writes)
        lines.append(
            f"| {'blocking' if blocking else 'asynchronous'} | {a:.2f} | {b:.2f} | **{b / a:.3f}** | {blocked:.2f} | {w:.1f} "
            f"| {gib / w:.2f} | {rate:.2f} |"
        )
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("overhead", "checkpoint"))
    parser.add_argument("--repeats", type=int, help="steps (default: 40; checkpoint: 8)")
    parser.add_argument("--batch", type=int, default=96, help="of `checkpoint`")
    parser.add_argument("--out", type=Path, help="folder for engine_<what>.md")
    for hidden in ("--shards", "--strategy", "--folder", "--result"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    for hidden in ("--worker", "--blocking"):
        parser.add_argument(hidden, action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.repeats = args.repeats or (8 if args.what == "checkpoint" else 40)
    if args.worker:
        workers = {"overhead": overhead_worker, "checkpoint": checkpoint_worker}
        found = workers[args.what](args)
        if found is not None:
            Path(args.result).write_text(json.dumps(found))
        return 0
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        measures = {"overhead": overhead, "checkpoint": checkpoint}
        load = os.getloadavg()[0]
        lines = measures[args.what](args, Path(folder))
    import torch

    head = f"{time.strftime('%Y-%m-%d')}, {len(os.sched_getaffinity(0))} cores, load at the start {load:.1f}, PyTorch {torch.__version__}."
    text = "\n".join([f"`python benchmarks/engine.py {args.what}`, {head}", "", *lines, ""])
    print(text)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / f"engine_{args.what}.md").write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
