"""The Triton kernels of the update and the augmentation under Triton's interpreter, on the CPU."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


def test_triton_under_the_interpreter():
    """It must be chosen before Triton is imported, hence a process of its own."""
    pytest.importorskip("triton")
    files = [str(Path(__file__).with_name(name)) for name in ("test_annealed_sgd.py", "test_augment.py")]
    command = [
        sys.executable,
        "-m",
        "pytest",
        *files,
        "-k",
        "interpreted or (test_augment and triton)",
        "-p",
        "no:cacheprovider",
    ]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d+ passed", done.stdout) and "skipped" not in done.stdout
