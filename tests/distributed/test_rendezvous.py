"""Attempts that share a store do not see each other's keys."""

import threading

import pytest
import torch.distributed as dist

from seal_fast.distributed.rendezvous import rendezvous


def attempt(store, size):
    found = {}
    threads = [
        threading.Thread(target=lambda rank=rank: found.update({rank: rendezvous(store, rank, size, 10)}))
        for rank in range(size)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return [found[rank] for rank in range(size)]


def test_an_attempt_finds_nothing_of_the_one_before():
    store = dist.HashStore()
    first = attempt(store, 3)
    first[1].set("address", "old")
    assert first[0].get("address") == first[2].get("address") == b"old"
    store.set("seal_fast/word/2", "of one that died before anybody answered")
    second = attempt(store, 3)
    assert not second[0].check(["address"])
    second[2].set("address", "new")
    assert second[0].get("address") == second[1].get("address") == b"new" and first[0].get("address") == b"old"


@pytest.mark.parametrize("rank", [0, 1])
def test_who_does_not_come_is_missed(rank):
    with pytest.raises(RuntimeError):
        rendezvous(dist.HashStore(), rank, 2, 0.2)
