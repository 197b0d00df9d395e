"""What `frontier evaluate` measured of a model without tasks: rows of evaluation.json by method, a column for each model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from frontier_profiling.report.tasks import with_bounds

_NEEDED = ("method", "encoder", "sensors", "value", "ci95", "n", "split")
TITLES = {
    "retrieval_top1": ("Retrieval across sensors: the nearest one is the partner", "Share of samples"),
    "retrieval_top5": ("Retrieval across sensors: the partner is among the nearest five", "Share of samples"),
    "loss_contrastive": ("Contrastive loss", "Mean over samples, with the masks of training; lower is better"),
    "loss_reconstruction": (
        "Loss of hidden patches",
        "Mean squared error of normalised patches, of each sensor; lower is better",
    ),
    "variance_explained": (
        "Variance explained on hidden patches",
        "1 - squared error over that of the mean of the visible patches of the same image: 0 is no better than that, 1 is all",
    ),
}


def is_row(row: Any) -> bool:
    """Whether a row of evaluation.json is one of these."""
    return isinstance(row, dict) and all(key in row for key in _NEEDED) and isinstance(row["sensors"], list)


def by_method(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """[{title, about, encoders, lines: [{sensors, among, images, cells, chance, n}]}], in the order of the file."""
    out = []
    encoders = list(dict.fromkeys(row["encoder"] for row in rows))
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        title, about = TITLES.get(method, (method, "Value"))
        lines: dict[tuple[str, ...], dict[str, dict[str, Any]]] = {}
        for row in own:
            lines.setdefault(_what(row), {})[row["encoder"]] = row
        out.append(
            {
                "title": title,
                "about": f"{about}; {own[0].get('data')}, split {own[0]['split']}; in brackets the 95 % interval",
                "encoders": encoders,
                "lines": [
                    {
                        **dict(zip(("sensors", "among", "images"), what, strict=True)),
                        "cells": [_cell(found.get(name)) for name in encoders],
                        "chance": _number(next(iter(found.values())).get("chance")),
                        "n": next(iter(found.values()))["n"],
                    }
                    for what, found in lines.items()
                ],
            }
        )
    return out


def _what(row: dict[str, Any]) -> tuple[str, str, str]:
    """(sensors, samples that are compared, how images are seen)"""
    sensors = (" → " if row.get("gallery") else ", ").join(map(str, row["sensors"]))
    crop = row.get("crop_scale")
    known = isinstance(crop, list) and len(crop) == 2
    return (
        sensors,
        str(row.get("gallery") or row.get("batch") or ""),
        f"crops of {crop[0]} to {crop[1]}" if known else "whole",
    )


def _cell(row: dict[str, Any] | None) -> str:
    return "" if row is None else with_bounds(row["value"], row["ci95"])


def _number(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) else ""
