"""Which elements of its memory a tensor is made of: other tensors may share them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Place"]


@dataclass(frozen=True)
class Place:
    """A view of memory.

    Attributes:
        shape: The tensor's.
        stride: How far apart in memory, in elements, neighbors of each dimension are.
        offset: Where the first element is.
        dtype: What kind of number the memory is read as.
    """

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> Place:
        """Where a tensor lies."""
        return cls(tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()), tensor.dtype)

    def same_elements(self, other: Place) -> bool:
        """Whether each element is the other's: strides of dimensions of size one do not matter."""
        if (self.shape, self.offset, self.dtype) != (other.shape, other.offset, other.dtype):
            return False
        pairs = zip(self.shape, self.stride, other.stride, strict=True)
        return all(own == its for size, own, its in pairs if size > 1)

    def indices(self) -> Tensor:
        """Where in memory each element is, int64 in the tensor's shape."""
        index = torch.full(self.shape, self.offset)
        for dim, (size, step) in enumerate(zip(self.shape, self.stride, strict=True)):
            index += (torch.arange(size) * step).view(-1, *[1] * (len(self.shape) - dim - 1))
        return index

    def elements_at(self, indices: Tensor) -> Tensor:
        """The numbers of the elements that lie at some places of the memory; -1 where none does."""
        own = self.indices().flatten()
        last = max(int(own.max()), int(indices.max())) if own.numel() and indices.numel() else 0
        numbers = torch.full((last + 1,), -1)
        numbers[own] = torch.arange(len(own))
        return numbers[indices]
