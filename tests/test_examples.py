"""The examples run and learn."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

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
