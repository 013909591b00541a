"""Memory for flat buffers: zero, and where it is large in huge pages, at a place of its own."""

import sys

import pytest
import torch

from seal_fast.kernels.pages import flat_zeros


@pytest.mark.parametrize("elements", [0, 5, 600_000])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("place", [0, 3])
def test_flat_memory_is_zero_and_large_one_starts_at_its_place_in_a_huge_page(dtype, elements, place):
    torch.full((elements + 2**20,), 7.0)  # leaves memory behind that is not zero
    buffer = flat_zeros(elements, dtype, torch.device("cpu"), place)
    assert buffer.shape == (elements,) and buffer.dtype == dtype and not buffer.any()
    if elements * dtype.itemsize >= 2**21 and sys.platform == "linux":
        assert buffer.data_ptr() % 2**21 == place * 1088
