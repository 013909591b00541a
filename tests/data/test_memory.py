"""Free memory: what /proc says, and what control groups allow."""

import torch

from seal_fast.data import memory


def test_the_machine(tmp_path):
    file = tmp_path / "meminfo"
    file.write_text("MemTotal:       2000 kB\nMemAvailable:    1234 kB\n")
    assert memory._machine(file) == 1234 * 1024
    assert 0 < memory.free_bytes(torch.device("cpu")) <= memory._machine()


def group(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_", ".", 1)).write_text(text)


def test_control_groups_v2(tmp_path):
    own = tmp_path / "cgroup"
    own.write_text("0::/user/job\n")
    root = tmp_path / "fs"
    group(root / "user" / "job", memory_max="max\n", memory_current="5\n", memory_stat="inactive_file 2\n")
    group(root / "user", memory_max="1000\n", memory_current="600\n", memory_stat="anon 1\ninactive_file 150\n")
    assert memory._control_groups(root, own) == [1000 - 600 + 150]


def test_control_groups_v1(tmp_path):
    own = tmp_path / "cgroup"
    own.write_text("5:cpu:/x\n3:memory:/job\n")
    group(tmp_path / "fs" / "memory" / "job", **{
        "memory_limit_in_bytes": "900", "memory_usage_in_bytes": "300", "memory_stat": "total_inactive_file 50\n"
    })  # fmt: skip
    assert memory._control_groups(tmp_path / "fs", own) == [650]


def test_no_control_group_is_no_limit(tmp_path):
    assert memory._control_groups(tmp_path, tmp_path / "none") == [1 << 62]
