from types import SimpleNamespace

import pytest

from seal_fast.sweep.slots import Slots, slots
from seal_fast.utils.errors import UsageError

CARDS = [{"CPU": 16, "GPU": 8}, {"CPU": 64, "GPU": 4}]


def flags(concurrent=None, threads=None, per_gpu=1, address=None):
    return SimpleNamespace(concurrent=concurrent, threads=threads, per_gpu=per_gpu, address=address)


@pytest.mark.parametrize(
    ("given", "nodes", "expected"),
    [
        (flags(), [{"CPU": 2}], Slots(2, 1)),
        (flags(), [{"CPU": 64}], Slots(8, 8)),  # at most 8 on a machine without a GPU
        (flags(threads=2), [{"CPU": 8}], Slots(4, 2)),
        (flags(concurrent=3), [{"CPU": 8}], Slots(3, 2)),
        (flags(concurrent=9, threads=5), [{"CPU": 2}], Slots(9, 5)),
        (flags(), [{"CPU": 64, "GPU": 8}], Slots(8, 8, 1.0)),
        (flags(per_gpu=2), [{"CPU": 64, "GPU": 8}], Slots(16, 4, 0.5)),
        (flags(concurrent=4), [{"CPU": 64, "GPU": 8}], Slots(4, 16, 1.0)),
        # a cluster: Ray counts the threads, and the node with the fewest a run decides
        (flags(address="a:1"), [{"CPU": 8}, {"CPU": 4}, {"memory": 1}], Slots(12, 1, 0.0, 1)),
        (flags(address="a:1", concurrent=1), [{"CPU": 2}, {"CPU": 2}], Slots(1, 2, 0.0, 2)),
        (flags(address="a:1"), [*CARDS, {"CPU": 8}], Slots(12, 2, 1.0, 2)),
        (flags(address="a:1", per_gpu=2, threads=3), CARDS, Slots(24, 3, 0.5, 3)),
    ],
)
def test_runs_share_the_machines(given, nodes, expected):
    assert slots(given, nodes, use_gpus=True) == expected


def test_runs_without_gpus_and_too_many_threads():
    assert slots(flags(), [{"CPU": 4, "GPU": 1}], use_gpus=False) == Slots(4, 1)
    with pytest.raises(UsageError, match="--threads 5: no node at --address a:1 has more than 4"):
        slots(flags(threads=5, address="a:1"), [{"CPU": 4}, {"CPU": 2}], use_gpus=False)
    assert (str(Slots(2, 1)), str(Slots(1, 4))) == ("2 at a time, 1 thread each", "1 at a time, 4 threads each")
