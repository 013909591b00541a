"""Memory that processes of one machine share: it goes with them, and all do without where one has none."""

from pathlib import Path

import pytest
import torch
from processes import together
from small_network import LR, named_groups, network

from seal_fast.distributed.world import joined
from seal_fast.optim import mapped
from seal_fast.optim.sharded_sgd import ShardedSGD


def exchanges_of(scarce):
    with joined(False, 30) as world:
        if world.rank in scarce:
            mapped.FOLDER = "/nowhere"
        optimizer = ShardedSGD(named_groups(network()), LR, world=world)
        world.all_gather_object("")  # all have come so far
        mappings = [line for line in Path("/proc/self/maps").read_text().splitlines() if "seal_fast-" in line]
        assert all(line.endswith("(deleted)") for line in mappings)  # no file is left, however this process ends
        return type(optimizer.exchange).__name__, len(mappings)


@pytest.mark.parametrize(("scarce", "kind"), [((), ("MappedExchange", 2)), ((1,), ("Exchange", 0))])
def test_all_do_without_common_memory_where_one_has_none(scarce, kind):
    assert together(2, exchanges_of, scarce) == [kind] * 2


def after_steps(bf16_copy, dtype):
    """The kind of exchange, and weights and momentum after three steps."""
    with joined(False, 30) as world:
        model = network(dtype, channels_last=True)
        optimizer = ShardedSGD(named_groups(model), LR, weight_decay=0.01, bf16_copy=bf16_copy, world=world)
        copies = optimizer.bf16_weights() if bf16_copy else {}
        draw = torch.Generator().manual_seed(world.rank)
        for _ in range(3):
            for name, parameter in model.named_parameters():
                leaf = copies[name] if parameter.ndim > 1 and bf16_copy else parameter
                (leaf * torch.randn(leaf.shape, generator=draw).to(leaf.dtype)).sum().backward()
            optimizer.step()
        assert all(torch.equal(copies[name], p.bfloat16()) for name, p in model.named_parameters() if copies)
        weights = [p.tolist() for p in model.parameters()]
        momentum = [tensor.tolist() for tensor in optimizer.momentum_state().values()]
        return type(optimizer.exchange).__name__, weights, momentum


@pytest.mark.parametrize(("bf16_copy", "dtype"), [(True, torch.float32), (False, torch.float64)])
def test_the_same_numbers_as_by_sockets_to_the_bit(bf16_copy, dtype):
    """Where gradients of two types are exchanged as they come, and where all are of the weights' type."""
    (kind, *first), (_, *second) = together(2, after_steps, bf16_copy, dtype)
    (other_kind, *sockets), _ = together(2, after_steps, bf16_copy, dtype, machines=2)
    assert (kind, other_kind) == ("MappedExchange", "Exchange")
    assert first == second == sockets


def written_by_the_first():
    with joined(False, 30) as world:
        optimizer = ShardedSGD(named_groups(network()), LR, world=world)
        before = optimizer._flat.params[0].detach().clone()
        world.barrier()
        if world.is_main:
            optimizer._flat.params[0].data.add_(1)
        world.barrier()
        return bool((optimizer._flat.params[0] == before + 1).all())


@pytest.mark.parametrize(("machines", "both"), [(1, True), (2, False)])
def test_processes_of_one_machine_have_one_set_of_weights(machines, both):
    assert together(2, written_by_the_first, machines=machines) == [True, both]
