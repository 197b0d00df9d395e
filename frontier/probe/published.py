"""Published figures beside measured ones: published.yaml by data set and method."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from .methods import Kind

Row = dict[str, Any]
_METRICS = ("accuracy", "raw_accuracy", "micro_map")


@cache
def _table() -> dict[str, Any]:
    return yaml.safe_load((Path(__file__).parent / "published.yaml").read_text())


def published(data: str, methods: Sequence[str], kind: Kind) -> list[Row]:
    """Rows of the data set `data` that go beside `methods` on labels of such a kind: each beside the first of its methods that is among them.

    As measured rows they have method, encoder, kind ("published"), metric and that metric in 0..1, n_train and n_test (of the
    official partition); also `published_method`, `source` and perhaps `note`. They have no interval, as none was published.
    """
    table, rows = _table(), []
    for figure in table["figures"]:
        beside = next((name for name in figure["beside"] if name in methods), None)
        metric = next(name for name in _METRICS if name in figure)
        if beside is None or data not in figure[metric] or (metric == "micro_map") != (kind == "multilabel"):
            continue
        source = table["sources"][figure["source"]]
        train, test = table["sizes"][data]
        for encoder, percent in zip(figure["encoders"], figure[metric][data], strict=True):
            rows.append(
                {
                    "method": beside,
                    "encoder": encoder,
                    "kind": "published",
                    "metric": metric,
                    metric: round(percent / 100, 6),
                    "n_train": train,
                    "n_test": test,
                    "published_method": figure["as"],
                    "source": source["citation"],
                    "note": "; ".join(text for text in (figure.get("note"), source["note"]) if text),
                }
            )
    return rows


def normalised(data: str, accuracy: float) -> Row:
    """{"geobench_normalised": the accuracy between the bounds of GEO-Bench's normaliser}, which may lie outside 0..1; {} where there are none."""
    bounds = _table()["normalizer"].get(data)
    return {} if bounds is None else {"geobench_normalised": (accuracy - bounds[0]) / (bounds[1] - bounds[0])}
