"""`AnnealedSGD` among torch's own tools: closures, hooks, the profiler, schedulers, GradScaler, torch.compile."""

import copy

import pytest
import torch
from small_network import LR, backward, close, named_groups, network, train
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from seal_fast.optim.annealed_sgd import AnnealedSGD


def test_closure_runs_with_gradients_and_its_loss_comes_back():
    model = network()
    optimizer = AnnealedSGD(model.parameters(), LR)
    before = copy.deepcopy(model)

    def closure():
        backward(model)
        return torch.tensor(3.0)

    assert optimizer.step(closure) == 3
    assert not torch.equal(model[0].weight, before[0].weight)


def test_autograd_notices_that_a_step_changed_what_a_graph_has_saved():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    optimizer = AnnealedSGD(model.parameters(), LR)
    loss = model(torch.ones(2, 3)).sum()
    loss.backward(retain_graph=True)
    loss.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_hooks_and_the_profiler_see_a_step():
    model = network()
    optimizer = AnnealedSGD(model.parameters(), LR)
    seen = []
    before = optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    after = optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    train(model, optimizer, 1)
    before.remove()
    train(model, optimizer, 1)
    after.remove()
    for register in (register_optimizer_step_pre_hook, register_optimizer_step_post_hook):
        of_all = register(lambda *_: seen.append("any"))
        train(model, optimizer, 1)
        of_all.remove()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        train(model, optimizer, 1)
    assert seen == ["before", "after", "after", "any", "any"]
    assert "Optimizer.step#AnnealedSGD.step" in {event.key for event in profile.key_averages()}


class Calls(TorchDispatchMode):
    """Keeps what torch dispatches."""

    def __init__(self):
        super().__init__()
        self.functions = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.functions.append(function)
        return function(*args, **(kwargs or {}))


def test_those_who_watch_what_torch_dispatches_see_the_update():
    ours, other = network(), network()
    optimizers = [AnnealedSGD(model.parameters(), LR) for model in (ours, other)]
    backward(ours)
    backward(other)
    with Calls() as calls:
        optimizers[0].step()
    optimizers[1].step()
    assert torch.ops.seal_fast.annealed_sgd_.default in calls.functions
    assert all(torch.equal(p, q) for p, q in zip(ours.parameters(), other.parameters(), strict=True))


def test_grad_scaler_unscales_and_skips_infinities():
    ours, theirs = network(torch.float32), network(torch.float32)
    optimizer, peer = AnnealedSGD(named_groups(ours), LR), torch.optim.SGD(theirs.parameters(), 0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    for seed, bad in enumerate([False, True, False, False]):
        scale = scaler.get_scale()
        backward(ours, seed, scale if scale != 1024 else 1024.0)
        scaler.scale(torch.ones(()))
        if bad:
            ours[0].weight.grad[0] = float("inf")
            before, momentum = copy.deepcopy(ours), optimizer.momentum_state()
        scaler.step(optimizer)
        scaler.update()
        if bad:
            assert scaler.get_scale() == 512
            assert all(torch.equal(p, q) for p, q in zip(ours.parameters(), before.parameters(), strict=True))
            assert all(torch.equal(momentum[n], m) for n, m in optimizer.momentum_state().items())
        else:
            backward(theirs, seed)
            peer.step()
        ours.zero_grad()
        theirs.zero_grad()
    assert scaler.get_scale() == 1024  # grew again
    close(ours, theirs, torch.float32)


def test_schedulers_of_torch_write_through():
    ours, theirs = network(), network()
    optimizer, peer = AnnealedSGD(named_groups(ours), LR), torch.optim.SGD(theirs.parameters(), 0.1, momentum=0.9)
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(o, 4) for o in (optimizer, peer)]
    for step in range(3):
        train(ours, optimizer, 1, step)
        train(theirs, peer, 1, step)
        for schedule in schedules:
            schedule.step()
    assert optimizer.hyper[:, 0].tolist() == pytest.approx([peer.param_groups[0]["lr"]] * 2)
    close(ours, theirs)


def test_a_compiled_model_is_not_compiled_again_by_a_phase_switch():
    eager, compiled = network(), network()
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    compiled.compile(backend=counter)
    for model in (eager, compiled):
        optimizer = AnnealedSGD(named_groups(model), LR)
        train(model, optimizer, 2)
        optimizer.set_hyperparameters("early", sign=-1, lr_multiplier=0.01)
        optimizer.reset_momentum()
        train(model, optimizer, 2, first=2)
    assert counter.frame_count == 1
    close(eager, compiled)


def test_a_compiled_function_may_step():
    ours, theirs = network(), network()
    optimizer, peer = AnnealedSGD(named_groups(ours), LR), torch.optim.SGD(theirs.parameters(), 0.1, momentum=0.9)
    torch._dynamo.reset()

    @torch.compile(backend="eager")
    def step_and_count(steps):
        optimizer.step()
        return steps + 1

    steps = torch.zeros(())
    for i in range(4):
        backward(ours, i)
        backward(theirs, i)
        steps = step_and_count(steps)
        peer.step()
        close(ours, theirs)
        optimizer.zero_grad()
        peer.zero_grad()
    assert steps == 4
