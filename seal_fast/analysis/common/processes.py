"""An analysis under torchrun: its processes share the images, and the first one prints and writes."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from seal_fast.analysis.common.network import TrainedNetwork
from seal_fast.analysis.common.results import identity
from seal_fast.config import Config
from seal_fast.data import ImageSet
from seal_fast.distributed import world as distributed
from seal_fast.distributed.world import World
from seal_fast.training import runtime
from seal_fast.training.runtime import Runtime
from seal_fast.validation import check

_MAY_DIFFER = frozenset(("out", "cache", "threads"))  # flags that need not be the same on every machine


@contextmanager
def joined(flags: argparse.Namespace, config: Config) -> Iterator[tuple[World, Runtime]]:
    """This process among the others, and its runtime, for the length of a command.

    Raises:
        UsageError: a number in the configuration is wrong, or processes were started with different flags.
        RunError: a process did not come, ended or hung.
    """
    config = check(config)
    with distributed.joined(runtime.wants_gpu(config), config.dist_timeout) as world:
        if not world.is_main:
            logging.getLogger("seal_fast").setLevel(logging.ERROR)  # the first process warns for all
        same = {name: str(value) for name, value in vars(flags).items() if name not in _MAY_DIFFER}
        world.assert_same_on_all_ranks({"flags": same}, {"flags": "start all of them with the same flags"})
        yield world, runtime.start(config, world.local_size)
    distributed.leave()


def check_alike(world: World, network: TrainedNetwork, images: ImageSet) -> None:
    """Make sure that all processes show the same images to the same network.

    Raises:
        UsageError: on every process; it names the first that differs, and in what.
    """
    if world.size > 1:
        world.assert_same_on_all_ranks(
            {"network": identity(network)["weights_sha256"], "images": images.fingerprint},
            {
                "network": f"{network.weights} must be the same file on all machines",
                "images": f"{images.source} must be the same images on all machines",
            },
        )


def rows_of(count: int, batch_size: int, rank: int, processes: int) -> list[int]:
    """The rows of every `processes`-th batch from `rank` on: an image is in the same batch as with one process."""
    starts = range(rank * batch_size, count, processes * batch_size)
    return [row for start in starts for row in range(start, min(start + batch_size, count))]


def gathered(part: Tensor, count: int, batch_size: int, world: World) -> Tensor:
    """The results of all processes for their `rows_of`, in the order of the rows: [count, ...], on the host."""
    if world.size == 1:
        return part
    whole = part.new_empty(count, *part.shape[1:], device="cpu")
    for rank, rows in enumerate(world.all_gather(part)):
        whole[rows_of(count, batch_size, rank, world.size)] = rows
    return whole
