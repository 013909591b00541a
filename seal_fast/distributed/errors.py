"""Error messages of a program that may be one process of several."""

from __future__ import annotations

import os
import signal
import threading

import torch.distributed as dist

from seal_fast.distributed.world import LostContact, Unreachable
from seal_fast.utils.errors import RunError, UsageError
from seal_fast.utils.terminal import say


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
