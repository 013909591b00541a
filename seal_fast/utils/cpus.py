"""How many processors this process may use, and the control groups that bound it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


def cpu_count() -> int:
    """Processors by affinity, bounded by the quota of a container; at least 1."""
    quota = cpu_quota()
    cores = len(os.sched_getaffinity(0))
    return cores if quota is None else max(1, min(cores, int(quota)))


def cpu_quota(root: Path = Path("/")) -> float | None:
    """The smallest CPU quota of this process's control group and the groups above it, in processors; None without one.

    `root` is that of the file system. Source: Linux, cgroup-v2.rst (cpu.max) and sched-bwc.rst (cpu.cfs_quota_us,
    cpu.cfs_period_us).
    """
    return min((quota for group in control_groups("cpu", root) for quota in _quota(group)), default=None)


def control_groups(controller: str, root: Path = Path("/")) -> Iterator[Path]:
    """Folders of this process's control group and the groups above it, of both versions; some may not exist."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        for mount in dict.fromkeys([controllers, controller]) if controllers else (".", "unified"):
            base = root / "sys/fs/cgroup" / mount
            # a container may see its own group as the mount's root, whatever path the host knows it by
            group = base / path.strip("/")
            yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(base))


def _quota(folder: Path) -> list[float]:
    numbers = _read(folder / "cpu.max").split() or [
        _read(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")
    ]
    with contextlib.suppress(ValueError, ZeroDivisionError):  # "max", -1, or no such file
        quota = int(numbers[0]) / int(numbers[1])
        return [quota] if quota > 0 else []
    return []


def _read(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(encoding="ascii", errors="replace")
    return ""
