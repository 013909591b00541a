"""Processes against threads, and against torch's own sharded optimiser: ratios in one run, contenders taking turns.

ResNet-18, 64x64, bfloat16 autocast, 128 images a step over all processes, input included. The contenders run in
processes of their own, of which all but one wait. Bytes are those on the loopback device, which all programs of the
machine share.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
from multiprocessing.connection import Listener
from pathlib import Path

ROUNDS, STEPS = 5, 8
SCRIPT = str(Path(__file__).parent / "sharded_contender.py")
TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node"]


def test_processes(benchmark, data, tmp_path):
    cores = len(os.sched_getaffinity(0))
    ways = {  # processes, kind, threads of each
        "python": (0, "trainer", cores),
        "torchrun, 1 process": (1, "trainer", cores),
        f"torchrun, {cores} processes of a thread": (cores, "trainer", 1),
        f"DDP and ZeroRedundancyOptimizer, {cores} processes": (cores, "zero", 1),
    }
    with contextlib.ExitStack() as stack:
        asked = {}
        for i, (name, (processes, kind, threads)) in enumerate(ways.items()):
            listener = stack.enter_context(Listener(str(tmp_path / f"socket{i}")))
            launcher = [*TORCHRUN, str(processes), f"--master-port={29600 + i}"] if processes else []
            arguments = [sys.executable, *launcher, SCRIPT, kind, str(tmp_path / f"socket{i}"), data, str(threads)]
            started = stack.enter_context(subprocess.Popen(arguments, stderr=subprocess.DEVNULL))
            stack.callback(started.terminate)
            asked[name] = listener
        asked = {name: stack.enter_context(listener.accept()) for name, listener in asked.items()}
        answers: dict[str, list[dict]] = {name: [] for name in asked}

        def one_round():
            for name, way in asked.items():
                way.send("go")
                answers[name].append(way.recv())

        one_round()
        for rows in answers.values():
            rows.clear()
        benchmark.pedantic(one_round, rounds=ROUNDS)
        for way in asked.values():
            way.send("end")

    plain, one, many, zero = answers.values()
    info = benchmark.extra_info
    info["images/s, python"] = 128 / statistics.median(a["seconds"] for a in plain)
    for name, rows, base in (
        ("seconds a step, torchrun of 1 / python", one, plain),
        (f"images/s, {cores} processes / 1 with {cores} threads", plain, many),
        ("images/s, ours / DDP and ZeroRedundancyOptimizer", zero, many),
    ):
        ratios = [a["seconds"] / b["seconds"] for a, b in zip(rows, base, strict=True)]
        info[name] = statistics.median(ratios)
        info[f"{name}, range"] = f"{min(ratios):.3f} to {max(ratios):.3f}"
    whole = many[0]["parameters"]

    for name, rows in (("ours", many), ("DDP and ZeroRedundancyOptimizer", zero)):
        sent = statistics.median(row["loopback"] for row in rows) / (cores * STEPS * whole)
        info[f"bytes a process sends a step / parameters' bytes, {name}"] = sent
    info["state of a process / of python's"] = many[0]["state"] / plain[0]["state"]
    info["the same, ZeroRedundancyOptimizer"] = zero[0]["state"] / plain[0]["state"]
    info["n"] = f"{ROUNDS} rounds of {STEPS} steps"
