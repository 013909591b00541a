"""Memory that processes of one machine share: it goes with them, and all do without where one has none."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from processes import together
from seal_fast import mapped
from seal_fast.distributed import joined
from seal_fast.kernels.annealed_sgd import FlatParameters
from seal_fast.mapped import MappedExchange, common_memory, make_exchange


def flat_parameters(dtype=torch.float64):
    sizes = [(3, 2, 2, 2), (70,), (130,)]
    draw = torch.Generator().manual_seed(1)
    params = [torch.randn(size, generator=draw, dtype=torch.float64).to(dtype) for size in sizes]
    params[0] = params[0].to(memory_format=torch.channels_last)
    return FlatParameters(params, ["a", "b", "c"], [0, 0, 1], shards=2)


def exchanges_of(scarce):
    with joined(False, 30) as world:
        if world.rank in scarce:
            mapped.FOLDER = "/nowhere"
        exchange = make_exchange(world, flat_parameters())
        world.texts("")  # all have come so far
        mappings = [line for line in Path("/proc/self/maps").read_text().splitlines() if "seal_fast-" in line]
        assert all(line.endswith("(deleted)") for line in mappings)  # no file is left, however this process ends
        return type(exchange).__name__, len(mappings)


@pytest.mark.parametrize(("scarce", "kind"), [((), ("MappedExchange", 2)), ((1,), ("Exchange", 0))])
def test_all_do_without_common_memory_where_one_has_none(scarce, kind):
    assert together(2, exchanges_of, scarce) == [kind] * 2
