"""`ShardedSGD` against `AnnealedSGD` on the sum of all processes' losses; what it keeps and what it sends."""

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


class Count:
    """Counts what goes through torch.distributed: calls, and bytes that a process must send for an all-to-all."""

    def __init__(self):
        self.calls, self.bytes = [], 0
        for name in COLLECTIVES:
            setattr(dist, name, self.counted(name, getattr(dist, name)))

    def counted(self, name, original):
        def call(*args, **options):
            self.calls.append(name)
            if name == "all_to_all_single":
                size = dist.get_world_size()
                self.bytes += args[1].numel() * args[1].element_size() // size * (size - 1)
            return original(*args, **options)

        return call


def steps(parts):
    """The largest difference of weights, momentum and average after three steps of `parts` backward passes each."""
    with joined(False, 30) as world:
        alone, shared = network(channels_last=True), network(channels_last=True)
        options = dict(momentum=0.9, weight_decay=0.01, ema_decay=0.9)
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
        # and back: what was gathered fits into other slices
        before = sharded.momentum_state()
        sharded.reset_momentum()
        assert not any(t.any() for t in sharded.momentum_state().values())
        sharded.load_momentum_state(before)
        after = sharded.momentum_state()
        assert all(torch.equal(before[name], after[name]) for name in before)
        return worst


@pytest.mark.parametrize("machines", [1, 2])
@pytest.mark.parametrize(("size", "parts"), [(2, 1), (3, 2)])
def test_steps_equal_those_of_one_process(size, parts, machines):
    assert max(together(size, steps, parts, machines=machines)) < 1e-13


def traffic():
    with joined(False, 30) as world:
        model = resnet18(10, "small").to(memory_format=torch.channels_last)
        named = list(model.named_parameters())
        groups = [{"name": "early", "params": named[:30]}, {"name": "late", "params": named[30:60]}]
        groups.append({"name": "fc", "params": named[60:]})
        parameters = sum(p.numel() * p.element_size() for _, p in named)
        optimizer = ShardedSGD(groups, LR, world=world)
        kept = optimizer._momentum.numel() * optimizer._momentum.element_size()
        counted, told = Count(), optimizer.exchange.traffic
        order = []
        for bucket in optimizer._buckets:
            for i in bucket.members:
                optimizer._flat.params[i].register_post_accumulate_grad_hook(
                    lambda _, i=i: order.append((i, optimizer._buckets[0].received is None))
                )
        model(torch.randn(2, 3, 8, 8)).sum().backward()
        optimizer.step()
        assert (told.collectives, told.bytes) == (len(counted.calls), counted.bytes)
        before_sending = [i for i, unsent in order if unsent]
        return parameters, kept, list(counted.calls), counted.bytes, len(optimizer._buckets), before_sending


@pytest.mark.parametrize(("size", "machines"), [(2, 2), (4, 2), (2, 1)])
def test_what_is_kept_and_sent(size, machines):
    for parameters, kept, calls, sent, buckets, before_sending in together(size, traffic, machines=machines):
        assert kept <= (1 / size + 0.02) * parameters
        assert len(calls) == (2 * buckets if machines > 1 else 2) <= 2 + buckets
        least = 2 * parameters * (size - 1) / size
        assert least <= sent <= 1.001 * least if machines > 1 else sent == 0 and set(calls) == {"barrier"}
        # the late layers' gradients leave before the early ones are there
        assert len(before_sending) < 62 and not set(before_sending) & set(range(20))


def misuse():
    with joined(False, 30) as world:
        model = network()
        optimizer = ShardedSGD(named_groups(model), LR, world=world)
        messages = []
        for attempt in (optimizer.step, optimizer.state_dict, lambda: optimizer.load_state_dict({})):
            try:
                attempt()
            except RuntimeError as error:
                messages.append(str(error))
        return messages


def test_misuse_is_refused():
    for messages in together(2, misuse):
        assert "has no gradient: every parameter must take part" in messages[0]
        assert "use momentum_state()" in messages[1] and "use load_momentum_state()" in messages[2]


def test_one_process_is_a_world_of_its_own():
    world = environment({})
    assert (world.size, world.is_main, world.max(3, 4), world.all_gather_object("a")) == (1, True, [3, 4], ["a"])
    assert environment({"WORLD_SIZE": "1"}) == world
