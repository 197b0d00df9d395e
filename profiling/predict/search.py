"""Which strategy: every one that divides the devices is predicted and ranked, and the winner's reason is said."""

from __future__ import annotations

from collections.abc import Sequence

from frontier.launch.mesh import ParallelDims, divisors
from frontier_profiling.predict.case import UNGATHERED, Case
from frontier_profiling.predict.predict import check_tensor, predict
from frontier_profiling.rows import Row

CHECKPOINTING = ("none", "selective", "full")
TENSOR = (1, 2, 4, 8)
NEAR = 0.03
"""Rates closer than this are called equal: the published runs themselves repeat to 1 to 2 %."""


def strategies(case: Case, tensor: int) -> list[str]:
    """Words that divide the devices: no_shard (= hybrid_1), hybrid_k for k that fill parts of a node or whole nodes, shard_grad_op,
    full_shard. The first of several words for one thing.
    """
    if case.devices % tensor:
        return []
    ranks, per_node = case.devices // tensor, max(1, case.system.node.devices // tensor)
    inner = [k for k in divisors(per_node) if k > 1]
    outer = [per_node * 2**n for n in range(1, 20) if per_node * 2**n < ranks]
    groups = [k for k in (*inner, *outer) if k < ranks and ranks % k == 0]
    sharded = ["shard_grad_op", "full_shard"] if ranks > 1 else []
    return ["hybrid_1" if ranks > 1 else "no_shard", *(f"hybrid_{k}" for k in groups), *sharded]


def search(case: Case, tensors: Sequence[int] | None = None) -> list[Row]:
    """Every strategy and tensor degree (inside a node) at the batch and checkpointing of `case`, the quickest first; what does not fit
    stands at the end.
    """
    return ranked([predict(point) for point in candidates(case, tensors)])


def free_search(case: Case, tensors: Sequence[int] | None = None) -> list[Row]:
    """As `search`, with micro-batch and checkpointing free as well; the global batch stays, accumulation makes up for it."""
    local, cases = case.micro_batch * case.accumulation, []
    kinds = CHECKPOINTING if case.engine == "fsdp2" else (case.activation_checkpointing,)
    for micro in divisors(local):
        for kind in kinds:
            cases += candidates(
                case.but(micro_batch=micro, accumulation=local // micro, activation_checkpointing=kind), tensors
            )
    return ranked([predict(point) for point in cases])


def candidates(case: Case, tensors: Sequence[int] | None = None) -> list[Case]:
    """Raises UserError where a degree of `tensors` does not divide the devices or the model."""
    per_node = case.system.node.devices
    for degree in tensors or ():
        tried = case.but(strategy="full_shard", tensor=degree)
        check_tensor(tried)
        ParallelDims.from_strategy("full_shard", case.devices, degree)
    degrees = tensors or [t for t in TENSOR if t <= per_node and per_node % t == 0 and _divides(case, t)]
    return [
        case.but(strategy=word, tensor=t, prefetch=1 if word in UNGATHERED else case.prefetch)
        for t in degrees
        for word in strategies(case, t)
    ]


def _divides(case: Case, tensor: int) -> bool:
    return all(stack.heads % tensor == 0 and stack.hidden % tensor == 0 for stack in case.work.stacks)


def ranked(rows: Sequence[Row]) -> list[Row]:
    """Quickest first; among equals (exactly) the one with less memory; those that do not fit last, the smallest first."""
    return sorted(rows, key=lambda r: (not r.fits, -(r.images_per_s or 0.0), r.memory_gib["peak"]))


def name_of(row: Row) -> str:
    more = [f"tensor {row.tensor}"] if row.tensor > 1 else []
    return " + ".join([row.strategy, *more])


def why(rows: Sequence[Row]) -> str:
    """One or two sentences on the first of ranked rows: what it does better than the rest, and what bounds it."""
    fitting = [row for row in rows if row.fits]
    if not fitting:
        least = min(rows, key=lambda r: r.memory_gib["peak"])
        ways = ["a smaller micro-batch"] if least.micro_batch > 1 else []
        ways += ["full checkpointing"] if least.activation_checkpointing != "full" else []
        other = f", or {' or '.join(ways)}" if ways else ""
        return (
            f"nothing fits: the smallest is {name_of(least)} with {least.memory_gib['peak']:.1f} GiB of {least.memory_limit_gib:g} a device; "
            f"{least.model} needs {least.minimum_devices or 'more than all'} devices{other}"
        )
    first, *others = fitting
    assert first.images_per_s and first.step_s
    told = [f"{name_of(first)} is the quickest of {len(fitting)} that fit: {_where_time_goes(first)}"]
    near = [row for row in others if row.images_per_s and row.images_per_s > (1 - NEAR) * first.images_per_s]
    if near:
        told.append(f"within {100 * NEAR:.0f} %, so as good: {', '.join(name_of(r) for r in near[:4])}")
    behind = [row for row in others if row not in near]
    if behind:
        told.append(_against(first, behind[0]))
    for word in ("full_shard", "hybrid_1"):
        other = next((row for row in rows if row.strategy == word and row.tensor == 1 and row is not first), None)
        if other is not None and other not in near and other not in behind[:1]:
            told.append(_against(first, other))
    return "; ".join(told)


def _where_time_goes(row: Row) -> str:
    assert row.step_s
    parts, seconds = row.step_parts_s, row.step_s
    moved = parts["gather"] + parts["reduce"]
    hidden = moved - parts["exposed"]
    share = 100 * (parts["compute"] + parts["launch"]) / seconds
    if moved == 0:
        return f"{share:.0f} % of its step computes, nothing moves"
    return (
        f"{share:.0f} % of its step computes, {100 * parts['exposed'] / seconds:.0f} % waits for communication "
        f"({max(0.0, hidden):.2f} of {moved:.2f} s hidden)"
    )


def _against(first: Row, other: Row) -> str:
    if not other.fits:
        return f"{name_of(other)} does not fit ({other.memory_gib['peak']:.0f} of {other.memory_limit_gib:g} GiB)"
    assert first.step_s and other.step_s and first.images_per_s and other.images_per_s
    less = 100 * (1 - other.images_per_s / first.images_per_s)
    a, b = first.step_parts_s, other.step_parts_s
    gaps = {
        "waits longer for communication": b["exposed"] - a["exposed"],
        "updates more on each device": b["optimizer"] - a["optimizer"],
        "computes longer": b["compute"] + b["launch"] - a["compute"] - a["launch"],
    }
    reason = max(gaps, key=lambda name: gaps[name])
    return f"{name_of(other)} is {less:.0f} % slower: it {reason} ({gaps[reason]:+.2f} s a step)"
