"""What `frontier plan` prints for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from frontier_profiling.predict.search import name_of
from frontier_profiling.rows import MEMORY_PARTS, Row


def plan_lines(rows: Sequence[Row], said: Sequence[dict[str, Any]], top: int) -> list[str]:
    """The settings, a table of rows, the winner's reason, what more freedom would give; one row alone in full."""
    out = [settings_line(rows), ""]
    if len(rows) == 1 and not said:
        return [*out, *one_row(rows[0])]
    out += table(rows, top)
    for entry in said:
        out += ["", f"{entry['model']} on {entry['nodes']} node(s): {entry['why']}"]
        best = entry["free"][0]
        winner: Row = entry["winner"]
        if best.fits and winner.images_per_s and best.images_per_s > 1.01 * winner.images_per_s:
            gain = 100 * (best.images_per_s / winner.images_per_s - 1)
            out.append(
                f"  with micro-batch and checkpointing free as well: {name_of(best)}, checkpointing {best.activation_checkpointing}, "
                f"micro-batch {best.micro_batch} x {best.accumulation}: {best.images_per_s:,.0f} {noun(best)}s/s ({gain:+.0f} %), "
                f"{best.memory_gib['peak']:.1f} of {best.memory_limit_gib:g} GiB{near(best)}"
            )
        elif not winner.fits and best.fits:
            out.append(
                f"  what fits: {name_of(best)}, checkpointing {best.activation_checkpointing}, micro-batch {best.micro_batch} x "
                f"{best.accumulation}: {best.images_per_s:,.0f} {noun(best)}s/s, {best.memory_gib['peak']:.1f} of {best.memory_limit_gib:g} GiB{near(best)}"
            )
    if len(said) == 1 and said[0]["winner"].fits:
        out += ["", f"{name_of(said[0]['winner'])} in full:", *one_row(said[0]["winner"])]
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
            note for row in rows for note in row.notes if note.startswith(("extrapolated", "assumed", "offload"))
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
    waits = 100 * (row.step_parts_s["exposed"] + row.step_parts_s["data"]) / row.step_s
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
            out.append(f"    {name:<18}{row.step_parts_s[name]:9.3f}")
        out.append(
            f"    (all gathers {row.step_parts_s['gather']:.3f} s, all reductions {row.step_parts_s['reduce']:.3f} s; what is not exposed is hidden behind computing)"
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
