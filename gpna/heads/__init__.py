"""Task heads: what is asked of the latents, each by a cross-attention of its own and an MLP (7.1.2)."""

from collections.abc import Sequence

from frontier.errors import UserError
from gpna.head_sections import (
    ClassificationTask,
    DensityTask,
    MaskedTask,
    MultilabelTask,
    RegressionTask,
    SegmentationTask,
    Task,
    TextTask,
)
from gpna.heads.base import Head
from gpna.heads.masked import Answers, Masked, Queries
from gpna.heads.pixels import Density, PixelHead, Segmentation, draw_pixels, gather_pixels
from gpna.heads.text import Text
from gpna.heads.vectors import Classification, Multilabel, Regression

__all__ = [
    "Answers",
    "Classification",
    "Density",
    "Head",
    "Masked",
    "Multilabel",
    "PixelHead",
    "Queries",
    "Regression",
    "Segmentation",
    "Text",
    "build_head",
    "draw_pixels",
    "gather_pixels",
]


def build_head(task: Task, width: int, query_width: int | None = None, token_values: Sequence[int] = ()) -> Head:
    """The head of a task's section for latents of `width`.

    `query_width` (of the tokenizer's encodings) and `token_values` (how many its inputs' tokens stand for) are for masked tokens only.
    """
    match task:
        case ClassificationTask():
            return Classification(width, task)
        case MultilabelTask():
            return Multilabel(width, task)
        case RegressionTask():
            return Regression(width, task)
        case SegmentationTask():
            return Segmentation(width, task)
        case DensityTask():
            return Density(width, task)
        case TextTask():
            return Text(width, task)
        case MaskedTask():
            if query_width is None or not token_values:
                raise UserError(f"head {task.head}: it needs query_width and token_values of the tokenizer's inputs")
            return Masked(width, task, query_width, token_values)
