"""The methods of a probe by name: what labels they take, and where they are; the names of its normalisations. Imports nothing heavy."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

from frontier.errors import UserError

Kind = Literal["classification", "multilabel", "segmentation"]
"""Of labels: one class a sample, several at once, or one a pixel."""
SUBJECT = "pretrained"
"""The encoder whose rows carry the differences to all others."""
KINDS: tuple[Kind, ...] = ("classification", "multilabel", "segmentation")
NORMALISATIONS = {
    "run": "mean and deviation of the run",
    "data": "mean and deviation of the probed shards",
    "data_2std": "mean -+ 2 deviations of the probed shards to 0 and 1",
}
"""Words of `--normalise` -> what rows say of them. Statistics of shards are those of their training split."""


@dataclass(frozen=True)
class Method:
    """One way of reading labels off frozen features.

    Attributes:
        kinds: of labels that it takes.
        path: "module:function" of this package. For classification and multilabel the function is a
            `frontier.probe.evaluate.Predict`, for clusters a `frontier.probe.clusters.Cluster`, for segmentation a
            `frontier.probe.segment.Fit`.
        validates: stops by a validation split.
        clusters: knows no labels, and finds clusters.
        package: that must be installed, and which is not among the requirements.
    """

    kinds: tuple[Kind, ...]
    path: str
    validates: bool = False
    clusters: bool = False
    package: str | None = None

    def load(self) -> Callable[..., Any]:
        module, function = self.path.split(":")
        return getattr(importlib.import_module(f"frontier.probe.{module}"), function)

    @property
    def missing(self) -> bool:
        """Whether its package is not installed."""
        return self.package is not None and find_spec(self.package) is None


_ONE: tuple[Kind, ...] = ("classification",)
_ONE_OR_MORE: tuple[Kind, ...] = ("classification", "multilabel")
_MAPS: tuple[Kind, ...] = ("segmentation",)
METHODS: dict[str, Method] = {
    "linear": Method(_ONE_OR_MORE, "linear:probe"),
    "logistic": Method(_ONE, "logistic:probe"),
    "mlp": Method(_ONE_OR_MORE, "mlp:probe", validates=True),
    "knn": Method(_ONE_OR_MORE, "knn:probe"),
    "knn20_cosine": Method(_ONE_OR_MORE, "knn:majority_cosine"),
    "knn20_l2": Method(_ONE_OR_MORE, "knn:majority_l2"),
    "kmeans": Method(_ONE, "clusters:kmeans", clusters=True),
    "pca_kmeans": Method(_ONE, "clusters:pca_kmeans", clusters=True),
    "umap_kmeans": Method(_ONE, "clusters:umap_kmeans", clusters=True, package="umap"),
    "segment": Method(_MAPS, "segment:linear", validates=True),
    "segment_knn": Method(_MAPS, "segment:neighbours"),
}


def named(text: str) -> list[str] | None:
    """The methods of a list with commas, in the order of `METHODS`; None for "all". Raises UserError for an unknown one."""
    if text == "all":
        return None
    wanted = [name.strip() for name in text.split(",")]
    unknown = [name for name in wanted if name not in METHODS]
    if unknown:
        choices = ",".join(METHODS)
        raise UserError(f"method '{unknown[0]}' is unknown, --method: choose all or some of {choices}")
    return [name for name in METHODS if name in wanted]


def chosen(wanted: Sequence[str] | None, kind: Kind, target: str) -> tuple[list[str], list[str]]:
    """(methods to run, methods left out for want of their package) on labels of this kind; `wanted` None: all that take them.

    Raises UserError where a method that was asked for by name does not take such labels or lacks its package.
    """
    able = [name for name, method in METHODS.items() if kind in method.kinds]
    for name in wanted or ():
        if name not in able:
            raise UserError(
                f"method {name} does not take labels for {kind}, which '{target}' has, --method: choose all or some of "
                f"{','.join(able)}"
            )
        if METHODS[name].missing:
            raise UserError(
                f"method {name} needs a package that is not installed: pip install 'frontier-geofm[probe]', or choose "
                "--method pca_kmeans"
            )
    names = able if wanted is None else list(wanted)
    return [name for name in names if not METHODS[name].missing], [name for name in names if METHODS[name].missing]
