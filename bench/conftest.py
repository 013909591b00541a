"""One table at the end of `pytest bench/ --benchmark-only`, and JSON with the environment beside it.

A benchmark puts its figures into `benchmark.extra_info`; the table shows them all.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from seal_fast.config import Config
from seal_fast.training import runtime

RESULTS = Path(__file__).parent / "results"


def pytest_configure(config):
    runtime.keep_freed_memory()  # before anything else, as every program of seal_fast does; it serves all contenders
    if getattr(config.option, "benchmark_only", False) and not config.option.benchmark_json:
        RESULTS.mkdir(exist_ok=True)
        config.option.benchmark_json = str(RESULTS / "latest.json")


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info["seal_fast"] = runtime.environment(runtime.start(Config()))
    machine_info["data"] = os.environ.get("SEAL_FAST_BENCH_DATA", "digits scaled to 64")


def pytest_terminal_summary(terminalreporter, config):
    session = getattr(config, "_benchmarksession", None)
    rows = [
        (b.name, key, value) for b in (session.benchmarks if session else ()) for key, value in b.extra_info.items()
    ]
    if not rows:
        return
    plate = runtime.environment(runtime.start(Config()))
    terminalreporter.section("figures")
    terminalreporter.line(
        f"{plate['gpu'] or plate['cpu']}, {plate['threads']} threads, torch {plate['torch']}, "
        f"data: {os.environ.get('SEAL_FAST_BENCH_DATA', 'digits scaled to 64')}"
    )
    wide = max(len(name) for name, _, _ in rows)
    last = None
    for name, key, value in rows:
        shown = f"{value:.4g}" if isinstance(value, float) else str(value)
        terminalreporter.line(f"{'' if name == last else name:<{wide}}  {key:<58} {shown}")
        last = name


@pytest.fixture(scope="session")
def data() -> str:
    """The real images that benchmarks run on: $SEAL_FAST_BENCH_DATA (a folder or tar), else digits."""
    return os.environ.get("SEAL_FAST_BENCH_DATA", "digits")


@pytest.fixture(autouse=True)
def threads():
    """The same threads for every contender, whatever the benchmark before it set."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", len(os.sched_getaffinity(0)))))
