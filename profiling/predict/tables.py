"""What `frontier plan` prints for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from frontier_profiling.predict.search import name_of
from frontier_profiling.rows import MEMORY_PARTS, Row

FREE = 5
"""Rows of the free search that are printed; --json has --top."""


def plan_lines(rows: Sequence[Row], said: Sequence[dict[str, Any]], top: int) -> list[str]:
    """The settings, a table of rows, the winner's reason, what more freedom would give; one row alone in full."""
    out = [settings_line(rows), ""]
    if len(rows) == 1 and not said:
        return [*out, *one_row(rows[0])]
    out += table(rows, top)
    for entry in said:
        out += ["", f"{entry['model']} on {entry['nodes']} node(s): {entry['why']}"]
        out += free_lines(entry["winner"], entry["free"])
    if len(said) == 1 and said[0]["winner"].fits:
        out += ["", f"{name_of(said[0]['winner'])} in full:", *one_row(said[0]["winner"])]
    return out


def free_lines(winner: Row, found: Sequence[Row]) -> list[str]:
    """The best with micro-batch and checkpointing free as well, where they beat the winner by 1 % or fit where nothing else does."""
    best = found[0]
    if not best.fits or (winner.images_per_s and (best.images_per_s or 0.0) <= 1.01 * winner.images_per_s):
        return []
    out = ["  with micro-batch and checkpointing free as well (accumulation keeps the global batch):"]
    for row in [row for row in found if row.fits][:FREE]:
        assert row.images_per_s
        gain = f"{100 * (row.images_per_s / winner.images_per_s - 1):+.0f} %" if winner.images_per_s else ""
        out.append(
            f"    {name_of(row):25}{'checkpointing ' + row.activation_checkpointing:25}micro-batch {row.micro_batch:>3} x {row.accumulation:<4}"
            f"{row.images_per_s:11,.0f} {noun(row)}s/s {gain:>6}{row.memory_gib['peak']:8.1f} of {row.memory_limit_gib:g} GiB{near(row)}"
        )
    return out


def near(row: Row) -> str:
    """A word of warning where the peak is closer to the limit than predictions are right."""
    return "; memory close to its limit" if any(note.startswith("close") for note in row.notes) else ""


def settings_line(rows: Sequence[Row]) -> str:
    """What all rows share; where they differ, each value."""
    row = rows[0]

    def each(values: Iterable[Any]) -> str:
        return ", ".join(dict.fromkeys(map(str, values)))

    tokens = each(r.tokens for r in rows)
    work = {
        "vit": f"the encoder on all tokens ({tokens} of {row.image_size} px)",
        "mae": f"masked pretraining (encoder tokens {tokens} of {row.image_size} px)",
        "scale_alibi": f"scale_alibi on the config's sensors ({tokens} tokens of all encoders)",
    }.get(row.workload, f"{row.workload} on the config's inputs ({tokens} latents, a mean over the sources)")
    batch = each(f"{r.micro_batch} x {r.accumulation}" for r in rows)
    engine = "the published study's FSDP1" if row.engine == "fsdp1" else "this engine (FSDP2)"
    return (
        f"predicted for {row.system}: {work}, {each(r.precision for r in rows)}, "
        f"checkpointing {row.activation_checkpointing}, micro-batch {batch}, {engine}"
    )


def noun(row: Row) -> str:
    """What a sample is called."""
    return "image" if row.workload in ("vit", "mae") else "sample"


def table(rows: Sequence[Row], top: int) -> list[str]:
    what = noun(rows[0])
    head = f"{'model':10}{'nodes':>6}{'devices':>9}  {'strategy':25}{'GiB':>7}{'step s':>9}{what + 's/s':>11}{'range':>17}{'MFU':>6}{'waits':>7}{'kW':>8}{'J/' + what:>9}{'node-h':>10}  limit"
    out = [head, "-" * len(head)]
    shown: dict[tuple[str, int], int] = {}
    for row in rows:
        key = (row.model, row.nodes)
        shown[key] = shown.get(key, 0) + 1
        if shown[key] <= top:
            out.append(line(row))
    hidden = sum(max(0, n - top) for n in shown.values())
    if hidden:
        out.append(f"… and {hidden} more (--top N, --json)")
    notes = list(
        dict.fromkeys(
            note
            for row in rows
            for note in row.notes
            if note.startswith(("extrapolated", "assumed", "not predicted", "not counted", "sizes", "offload"))
        )
    )
    return [*out, *notes]


def line(row: Row) -> str:
    start = f"{row.model:10}{row.nodes:>6}{row.devices:>9,}  {name_of(row):25}{row.memory_gib['peak']:7.1f}"
    if row.images_per_s is None or row.step_s is None:
        return (
            f"{start}  does not fit: {row.error}; fewest devices: {row.minimum_devices or 'more than the machine has'}"
        )
    assert row.step_s_low and row.step_s_high and row.mfu and row.global_batch
    low, high = row.global_batch / row.step_s_high, row.global_batch / row.step_s_low
    waits = 100 * (row.step_parts_s["exposed"] + row.step_parts_s.get("data", 0.0)) / row.step_s
    power = "-" if row.power_w is None else f"{row.power_w / 1e3:.1f}"
    joules = "-" if row.joules_per_image is None else f"{row.joules_per_image:.1f}"
    hours = "-" if row.node_hours is None else f"{row.node_hours:,.1f}"
    return (
        f"{start}{row.step_s:9.3f}{row.images_per_s:11,.0f}{f'{low:,.0f}-{high:,.0f}':>17}{100 * row.mfu:5.0f}%{waits:6.0f}%"
        f"{power:>8}{joules:>9} {hours:>9}  {row.limit}{near(row)}"
    )


def one_row(row: Row) -> list[str]:
    """Everything about one point."""
    out = [
        f"  mesh        {' x '.join(f'{axis} {degree}' for axis, degree in row.mesh.items())} = {row.devices:,} devices, global batch {row.global_batch:,}"
    ]
    apart = (
        ", the most of each; they do not peak together, so the total may be less than the sum"
        if row.engine == "fsdp2"
        else ""
    )
    out.append(f"  memory      GiB a device{apart}:")
    for name in (*MEMORY_PARTS, "total_allocated", "peak"):
        if name in row.memory_gib:
            out.append(f"    {name:<18}{row.memory_gib[name]:9.2f}")
    verdict = "fits" if row.fits else "DOES NOT FIT"
    out.append(
        f"    {verdict} in {row.memory_limit_gib:g} GiB; fewest devices that hold {row.model}{' without offload' if row.offload else ''}: {row.minimum_devices or 'more than the machine has'}"
    )
    if row.step_s is not None:
        assert row.step_s_low and row.step_s_high and row.images_per_s and row.mfu and row.hfu and row.tflops_per_device
        out.append(f"  step        {row.step_s:.3f} s (range {row.step_s_low:.3f} - {row.step_s_high:.3f}):")
        for name in ("compute", "launch", "optimizer", "exposed", "data"):
            seconds = row.step_parts_s.get(name)
            out.append(f"    {name:<18}" + ("  unknown" if seconds is None else f"{seconds:9.3f}"))
        out.append(
            f"    (all gathers {row.step_parts_s['gather']:.3f} s, all reductions {row.step_parts_s['reduce']:.3f} s; what is not exposed is hidden behind computing)"
        )
        if row.data_supply_ratio is not None:
            rate = row.data_supply_ratio * row.global_batch / (row.step_s - row.step_parts_s["data"])  # type: ignore[operator]
            out.append(
                f"    (storage gives at most {rate:,.0f} {noun(row)}s/s, {row.data_supply_ratio:,.3g} times what the step takes)"
            )
        out.append(
            f"  rate        {row.images_per_s:,.1f} {noun(row)}s/s, {row.tflops_per_device:.1f} TFLOP/s a device, MFU {100 * row.mfu:.1f} %, HFU {100 * row.hfu:.1f} % of {row.peak_tflops:g}"
        )
        if row.power_w is not None:
            out.append(f"  power       {row.power_w / 1e3:.1f} kW, {row.joules_per_image:.1f} J/{noun(row)}")
        else:
            out.append("  power       unknown: the system's file lacks idle or busy power")
        if row.node_hours is not None:
            out.append(f"  cost        {row.node_hours:,.1f} node-hours for {row.samples:,} {noun(row)}s")
        out.append(f"  limit       {row.limit}")
    return [*out, *(f"  note        {note}" for note in row.notes)]
