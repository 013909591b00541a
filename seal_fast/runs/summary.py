"""summary.json: a run's best and last accuracy and its throughput, computed from its metrics rows."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Sequence
from itertools import groupby
from typing import Any


def throughput(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per generation and phase: images per second, seconds of training, share of them spent waiting for input."""

    def total(part: Sequence[dict[str, Any]]) -> dict[str, Any]:
        seconds = sum(row["seconds"] for row in part)
        return {
            "epochs": len(part),
            "images_per_s": sum(row["images"] for row in part) / max(seconds, 1e-9),
            "seconds": seconds,
            "input_wait": sum(row["input_wait_seconds"] for row in part) / max(seconds, 1e-9),
        }

    generations = []
    for generation, group in groupby(rows, key=lambda row: row["generation"]):
        members = list(group)
        phases = [{"phase": name} | total(list(part)) for name, part in groupby(members, key=lambda row: row["phase"])]
        generations.append({"generation": generation} | total(members) | {"phases": phases})
    return generations


def summarise(rows: Sequence[dict[str, Any]], **machine: Any) -> dict[str, Any]:
    """The summary of a run from its metrics rows; `machine` is added as it is (environment, memory, graphs, ...).

    `best` and `last` are None where no evaluation gave a finite accuracy. Both hold `val_ema_*` where the run has them.
    `test`, of runs with held-out training images, is the test of the generation whose end has the best `val_top1`.
    """
    seen = [row for row in rows if row["val_top1"] is not None and math.isfinite(row["val_top1"])]
    tested = [row for row in seen if "test_top1" in row]

    def best(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return outcome(max(rows, key=lambda row: row["val_top1"]))

    def outcome(row: dict[str, Any]) -> dict[str, Any]:
        return {
            name: value
            for name, value in row.items()
            if name in ("generation", "epoch") or name.startswith(("val_", "test_"))
        }

    return {
        "best": best(seen) if seen else None,
        "last": outcome(seen[-1]) if seen else None,
        **({"test": best(tested)} if tested else {}),
        "epochs": len(rows),
        "seconds": sum(row["seconds"] for row in rows),
        "compile_seconds": sum(row["compile_seconds"] for row in rows),
        "generations": throughput(rows),
        "command": shlex.join(sys.orig_argv),
        **machine,
    }
