"""Threads that wait for each other spin for a bounded time, unless the user has said how they wait."""

import os
import subprocess
import sys

import pytest

from seal_fast.utils.openmp import SPIN_COUNT

SCRIPT = (
    "import os, sys; import seal_fast.utils.openmp; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
)


@pytest.mark.parametrize(
    ("user", "spin"),
    [({}, SPIN_COUNT), ({"OMP_WAIT_POLICY": "active"}, "None"), ({"GOMP_SPINCOUNT": "7"}, "7")],
    ids=str,
)
def test_what_the_user_set_stays(user, spin):
    environment = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")} | user
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == [spin, "False"]


@pytest.mark.parametrize("module", ["seal_fast.train", "seal_fast.__main__"])
def test_it_comes_before_torch(module):
    """torch loads libgomp, which reads its settings only then."""
    script = f"""
import os, sys, importlib.abc
class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(os.environ.get("GOMP_SPINCOUNT"))
            sys.stdout.flush()
            os._exit(0)
sys.meta_path.insert(0, Finder())
import {module}
print(os.environ.get("GOMP_SPINCOUNT"))
"""
    environment = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == [SPIN_COUNT]
