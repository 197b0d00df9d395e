"""MAE training step, ours against transformers' ViTMAEForPreTraining, in one interleaved run.

    python benchmarks/training_step.py                      # two sizes, fp32 and bf16, on this CPU
    python benchmarks/training_step.py --device cuda        # bf16, vit_base and vit_3b, with MFU

Both run forward, loss, backward, clipping to norm 1 and fused AdamW on the same pixels, mask noise and
initial weights (their first losses must agree). Ours is what `frontier pretrain` runs: FSDP2 at world size 1,
float32 master weights, bf16 copies under `precision=bf16`. Theirs is measured under every setting (attention,
autocast or pure bf16, torch.compile for the best uncompiled ones) and the best one counts. FLOPs are those of
the reference formulation for both (frontier/models/counting.py): skipping useless work shows as a higher
rate, not as fewer FLOPs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from step_variants import Setup, Variant, serve

from frontier.errors import EXIT_OK, UserError
from frontier.models.counting import flops_per_image, parameter_count
from frontier.models.mae import MAEConfig
from frontier.models.presets import PRESETS, DecoderShape, get_shape
from frontier.train.metrics import PEAK_BF16_TFLOPS


def sizes(name: str) -> MAEConfig:
    """`small`: 64 px, patch 8, decoder 96 x 2. Otherwise a preset at 224 px with the standard decoder 512 x
    8.
    """
    if name == "small":
        return MAEConfig(get_shape("vit_tiny"), DecoderShape(96, 2, 3), image_size=64)
    return MAEConfig(get_shape(name), DecoderShape(), image_size=224)


@dataclass
class Worker:
    """A process with its own allocator settings."""

    label: str
    setup: Setup
    losses: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, self.setup), daemon=True)
        self.process.start()
        self.agreed = self.pipe.recv()

    def ask(self, verb: str, argument: Any = None) -> Any:
        self.pipe.send((verb, argument))
        return self.pipe.recv()

    def build(self, variant: Variant) -> None:
        answer = self.ask("build", variant)
        if isinstance(answer, str):
            self.failed[variant.name] = f"failed: {answer}"
            print(f"    {self.label}: {variant.name} failed: {answer}", file=sys.stderr)
        else:
            self.losses[variant.name] = answer

    def stop(self) -> None:
        self.pipe.send(("stop", None))
        self.process.join(30)

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])


def round_of_steps(workers: list[Worker]) -> None:
    for worker in workers:
        for name in worker.losses:
            answer = worker.ask("step", name)
            if isinstance(answer, str):
                worker.failed[name] = f"failed: {answer}"
            else:
                worker.seconds.setdefault(name, []).append(answer)
    for worker in workers:
        for name in worker.failed:
            worker.losses.pop(name, None)


def drop_slow(worker: Worker) -> None:
    """Stop measuring variants of theirs that took over 4 times their fastest one: they cannot be the best."""
    rounds = {n: min(times) for n, times in worker.seconds.items() if n in worker.losses and n.startswith("hf")}
    for name, spent in rounds.items():
        if spent > 4 * min(rounds.values()):
            del worker.losses[name]
            worker.ask("drop", name)
            worker.failed[name] = f"{spent / min(rounds.values()):.1f} times the fastest in the warm-up, dropped"


def best(worker: Worker, who: str) -> str | None:
    """The variant of `who` with the lowest median."""
    names = [n for n in worker.losses if n.split()[0] == who and n in worker.seconds]
    return min(names, key=worker.median, default=None)


def take_turns(
    workers: list[Worker],
    ours: Variant,
    theirs: list[Variant],
    compiled: bool,
    precision: str,
    args: argparse.Namespace,
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Measure all variants of all workers in rounds. Returns rates of products and profiles of the winners."""
    for worker in workers:
        for variant in [ours, *theirs]:
            worker.build(variant)
    for _ in range(2):
        round_of_steps(workers)
    for worker in workers if compiled else ():
        worker.build(replace(ours, compiled=True))
        for mode in dict.fromkeys(v.mode for v in theirs):
            kinds = [v for v in theirs if v.mode == mode and v.name in worker.losses]
            if kinds:
                worker.build(replace(min(kinds, key=lambda v: worker.median(v.name)), compiled=True))
    for worker in workers:
        _check_losses(worker, precision)
        round_of_steps([worker])
        drop_slow(worker)
        worker.seconds = {}
    rates: dict[str, list[float]] = {}
    deadline = time.monotonic() + args.seconds
    for number in range(args.repeats):
        round_of_steps(workers)
        measure_products(workers[0], rates, precision, args.device)
        if number >= 2 and time.monotonic() > deadline:
            break
    winners = [w for who in ("ours", "hf") if (w := best(workers[0], who)) and not args.no_profile]
    return rates, {winner: workers[0].ask("profile", winner) for winner in winners}


def one_by_one(
    workers: list[Worker],
    ours: Variant,
    theirs: list[Variant],
    compiled: bool,
    precision: str,
    args: argparse.Namespace,
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """As `take_turns`, but each variant alone in memory, for models of which only one fits."""
    rates: dict[str, list[float]] = {}
    profiles: dict[str, Any] = {}
    variants = [ours, *theirs]
    if compiled:
        variants += [replace(v, compiled=True) for v in variants]
    for worker in workers:
        for variant in variants:
            worker.build(variant)
            if variant.name not in worker.losses:
                continue
            for _ in range(args.repeats):
                measure_products(workers[0], rates, precision, args.device)
                answer = worker.ask("step", variant.name)
                if isinstance(answer, str):
                    worker.failed[variant.name] = f"failed: {answer}"
                    break
                worker.seconds.setdefault(variant.name, []).append(answer)
            if worker is workers[0] and variant == ours and not args.no_profile:
                profiles[variant.name] = worker.ask("profile", variant.name)
            worker.ask("drop", variant.name)
        _check_losses(worker, precision)
    return rates, profiles


def measure_products(worker: Worker, rates: dict[str, list[float]], precision: str, device: str) -> None:
    """Add the measured rates of 2048^3 products, GFLOP/s, to `rates`."""
    products = {"torch.matmul": "matmul"} | ({"oneDNN": "onednn"} if device == "cpu" else {})
    for label, verb in products.items():
        answer = worker.ask(verb, precision)
        if not isinstance(answer, str):
            rates.setdefault(label, []).append(2 * 2048**3 / answer / 1e9)


def measure(name: str, precision: str, batch: int, args: argparse.Namespace) -> dict[str, Any]:
    """All variants of one size and precision, taking turns. Returns rows and rates."""
    config = sizes(name)
    allocators = [("default", False)] if args.device == "cuda" else [("default", False), ("kept", True)]
    workers = [
        Worker(label, Setup(config, batch, args.device, args.threads, keep, args.clock == "cpu"))
        for label, keep in allocators
    ]
    for worker in workers:
        worker.start()
    modes = ["fp32"] if precision == "fp32" else ["bf16", "autocast"]
    ours = Variant("ours", precision)
    theirs = [Variant("hf", mode, attention) for mode in modes for attention in ("sdpa", "eager")]
    rates, profiles = (one_by_one if args.one_by_one or parameter_count(config) > 1e9 else take_turns)(
        workers, ours, theirs, args.compile == "all" or (args.compile == "small" and name == "small"), precision, args
    )
    for worker in workers:
        worker.stop()
    flops = flops_per_image(config).step
    rows = []
    for worker in workers:
        for name_of_variant, spent in worker.seconds.items():
            middle = statistics.median(spent)
            low, high = _deciles(spent)
            rows.append(
                {
                    "allocator": worker.label,
                    "variant": name_of_variant,
                    "repeats": len(spent),
                    "images_per_s": batch / middle,
                    "p10": batch / high,
                    "p90": batch / low,
                    "gflops": batch * flops / middle / 1e9,
                }
            )
        rows += [{"allocator": worker.label, "variant": v, "failed": why} for v, why in worker.failed.items()]
    medians = {label: statistics.median(values) for label, values in rates.items() if values}
    return {
        "size": name,
        "precision": precision,
        "batch": batch,
        "gflop_per_image": flops / 1e9,
        "rows": rows,
        "matmul_gflops": medians,
        "profiles": profiles,
        "allocator_kept": {w.label: w.agreed for w in workers},
    }


def _deciles(values: list[float]) -> tuple[float, float]:
    ordered = sorted(values)
    last = len(ordered) - 1
    return ordered[round(0.1 * last)], ordered[round(0.9 * last)]


def _check_losses(worker: Worker, precision: str) -> None:
    """All variants start from the same weights and inputs, so their first losses agree to the precision."""
    tolerance = 1e-4 if precision == "fp32" else 2e-2
    low, high = min(worker.losses.values()), max(worker.losses.values())
    if high - low > tolerance * abs(high):
        raise UserError(f"first losses differ ({worker.losses}): the variants do not run the same maths")


def peak_gflops(device: str) -> float | None:
    """Dense bf16 peak of the visible GPU where its name is known."""
    if device != "cuda":
        return None
    name = torch.cuda.get_device_name(0)
    return next((1e3 * peak for key, peak in PEAK_BF16_TFLOPS.items() if key in name), None)


def render(result: dict[str, Any], peak: float | None) -> str:
    """The Markdown table of one size and precision."""
    rates = result["matmul_gflops"]
    lines = [
        f"### {result['size']}, {result['precision']}, batch {result['batch']} "
        f"({result['gflop_per_image']:.2f} GFLOP an image)",
        "",
        "2048^3 product: " + ", ".join(f"{label} {rate:.0f} GFLOP/s" for label, rate in rates.items()),
        "",
        "| allocator | variant | images/s (p10 - p90) | GFLOP/s |"
        + "".join(f" of {label} |" for label in rates)
        + (" MFU |" if peak else ""),
        "|---|---|---|---|" + "---|" * (len(rates) + bool(peak)),
    ]
    for row in sorted(result["rows"], key=lambda r: (r["allocator"], -r.get("images_per_s", 0))):
        head = f"| {row['allocator']} | {row['variant']} |"
        if "failed" in row:
            lines.append(f"{head} {row['failed']} | |" + " |" * (len(rates) + bool(peak)))
            continue
        shares = "".join(f" {row['gflops'] / rate:.0%} |" for rate in rates.values())
        speed = f"{row['images_per_s']:.1f} ({row['p10']:.1f} - {row['p90']:.1f})"
        mfu = f" {row['gflops'] / peak:.1%} |" if peak else ""
        lines.append(f"{head} {speed} | {row['gflops']:.1f} |{shares}{mfu}")
    lines += ["", *ratios(result), ""]
    for variant, parts in result["profiles"].items():
        if isinstance(parts, str):
            continue
        total = sum(parts.values())
        shares = ", ".join(f"{k} {v / total:.0%}" for k, v in sorted(parts.items(), key=lambda i: -i[1]))
        lines.append(f"Where the time of `{variant}` goes (operators, {total:.0f} ms a step): {shares}.")
    return "\n".join(lines) + "\n"


def ratios(result: dict[str, Any]) -> list[str]:
    """Ours over theirs, best against best, under each allocator setting and over all of them; and over their sdpa alone."""
    rows = [r for r in result["rows"] if "failed" not in r]
    out = []
    for label in [*dict.fromkeys(r["allocator"] for r in rows), "any"]:
        chosen = [r for r in rows if label in (r["allocator"], "any")]
        speed = {
            w: max((r["images_per_s"] for r in chosen if r["variant"].split()[0] == w), default=0)
            for w in ("ours", "hf")
        }
        if speed["hf"]:
            out.append(f"Best against best, allocator {label}: **{speed['ours'] / speed['hf']:.2f}x**.  ")
    sdpa = max((r["images_per_s"] for r in rows if r["variant"].startswith("hf") and "sdpa" in r["variant"]), default=0)
    if sdpa:
        ours = max(r["images_per_s"] for r in rows if r["variant"].startswith("ours"))
        out.append(f"Against their sdpa attention alone, any allocator: **{ours / sdpa:.2f}x**.  ")
    return out


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--size", action="append", help=f"small, or one of {', '.join(PRESETS)} at 224 px; repeatable")
    parser.add_argument("--batch", action="append", type=int, help="one for each --size")
    parser.add_argument("--precision", action="append", choices=("fp32", "bf16"))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of a CPU run")
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: processor seconds, for a busy machine, 1 thread"
    )
    parser.add_argument("--repeats", type=int, default=9, help="steps of each variant at most")
    parser.add_argument("--seconds", type=float, default=25.0, help="for the repeats of one size and precision")
    parser.add_argument("--compile", choices=("none", "small", "all"), default="small", help="sizes to compile, too")
    parser.add_argument(
        "--one-by-one", action="store_true", help="one variant in memory at a time (always so over 1 B parameters)"
    )
    parser.add_argument("--no-profile", action="store_true")
    parser.add_argument("--out", type=Path, help="folder for training_step.md and training_step.json")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: this PyTorch sees no GPU; use --device cpu")
    args.size = args.size or (["small", "vit_base"] if args.device == "cpu" else ["vit_base", "vit_3b"])
    args.batch = args.batch or [
        {"small": 256, "vit_base": 8}.get(s, 32) if args.device == "cpu" else 64 for s in args.size
    ]
    args.precision = args.precision or (["fp32", "bf16"] if args.device == "cpu" else ["bf16"])
    if args.clock == "cpu" and (args.device != "cpu" or args.threads != 1):
        raise UserError("--clock cpu counts the seconds of all threads: use it with --device cpu --threads 1")
    if len(args.batch) != len(args.size):
        raise UserError(f"--batch {args.batch}: give one for each of the sizes {args.size}")
    return args


def main(argv: list[str] | None = None) -> int:
    try:
        args = parse(argv)
        peak = peak_gflops(args.device)
        device = torch.cuda.get_device_name(0) if args.device == "cuda" else _processor()
        text = (
            f"## Training step on {device}, {args.threads} threads, PyTorch {torch.__version__}, {args.clock} clock\n\n"
        )
        load = os.getloadavg()[0]
        text += f"Load average at the start: {load:.1f}.\n\n"
        print(text, end="", flush=True)
        results = []
        for name, batch in zip(args.size, args.batch, strict=True):
            for precision in args.precision:
                results.append(measure(name, precision, batch, args))
                table = render(results[-1], peak)
                text += table + "\n"
                print(table, flush=True)
        if args.out:
            args.out.mkdir(parents=True, exist_ok=True)
            (args.out / "training_step.md").write_text(text)
            report = {"device": device, "threads": args.threads, "torch": torch.__version__, "load": load}
            (args.out / "training_step.json").write_text(json.dumps(report | {"results": results}, indent=1) + "\n")
    except UserError as error:
        print(f"training_step: {error}", file=sys.stderr)
        return error.exit_code
    return EXIT_OK


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    raise SystemExit(main())
