"""The folder of one run: its configuration, metrics, weights and checkpoint, and who may write to it."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from seal_fast.utils.errors import RunError, reason
from seal_fast.utils.files import locked, to_json, write_text


class RunFolder:
    """Paths and rows of a run.

    config.toml, timeline.toml, metrics.jsonl (a row per epoch), summary.json, curves.png, tensorboard/, profile/,
    weights/{last,best,generation-<g>,generation-<g>-ascent}.safetensors (and -ema beside all but best; of KELS
    generation-<g>-slim), examples/generation-<g>.safetensors, checkpoint/state.safetensors.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.toml"
        self.timeline = path / "timeline.toml"
        self.metrics = path / "metrics.jsonl"
        self.summary = path / "summary.json"
        self.curves = path / "curves.png"
        self.tensorboard = path / "tensorboard"
        self.profile = path / "profile"
        self.checkpoint = path / "checkpoint" / "state.safetensors"

    def weights(self, name: str) -> Path:
        """Where the weights called `name` are kept."""
        return self.path / "weights" / f"{name}.safetensors"

    def examples(self, generation: int) -> Path:
        """Where the records of single training examples are kept, as a generation ended."""
        return self.path / "examples" / f"generation-{generation}.safetensors"

    def locked(self) -> AbstractContextManager[None]:
        """Keep other processes from training into this folder; UsageError if one does, or it cannot be made."""
        return locked(self.path, "another process is training there; wait for it or choose another folder")

    def rows(self) -> list[dict[str, Any]]:
        """The metrics so far, up to the first line that is no row: a crash may have cut it short."""
        if not self.metrics.exists():
            return []
        rows = []
        for line in self.metrics.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                break
            if not (isinstance(row, dict) and {"generation", "epoch"} <= row.keys()):
                break
            rows.append(row)
        return rows

    def append(self, row: dict[str, Any]) -> None:
        """Add a row to metrics.jsonl; RunError if the disk is full, and earlier rows are intact."""
        try:
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(to_json(row)) + "\n")
        except OSError as error:
            raise RunError(
                f"{self.metrics} could not be written ({reason(error)}); earlier rows are intact. "
                "Free space, then run the same command again to continue"
            ) from None

    def truncate(self, generation: int, epoch: int) -> None:
        """Drop the rows of this epoch and later ones: training repeats them from the checkpoint."""
        kept = [row for row in self.rows() if (row["generation"], row["epoch"]) < (generation, epoch)]
        if self.metrics.exists():
            write_text(self.metrics, "".join(json.dumps(row) + "\n" for row in kept))
