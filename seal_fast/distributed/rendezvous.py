"""A store for the processes of one attempt under torchrun --max-restarts.

torchrun's agent keeps one store for all restarts, in which the addresses of an earlier attempt's processes still stand
under the keys that the next attempt uses. Agents count restarts each for itself, so no number tells attempts apart.
"""

from __future__ import annotations

import secrets
import time
from datetime import timedelta

from torch.distributed import PrefixStore, Store  # pyright: ignore[reportPrivateImportUsage]

POLL_SECONDS = 0.02


def rendezvous(store: Store, rank: int, size: int, timeout: float) -> Store:
    """The part of a store that the processes now alive share, empty at first.

    Each process publishes a random word. Process 0 answers every word that it sees, a dead process's too, with its own,
    and returns once all have acknowledged that. Raises RuntimeError if not all processes came in `timeout` seconds.
    """
    deadline, word, answered = time.monotonic() + timeout, secrets.token_hex(8), set()
    if rank:
        store.set(f"seal_fast/word/{rank}", word)
        store.wait([f"seal_fast/answer/{word}"], timedelta(seconds=timeout))
        word = store.get(f"seal_fast/answer/{word}").decode()
        store.set(f"seal_fast/{word}/{rank}", "here")
    while not rank and not store.check([f"seal_fast/{word}/{other}" for other in range(1, size)]):
        if time.monotonic() > deadline:
            raise RuntimeError("not all processes came")
        for key in (f"seal_fast/word/{other}" for other in range(1, size)):
            if store.check([key]) and (theirs := store.get(key)) not in answered:
                store.set(f"seal_fast/answer/{theirs.decode()}", word)
                answered.add(theirs)
        time.sleep(POLL_SECONDS)
    return PrefixStore(f"seal_fast/{word}", store)
