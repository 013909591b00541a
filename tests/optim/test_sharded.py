"""`ShardedSGD` against `AnnealedSGD` on the sum of all processes' losses; what it keeps and what it sends."""

import copy

import pytest
import torch
import torch.distributed as dist
from processes import together
from small_network import LR, backward, named_groups, network

from seal_fast.distributed.world import environment, joined
from seal_fast.models import resnet18
from seal_fast.optim.annealed_sgd import AnnealedSGD
from seal_fast.optim.sharded_sgd import ShardedSGD

COLLECTIVES = (
    "all_reduce all_gather all_gather_single all_gather_into_tensor all_to_all_single barrier broadcast "
    "reduce_scatter reduce_scatter_single reduce_scatter_tensor"
).split()


def count_calls():
    """The names of the collectives that are called from now on."""
    calls = []

    def counted(name, original):
        return lambda *args, **options: calls.append(name) or original(*args, **options)

    for name in COLLECTIVES:
        setattr(dist, name, counted(name, getattr(dist, name)))
    return calls


def steps(parts):
    """The largest difference of weights, momentum and average after three steps of `parts` backward passes each."""
    with joined(False, 30) as world:
        alone, shared = network(channels_last=True), network(channels_last=True)
        options = dict(momentum=0.9, weight_decay=0.01, ema_decay=0.9, norms=True)
        truth = AnnealedSGD(named_groups(alone), LR, **options)
        sharded = ShardedSGD(named_groups(shared), LR, world=world, **options)
        for optimizer in (truth, sharded):
            optimizer.set_hyperparameters("early", sign=-1, lr_multiplier=0.3, weight_decay=0.0)
        for step in range(3):
            for part in range(parts):
                for rank in range(world.size):
                    backward(alone, 100 * step + 10 * part + rank)
                sharded.sending = part == parts - 1
                backward(shared, 100 * step + 10 * part + world.rank)
            for optimizer in (truth, sharded):
                optimizer.step()
                optimizer.zero_grad()
        pairs = [
            (dict(alone.named_parameters()), dict(shared.named_parameters())),
            (truth.momentum_state(), sharded.momentum_state()),
            (truth.ema_state(), sharded.ema_state()),
        ]
        worst = max(float((a[name] - b[name]).abs().max()) for a, b in pairs for name in a)
        worst = max(worst, float((truth.norms - world.sum(sharded.norms)).abs().max()))
        with truth.averaged(), sharded.averaged():
            assert all(torch.allclose(p, q, atol=1e-13) for p, q in zip(alone.parameters(), shared.parameters()))  # noqa: B905
        # and back: what was gathered fits into other slices
        before = sharded.momentum_state()
        sharded.reset_momentum()
        assert not any(t.any() for t in sharded.momentum_state().values())
        sharded.load_momentum_state(before)
        after = sharded.momentum_state()
        assert all(torch.equal(before[name], after[name]) for name in before)
        return worst


@pytest.mark.parametrize(("size", "parts"), [(2, 1), (3, 2)])
def test_steps_equal_those_of_one_process(size, parts):
    assert max(together(size, steps, parts)) < 1e-13


def bf16_steps():
    """How far weights are from one process's on the same bfloat16 gradients, of several passes each."""
    with joined(False, 30) as world:
        alone, shared = network(torch.float32, True), network(torch.float32, True)
        truth = AnnealedSGD(named_groups(alone), LR, bf16_copy=True)
        sharded = ShardedSGD(named_groups(shared), LR, world=world, bf16_copy=True)

        def give(optimizer, model, seed):
            copies, draw = optimizer.bf16_weights(), torch.Generator().manual_seed(seed)
            for name, parameter in model.named_parameters():
                leaf = copies[name] if parameter.ndim > 1 else parameter
                (leaf * torch.randn(leaf.shape, generator=draw).to(leaf.dtype)).sum().backward()

        for step in range(2):
            for part in range(3):
                for rank in range(world.size):
                    give(truth, alone, 100 * step + 10 * part + rank)
                    truth.accumulate()
                sharded.sending = part == 2
                give(sharded, shared, 100 * step + 10 * part + world.rank)
                if part < 2:
                    sharded.accumulate()
            for optimizer in (truth, sharded):
                optimizer.step()
                optimizer.zero_grad()
        copies = sharded.bf16_weights()
        assert all(torch.equal(copies[name], p.bfloat16()) for name, p in shared.named_parameters())
        return max(float((p - q).abs().max()) for p, q in zip(alone.parameters(), shared.parameters(), strict=True))


def test_bfloat16_gradients_of_several_passes_add_up_in_float32():
    assert max(together(2, bf16_steps)) < 1e-6


def traffic():
    with joined(False, 30) as world:
        model = resnet18(10, "small").to(memory_format=torch.channels_last)
        named = list(model.named_parameters())
        groups = [{"name": "early", "params": named[:30]}, {"name": "late", "params": named[30:60]}]
        groups.append({"name": "fc", "params": named[60:]})
        parameters = sum(p.numel() * p.element_size() for _, p in named)
        optimizer = ShardedSGD(groups, LR, world=world)
        local = optimizer._momentum.numel() * optimizer._momentum.element_size()
        calls = count_calls()
        order = []
        for bucket in optimizer._buckets:
            for i in bucket.members:
                optimizer._flat.params[i].register_post_accumulate_grad_hook(
                    lambda _, i=i: order.append((i, optimizer._buckets[0].reduced is None))
                )
        model(torch.randn(2, 3, 8, 8)).sum().backward()
        optimizer.step()
        before_sending = [i for i, unsent in order if unsent]
        return parameters, local, list(calls), before_sending


@pytest.mark.parametrize("size", [2, 4])
def test_what_is_stored_and_sent(size):
    for parameters, local, calls, before_sending in together(size, traffic):
        assert local <= (1 / size + 0.02) * parameters
        assert calls == ["reduce_scatter_single"] * 2 + ["all_gather_single"] * 2
        # the late layers' gradients leave before the early ones are there
        assert len(before_sending) < 62 and not set(before_sending) & set(range(20))


def misuse():
    with joined(False, 30) as world:
        model = network()
        optimizer = ShardedSGD(named_groups(model), LR, world=world)
        messages = []
        for attempt in (
            optimizer.step,
            optimizer.state_dict,
            lambda: optimizer.load_state_dict({}),
            lambda: copy.deepcopy(optimizer),
        ):
            try:
                attempt()
            except RuntimeError as error:
                messages.append(str(error))
        return messages


def test_misuse_is_refused():
    for messages in together(2, misuse):
        assert "has no gradient: every parameter must take part" in messages[0]
        assert len(messages) == 4 and all("use momentum_state() and load" in message for message in messages[1:])


def test_one_process_is_a_world_of_its_own():
    world = environment({})
    assert (world.size, world.is_main, world.max(3, 4), world.all_gather_object("a")) == (1, True, [3, 4], ["a"])
    assert environment({"WORLD_SIZE": "1"}) == world
