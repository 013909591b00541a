"""How much memory is free, on the device where a resident set would lie."""

from __future__ import annotations

from pathlib import Path

import torch


def free_bytes(device: torch.device) -> int:
    """Free memory in bytes: the GPU's, or what the machine and the process's control group both still allow."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min(_machine(), *_control_groups())


def _machine(meminfo: Path = Path("/proc/meminfo")) -> int:
    for line in meminfo.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{meminfo} has no line MemAvailable")


def _control_groups(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[int]:
    """What each limited group that this process is in has left; a batch system's limit usually is one (v2 or v1)."""
    paths = [line.split(":", 2)[1:] for line in own.read_text().splitlines()] if own.exists() else []
    left = []
    for controllers, path in paths:
        if controllers == "":
            base, limit_file, used_file = root, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            base, limit_file, used_file = root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        group = base / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder != base and base not in folder.parents:
                break
            try:
                limit, used = (folder / limit_file).read_text().strip(), int((folder / used_file).read_text())
                cache = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            except OSError:
                continue
            if limit != "max":  # pages of files that can be dropped count as used, but are as good as free
                left.append(int(limit) - used + int(cache.get("inactive_file", cache.get("total_inactive_file", 0))))
    return left or [1 << 62]
