"""Result files of the analyses: what every one of them says of its network, how they are written and found again.

A command with `--out DIR` writes `DIR/<command>.json`, a list of one object per network, and pictures beside it;
`compare` reads the lists of any number of folders.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from seal_fast.analysis.common.network import TrainedNetwork
from seal_fast.utils.errors import UsageError
from seal_fast.utils.files import write_json

COMMANDS = ("depth", "transfer", "fewshot", "hessian")
_LISTED = 20
"""Names of skipped images that a line holds."""
REQUIRED = ("subject", "stage", "weights_sha256")


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


def weights_sha256(file: Path) -> str:
    """sha256 over names, types, shapes and bytes of all tensors in a safetensors file, in the order of their names."""
    from safetensors.torch import load_file

    total = hashlib.sha256()
    for name, tensor in sorted(load_file(file).items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


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


def read_results(folders: Sequence[Path]) -> dict[str, list[dict[str, Any]]]:
    """The results in these folders by command; one object standing alone counts as a list of one.

    Raises:
        UsageError: a folder holds no result file, or a file is damaged or lacks an entry of `REQUIRED`.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for folder in folders:
        files = [(command, folder / f"{command}.json") for command in COMMANDS]
        files = [(command, file) for command, file in files if file.is_file()]
        if not files:
            expected = ", ".join(f"{command}.json" for command in COMMANDS)
            raise UsageError(f"--results {folder}: none of {expected} is there; name the --out of an analysis")
        for command, file in files:
            found.setdefault(command, []).extend(_read(file))
    return found


def _read(file: Path) -> list[dict[str, Any]]:
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} is not readable JSON ({error}); run the analysis again") from None
    results = content if isinstance(content, list) else [content]
    for result in results:
        missing = [key for key in REQUIRED if not isinstance(result, dict) or key not in result]
        if missing:
            raise UsageError(f"{file} does not say {missing[0]} of each network; run the analysis again")
    return results
