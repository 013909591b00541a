"""The examples run and learn."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from seal_fast.data import Shard

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize("name", [path.name for path in sorted(EXAMPLES.glob("*.py"))])
def test_an_example_runs(name):
    if name.startswith("lightning"):
        pytest.importorskip("lightning", reason="needs the extra `lightning`")
    done = subprocess.run([sys.executable, EXAMPLES / name], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    figures = [float(re.findall(r"[\d.]+", line)[-1]) for line in done.stdout.splitlines()]
    assert "g2" in done.stdout and "ascent" in done.stdout
    better = figures[-1] < 0.9 * figures[0] if "loss" in done.stdout else figures[-1] > 80
    assert better and len((EXAMPLES / name).read_text().splitlines()) <= 60


@pytest.mark.parametrize("script", sorted((EXAMPLES / "slurm").iterdir()), ids=lambda path: path.name)
def test_a_slurm_script_divides_its_batch(script):
    text = script.read_text()
    assert not subprocess.run(["bash", "-n", script]).returncode
    nodes, gpus = (int(re.findall(rf"--{flag}=(\d+)", text)[0]) for flag in ("nodes", "gpus-per-node"))
    for batch in re.findall(r"--batch-size (\d+)", text):
        assert Shard(processes=nodes * gpus).micro_batch_size(int(batch)) == 32
    assert "torchrun" not in text or "--batch-size " in text
