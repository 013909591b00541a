"""How many runs train at a time, and what each one gets."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

from seal_fast.utils.errors import UsageError

_MOST_WITHOUT_GPU = 8


@dataclass(frozen=True)
class Slots:
    """Runs at a time, CPU threads of each, the share of a GPU that each takes, and Ray's CPUs that each takes."""

    concurrent: int
    threads: int
    gpu: float = 0.0
    cpus: int = 1

    def __str__(self) -> str:
        return f"{self.concurrent} at a time, {self.threads} thread{'s' * (self.threads > 1)} each"


def slots(flags: argparse.Namespace, nodes: Sequence[Mapping[str, float]], use_gpus: bool) -> Slots:
    """The slots that the flags ask for, or else those that the machines have room for.

    `nodes` are `CPU` and `GPU` of this machine, or of each node of the cluster; `use_gpus` says whether the runs may
    train on GPUs. Raises UsageError if --threads is more than any node of the cluster has.
    """
    with_gpu = [node for node in nodes if use_gpus and node.get("GPU")]
    nodes = with_gpu or [node for node in nodes if node.get("CPU")]
    cores = [int(node["CPU"]) for node in nodes]
    if flags.address and flags.threads and flags.threads > max(cores):
        raise UsageError(f"--threads {flags.threads}: no node at --address {flags.address} has more than {max(cores)}")
    if with_gpu:
        places = [int(node["GPU"]) * flags.per_gpu for node in nodes]
        concurrent = min(flags.concurrent or sum(places), sum(places))
    else:
        places = [max(1, min(n // (flags.threads or 1), _MOST_WITHOUT_GPU)) for n in cores]
        concurrent = flags.concurrent or sum(places)
    shares = (n // ceil(concurrent * here / sum(places)) for n, here in zip(cores, places, strict=True))
    threads = flags.threads or max(1, min(shares))
    return Slots(concurrent, threads, 1 / flags.per_gpu if with_gpu else 0.0, threads if flags.address else 1)
