"""Mode predicted: one row a point by the predictor, no folder for a point."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from frontier.errors import UserError
from frontier_profiling.rows import Row
from frontier_profiling.sweep.grid import Point
from frontier_profiling.sweep.results import blank_row
from frontier_profiling.sweep.study import Study, lookup

if TYPE_CHECKING:
    from frontier_profiling.predict.system import System


def predict_all(study: Study, found: Sequence[Point]) -> list[Row]:
    """A row for every point; what does not fit is "oom", what the predictor refuses is "skipped" with its words.

    Raises:
        UserError: a system that is not known; a model that is no preset as it stands.
    """
    from frontier_profiling.predict.system import load_system

    system = load_system(study.system)
    changed = [
        key
        for key in (lookup(study.config, "model") or {})
        if key not in ("family", "preset", "mask_ratio", "norm_pix_loss")
    ]
    if changed:
        raise UserError(
            f"study {study.name}: the predictor takes presets as they are: leave out model.{changed[0]}, or measure"
        )
    rows = []
    for point in found:
        row = blank_row(study, point, "predicted", system.name)
        if not point.skip:
            try:
                row = _predict(study, point, system)
            except UserError as error:
                row.status, row.error = "skipped", " ".join(str(error).split())
        rows.append(row)
    return rows


def _predict(study: Study, point: Point, system: System) -> Row:
    from frontier_profiling.predict.case import Case
    from frontier_profiling.predict.predict import predict, reading_notes

    rate = system.read_gb_per_s(point.nodes)
    if point.data != "synthetic" and rate is None:
        raise UserError(f"how fast {system.name} reads is not known (storage.read_gb_per_s_per_node): measure it")
    if point.data == "only":
        assert rate is not None
        row = _reading(blank_row(study, point, "predicted", system.name), rate)
        row.notes, row.command = reading_notes(system, point.data), _command(study, point)
        return row
    by_ranks = study.grid.ranks is not None
    mask_ratio = lookup(study.config, "model.mask_ratio")
    case = Case(
        model=point.model,
        system=system,
        nodes=point.nodes,
        ranks=point.ranks if by_ranks else None,
        strategy=point.strategy,
        tensor=point.tensor,
        micro_batch=point.micro_batch,
        accumulation=point.accumulation,
        precision=point.precision,
        activation_checkpointing=point.activation_checkpointing,
        prefetch=point.prefetch,
        image_size=point.image_size,
        workload=study.workload,
        engine=study.engine,
        offload=bool(lookup(study.config, "parallel.offload")),
        data=point.data,
        samples=study.samples,
        **({} if mask_ratio is None else {"mask_ratio": mask_ratio}),
    )
    row = predict(case)
    if row.fits is False and row.status == "done":
        row.status = "oom"
        row.error = row.error or "does not fit the device's memory (predicted)"
    row.source, row.data = "predicted", point.data
    row.command = row.command or _command(study, point)
    return row


def _command(study: Study, point: Point) -> str:
    return f"frontier sweep {study.name} --mode predicted --only {point.id}"


def _reading(row: Row, rate: float) -> Row:
    """Reading alone: three uint8 bands a pixel at `rate` GB/s of the whole job."""
    row.images_per_s = rate * 1e9 / (3 * row.image_size**2)
    row.step_s = (row.global_batch or 0) / row.images_per_s
    row.step_parts_s, row.limit, row.status = {"data": row.step_s}, "data", "done"
    return row
