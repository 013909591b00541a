"""Why a program ends: one sentence, however many processes have something to say."""

from __future__ import annotations

import os
import signal
import sys
import time

import torch.distributed as dist

from seal_fast.distributed.world import LostContact, Unreachable
from seal_fast.utils.errors import RunError, UsageError

# Longest, in seconds, that a process waits for another one to speak first, or to have noticed that it did.
MANNERS = 2.0
_SPOKEN = "seal_fast/spoken"


def tell(message: object) -> None:
    """Print why this process ends, unless another one does.

    Causes come before consequences, and process 0 before others.
    """
    first, size = os.environ.get("RANK", "0") == "0", os.environ.get("WORLD_SIZE", "1")
    outlive()
    if size == "1":
        _print(message)
    elif not dist.is_initialized():  # all processes have the same to say, unless process 0 is not there to say it
        if first or isinstance(message, Unreachable):
            _print(message)
    else:
        time.sleep(isinstance(message, LostContact) * MANNERS / 2 + (not first) * MANNERS / 4)
        if _asked() == 1:
            _print(message)
            patience = time.monotonic() + MANNERS  # what they ask may end with this process
            while _asked(0) < int(size) and time.monotonic() < patience:
                time.sleep(MANNERS / 40)


def outlive() -> None:
    """Ignore SIGTERM from now on, if there are several processes: this one is about to say why it ends.

    torchrun sends it to all others as soon as one has failed.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _asked(times: int = 1) -> int:
    """How many processes have asked whether to speak, this one included; 1 if there is nothing left to ask."""
    try:
        return dist.distributed_c10d._get_default_store().add(_SPOKEN, times)
    except RuntimeError:  # it went down with process 0
        return 1


def _print(message: object) -> None:
    prefix = "error: " if isinstance(message, UsageError | RunError) else ""
    print(f"{prefix}{message}", file=sys.stderr, flush=True)
