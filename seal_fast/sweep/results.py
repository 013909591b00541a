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


def collect(folder: SweepFolder, trials: dict[str, Trial], ledger: Ledger) -> list[dict[str, Any]]:
    """A row per trial: its settings, state and results."""
    table = []
    for name, trial in trials.items():
        entry = ledger.entries[name]
        rows = folder.rows(name, entry)
        summary = summarise(rows)
        best, last = summary["best"] or {}, summary["last"] or {}
        images = sum(row["images"] for row in rows)
        table.append(
            {"trial": name, "state": entry.state}
            | trial.settings
            | {
                "best_top1": best.get("val_top1"),
                "best_top5": best.get("val_top5"),
                "best_generation": best.get("generation"),
                "best_epoch": best.get("epoch"),
                "last_top1": last.get("val_top1"),
                "last_top5": last.get("val_top5"),
                "last_loss": last.get("val_loss"),
                "epochs": summary["epochs"],
                "seconds": summary["seconds"],
                "images_per_s": images / summary["seconds"] if summary["seconds"] else None,
                "compile_seconds": summary["compile_seconds"],
                "failures": entry.failures,
                "message": entry.message if entry.state == "failed" else "",
            }
        )
    return table


def write(folder: SweepFolder, trials: dict[str, Trial], ledger: Ledger) -> None:
    """Write results.csv and results.json.

    Raises:
        RunError: a file cannot be written.
    """
    rows = collect(folder, trials, ledger)
    if not rows:
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder.csv, text.getvalue())
    write_json(folder.json, rows)
