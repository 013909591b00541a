import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from seal_fast.optim import AnnealedSGD

LR = torch.tensor(0.1, dtype=torch.float64)
# Absolute and relative, for values of order one after a few steps.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-13}


class Network(nn.Sequential):
    def forward(self, input):  # torch.compile leaves torch's own forward alone
        for module in self:
            input = module(input)
        return input


def network(dtype=torch.float64, channels_last=False, seed=0):
    torch.manual_seed(seed)
    model = Network(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 5, 1, bias=False), nn.Flatten(), nn.Linear(80, 7)
    ).to(dtype)
    return model.to(memory_format=torch.channels_last) if channels_last else model


def named_groups(model):
    named = list(model.named_parameters())
    return [{"name": "early", "params": named[:4]}, {"name": "late", "params": named[4:]}]


def backward(model, seed=0, factor=1.0):
    draw = torch.Generator().manual_seed(seed)
    p = next(model.parameters())
    images = torch.randn(4, 3, 6, 6, generator=draw, dtype=torch.float64).to(p.dtype)
    (model(images).square().mean() * factor).backward()


def close(model, other, dtype=torch.float64):
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def train(model, optimizer, steps=3, first=0):
    for seed in range(first, first + steps):
        backward(model, seed)
        optimizer.step()
        optimizer.zero_grad()


# --- the rule --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_descent_is_torch_sgd(dtype, channels_last):
    ours, theirs = network(dtype, channels_last), network(dtype, channels_last)
    train(ours, AnnealedSGD(named_groups(ours), LR, weight_decay=5e-4), 5)
    train(theirs, torch.optim.SGD(theirs.parameters(), 0.1, momentum=0.9, weight_decay=5e-4), 5)
    close(ours, theirs, dtype)


def test_ascent_is_maximize_without_weight_decay_and_from_fresh_momentum():
    ours, theirs = network(), network()
    optimizer = AnnealedSGD(ours.parameters(), LR)
    optimizer.set_hyper("group0", direction=-1, scale=0.5)
    train(ours, optimizer)
    train(theirs, torch.optim.SGD(theirs.parameters(), 0.05, momentum=0.9, maximize=True))
    close(ours, theirs)


@st.composite
def parameters(draw):
    """A tensor of random shape whose dimensions lie in memory in random order."""
    shape = draw(st.lists(st.integers(1, 5), max_size=4))
    order = draw(st.permutations(range(len(shape))))
    torch.manual_seed(draw(st.integers(0, 1000)))
    tensor = torch.randn([shape[i] for i in order], dtype=torch.float64)
    return tensor.permute([order.index(i) for i in range(len(shape))]) if shape else tensor


number = st.floats(0, 1)
phases = st.fixed_dictionaries(
    dict(lr=number, momentum=number, weight_decay=number, direction=st.sampled_from([1, -1]), scale=number)
)


@settings(max_examples=60, deadline=None)
@given(
    tensors=st.lists(parameters(), min_size=2, max_size=5),
    timeline=st.lists(st.tuples(phases, phases, st.booleans()), min_size=1, max_size=3),
)
def test_any_shapes_strides_and_phase_switches(tensors, timeline):
    expected = [t.contiguous().clone() for t in tensors]
    buffers = [torch.zeros_like(t) for t in expected]
    params = [nn.Parameter(t) for t in tensors]
    strides = [p.stride() for p in params]
    optimizer = AnnealedSGD([{"params": params[:1]}, {"params": params[1:]}], LR)
    assert [p.stride() for p in params] == strides
    for first, second, clear in timeline:
        optimizer.set_hyper("group0", **first)
        optimizer.set_hyper("group1", **second)
        if clear:
            optimizer.clear_momentum()
            buffers = [torch.zeros_like(t) for t in expected]
        for _ in range(2):
            for i, (p, q) in enumerate(zip(params, expected, strict=True)):
                rule = second if i else first
                grad = torch.randn(p.shape, dtype=torch.float64)
                p.grad = grad if i % 2 else torch.empty_like(p).copy_(grad)  # in logical or in the parameter's order
                buffers[i] = rule["momentum"] * buffers[i] + grad + rule["weight_decay"] * q
                expected[i] = q - rule["direction"] * rule["scale"] * rule["lr"] * buffers[i]
            optimizer.step()
        for p, q in zip(params, expected, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


def test_a_parameter_without_gradient_is_left_alone_and_its_momentum_too():
    model = network()
    optimizer = AnnealedSGD(named_groups(model), LR, weight_decay=0.1)
    train(model, optimizer)
    before, momentum = copy.deepcopy(model), optimizer.momentum_state()
    backward(model)
    model[3].weight.grad = None
    optimizer.step()
    assert torch.equal(model[3].weight, before[3].weight)
    assert torch.equal(optimizer.momentum_state()["3.weight"], momentum["3.weight"])
    assert not torch.equal(model[0].weight, before[0].weight)


def test_accumulated_gradients():
    ours, theirs = network(), network()
    optimizer, peer = AnnealedSGD(named_groups(ours), LR), torch.optim.SGD(theirs.parameters(), 0.1, momentum=0.9)
    for set_to_none in (False, True):
        for model in (ours, theirs):
            backward(model, 1)
            backward(model, 2)
        optimizer.step()
        peer.step()
        optimizer.zero_grad(set_to_none)
        peer.zero_grad(set_to_none)
    assert all(p.grad is None for p in ours.parameters())
    close(ours, theirs)


def test_closure_runs_with_gradients_and_its_loss_comes_back():
    model = network()
    optimizer = AnnealedSGD(model.parameters(), LR)
    before = copy.deepcopy(model)

    def closure():
        backward(model)
        return torch.tensor(3.0)

    assert optimizer.step(closure) == 3
    assert not torch.equal(model[0].weight, before[0].weight)


# --- numbers on the device -------------------------------------------------------------------------------------------


class Syncs(TorchDispatchMode):
    """Counts values taken from the device to the host."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def test_neither_a_step_nor_a_phase_switch_waits_for_the_device():
    model = network(torch.float32)
    optimizer = AnnealedSGD(named_groups(model), LR, norms=True, ema_decay=0.9, bf16_copy=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    backward(model, factor=8.0)
    with Syncs() as syncs:
        optimizer.set_hyper("early", lr=0.2, direction=-1, scale=0.01, weight_decay=0)
        optimizer.clear_momentum()
        optimizer.step()
        scaler.scale(torch.ones(()))
        scaler.step(optimizer)
    assert syncs.count == 0
    with syncs:
        assert torch.ones(()).item() == 1
    assert syncs.count == 1  # it does notice


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
        optimizer.set_hyper("early", direction=-1, scale=0.01)
        optimizer.clear_momentum()
        train(model, optimizer, 2, first=2)
    assert counter.frame_count == 1
    close(eager, compiled)


def test_norms_of_gradient_and_update_add_up_by_group():
    model = network()
    optimizer = AnnealedSGD(named_groups(model), LR, norms=True)
    backward(model)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.step()
    squares = torch.tensor(
        [(p.grad.norm() ** 2, (p.detach() - q).norm() ** 2) for p, q in zip(model.parameters(), before, strict=True)],
        dtype=torch.float64,
    )
    torch.testing.assert_close(optimizer.norms, torch.stack([squares[:4].sum(0), squares[4:].sum(0)]))


def test_average_and_bf16_weights():
    model = network(torch.float32, channels_last=True)
    average = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = AnnealedSGD(named_groups(model), LR, ema_decay=0.75, bf16_copy=True)
    for seed in range(3):
        train(model, optimizer, 1, seed)
        average = {name: 0.75 * average[name] + 0.25 * p.detach() for name, p in model.named_parameters()}
    for name, p in model.named_parameters():
        torch.testing.assert_close(optimizer.ema_state()[name], average[name])
        assert torch.equal(optimizer.bf16_weights()[name], p.bfloat16())
        assert optimizer.bf16_weights()[name].stride() == p.stride()
    with torch.no_grad():
        model[0].weight.zero_()
    optimizer.refresh_bf16()
    assert not optimizer.bf16_weights()["0.weight"].any()
    with pytest.raises(RuntimeError, match="build AnnealedSGD with bf16_copy=True"):
        AnnealedSGD(network().parameters(), LR).bf16_weights()


# --- state -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("saved_last, loaded_last", [(True, False), (False, True), (True, True)])
def test_state_goes_round_across_memory_layouts(tmp_path, saved_last, loaded_last):
    model = network(channels_last=saved_last)
    optimizer = AnnealedSGD(named_groups(model), LR, weight_decay=5e-4, ema_decay=0.9)
    train(model, optimizer)
    optimizer.set_hyper("early", lr=0.3, direction=-1, scale=0.01)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")

    other = network(channels_last=loaded_last, seed=1)
    second = AnnealedSGD(named_groups(other), torch.tensor(0.5), ema_decay=0.5)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    other.load_state_dict(state["model"])
    second.load_state_dict(state["optimizer"])
    assert torch.equal(second.hyper, optimizer.hyper)
    for one, two in (
        (optimizer.momentum_state(), second.momentum_state()),
        (optimizer.ema_state(), second.ema_state()),
    ):
        assert all(torch.equal(one[name], two[name]) for name in one)
    train(model, optimizer, 3, first=3)
    train(other, second, 3, first=3)
    close(model, other)


def test_momentum_by_name_goes_round_and_is_contiguous():
    model = network(channels_last=True)
    optimizer = AnnealedSGD(named_groups(model), LR)
    train(model, optimizer)
    state = optimizer.momentum_state()
    assert list(state) == [name for name, _ in model.named_parameters()]
    assert all(tensor.is_contiguous() for tensor in state.values()) and not model[0].weight.is_contiguous()
    optimizer.clear_momentum()
    assert not any(tensor.any() for tensor in optimizer.momentum_state().values())
    optimizer.load_momentum_state(state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in optimizer.momentum_state().items())
    with pytest.raises(ValueError, match="other parameters: 0.weight"):
        optimizer.load_momentum_state({name: state[name] for name in list(state)[1:]})
    with pytest.raises(ValueError, match="0.bias has shape"):
        optimizer.load_momentum_state(state | {"0.bias": torch.zeros(1)})


def test_loads_the_state_of_torch_sgd():
    theirs, ours = network(), network(channels_last=True)
    peer = torch.optim.SGD(theirs.parameters(), 0.2, momentum=0.8, weight_decay=1e-3)
    train(theirs, peer)
    optimizer = AnnealedSGD(ours.parameters(), LR)
    ours.load_state_dict(theirs.state_dict())
    optimizer.load_state_dict(peer.state_dict())
    assert optimizer.hyper.tolist() == [[0.2, 0.8, 1e-3, 1, 1]]
    train(theirs, peer, 2, first=3)
    train(ours, optimizer, 2, first=3)
    close(ours, theirs)
    nesterov = torch.optim.SGD(theirs.parameters(), 0.2, momentum=0.8, nesterov=True)
    with pytest.raises(ValueError, match="nesterov"):
        optimizer.load_state_dict(nesterov.state_dict())


def test_a_state_of_other_groups_is_refused_and_changes_nothing():
    model = network()
    optimizer = AnnealedSGD(named_groups(model), LR)
    train(model, optimizer)
    state, momentum = copy.deepcopy(optimizer.state_dict()), optimizer.momentum_state()
    state["param_groups"][0]["name"] = "first"
    with pytest.raises(ValueError, match="'first', here it is 'early'"):
        optimizer.load_state_dict(state)
    assert all(torch.equal(m, momentum[name]) for name, m in optimizer.momentum_state().items())
    train(model, optimizer, 1)


# --- refusals --------------------------------------------------------------------------------------------------------


def test_parameters_stay_the_same_objects():
    model = network(channels_last=True)
    before = {name: (p, p.detach().clone(), p.stride()) for name, p in model.named_parameters()}
    AnnealedSGD(named_groups(model), LR)
    for name, p in model.named_parameters():
        same, value, stride = before[name]
        assert p is same and torch.equal(p, value) and p.stride() == stride
    assert len({p.untyped_storage().data_ptr() for p in model.parameters()}) == 1


def test_a_float_learning_rate_is_refused_with_the_cure():
    with pytest.raises(TypeError, match=r"pass torch.tensor\(0.1\)"):
        AnnealedSGD(network().parameters(), 0.1)


def test_a_moved_model_is_refused():
    model = network(torch.float32)
    optimizer = AnnealedSGD(named_groups(model), LR)
    model[3].to(torch.float64)
    with pytest.raises(RuntimeError, match="3.weight was moved .* then build the optimiser"):
        optimizer.step()


def test_a_replaced_number_is_refused():
    model = network()
    optimizer = AnnealedSGD(named_groups(model), LR)
    optimizer.param_groups[1]["lr"] = 0.5
    with pytest.raises(RuntimeError, match="set_hyper\\('late', lr=...\\)"):
        optimizer.step()


@pytest.mark.parametrize(
    "group, numbers, message",
    [
        ("middle", {"lr": 1}, "the groups are early, late"),
        ("early", {"nesterov": 1}, "these are: lr, momentum"),
        ("early", {"direction": 0.5}, "direction must be 1"),
        ("early", {"lr": -1.0}, "lr must be a finite number of at least 0"),
        ("early", {"scale": float("nan")}, "scale must be a finite number"),
        ("early", {"lr": torch.ones(2)}, "0-dimensional"),
    ],
)
def test_wrong_numbers_are_refused_and_nothing_is_written(group, numbers, message):
    optimizer = AnnealedSGD(named_groups(network()), LR)
    before = optimizer.hyper.clone()
    with pytest.raises(ValueError, match=message):
        optimizer.set_hyper(group, **{"momentum": 0.1, **numbers})
    assert torch.equal(optimizer.hyper, before)


def test_parameters_that_cannot_share_a_buffer_are_refused():
    float32, float64 = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2, dtype=torch.float64))
    with pytest.raises(ValueError, match="give them one type and one device"):
        AnnealedSGD([float32, float64], LR)
    with pytest.raises(ValueError, match="keep master weights in float32"):
        AnnealedSGD([nn.Parameter(torch.ones(2).half())], LR)
    with pytest.raises(ValueError, match="not dense"):
        AnnealedSGD([nn.Parameter(torch.ones(4)[::2])], LR)
    with pytest.raises(ValueError, match="different names"):
        AnnealedSGD([{"name": "a", "params": [float32]}, {"name": "a", "params": [nn.Parameter(torch.ones(1))]}], LR)


def test_groups_are_fixed_for_life():
    optimizer = AnnealedSGD(network().parameters(), LR)
    with pytest.raises(RuntimeError, match="fixed for life"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
