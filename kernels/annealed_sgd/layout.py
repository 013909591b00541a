"""Where parameters lie in the flat buffers: one table of segments, from which a shard is cut by slicing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Every parameter starts at a multiple of this many elements: 256 bytes of float32, so 128-bit accesses, whole cache
# lines and 16-bit copies are all aligned.
ALIGNMENT = 64

# The columns of a segment table (int64, on the CPU): a row for each stretch of the flat buffer that is one parameter's.
BEGIN, LENGTH, GROUP, GRAD, OFFSET = range(5)


def segment_table(
    lengths: Sequence[int], groups: Sequence[int], group_alignment: int = ALIGNMENT
) -> tuple[Tensor, int]:
    """Lay parameters one behind the other, each aligned, each with a gradient of its own.

    Args:
        lengths: number of elements of each parameter.
        groups: group of each parameter, a row of the `hyper` table.
        group_alignment: a multiple of ALIGNMENT; each run of parameters of one group takes up a multiple of it, so that
            its stretch of the buffer can be cut into equal, aligned slices.

    Returns:
        The table [parameters, 5] with columns begin (in the flat buffer), length, group, grad (index into the list of
        gradients) and offset (into that gradient), and the number of elements of the flat buffer.
    """
    rows: list[tuple[int, int, int, int, int]] = []
    end = 0
    for index, (length, group) in enumerate(zip(lengths, groups, strict=True)):
        if rows and rows[-1][GROUP] != group:
            end = round_up(end, group_alignment)
        rows.append((end, length, group, index, 0))
        end = round_up(end + length, ALIGNMENT)
    end = round_up(end, group_alignment)
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, 5), end


def round_up(value: int, multiple: int) -> int:
    """The least multiple of `multiple` that is at least `value`."""
    return -(-value // multiple) * multiple


def shard_table(table: Tensor, begin: int, end: int) -> Tensor:
    """The table of the slice [begin, end) of the flat buffer, whose gradient is one tensor that covers the same slice.

    `table` is that of the whole buffer; the new one's column `begin` counts from the slice's first element.
    """
    first = table[:, BEGIN].clamp(min=begin)
    last = (table[:, BEGIN] + table[:, LENGTH]).clamp(max=end)
    here = first < last
    shard = table[here].clone()
    shard[:, BEGIN] = shard[:, OFFSET] = first[here] - begin
    shard[:, LENGTH] = (last - first)[here]
    shard[:, GRAD] = 0
    return shard


def is_dense(tensor: Tensor) -> bool:
    """Whether the tensor's elements fill one stretch of memory without gaps or overlap, in any order of dimensions."""
    if tensor.is_contiguous() or (tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)):
        return True
    expected = 1
    for stride, size in sorted((s, n) for n, s in zip(tensor.shape, tensor.stride(), strict=True) if n != 1):
        if stride != expected:
            return False
        expected *= size
    return True


def same_order(tensor: Tensor, other: Tensor) -> bool:
    """Whether two dense tensors of one shape store their elements in the same order."""
    strides = zip(tensor.shape, tensor.stride(), other.stride(), strict=True)
    return all(a == b for size, a, b in strides if size != 1)


def tagged_addresses(grads: Sequence[Tensor | None]) -> list[int]:
    """Addresses as the kernels read them: 0 for none, and the lowest bit, else always 0, set for bfloat16."""
    return [0 if g is None else g.data_ptr() | (g.dtype is torch.bfloat16) for g in grads]


def memory_order(tensor: Tensor) -> Tensor:
    """A dense tensor's elements as one row, in the order they have in memory; shares the tensor's memory."""
    return tensor.as_strided((tensor.numel(),), (1,))
