"""The results of the trials: results.csv and results.json."""

from __future__ import annotations

import csv
import io
from typing import Any

from seal_fast.runs.summary import summarise
from seal_fast.sweep.folder import SweepFolder
from seal_fast.sweep.ledger import Ledger
from seal_fast.sweep.plan import Trial
from seal_fast.utils.files import write_json, write_text

_BEST = {"top1": "val_top1", "top5": "val_top5", "generation": "generation", "epoch": "epoch"}


def collect(folder: SweepFolder, trials: dict[str, Trial], ledger: Ledger) -> list[dict[str, Any]]:
    """A row per trial: its settings, state and results."""
    table = []
    for name, trial in trials.items():
        entry = ledger.entries[name]
        rows = folder.rows(name, entry)
        summary = summarise(rows)
        best, last = summary["best"] or {}, summary["last"] or {}
        images, seconds = sum(row["images"] for row in rows), summary["seconds"]
        row = {"trial": name, "state": entry.state} | trial.settings
        row |= {f"best_{k}": best.get(v) for k, v in _BEST.items()}
        row |= {"best_chosen_on": trial.config.chosen_on, "test_top1": (summary.get("test") or {}).get("test_top1")}
        row |= {f"last_{k}": last.get(f"val_{k}") for k in ("top1", "top5", "loss")}
        row |= {"epochs": summary["epochs"], "seconds": seconds, "images_per_s": images / seconds if seconds else None}
        row |= {"compile_seconds": summary["compile_seconds"], "failures": entry.failures}
        table.append(row | {"message": entry.message if entry.state == "failed" else ""})
    return table


def write(folder: SweepFolder, trials: dict[str, Trial], ledger: Ledger) -> None:
    """Write results.csv and results.json. Raises RunError if a file cannot be written."""
    if not (rows := collect(folder, trials, ledger)):
        return
    text = io.StringIO()
    settings = (name for trial in trials.values() for name in trial.settings)  # each row holds those that act on it
    writer = csv.DictWriter(text, list(dict.fromkeys(["trial", "state", *settings, *rows[0]])), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder.csv, text.getvalue())
    write_json(folder.json, rows)
