"""Memory for flat buffers: zero, in huge pages where it is large, each at its own place; small pages put together."""

import subprocess
import sys

import pytest
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


# A mapping of small pages, as Python's allocator and the C library make them: how much of it lies in huge pages before
# and after, and whether its bytes are the same.
GATHER = """
import mmap
from seal_fast.kernels.pages import gather_into_huge_pages

def huge(address):
    inside = False
    for line in open("/proc/self/smaps"):
        key, *rest = line.split()
        if "-" in key:
            begin, end = (int(side, 16) for side in key.split("-"))
            inside = begin <= address < end
        elif key == "AnonHugePages:" and inside:
            return int(rest[0])

import ctypes
memory = mmap.mmap(-1, 16 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for page in range(0, 16 << 20, 4096):
    memory[page : page + 4] = page.to_bytes(4, "little")
address = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + (8 << 20)
before = huge(address)
gather_into_huge_pages()
print(before, huge(address), all(memory[p : p + 4] == p.to_bytes(4, "little") for p in range(0, 16 << 20, 4096)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux has them")
def test_small_pages_are_put_together_with_what_lies_in_them():
    done = subprocess.run([sys.executable, "-c", GATHER], capture_output=True, text=True, check=True)
    before, after, same = done.stdout.split()
    assert same == "True"
    if before == after:
        pytest.skip("this Linux grants none, or has granted all before it was asked")
    assert int(after) >= 14 * 1024  # KiB; all but the ends


def test_where_there_is_nothing_to_read_nothing_is_done(monkeypatch):
    monkeypatch.setattr("pathlib.Path.read_text", lambda self: (_ for _ in ()).throw(FileNotFoundError(self)))
    gather_into_huge_pages()
