"""With which other networks a network is compared: earlier checkpoints of its run, and other runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from seal_fast.analysis.common.groups import members
from seal_fast.analysis.common.network import TrainedNetwork

KINDS = {"start": "from the start", "generation": "across a generation", "ascent": "across the ascent"}
# Runs of one seed begin with the same weights and images, and may share a generation: they are kept apart.
SEEDS, GROUPS, BOTH = BETWEEN = "to other seeds", "to other groups", "to other groups and seeds"


class Partner(NamedTuple):
    """A network to compare with; kind is one of `KINDS`' titles or of BETWEEN, and group the label of its group."""

    kind: str
    network: TrainedNetwork
    group: str


def earlier(network: TrainedNetwork, networks: Sequence[TrainedNetwork]) -> dict[str, TrainedNetwork]:
    """By kind, the checkpoint of the same run that `network`, the end of a generation or ascent, is compared with.

    `start` is the first kept one; `generation` and `ascent` the end of the generation before, from which the end of a
    generation and the end of its ascent came.

    Args:
        networks: among others those of its run, in the order of training.
    """
    run = network.weights.parent.resolve()
    kept = {other.stage: other for other in networks if other.weights.parent.resolve() == run}
    if not (match := re.fullmatch(r"generation-(\d+)(-ascent)?", network.stage)):
        return {}
    found = {}
    if network is not (first := next(iter(kept.values()))):
        found["start"] = first
    if before := kept.get(f"generation-{int(match[1]) - 1}"):
        found["ascent" if match[2] else "generation"] = before
    return found


def partners(networks: Sequence[TrainedNetwork]) -> dict[Path, list[Partner]]:
    """By weights file, the `earlier` checkpoints; for the last named of each run also the last of other runs.

    Of two seeds of a group only the later named has the other one: a pair is one value, not one of each seed.
    """
    group = {n.weights: m.group for n, m in zip(networks, members(networks), strict=True)}
    last = {(n.weights.parent if n.config else n.weights).resolve(): n for n in networks}
    found: dict[Path, list[Partner]] = {}
    for network in networks:
        own = group[network.weights]
        found[network.weights] = [Partner(KINDS[kind], n, own) for kind, n in earlier(network, networks).items()]
        if network in last.values():
            before = True
            for other in last.values():
                its, before = group[other.weights], before and other is not network
                if other is not network and (its != own or before):
                    seeds = {one.config.seed if one.config else None for one in (network, other)}
                    kind = SEEDS if its == own else GROUPS if len(seeds) == 1 else BOTH
                    found[network.weights].append(Partner(kind, other, its))
    return found
