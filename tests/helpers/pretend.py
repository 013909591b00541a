"""Run folders as training leaves them, with invented numbers."""

import json
import random

from seal_fast.config import dumps
from seal_fast.methods import timeline
from seal_fast.runs.folder import RunFolder


def pretend_rows(config, level, generations=None):
    """Metrics rows of a run that approaches `level` percent, falling a little in every ascent."""
    line, draw, rows = timeline(config), random.Random(f"{config.method} {config.seed}"), []
    for generation, epoch in line.walk():
        if generations is not None and generation >= generations:
            break
        phase, start = line.phase(generation, epoch)
        last = epoch + 1 == start + phase.epochs
        top1 = level * (1 - 0.5 ** (1 + len(rows) / 6)) - 4 * (phase.name == "ascent") + draw.uniform(-1, 1)
        evaluated = last or (epoch + 1) % config.eval_every == 0
        rows.append(
            {
                "generation": generation,
                "epoch": epoch,
                "phase": phase.name,
                "lr_early": 0.1,
                "lr_late": 0.1,
                "direction_early": -1 if phase.name == "ascent" else 1,
                "direction_late": 1,
                "train_loss": 2.0,
                "train_top1": top1,
                "val_loss": 2.0 if evaluated else None,
                "val_top1": top1 if evaluated else None,
                "val_top5": min(100.0, top1 + 20) if evaluated else None,
                "images_per_s": 300.0 + generation,
                "seconds": 2.0,
                "input_wait_seconds": 0.0,
                "compile_seconds": 0.0,
                "images": 600 + 2 * generation,
            }
        )
    return rows


def pretend_run(path, config, level, generations=None, data="images", initial=None, processes=(1,)):
    """A run folder; `data` and `initial` stand for the hashes in its provenance.json, of which None makes no file."""
    folder = RunFolder(path)
    path.mkdir(parents=True)
    folder.config.write_text(dumps(config))
    folder.metrics.write_text("".join(json.dumps(row) + "\n" for row in pretend_rows(config, level, generations)))
    if data is not None:
        known = {"data_sha256": data, "init_weights_sha256": initial, "devices": ["cpu"], "processes": processes}
        (path / "provenance.json").write_text(json.dumps(known))
    return folder
