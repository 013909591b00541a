"""The compiled training step: what it launches and moves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from bench.gpu_report import pretend
from bench.gpu_report.cards import CARDS
from seal_fast.utils.errors import RunError
from seal_fast.utils.table import table

# Launches outside the compiled graphs: augment, the counters' addition, the update.
OUTSIDE_LAUNCHES = 3
# The update reads weight, momentum and gradient and writes the first two, all float32. Under --amp the gradient is half
# as large and a bfloat16 copy of the weight is written: the same sum.
_UPDATE_BYTES = 20


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Compile the step in a process of its own, which pretends to have a GPU.

    Args:
        request: model, stem, batch, image_size, classes, arch, and columns: a list of {amp, layout}.

    Returns:
        The request, with each column's facts (`step.Facts`) and totals.

    Raises:
        RunError: the report does not know this version of torch, or the compilation failed.
    """
    if reason := pretend.unsupported():
        raise RunError(reason)
    # No real device may answer instead, and Triton must compile, not interpret.
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "0"}
    command = [sys.executable, "-m", "bench.gpu_report.step", json.dumps(request)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        reason = (done.stderr.strip() or "it gave no reason").splitlines()
        error = next((line for line in reversed(reason) if "Error" in line), reason[-1])
        raise RunError(f"the step could not be compiled for sm_{request['arch']}: {error}")
    return {**request, "columns": [totals(column) for column in json.loads(done.stdout.splitlines()[-1])]}


def totals(facts: dict[str, Any]) -> dict[str, Any]:
    """A column's facts with `launches` and `bytes` of the whole step, the update included."""
    launches = facts["triton_launches"] + sum(facts["library_calls"].values()) + OUTSIDE_LAUNCHES
    moved = facts["triton_bytes"] + facts["library_bytes"] + facts["parameters"] * _UPDATE_BYTES
    return {**facts, "launches": launches, "bytes": moved}


def text(result: dict[str, Any]) -> str:
    """The report as a table, one column a precision and layout."""
    columns = result["columns"]
    card = CARDS[result["arch"]]

    def line(name: str, *cells: object) -> list[str]:
        return [name, *map(str, cells)]

    def each(name: str, key: str, unit: float = 1, form: str = "d") -> list[str]:
        return line(name, *(format(c[key] if form == "d" else c[key] / unit, form) for c in columns))

    kinds = list(dict.fromkeys(kind for c in columns for kind in c["library_calls"]))
    rows = [
        line("", *(f"{'bf16' if c['amp'] else 'fp32'} {c['layout']}" for c in columns)),
        each("graphs (1: no break)", "graphs"),
        each("launches", "launches"),
        each("  Triton kernels", "triton_launches"),
        *(line(f"  {kind}", *(c["library_calls"].get(kind, 0) for c in columns)) for kind in kinds),
        line("  augment, counters, update", *(OUTSIDE_LAUNCHES for _ in columns)),
        each("different Triton kernels", "triton_kernels"),
        each("copies into another layout", "layout_copies"),
        each("launches that only cast", "casts"),
        each("convolutions in fp32", "fp32_convolutions"),
        each("MB moved", "bytes", 1e6, ".0f"),
        each("  by Triton kernels", "triton_bytes", 1e6, ".0f"),
        each("  by library calls", "library_bytes", 1e6, ".0f"),
        line("  by the update", *(f"{c['parameters'] * _UPDATE_BYTES / 1e6:.0f}" for c in columns)),
        each("GFLOP", "flops", 1e9, ".1f"),
    ]
    return (
        f"One training step of {result['model']} ({result['stem']} stem), batch {result['batch']}, "
        f"{result['image_size']} x {result['image_size']}, for {card.name} (sm_{card.arch}): compiled, not run\n\n"
        + table(rows)
    )
