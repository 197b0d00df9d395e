"""Which labels of a set of shards a probe predicts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from frontier.data.manifest import nearest
from frontier.errors import UserError

from .methods import KINDS, Kind

if TYPE_CHECKING:
    from frontier.data.shards import ShardSet

MISSING_PIXEL = 255


@dataclass(frozen=True)
class Target:
    """Labels by name: their kind, the column that holds them, the names of their classes (may be none), what stands for missing."""

    name: str
    kind: Kind
    column: str
    classes: tuple[str, ...]
    missing: int | None


def find_target(shards: ShardSet, wanted: str | None) -> Target:
    """The target `wanted`; without one that of column `label`, else the only one that a probe can take.

    Raises UserError where there is none, where there are several, and where labels are of a kind that cannot be probed.
    """
    manifest = shards.manifest
    able = {name: spec for name, spec in manifest["targets"].items() if spec["kind"] in KINDS}
    if wanted is None:
        if not able or any(spec["column"] == "label" for spec in able.values()):
            return _class_numbers(shards, able)
        if len(able) > 1:
            raise UserError(f"{shards.path} has the targets {', '.join(able)}: say by --target which to probe")
        wanted = next(iter(able))
    if wanted not in manifest["targets"]:
        raise UserError(f"no target '{wanted}' in {shards.path}, --target: {nearest(wanted, able)}")
    spec = manifest["targets"][wanted]
    if wanted not in able:
        raise UserError(
            f"target '{wanted}' of {shards.path} is for {spec['kind']}, --target: a probe takes {', '.join(KINDS)}"
        )
    return _target(wanted, spec)


def _class_numbers(shards: ShardSet, able: Mapping[str, Any]) -> Target:
    """Column `label`: one class number a sample."""
    if "label" not in shards.manifest["columns"] or shards.describe("label")[1].kind not in "iub":
        raise UserError(
            f"no labels in {shards.path}: a probe takes a column 'label' of class numbers; write the shards from a folder with a sub-folder a class"
        )
    for name, spec in able.items():
        if spec["column"] == "label":
            return _target(name, spec)
    return Target("label", "classification", "label", tuple(shards.classes), -1)


def _target(name: str, spec: Mapping[str, Any]) -> Target:
    missing = spec.get("missing")
    return Target(name, spec["kind"], spec["column"], tuple(spec.get("classes") or ()), missing)


def labels_of(shards: ShardSet, wanted: str | None = None) -> NDArray[Any]:
    """Labels of all samples of a split, as `LabelledSamples` takes them; maps are all in memory. Raises UserError (`find_target`)."""
    target = find_target(shards, wanted)
    if target.kind == "classification":
        stored = shards.column(target.column).astype(np.int64)
        return stored if target.missing is None else np.where(stored == target.missing, -1, stored)
    stored = shards.read(target.column, 0, len(shards))
    if stored.dtype.kind not in "iub":
        raise UserError(
            f"target '{target.name}' of {shards.path} is stored as {stored.dtype}: a probe takes whole numbers; write the shards again"
        )
    if target.kind == "multilabel":
        return np.where((stored == 0) | (stored == 1), stored, MISSING_PIXEL).astype(np.uint8)
    known = (stored >= 0) & (stored < MISSING_PIXEL)
    if target.missing is not None:
        known &= stored != target.missing
    return np.where(known, stored, MISSING_PIXEL).astype(np.uint8)
