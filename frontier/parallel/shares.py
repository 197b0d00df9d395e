"""What one rank holds of a named tensor: the common language of engines and checkpoints.

An engine may cut a tensor along a dimension (FSDP, tensor parallelism) or cut the row-major order of its elements (ZeRO).
Either way a rank's part is a few boxes, each a view of live memory, so saving reads from them, loading writes into them, and a
checkpoint of one engine loads into the other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset


def boxes_of_range(shape: Sequence[int], start: int, stop: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The elements start ... stop - 1 of a row-major tensor as boxes (offsets, sizes), each contiguous, in order.

    At most 2 n - 1 boxes for n dimensions: a part of the first row, whole rows, a part of the last row.
    """
    if start >= stop:
        return
    if len(shape) <= 1:
        yield ((start,), (stop - start,)) if shape else ((), ())
        return
    row = math.prod(shape[1:])
    first, last = -(-start // row), stop // row
    if first > last:  # inside one row
        for offsets, sizes in boxes_of_range(shape[1:], start - last * row, stop - last * row):
            yield (last, *offsets), (1, *sizes)
        return
    for offsets, sizes in boxes_of_range(shape[1:], start - (first - 1) * row, row) if start < first * row else ():
        yield (first - 1, *offsets), (1, *sizes)
    if first < last:
        yield (first, *(0 for _ in shape[1:])), (last - first, *shape[1:])
    for offsets, sizes in boxes_of_range(shape[1:], 0, stop - last * row):
        yield (last, *offsets), (1, *sizes)


@dataclass(frozen=True)
class Share:
    """This rank's part of a tensor.

    Attributes:
        shape: of the whole tensor.
        boxes: (offset in every dimension, a view of the memory that holds the box); none where the rank holds nothing.
    """

    shape: torch.Size
    dtype: torch.dtype
    boxes: tuple[tuple[tuple[int, ...], Tensor], ...]

    @classmethod
    def of(cls, like: Tensor, local: Tensor | None = None) -> Share:
        """The part that `like` holds (a DTensor, or a plain tensor whole); `local` is memory laid out as its local part."""
        if isinstance(like, DTensor):
            sizes, offsets = compute_local_shape_and_global_offset(like.shape, like.device_mesh, like.placements)
            local = like.to_local() if local is None else local
        else:
            sizes, offsets = tuple(like.shape), (0,) * like.ndim
            local = like if local is None else local
        box = ((tuple(offsets), local.detach()),) if math.prod(sizes) else ()
        return cls(like.shape, local.dtype, box)

    @classmethod
    def of_range(cls, shape: Sequence[int], start: int, flat: Tensor) -> Share:
        """Elements start ... start + len(flat) - 1 of the row-major order, held in the 1-D tensor `flat`."""
        boxes, at = [], 0
        for offsets, sizes in boxes_of_range(shape, start, start + flat.numel()):
            count = math.prod(sizes)
            boxes.append((offsets, flat.detach()[at : at + count].view(sizes)))
            at += count
        return cls(torch.Size(shape), flat.dtype, tuple(boxes))

    def staged(self) -> Share:
        """A copy on the host, which later changes of the live memory do not reach."""
        copies = tuple((o, torch.empty(t.shape, dtype=t.dtype).copy_(t)) for o, t in self.boxes)
        return Share(self.shape, self.dtype, copies)

    def nbytes(self) -> int:
        """Of the whole tensor."""
        return self.shape.numel() * self.dtype.itemsize

    # The protocol by which torch.distributed.checkpoint asks an object for its pieces.

    def size(self) -> torch.Size:
        return self.shape

    def __create_write_items__(self, fqn: str, _object: object) -> list[WriteItem]:
        properties = TensorProperties(dtype=self.dtype)
        return [
            WriteItem(
                index=MetadataIndex(fqn, torch.Size(chunk.offsets)),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(chunk=chunk, properties=properties, size=self.shape),
            )
            for chunk in self.__create_chunk_list__()
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [ChunkStorageMetadata(torch.Size(o), t.shape) for o, t in self.boxes]

    def box(self, index: MetadataIndex) -> Tensor:
        """The memory of the box at the offset of `index`."""
        return next(t for o, t in self.boxes if torch.Size(o) == index.offset)


class SavePlanner(DefaultSavePlanner):
    """Saves a dict of `Share`."""

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        return self.state_dict[index.fqn].box(index)


class LoadPlanner(DefaultLoadPlanner):
    """Loads into a dict of `Share`."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False)

    def set_up_planner(self, state_dict: Any, metadata: Any = None, is_coordinator: bool = False) -> None:
        self.state_dict, self.metadata, self.is_coordinator = state_dict, metadata, is_coordinator

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        return self.state_dict[index.fqn].box(index)
