"""The processes of a run, as torchrun's environment describes them: joined, compared, missed when one is gone.

A single process makes no process group; its `World` answers at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from seal_fast.distributed.rendezvous import rendezvous
from seal_fast.utils.errors import RunError, UsageError
from seal_fast.utils.terminal import say

T = TypeVar("T")


class LostContact(RunError):
    """Another process ended or hangs."""


class Unreachable(RunError):
    """Process 0 cannot be reached."""


@dataclass(frozen=True)
class World:
    """Which process this is, of how many; rank 0 writes. local_rank and local_size count this machine's processes."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, on the host; with one process the tensor itself."""
        return tensor if self.size == 1 else self._reduced(tensor, dist.ReduceOp.SUM)

    def max(self, *numbers: float) -> list[float]:
        """The largest of each number over all processes."""
        if self.size == 1:
            return list(numbers)
        return self._reduced(torch.tensor(numbers, dtype=torch.float64), dist.ReduceOp.MAX).tolist()

    def broadcast_(self, *tensors: Tensor) -> None:
        """Overwrite tensors with those of rank 0, in place."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def broadcast_object(self, value: Any) -> Any:
        """Rank 0's value, plain JSON, on every process."""
        return self.all_gather_object(value if self.is_main else None)[0]

    def all_gather_object(self, value: Any) -> list[Any]:
        """Every process's value, plain JSON, by rank."""
        if self.size == 1:
            return [value]
        parts = self.all_gather(torch.tensor([*json.dumps(value).encode()], dtype=torch.uint8))
        return [json.loads(bytes(part.tolist())) for part in parts]

    def all_gather(self, part: Tensor) -> list[Tensor]:
        """Every process's tensor, by rank, on the host; their first dimensions may differ."""
        if self.size == 1:
            return [part]
        part = part.cpu()
        lengths = [torch.empty(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(lengths, torch.tensor([len(part)]))
        padded = part.new_zeros(max(int(length) for length in lengths), *part.shape[1:])
        padded[: len(part)] = part
        gathered = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(gathered, padded)
        return [t[: int(n)] for t, n in zip(gathered, lengths, strict=True)]

    def run_on_all(self, make: Callable[[], T]) -> T:
        """What `make` returns on this process, if it fails on none.

        Raises on every process the UsageError or RunError of the first that had one, and says which process that was.
        """
        if self.size == 1:
            return make()
        value, failure = None, None
        try:
            value = make()
        except (UsageError, RunError) as error:
            failure = [error.exit_code, str(error)]
        failures = self.all_gather_object(failure)
        for rank, found in enumerate(failures):
            if found:
                code, text = found
                kind = UsageError if code == UsageError.exit_code else RunError
                everywhere = all(other == found for other in failures)
                raise on_all_ranks(kind(text if everywhere else f"process {rank}: {text}"))
        return value  # pyright: ignore[reportReturnType]

    def assert_same_on_all_ranks(self, facts: Mapping[str, Any], cures: Mapping[str, str]) -> None:
        """Make sure that all processes are about to do the same: that these facts, plain JSON by name, are equal.

        Raises UsageError on every process; it names the first process that differs, in what, and that fact's cure.
        """
        first, *others = self.all_gather_object(facts)
        for rank, other in enumerate(others, start=1):
            for name, cure in cures.items():
                if other[name] != first[name]:
                    what = f"{name}{_difference(first[name], other[name])}"
                    raise on_all_ranks(UsageError(f"process {rank} differs from process 0 in its {what}: {cure}"))

    @staticmethod
    def _reduced(tensor: Tensor, operation: Any) -> Tensor:
        host = tensor.to("cpu", copy=True)  # by gloo, also beside NCCL: the host waits for the result anyway
        dist.all_reduce(host, operation)
        return host


SINGLE_PROCESS = World()

E = TypeVar("E", bound=BaseException)


def on_all_ranks(error: E) -> E:
    """Mark an error as one that every process raises, so that rank 0 alone reports it."""
    error.on_all_ranks = True  # pyright: ignore[reportAttributeAccessIssue]
    return error


def environment(variables: Mapping[str, str] = os.environ) -> World:
    """The world that torchrun's variables describe; UsageError if they are incomplete or no numbers."""
    if variables.get("WORLD_SIZE", "1") == "1":
        return World()
    numbers = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    for name in (*numbers, "MASTER_ADDR", "MASTER_PORT"):
        value = variables.get(name)
        if value is None or (name in numbers and not value.isdecimal()):
            raise UsageError(
                f"WORLD_SIZE is {variables['WORLD_SIZE']} in the environment, and {name} is "
                f"{'not set' if value is None else value}: start several processes with torchrun, or unset WORLD_SIZE"
            )
    return World(*(int(variables[name]) for name in numbers))


@contextlib.contextmanager
def joined(cuda: bool, timeout: float) -> Iterator[World]:
    """This process among the others. The connections stay open for the next run until `leave`.

    Args:
        cuda: whether tensors of this run live on GPUs; a process takes the one of its `local_rank`.
        timeout: seconds to wait for another process, here and in every collective.

    Raises:
        UsageError: the environment is incomplete, or there are fewer GPUs than processes.
        RunError: not all processes came.
        LostContact: in the body, another process ended or hung.
    """
    world = environment()
    if world.size == 1:
        yield world
        return
    if cuda:
        if world.local_rank >= torch.cuda.device_count():
            raise UsageError(
                f"{world.local_size} processes on a machine with {torch.cuda.device_count()} GPUs: "
                "start as many as it has with --nproc-per-node, or use --device cpu"
            )
        torch.cuda.set_device(world.local_rank)
    if not dist.is_initialized():
        _begin(world, cuda, timeout)
    try:
        yield world
        dist.barrier()  # nobody ends while another one still reads from it
    except (
        RuntimeError
    ) as error:  # gloo and NCCL raise plain RuntimeErrors, their names or a socket's words in the text
        signs = ("gloo", "NCCL", "onnection", "imed out", "closure", "Broken pipe", "Read error", "Write error")
        if not (isinstance(error, dist.DistError) or any(sign in str(error) for sign in signs)):
            raise
        raise LostContact(
            f"another process ended, or did not answer within --dist-timeout {timeout:g} s; the last checkpoint of a "
            "training run is intact: start the same command again, or let torchrun --max-restarts do it"
        ) from None


def leave() -> None:
    """Close the connections, at a program's end."""
    if dist.is_initialized():
        dist.destroy_process_group()


def report_error(error: BaseException) -> None:
    """Print one sentence to stderr.

    Rank 0 prints what all processes raise. What only this process knows carries its rank. That another process is gone
    is printed by the first two processes of a machine, one of which may be the one that is gone.
    """
    ignore_sigterm()
    rank, size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    shared = getattr(error, "on_all_ranks", not dist.is_initialized() and not isinstance(error, Unreachable))
    if size != "1" and shared and rank != "0":
        return
    if size != "1" and isinstance(error, LostContact) and int(os.environ["LOCAL_RANK"]) > 1:
        return
    prefix = f"[rank {rank}] " if size != "1" and not shared else ""
    kind = "error: " if isinstance(error, UsageError | RunError) else ""
    say(f"{prefix}{kind}{error}", "stderr")


def ignore_sigterm() -> None:
    """Ignore SIGTERM, which torchrun sends to all other processes once one has failed: this one is about to report."""
    if os.environ.get("WORLD_SIZE", "1") != "1" and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _begin(world: World, cuda: bool, timeout: float) -> None:
    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    patience, store = timedelta(seconds=timeout), None
    who = f"process {world.rank} of {world.size} did not"
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=patience))  # pyright: ignore[reportPrivateImportUsage]
        store = rendezvous(store, rank, size, timeout)
        kinds = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        dist.init_process_group(kinds, store=store, rank=rank, world_size=size, timeout=patience)
    except (RuntimeError, ValueError) as error:
        if world.rank and store is None and isinstance(error, dist.DistNetworkError):
            raise Unreachable(
                f"{who} reach {address} within --dist-timeout {timeout:g} s: "
                "check that process 0 was started, and that MASTER_ADDR and MASTER_PORT are right"
            ) from None
        raise RunError(
            f"{who} meet all others at {address} within --dist-timeout {timeout:g} s: check that all were started"
        ) from None


def _difference(first: Any, other: Any) -> str:
    if isinstance(first, dict) and isinstance(other, dict):
        changed = sorted(key for key in first.keys() | other.keys() if first.get(key) != other.get(key))
        return f" ({', '.join(f'{key} {other.get(key)} instead of {first.get(key)}' for key in changed)})"
    return f" ({other} instead of {first})" if len(f"{first}{other}") < 120 else ""
