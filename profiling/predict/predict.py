"""One point, predicted: memory, time, energy, cost and the range to expect, as a `Row`."""

from __future__ import annotations

from frontier_profiling.predict.case import Case
from frontier_profiling.predict.constants import Constants, defaults, raw
from frontier_profiling.predict.memory import memory, minimum_devices
from frontier_profiling.predict.power import power_w
from frontier_profiling.predict.published import published_peaks, published_rate
from frontier_profiling.predict.step import Step, step
from frontier_profiling.predict.system import System
from frontier_profiling.rows import Row

STUDIED_DEVICES = 1024
"""Of the largest published point: beyond it a prediction is extrapolated."""
MEMORY_ERROR = 0.05
"""Nine of ten peaks are predicted within it: what lies closer to the limit may not fit."""
STUDIED_MODELS = ("vit_base", "vit_1b", "vit_3b", "vit_5b")


def predict(case: Case, constants: Constants | None = None) -> Row:
    """The point `case` before it runs.

    A point that does not fit in memory is a row with status `oom`: its time is left unknown.

    Raises:
        UserError: a strategy, tensor degree or batch that does not divide the devices.
    """
    dims, work = case.dims, case.work
    check_tensor(case)
    held = memory(case)
    limit = case.system.device.memory_gib
    row = Row(
        source="predicted", model=case.model, system=case.system.name, strategy=case.strategy, nodes=case.nodes,
        devices=case.devices, micro_batch=case.micro_batch, workload=case.workload, engine=case.engine,
        image_size=case.image_size if case.given is None else 0, channels=case.channels if case.given is None else 0, mask_ratio=case.mask_ratio, tokens=work.tokens, parameters=work.parameters, global_batch=case.global_batch,
        accumulation=case.accumulation, precision=case.precision, activation_checkpointing=case.activation_checkpointing,
        tensor=case.tensor, prefetch=case.prefetch, offload=case.offload, data=case.data, mesh=dims.as_dict(),
        memory_gib=held.parts, memory_limit_gib=limit, fits=held.peak <= limit, minimum_devices=minimum_devices(case),
        samples=case.samples, flops_per_image=3.0 * work.flops, peak_tflops=case.system.device.peak_tflops[case.precision],
    )  # fmt: skip
    reasons = [] if row.fits else [f"{held.peak:,.1f} GiB a device, it has {limit:g}"]
    of_node = case.system.node.memory_gib
    if case.offload:
        host = sum(held.on_host.values()) * min(case.devices, case.system.node.devices)
        if of_node is None:
            row.notes.append(f"offload: {host:.0f} GiB on each node's host; the memory of that host is not known")
        elif host > of_node:
            reasons.append(f"{host:,.0f} GiB on a node's host, it has {of_node:,.0f}")
    if reasons:
        row.fits = False
        row.notes += _published(row, case)
        row.status = "oom"
        row.limit = "memory"
        row.error = "; ".join(reasons)
        return row
    if held.peak > (1 - MEMORY_ERROR) * limit:
        row.notes.append(
            f"close: {held.peak:.1f} of {limit:g} GiB, and predicted memory is right within {100 * MEMORY_ERROR:.0f} %"
        )
    timed = step(case, (constants or defaults()).on(case.system))
    _time(row, case, timed)
    row.notes += _published(row, case)
    return row


def check_tensor(case: Case) -> None:
    """Raises UserError where the tensor degree does not divide heads and hidden units, naming those that do."""
    from frontier.errors import UserError
    from frontier.launch.mesh import divisors

    for stack in case.work.stacks:
        for name, count in (("heads", stack.heads), ("hidden units", stack.hidden)):
            if count % case.tensor:
                fit = [
                    d
                    for d in divisors(count)
                    if d <= 64 and all(s.heads % d == 0 and s.hidden % d == 0 for s in case.work.stacks)
                ]
                raise UserError(
                    f"tensor {case.tensor} does not divide the {count} {name} of {case.model}: use one of {', '.join(map(str, fit))}"
                )


def _time(row: Row, case: Case, timed: Step) -> None:
    compute, moved, seconds = timed.compute, timed.moved, timed.seconds
    row.step_s = seconds
    within = spread(case)
    row.step_s_low, row.step_s_high = seconds / within, seconds * within
    row.step_parts_s = {
        "compute": compute.products + compute.elementwise,
        "launch": compute.launch,
        "optimizer": compute.optimizer,
        "gather": moved.gathers + moved.tensor / 2 + timed.transfers,
        "reduce": moved.scatters + moved.reduces + moved.tensor / 2,
        "exposed": timed.exposed,
        "data": timed.data,
    }
    rate = case.global_batch / seconds
    row.images_per_s = rate
    row.tflops_per_device = rate / case.devices * 3 * case.work.flops / 1e12
    assert row.peak_tflops is not None
    row.mfu = row.tflops_per_device / row.peak_tflops
    # Of a preset nearly all products are in blocks; of what a family says, those in blocks alone are computed again.
    work = case.work
    again = 0.0
    if case.activation_checkpointing == "full":
        again = 1.0 if case.given is None else 1 - work.outside_flops / work.flops
    stacks, outside = work.compared(case.accumulation)
    again += (outside + sum(stack.blocks * stack.block_flops for stack in stacks)) / work.flops
    row.hfu = row.mfu * (1 + again / 3)
    row.power_w = power_w(case.system, case.devices, timed)
    if row.power_w is not None:
        row.joules_per_image = row.power_w / rate
        row.energy_source = "predicted from idle and busy power"
    if case.samples:
        row.node_hours = case.samples / rate / 3600 * case.nodes
    if timed.supply:
        row.data_supply_ratio = timed.busy / timed.supply
    row.notes += reading_notes(case.system, case.data)
    if case.data == "shards" and timed.supply is None:
        del row.step_parts_s["data"]
    row.limit = limit_of(row)
    if case.devices > STUDIED_DEVICES and case.system.name in ("frontier", "lumi"):
        row.notes.append(f"extrapolated: the published points end at {STUDIED_DEVICES} devices")
    if case.system.name not in ("frontier", "lumi") and not case.system.measured:
        row.notes.append(
            f"assumed: nothing was measured on {case.system.name}, its efficiencies are guesses and the range is wide"
        )
    if case.given is not None:
        share = 100 * work.outside_flops / work.flops
        row.notes.append(
            f"assumed: {share:.0f} % of the products are outside the blocks ({work.outside}), at rates that no published point was fitted to"
        )
    attention = sum(stack.blocks * stack.attention_flops for stack in work.stacks if stack.fused)
    if attention:
        row.notes.append(
            f"assumed: attention with a bias, {100 * attention / work.flops:.0f} % of the products, at the rate of other products"
        )
    if case.offload:
        row.notes.append(
            f"offload: {timed.transfers:.3f} s of copies and the host's update are assumed, not fitted (host_* in constants.yaml)"
        )


def reading_notes(system: System, data: str) -> list[str]:
    """Where the rate at which samples are read comes from; nothing where none are, or where it was measured."""
    storage = system.storage
    if data == "synthetic" or (system.measured and storage.read_gb_per_s_per_node):
        return []
    named = f" ({storage.name})" if storage.name else ""
    if storage.read_gb_per_s_per_node:
        return [f"assumed: a node reads {storage.read_gb_per_s_per_node:g} GB/s{named}, files in large pieces"]
    if storage.read_gb_per_s:
        return [f"assumed: the job has all {storage.read_gb_per_s:,g} GB/s of the shared file system{named}"]
    return [f"not predicted: how long the step waits for data, for how fast {system.name} reads is not known"]


def _published(row: Row, case: Case) -> list[str]:
    """The published figures of the same cell, where there are any."""
    same = (
        case.system.name == "frontier" and case.sizes is None and case.workload == "vit" and case.data == "synthetic" and case.image_size == 224 and case.ranks is None
        and case.micro_batch == 32 and case.accumulation == 1 and case.tensor == 1 and case.prefetch == 1
        and case.activation_checkpointing == "full" and case.precision == ("fp32" if case.strategy == "ddp" else "bf16")
    )  # fmt: skip
    if not same:
        return []
    notes = []
    whose = "published" if case.engine == "fsdp1" else "published for FSDP1, which --as-published plans"
    rate = published_rate(case.model, case.strategy, case.nodes)
    if rate and row.images_per_s:
        notes.append(f"{whose}: {rate:,.0f} images/s (this is {100 * (row.images_per_s / rate - 1):+.1f} %)")
    if case.engine == "fsdp1":
        for name, gib in published_peaks(case.model, case.strategy, case.devices, case.dims.shard).items():
            own = row.memory_gib["total_allocated" if name == "max_allocated" else "peak"]
            notes.append(f"published: {name} {gib:.2f} GiB (this is {100 * (own / gib - 1):+.1f} %)")
    return notes


def spread(case: Case) -> float:
    """Factor around the step time within which nine of ten points lie: of the fit, of the models left out, or assumed."""
    known = raw()["spread"]
    fitted_here = case.system.name in ("frontier", "lumi")
    own = case.system.constant("spread")
    if own is not None:
        return own
    if not fitted_here or case.given is not None:
        return known["other_systems"]
    studied = case.model in STUDIED_MODELS and case.sizes is None and case.workload == "vit"
    return known["within"] if studied else known["other_models"]


def limit_of(row: Row) -> str:
    """The largest of what the step spends beyond its products: communication, data, the optimizer (on the host), launch; else compute."""
    parts, seconds = row.step_parts_s, row.step_s or 1.0
    if parts.get("data", 0.0) > 0.2 * seconds:
        return "data"
    if parts.get("optimizer", 0.0) > parts.get("compute", 0.0) + parts.get("launch", 0.0):
        return "optimizer"
    if parts.get("exposed", 0.0) > 0.2 * seconds:
        return "communication"
    if parts.get("launch", 0.0) > parts.get("compute", 0.0):
        return "launch"
    return "compute"
