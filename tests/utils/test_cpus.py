import os
from pathlib import Path

import pytest

from seal_fast.utils import cpus
from seal_fast.utils.cpus import cpu_count, cpu_quota


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


V1 = "11:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n0::/\n"


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        # a group's own quota and that of the group above it: the smaller one binds
        (
            {
                "proc/self/cgroup": "0::/a.slice/b.scope\n",
                "sys/fs/cgroup/a.slice/cpu.max": "200000 100000\n",
                "sys/fs/cgroup/a.slice/b.scope/cpu.max": "400000 100000\n",
                "sys/fs/cgroup/other/cpu.max": "1000 100000\n",
            },
            2.0,
        ),
        # v1, seen from the host and from inside the container
        (
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "300000\n",
                "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000\n",
            },
            3.0,
        ),
        (
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            0.5,
        ),
        (
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
    ],
    ids=["none", "v2 max", "v2", "v2 nested", "v1 host", "v1 container", "v1 unlimited"],
)
def test_quota(files, quota, tmp_path):
    assert cpu_quota(tree(tmp_path, files)) == quota


@pytest.mark.parametrize(("quota", "count"), [(None, 8), (0.5, 1), (2.9, 2), (64.0, 8)])
def test_the_quota_bounds_the_affinity(quota, count, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(cpus, "cpu_quota", lambda: quota)
    assert cpu_count() == count
