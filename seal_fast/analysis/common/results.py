"""Result files of the analyses: what every one of them says of its network, how they are written and found again.

A command with `--out DIR` writes `DIR/<command>.json`, a list of one object per network, and pictures beside it;
`report` reads the lists of any number of folders.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seal_fast.analysis.common.network import TrainedNetwork
from seal_fast.runs.identity import weights_sha256
from seal_fast.utils.files import write_json

_LISTED = 20
"""Names of skipped images that a line holds."""


def identity(subject: TrainedNetwork) -> dict[str, Any]:
    """What a result says of its network: `subject` (its name), `stage`, `weights_sha256`, `method` and `seed`.

    `method` and `seed` are None where the weights come without a run. Two results speak of the same network exactly
    where their `weights_sha256` is the same: it is over the tensors, for files of the same tensors may differ.
    """
    digest = weights_sha256(subject.weights)
    config = subject.config
    return {
        "subject": subject.name,
        "stage": subject.stage,
        "weights_sha256": digest,
        "method": config.method if config else None,
        "seed": config.seed if config else None,
        "model": subject.model,
    }


def write_results(out: Path, command: str, results: Sequence[dict[str, Any]]) -> Path:
    """Write `out/<command>.json`, atomically.

    Raises:
        RunError: the folder cannot be written.
    """
    path = out / f"{command}.json"
    write_json(path, list(results))
    return path


def left_out(skipped: Mapping[str, Sequence[str]]) -> str:
    """Images that were skipped because they cannot be read, by data set: a line for each, to end a table with."""
    lines = []
    for data, names in skipped.items():
        if names:
            more = f" and {len(names) - _LISTED} more (all are in the JSON)" if len(names) > _LISTED else ""
            lines.append(f"{data}: left out {len(names)} unreadable images: {', '.join(names[:_LISTED])}{more}")
    return "".join(f"\n{line}" for line in (["", *lines] if lines else []))
