"""What AnnealedSGD saves and loads, where its parameters live, and what it refuses."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from small_network import LR, close, named_groups, network, train
from torch import nn

from seal_fast.optim.annealed_sgd import AnnealedSGD

# --- state -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("saved_last, loaded_last", [(True, False), (False, True), (True, True)])
def test_state_goes_round_across_memory_layouts(tmp_path, saved_last, loaded_last):
    model = network(channels_last=saved_last)
    optimizer = AnnealedSGD(named_groups(model), LR, weight_decay=5e-4, ema_decay=0.9)
    train(model, optimizer)
    optimizer.set_hyperparameters("early", lr=0.3, sign=-1, lr_multiplier=0.01)
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
    optimizer.reset_momentum()
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


@pytest.mark.parametrize("how", [{}, {"foreach": True}, {"fused": True}], ids=str)
def test_torch_sgd_loads_its_state(how):
    ours, theirs = network(channels_last=True), network()
    optimizer = AnnealedSGD(named_groups(ours), LR, 0.8, 1e-3)
    train(ours, optimizer)
    peer = torch.optim.SGD(named_groups(theirs), 0.5, **how)
    theirs.load_state_dict(ours.state_dict())
    state = optimizer.state_dict()
    assert all(values["momentum_buffer"].is_contiguous() for values in state["state"].values())
    peer.load_state_dict(state)
    before = optimizer.momentum_state()
    train(theirs, peer, 2, first=3)
    assert all(torch.equal(t, before[name]) for name, t in optimizer.momentum_state().items())  # nothing is shared
    train(ours, optimizer, 2, first=3)
    close(ours, theirs)


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


@pytest.mark.parametrize("whole", [False, True])
def test_a_replaced_number_is_refused_with_the_cure(whole):
    model = network()
    optimizer = AnnealedSGD(named_groups(model), LR)
    before = copy.deepcopy(model)
    train(model, optimizer, 0)
    if whole:
        optimizer.param_groups = [group | {"lr": torch.tensor(0.2)} for group in optimizer.param_groups]
    else:
        optimizer.param_groups[0]["lr"] = 0.2
    with pytest.raises(RuntimeError, match="lr of group 'early' was replaced .* use set_hyperparameters"):
        train(model, optimizer, 1)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before.parameters(), strict=True))


@pytest.mark.parametrize(
    "group, numbers, message",
    [
        ("middle", {"lr": 1}, "the groups are early, late"),
        ("early", {"nesterov": 1}, "these are: lr, momentum"),
        ("early", {"sign": 0.5}, "sign must be 1"),
        ("early", {"lr": -1.0}, "lr must be a finite number of at least 0"),
        ("early", {"lr_multiplier": float("nan")}, "lr_multiplier must be a finite number"),
        ("early", {"lr": torch.ones(2)}, "0-dimensional"),
    ],
)
def test_wrong_numbers_are_refused_and_nothing_is_written(group, numbers, message):
    optimizer = AnnealedSGD(named_groups(network()), LR)
    before = optimizer.hyper.clone()
    with pytest.raises(ValueError, match=message):
        optimizer.set_hyperparameters(group, **{"momentum": 0.1, **numbers})
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


def test_weights_that_share_memory_are_refused():
    p, matrix = nn.Parameter(torch.ones(4)), torch.ones(2, 3)
    tied = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    tied[1].weight = nn.Parameter(tied[0].weight.detach())
    for params in ([p, p], [nn.Parameter(matrix), nn.Parameter(matrix[1])], tied.named_parameters()):
        with warnings.catch_warnings(), pytest.raises(ValueError, match="share memory .* give shared weights once"):
            warnings.simplefilter("ignore")  # torch's own of a parameter given twice
            AnnealedSGD(params, LR)
    parts = [nn.Parameter(part) for part in torch.ones(6).split(3)]  # neighbours in one storage share nothing
    AnnealedSGD(parts, LR)
    tied[1].weight = tied[0].weight
    AnnealedSGD(tied.parameters(), LR)  # once


def test_sparse_gradients_are_refused():
    table = nn.Embedding(5, 2, sparse=True)
    optimizer = AnnealedSGD(table.parameters(), LR)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="gradient of 0 is sparse, .* sparse=False"):
        optimizer.step()


# --- copies ----------------------------------------------------------------------------------------------------------


def torch_save(value):
    torch.save(value, file := io.BytesIO())
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value)), torch_save])
def test_a_copy_of_model_and_optimiser_trains_on_alike_and_apart(duplicate):
    model = network(torch.float32, channels_last=True)
    optimizer = AnnealedSGD(named_groups(model), LR, 0.8, 0.01, ema_decay=0.9, bf16_copy=True, norms=True)
    optimizer.set_hyperparameters("early", sign=-1, lr_multiplier=0.3)
    train(model, optimizer, 2)
    other, second = duplicate((model, optimizer))
    for name in ("hyper", "norms", "_momentum", "_ema", "_bf16"):
        assert torch.equal(getattr(optimizer, name), getattr(second, name)), name
    before = copy.deepcopy(model.state_dict())
    train(other, second, 2, first=2)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    train(model, optimizer, 2, first=2)
    close(model, other, torch.float32)
    for one, two in zip(
        (*optimizer.ema_state().values(), optimizer.norms), (*second.ema_state().values(), second.norms), strict=True
    ):
        assert torch.equal(one, two)
    assert [g["name"] for g in second.param_groups] == ["early", "late"]


def test_groups_are_fixed_for_life():
    optimizer = AnnealedSGD(network().parameters(), LR)
    with pytest.raises(RuntimeError, match="fixed for life"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
