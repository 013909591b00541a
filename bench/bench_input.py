"""Feeding images, without training: loading the resident set (time, memory), and epochs of both inputs."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time

import pytest
import torch

from seal_fast.data import make_input, open_images

SIZE, BATCH, ROUNDS = 64, 128, 2

# Runs in a process of its own, so that the peak is that of loading alone. The libraries' own pages (DALI brings half a
# hundred MiB, mostly mapped files) are counted apart.
LOAD = """
import json, sys, time
import torch
from seal_fast.data import make_input, open_images

def resident(field):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field)) * 1024

bare = resident("VmRSS")
from nvidia.dali import fn
libraries = resident("VmRSS")
start = time.perf_counter()
dataset = open_images(sys.argv[1])
opened = time.perf_counter()
size = int(sys.argv[2])
source = make_input(dataset, "resident", image_size=size, batch_size=1, eval_batch_size=1)
loaded = time.perf_counter()
count, channels = len(dataset.train) + len(dataset.val), 3 if dataset.train.source.encoded else 1
memory = {"growth": resident("VmHWM") - libraries, "libraries": libraries - bare, "decoded": count * size**2 * channels}
print(json.dumps(memory | {"images": count, "open": opened - start, "load": loaded - opened}))
"""


def test_resident_loading(benchmark, data):
    runs = []

    def load():
        done = subprocess.run([sys.executable, "-c", LOAD, data, str(SIZE)], capture_output=True, text=True, check=True)
        runs.append(json.loads(done.stdout.splitlines()[-1]))

    benchmark.pedantic(load, rounds=ROUNDS, iterations=1)
    seconds = [run["open"] + run["load"] for run in runs]
    benchmark.extra_info |= {
        "images": runs[0]["images"],
        "seconds to open and decode, median": statistics.median(seconds),
        "seconds, fastest": min(seconds),
        "decoded MiB": runs[0]["decoded"] / 2**20,
        "peak memory growth MiB, worst": max(run["growth"] for run in runs) / 2**20,
        "peak memory growth / decoded bytes, worst": max(run["growth"] / run["decoded"] for run in runs),
        "DALI's own libraries, MiB": statistics.median(run["libraries"] for run in runs) / 2**20,
    }


@pytest.fixture(scope="module")
def inputs(data):
    dataset = open_images(data)
    made = {
        kind: make_input(dataset, kind, image_size=SIZE, batch_size=BATCH, eval_batch_size=BATCH, dtype=torch.bfloat16)
        for kind in ("resident", "stream")
    }
    yield made
    for source in made.values():
        source.close()


def test_epochs(benchmark, inputs):
    """Training batches, augmented and cast to bf16, nobody training on them; both inputs by turns."""
    rates: dict[str, list[float]] = {kind: [] for kind in inputs}

    def epoch(number: int):
        for kind, source in inputs.items():
            start = time.perf_counter()
            count = sum(len(batch.labels) for batch in source.train(0, number))
            rates[kind].append(count / (time.perf_counter() - start))

    epoch(0)  # warms up
    for values in rates.values():
        values.clear()
    numbers = iter(range(1, ROUNDS + 1))
    benchmark.pedantic(lambda: epoch(next(numbers)), rounds=ROUNDS, iterations=1)
    for kind, values in rates.items():
        benchmark.extra_info[f"{kind}: images/s, median"] = statistics.median(values)
        benchmark.extra_info[f"{kind}: images/s, fastest"] = max(values)
