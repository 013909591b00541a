"""The compiled training step: what it launches and moves, and how long that takes, predicted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from bench.gpu_report import pretend
from bench.gpu_report.datasheet import CARDS, GRAPH_NODE_SECONDS, LAUNCH_SECONDS
from seal_fast.utils.errors import RunError
from seal_fast.utils.table import table

# What the engine launches beside the compiled graphs: augment, the counters' addition, and the update.
OUTSIDE_LAUNCHES = 3
# An update reads weight, momentum and gradient and writes the first two, all float32. Under --amp a gradient is half as
# large, and a bfloat16 copy of the weight is written: the same again.
_UPDATE_BYTES = 20


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Compile the step in a process of its own, which pretends to have a GPU, and add what follows from its counts.

    Args:
        request: model, stem, batch, image_size, classes, arch, and columns: a list of {amp, layout}.

    Returns:
        The request, with each column's facts (`step.Facts`) and predictions.

    Raises:
        RunError: this torch is not the one whose private names are known here, or it failed to compile.
    """
    if reason := pretend.unsupported():
        raise RunError(reason)
    # No real device may answer in the pretended one's place, and the interpreter has nothing to compile.
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "0"}
    command = [sys.executable, "-m", "bench.gpu_report.step", json.dumps(request)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        reason = (done.stderr.strip() or "it gave no reason").splitlines()
        error = next((line for line in reversed(reason) if "Error" in line), reason[-1])
        raise RunError(f"the step could not be compiled for sm_{request['arch']}: {error}")
    columns = json.loads(done.stdout.splitlines()[-1])
    for column in columns:
        column["predicted"] = predict(column, request["arch"])
    return {**request, "columns": columns}


def predict(column: dict[str, Any], arch: int) -> dict[str, float]:
    """Times in microseconds that each of bandwidth, arithmetic and launches would take alone.

    Source: the card's datasheet (see `datasheet`), and the launch costs assumed there.
    """
    card = CARDS[arch]
    calls = sum(column["library_calls"].values())
    launches = column["triton_launches"] + calls + OUTSIDE_LAUNCHES
    moved = column["triton_bytes"] + column["library_bytes"] + column["parameters"] * _UPDATE_BYTES
    return {
        "launches": launches,
        "bytes": moved,
        "bandwidth_us": moved / card.bandwidth * 1e6,
        "arithmetic_us": column["flops"] / (card.bf16_rate if column["amp"] else card.tf32_rate) * 1e6,
        "launches_us": launches * LAUNCH_SECONDS * 1e6,
        "graph_us": launches * GRAPH_NODE_SECONDS * 1e6,
    }


def text(result: dict[str, Any]) -> str:
    """The report as a table, one column a precision and layout."""
    columns = result["columns"]
    card = CARDS[result["arch"]]

    def line(name: str, *cells: object) -> list[str]:
        return [name, *map(str, cells)]

    def each(name: str, key: str, unit: float = 1, form: str = "d") -> list[str]:
        values = [{**c, **c["predicted"]}[key] / unit for c in columns]
        return line(name, *(format(int(v) if form == "d" else v, form) for v in values))

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
        each("predicted us: bandwidth", "bandwidth_us", 1, ".0f"),
        each("predicted us: arithmetic", "arithmetic_us", 1, ".0f"),
        each("predicted us: launches", "launches_us", 1, ".0f"),
        each("predicted us: launches, CUDA graph", "graph_us", 1, ".0f"),
    ]
    rates = (
        f"{card.bandwidth / 1e12:.3g} TB/s, {card.bf16_rate / 1e12:.0f} (bf16) and {card.tf32_rate / 1e12:.0f} (TF32)"
    )
    return (
        f"One training step of {result['model']} ({result['stem']} stem), batch {result['batch']}, "
        f"{result['image_size']} x {result['image_size']}, for {card.name} (sm_{card.arch}): compiled here, not run\n\n"
        + table(rows)
        + f"\n\nPredicted from the datasheet ({rates} TFLOP/s) and from launch costs that are assumed:\n"
        f"{LAUNCH_SECONDS * 1e6:.0f} us a launch, {GRAPH_NODE_SECONDS * 1e6:.0f} us in a CUDA graph. "
        "Each time is what this alone would take."
    )
