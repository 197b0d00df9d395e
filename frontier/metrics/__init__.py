"""Test metrics under names that say what they are, each with a bootstrap interval.

`pearson_r2` is the square of Pearson's correlation, blind to scale and offset: predictions that are off by any factor keep
theirs. `r2` is the coefficient of determination, 1 - (sum of squared errors) / (sum of squared deviations from the mean),
which is negative for what is worse than the mean. Papers report either as "r²", so both are always here. `accuracy` comes
with `majority_rate`: what always answering the training split's commonest class scores. `dice` is the F1 score of class 1
over all pixels of all images together, not the mean of the images' own. Metrics of density maps are of pixels, those
called `count_…` of the counts of whole images.

Every function returns a flat dict: `n`, the metrics as floats, and for each `{metric}_ci95` = [low, high], the percentile
interval of resampling samples, or whole `groups` of them (sites), with replacement. Undefined values are NaN (Pearson's
correlation of constant predictions), and so are intervals of fewer than two units. Labels that are missing (NaN, -1, or
255 for pixels) are left out.
"""

from .bootstrap import RESAMPLES, interval, resample
from .clusters import best_assignment, clustering
from .pixels import count_sums, density, density_sums, overlaps, segmentation, segmentation_counts
from .ranking import RESAMPLES as RANKING_RESAMPLES
from .ranking import average_precision, precisions
from .samples import binary, classification, multilabel, regression

__all__ = [
    "RANKING_RESAMPLES",
    "RESAMPLES",
    "average_precision",
    "best_assignment",
    "binary",
    "classification",
    "clustering",
    "count_sums",
    "density",
    "density_sums",
    "interval",
    "multilabel",
    "overlaps",
    "precisions",
    "regression",
    "resample",
    "segmentation",
    "segmentation_counts",
]
