"""Which networks under study belong to one group of runs, and which of them count in its mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from seal_fast.analysis.common.network import TrainedNetwork
from seal_fast.runs.collection import Run, open_run
from seal_fast.runs.identity import labels


@dataclass(frozen=True)
class Member:
    """Where a network belongs.

    Attributes:
        group: label of its group, whose runs differ by their seed alone; its own name if it is a bare weights file or
            excluded.
        excluded: why it counts in no mean over a group; empty if it does.
    """

    group: str
    excluded: str = ""


def members(networks: Sequence[TrainedNetwork]) -> list[Member]:
    """For each network its group; of networks of one training, seed and stage the first counts.

    Raises:
        UsageError: a run folder is damaged.
    """
    runs: list[Run | None] = [open_run(n.weights.parent.parent) if n.config else None for n in networks]
    firsts = {run.key: run for run in reversed(runs) if run}
    name_of = dict(zip(firsts, labels(list(firsts.values())), strict=True))
    taken: dict[str, Path | None] = dict.fromkeys(name_of.values())
    counted: dict[object, int] = {}
    found: list[Member] = []
    for i, (network, run) in enumerate(zip(networks, runs, strict=True)):
        if run is None:
            same = sum(other.config is None and other.name == network.name for other in networks[:i])
            found.append(Member(f"{network.name} ({same + 1})" if same else network.name))
            continue
        why = "" if run.state == "finished" else f"its run is {run.state}"
        if not why and (first := counted.setdefault((run.key, run.seed, network.stage), i)) != i:
            why = f"the same training and seed as {networks[first].name}"
        group = run.path.resolve().name if why else name_of[run.key]
        if why and taken.setdefault(group, run.path) != run.path:
            group = str(run.path)
        found.append(Member(group, why))
    return found
