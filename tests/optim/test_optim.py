import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_network import LR, backward, close, named_groups, network, train
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from seal_fast.optim.annealed_sgd import AnnealedSGD

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
    optimizer.set_hyperparameters("group0", sign=-1, lr_multiplier=0.5)
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
    dict(lr=number, momentum=number, weight_decay=number, sign=st.sampled_from([1, -1]), lr_multiplier=number)
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
        optimizer.set_hyperparameters("group0", **first)
        optimizer.set_hyperparameters("group1", **second)
        if clear:
            optimizer.reset_momentum()
            buffers = [torch.zeros_like(t) for t in expected]
        for _ in range(2):
            for i, (p, q) in enumerate(zip(params, expected, strict=True)):
                rule = second if i else first
                grad = torch.randn(p.shape, dtype=torch.float64)
                p.grad = grad if i % 2 else torch.empty_like(p).copy_(grad)  # in logical or in the parameter's order
                buffers[i] = rule["momentum"] * buffers[i] + grad + rule["weight_decay"] * q
                expected[i] = q - rule["sign"] * rule["lr_multiplier"] * rule["lr"] * buffers[i]
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


def test_gradients_may_change_their_memory_order_from_step_to_step():
    ours, theirs = (network().to(memory_format=torch.channels_last) for _ in range(2))
    optimizer, peer = AnnealedSGD(ours.parameters(), LR), torch.optim.SGD(theirs.parameters(), 0.1, momentum=0.9)
    for memory_format in (torch.channels_last, torch.contiguous_format, torch.channels_last, torch.contiguous_format):
        for model in (ours, theirs):
            backward(model)
        for p in ours.parameters():
            if p.dim() == 4:
                p.grad = p.grad.contiguous(memory_format=memory_format)
        optimizer.step()
        peer.step()
        close(ours, theirs)
        optimizer.zero_grad()
        peer.zero_grad()


def test_a_gradient_of_another_type_is_refused():
    model = network()
    optimizer = AnnealedSGD(named_groups(model), LR)
    train(model, optimizer)
    before = copy.deepcopy(model)
    backward(model)
    model[3].weight.grad = None
    model[3].weight.grad_dtype = torch.float16
    model[3].weight.grad = torch.zeros_like(model[3].weight, dtype=torch.float16)
    with pytest.raises(ValueError, match=r"gradient of 3\.weight is torch\.float16"):
        optimizer.step()
    assert torch.equal(model[0].weight, before[0].weight)


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
        optimizer.set_hyperparameters("early", lr=0.2, sign=-1, lr_multiplier=0.01, weight_decay=0)
        optimizer.reset_momentum()
        optimizer.step()
        scaler.scale(torch.ones(()))
        scaler.step(optimizer)
    assert syncs.count == 0
    with syncs:
        assert torch.ones(()).item() == 1
    assert syncs.count == 1  # it does notice


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


@pytest.mark.parametrize("channels_last", [False, True])
def test_gradients_of_the_bf16_weights_move_the_parameters(channels_last):
    """Convolutions and the linear layer read the copy, BatchNorm its own float32 numbers."""
    model, peer = (network(torch.float32, channels_last) for _ in range(2))
    optimizer = AnnealedSGD(named_groups(model), LR, bf16_copy=True)
    other = torch.optim.SGD(peer.parameters(), 0.1, momentum=0.9)
    copies = {name: w for name, w in optimizer.bf16_weights().items() if not name.startswith("1.")}
    for seed in range(3):
        images = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
        with torch.autocast("cpu", torch.bfloat16):
            loss = torch.func.functional_call(model, copies, (images,)).float().square().mean()
            peer_loss = peer(images).float().square().mean()
        loss.backward()
        peer_loss.backward()
        assert torch.equal(loss, peer_loss)
        assert all(w.grad.dtype == torch.bfloat16 for w in copies.values()) and model[0].weight.grad is None
        optimizer.step()
        other.step()
        optimizer.zero_grad(set_to_none=seed > 0)
        assert all(w.grad is None if seed else not w.grad.any() for w in copies.values())
        other.zero_grad()
        close(model, peer, torch.float32)


@pytest.mark.parametrize("channels_last", [False, True])
def test_gradients_of_several_passes_add_up_in_float32(channels_last):
    """Against float64 sums of what each pass has given, where bfloat16 sums are off by a thousandth."""
    model = network(torch.float32, channels_last)
    optimizer = AnnealedSGD(named_groups(model), LR, momentum=0.0, bf16_copy=True)
    copies = {name: w for name, w in optimizer.bf16_weights().items() if not name.startswith("1.")}
    before = {name: p.detach().double() for name, p in model.named_parameters()}
    total = {name: torch.zeros_like(p) for name, p in before.items()}
    for part in range(8):
        images = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(part))
        with torch.autocast("cpu", torch.bfloat16):
            loss = torch.func.functional_call(model, copies, (images,)).float().square().mean()
        leaves = dict(model.named_parameters()) | copies
        gradients = torch.autograd.grad(loss, leaves.values(), retain_graph=True)
        for name, gradient in zip(leaves, gradients, strict=True):
            total[name] += gradient.double()
        loss.backward()
        if part < 7:
            optimizer.accumulate()
            assert all(w.grad is None for w in copies.values())
    optimizer.step()
    for name, p in model.named_parameters():
        torch.testing.assert_close(before[name] - p.double(), 0.1 * total[name], rtol=1e-4, atol=1e-7)
