"""A store of their own for the processes of one attempt.

torchrun's agent keeps one store for all its restarts. The addresses of an earlier attempt's processes are still in
there, under the keys that the next attempt uses; and agents count restarts each for itself, so no number tells attempts
apart.
"""

from __future__ import annotations

import secrets
import time
from datetime import timedelta

from torch.distributed import PrefixStore, Store  # pyright: ignore[reportPrivateImportUsage]

_PACE = 0.02  # seconds between two looks


def meet(store: Store, rank: int, size: int, timeout: float) -> Store:
    """The part of a store that the processes now alive share, empty at first.

    Each process says a random word. Process 0 answers every word that it sees with its own, a dead process's too, and
    is done once all have acknowledged its own.

    Raises:
        RuntimeError: not all came in time.
    """
    deadline = time.monotonic() + timeout
    if rank:
        word = secrets.token_hex(8)
        store.set(f"seal_fast/word/{rank}", word)
        store.wait([f"seal_fast/answer/{word}"], timedelta(seconds=timeout))
        attempt = store.get(f"seal_fast/answer/{word}").decode()
        store.set(f"seal_fast/{attempt}/{rank}", "here")
        return PrefixStore(f"seal_fast/{attempt}", store)
    attempt, answered = secrets.token_hex(8), set()
    while not store.check([f"seal_fast/{attempt}/{other}" for other in range(1, size)]):
        if time.monotonic() > deadline:
            raise RuntimeError("not all processes came")
        for other in range(1, size):
            if store.check([f"seal_fast/word/{other}"]):
                word = store.get(f"seal_fast/word/{other}").decode()
                if word not in answered:
                    store.set(f"seal_fast/answer/{word}", attempt)
                    answered.add(word)
        time.sleep(_PACE)
    return PrefixStore(f"seal_fast/{attempt}", store)
