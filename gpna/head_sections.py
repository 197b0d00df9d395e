"""The sections `model.tasks.<name>`: what a task reads, its head and its loss. No torch here."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from frontier.config.schema import Section
from frontier.errors import UserError

Positive = Annotated[float, Field(gt=0)]
STATISTICS, SMALLEST = 7, 16
"""How many numbers say what a footprint looks like (`gpna.heads.masked.statistics`), and pixels of the smallest footprint that has them."""


class TaskSection(Section):
    """What all tasks have."""

    source: str = Field(min_length=1)
    """Name of the source whose samples the task learns from."""
    weight: float = Field(1.0, gt=0)
    """Of its loss in the sum over tasks."""
    attention_heads: int = Field(4, ge=1)
    """Of the head's cross-attention; they divide the width of the latents."""
    hidden: int | None = Field(None, ge=1)
    """Units of the head's MLP; default: the width of the latents."""


class LabelledTask(TaskSection):
    """What tasks with labels have. What a run's data say (classes, size, mean and deviation, `labelled`) may be left out of a config."""

    target: str = Field(min_length=1)
    """Name of the labels: of a task in the manifest, or of their column."""
    labelled: float | None = Field(None, gt=0, le=1)
    """Filled in: share of the source's samples that have a label."""


class _Classes(LabelledTask):
    classes: int | None = Field(None, ge=2)
    """Default: as many as the labels have."""
    class_weights: list[Positive] | None = None
    """One a class, times its loss; 1 is neutral."""

    @model_validator(mode="after")
    def _one_weight_a_class(self) -> _Classes:
        if self.class_weights is not None and self.classes and len(self.class_weights) != self.classes:
            raise ValueError(
                f"class_weights has {len(self.class_weights)} numbers for {self.classes} classes: give one each"
            )
        return self


class ClassificationTask(_Classes):
    """One of several classes; a negative label = missing."""

    head: Literal["classification"]
    label_smoothing: float = Field(0.0, ge=0, lt=1)


class MultilabelTask(_Classes):
    """Several yes-or-no labels; negative = missing."""

    head: Literal["multilabel"]
    classes: int | None = Field(None, ge=1)
    """Default: as many as the labels have."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)


class RegressionTask(LabelledTask):
    """One or more numbers; NaN or infinite = missing."""

    head: Literal["regression"]
    outputs: int | None = Field(None, ge=1)
    """Numbers a sample; default: as many as the labels have."""
    mean: list[float] | None = None
    """Of each output, in its units, over known labels of the training split; the head needs it: given here or measured by its builder."""
    std: list[Positive] | None = None
    """Likewise."""
    loss: Literal["mse", "huber"] = "mse"
    huber_delta: float = Field(1.0, gt=0)
    """Where Huber's loss turns linear, in standard deviations."""

    @model_validator(mode="after")
    def _together(self) -> RegressionTask:
        for name in ("mean", "std"):
            numbers = getattr(self, name)
            if numbers is not None and self.outputs and len(numbers) != self.outputs:
                raise ValueError(f"{name} has {len(numbers)} numbers for {self.outputs} outputs: give one each")
        if self.loss == "mse" and self.huber_delta != type(self).model_fields["huber_delta"].default:
            raise ValueError("huber_delta has no effect with loss mse: leave it out, or choose loss: huber")
        return self

    def require_statistics(self) -> None:
        if self.mean is None or self.std is None:
            raise UserError(
                f"task on {self.target}: mean and std of its outputs are not known: give both, one number each"
            )


class PixelTask(LabelledTask):
    """Something for each pixel of a raster that covers the sample."""

    size: int | tuple[int, int] | None = None
    """Side, or rows and columns, of the target in pixels; default: that of the labels. Other sizes can be asked of the trained model."""
    features: int = Field(128, ge=4, multiple_of=2)
    """Length of a pixel's Fourier encoding: a sine and a cosine for each frequency."""
    region: Literal["axis", "first", "half_plane"] = "half_plane"
    """Where frequency vectors lie: on the axes (Eq. 2), in the first quadrant (Eq. 4), in the half plane: all directions.

    What the three can express differs where outputs are linear in the encoding. Behind a softmax products of waves count too: on generated
    stripes at all angles (small models, 2 to 3 seeds) the half plane gained nothing over the axes beyond what seeds differ by.
    """
    highest: float | None = Field(None, gt=0)
    """Highest frequency in cycles a side; default: an eighth of the shorter side in pixels (a wavelength of 8 pixels), at least 2."""
    layers: int = Field(1, ge=1)
    """Cross-attentions on the latents; the paper has 1. With 2, generated stripes gained 4 to 5 points of Dice (small model, 3 seeds)."""
    query_residual: bool = False
    """The encoding itself reaches the MLP; not so in the paper, and no gain was measured on generated stripes."""
    train_pixels: int | None = Field(None, ge=1)
    """Pixels a sample that a training step asks for, drawn anew each time; default: all."""
    chunk: int = Field(32768, ge=1)
    """Rows (pixels x samples) computed at once; the rest of an image is recomputed in the backward pass, so this bounds memory."""

    @model_validator(mode="after")
    def _pixels(self) -> PixelTask:
        if self.size is None:
            return self
        rows, columns = self.side()
        if min(rows, columns) < 1:
            raise ValueError(f"size {self.size}: sides are at least 1")
        if self.train_pixels is not None and self.train_pixels > rows * columns:
            raise ValueError(
                f"train_pixels {self.train_pixels}: the target has {rows * columns} pixels: at most so many, or leave it out"
            )
        return self

    def side(self) -> tuple[int, int]:
        """Rows and columns; UserError where they are not known yet."""
        if self.size is None:
            raise UserError(f"task on {self.target}: the size of its map is not known: give size")
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    def top_frequency(self) -> float:
        """`highest`, or its default."""
        return self.highest or max(2.0, min(self.side()) / 8)


class SegmentationTask(PixelTask):
    """A class for each pixel; 255 = unknown."""

    head: Literal["segmentation"]
    classes: int | None = Field(None, ge=2, le=255)
    """Default: as many as the labels have."""
    class_weights: list[Positive] | None = None
    """One a class, times its loss; 1 is neutral."""
    loss: Literal["cross_entropy", "dice", "both"] = "cross_entropy"
    """both: the sum."""

    @model_validator(mode="after")
    def _one_weight_a_class(self) -> SegmentationTask:
        if self.class_weights is not None and self.classes and len(self.class_weights) != self.classes:
            raise ValueError(
                f"class_weights has {len(self.class_weights)} numbers for {self.classes} classes: give one each"
            )
        return self


class DensityTask(PixelTask):
    """Counts for each pixel; negative, NaN or infinite = unknown."""

    head: Literal["density"]
    loss: Literal["poisson", "squared"] = "poisson"


class MaskedTask(TaskSection):
    """Values of masked tokens."""

    head: Literal["masked"]
    norm_pix: bool = False
    """Compare with each footprint's values normalised by their own mean and deviation (MAE); tokens of one value stay as they are."""
    texture: float = Field(0.0, ge=0)
    """Weight of the footprints' statistics (`gpna.heads.masked.statistics`)."""
    layers: int = Field(1, ge=1)
    """Cross-attentions on the latents."""
    query_residual: bool = True
    """The encoding itself reaches the MLP."""


class TextTask(LabelledTask):
    """Classes, or one number, described by texts whose vectors are given."""

    head: Literal["text"]
    task: Literal["classification", "regression"] = "classification"
    vectors: str
    """File of the vectors (gpna.text_vectors)."""
    texts: list[str] = Field(min_length=1)
    """Names in that file: the classes in the order of the labels, or the one text of a regression."""
    stored: str | None = None
    """Filled in: the vectors themselves (gpna.packed), so that a checkpoint needs no file and a changed file is noticed."""
    mean: float | None = None
    """Of a regression's labels, in their units; needed there: given here or measured by the head's builder."""
    std: float | None = Field(None, gt=0)
    """Likewise."""
    layers: int = Field(1, ge=1)
    """Cross-attentions on the latents."""
    query_residual: bool = True
    """The text itself reaches the MLP."""

    @model_validator(mode="after")
    def _kind(self) -> TextTask:
        if len(set(self.texts)) < len(self.texts):
            raise ValueError(f"texts: {next(t for t in self.texts if self.texts.count(t) > 1)!r} stands there twice")
        if self.task == "regression" and len(self.texts) != 1:
            raise ValueError(f"texts: a regression has one text, {len(self.texts)} given")
        if self.task == "classification":
            if len(self.texts) < 2:
                raise ValueError("texts: a classification needs two or more")
            for name in ("mean", "std"):
                if getattr(self, name) is not None:
                    raise ValueError(
                        f"{name} has no effect on a classification: leave it out, or choose task: regression"
                    )
        return self

    def require_statistics(self) -> None:
        if self.task == "regression" and (self.mean is None or self.std is None):
            raise UserError(f"task on {self.target}: mean and std of its labels are not known: give both")


Task = ClassificationTask | MultilabelTask | RegressionTask | SegmentationTask | DensityTask | MaskedTask | TextTask
"""Any task."""

TaskUnion = Annotated[Task, Field(discriminator="head")]
"""Any task in a config, told apart by `head`: `tasks: dict[str, TaskUnion]`."""
