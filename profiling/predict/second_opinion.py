"""Memory counted a second way for rows of a plan: PyTorch's tracker on fake ranks beside the closed form (`--check-memory`)."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from frontier.errors import UserError
from frontier_profiling.predict.tracker import TrackedCase, track
from frontier_profiling.rows import Row


def check(rows: Sequence[Row]) -> None:
    """Add a note to each row: what the tracker finds, and the closed form against it. Takes up to a minute a row.

    Raises:
        UserError: rows of another workload or engine than the one that can be run on fake ranks.
    """
    if rows[0].workload != "mae" or rows[0].engine != "fsdp2":
        raise UserError(
            "--check-memory runs this engine's masked pretraining on fake ranks: give --workload mae, without --as-published"
        )
    for row in rows:
        try:
            case = TrackedCase(
                row.model, row.devices, row.strategy, row.micro_batch, row.precision, row.activation_checkpointing, row.prefetch,
                row.accumulation, row.image_size, row.mask_ratio, row.channels,
            )  # fmt: skip
            if row.tensor > 1 or row.offload:
                raise UserError("tensor parallelism and offload cannot be tracked: the closed form knows them")
        except UserError as error:
            row.notes.append(f"not checked: {error}")
            continue
        print(f"checking {row.strategy} on {row.devices} fake ranks", file=sys.stderr, flush=True)
        peak = track(case)["peak"]
        own = row.memory_gib["total_allocated"]
        row.notes.append(
            f"PyTorch's tracker: {peak:.2f} GiB of tensors, the closed form {own:.2f} ({100 * (own / peak - 1):+.1f} %)"
        )
