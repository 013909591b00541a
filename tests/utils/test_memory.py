"""Free memory: what /proc says, and what control groups allow."""

import pytest
import torch
from image_files import write

from seal_fast.utils.memory import free_bytes

MACHINE = {"proc/meminfo": b"MemTotal:       2000 kB\nMemAvailable:    1234 kB\n"}
V2 = {"memory.max": b"1000\n", "memory.current": b"600\n", "memory.stat": b"anon 1\ninactive_file 150\n"}
UNLIMITED = {"memory.max": b"max\n", "memory.current": b"5\n", "memory.stat": b"inactive_file 2\n"}
V1 = {
    "memory.limit_in_bytes": b"900",
    "memory.usage_in_bytes": b"300",
    "memory.stat": b"inactive_file 1\ntotal_inactive_file 50\n",
}


def at(folder, files):
    return {f"sys/fs/cgroup/{folder}/{name}": data for name, data in files.items()}


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, 1234 * 1024),
        ({"proc/self/cgroup": b"0::/user/job\n"} | at("user/job", UNLIMITED) | at("user", V2), 1000 - 600 + 150),
        ({"proc/self/cgroup": b"0::/job\n"} | at(".", V2) | at("other", V1), 550),
        ({"proc/self/cgroup": b"5:cpu:/x\n3:memory:/job\n"} | at("memory/job", V1), 650),
    ],
    ids=["machine", "v2, group above", "v2, root of a container", "v1"],
)
def test_the_smallest_limit_counts(files, free, tmp_path):
    assert free_bytes(torch.device("cpu"), write(tmp_path, MACHINE | files)) == free


def test_this_machine_has_memory():
    assert free_bytes(torch.device("cpu")) > 1 << 20
