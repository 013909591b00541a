"""Memory for flat buffers: zero, in huge pages where it is large, each at its own place; small pages put together."""

import ctypes
import mmap
import sys

import pytest
import smaps
import torch

from seal_fast.kernels.pages import flat_zeros, gather_into_huge_pages


@pytest.mark.parametrize("elements", [0, 5, 600_000])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("place", [0, 3])
def test_flat_memory_is_zero_and_large_one_starts_at_its_place_in_a_huge_page(dtype, elements, place):
    torch.full((elements + 2**20,), 7.0)  # leaves memory behind that is not zero
    buffer = flat_zeros(elements, dtype, torch.device("cpu"), place)
    assert buffer.shape == (elements,) and buffer.dtype == dtype and not buffer.any()
    if elements * dtype.itemsize >= 2**21 and sys.platform == "linux":
        assert buffer.data_ptr() % 2**21 == place * 1088


class SmallPages:
    """16 MiB as Python's allocator and the C library map them, each page with its number in it."""

    def __init__(self):
        self.memory = mmap.mmap(-1, 16 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.pages = torch.frombuffer(self.memory, dtype=torch.int64).view(-1, 512)
        self.pages[:, 0] = torch.arange(4096)

    def huge(self):
        """KiB in huge pages."""
        return int(smaps.about(self.pages.data_ptr() + (8 << 20))["AnonHugePages"][0])


@pytest.mark.skipif(sys.platform != "linux", reason="Linux has huge pages")
def test_small_pages_are_put_together_with_what_lies_in_them():
    probe = SmallPages()
    begin = -(-probe.pages.data_ptr() // 2**21) * 2**21
    madv_collapse = 25
    if ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(2**21), madv_collapse):
        pytest.skip("this Linux puts no pages together on request")
    small = SmallPages()
    before = small.huge()
    gather_into_huge_pages()
    # All but the ends; it is one mapping with its neighbours, which Linux joins.
    assert small.huge() >= before and small.huge() >= 14 * 1024
    assert torch.equal(small.pages[:, 0], torch.arange(4096))


def test_where_there_is_nothing_to_read_nothing_is_done(monkeypatch):
    monkeypatch.setattr("pathlib.Path.read_text", lambda self: (_ for _ in ()).throw(FileNotFoundError(self)))
    gather_into_huge_pages()
