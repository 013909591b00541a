"""How much memory is free, on the device where a resident set would lie."""

from __future__ import annotations

from pathlib import Path

import torch

from seal_fast.utils.cpus import control_groups


def free_bytes(device: torch.device, root: Path = Path("/")) -> int:
    """Free memory in bytes: the GPU's, or what the machine and the process's control groups all still allow.

    `root` is that of the file system. Source: Linux, proc_meminfo(5), cgroup-v2.rst (memory.max), cgroup-v1/memory.rst.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = [_numbers(root / "proc/meminfo")["MemAvailable:"] * 1024]
    for group in control_groups("memory", root):
        for limit, used, cache in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            try:
                text = (group / limit).read_text(encoding="utf-8").strip()
                if text != "max":  # pages of files that can be dropped count as used, but are as good as free
                    taken = int((group / used).read_text(encoding="utf-8"))
                    free.append(int(text) - taken + _numbers(group / "memory.stat").get(cache, 0))
            except OSError:
                continue
    return min(free)


def _numbers(file: Path) -> dict[str, int]:
    return {line.split()[0]: int(line.split()[1]) for line in file.read_text(encoding="utf-8").splitlines()}
