"""Operators on tensors; tests/training/test_members.py compares whole methods with literal oracles."""

import math

import pytest
import torch
from torch import nn

from seal_fast.methods.operators import EVERYTHING, Align, Mask, Mix, Orthogonalise, Scope, Source
from seal_fast.methods.partition import ForwardOrder
from seal_fast.methods.schedule import Phase, Rule, Timeline, rules
from seal_fast.models import generator
from seal_fast.training.forgetting import Forgetting, check_scopes, leaves, lowest, orthogonalise, select
from seal_fast.utils.errors import UsageError

FAN_IN = 32 * 9


def network(dtype=torch.float32):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(32, 128, 3, bias=False), nn.BatchNorm2d(128), nn.Flatten(), nn.Linear(128, 50))
    return model.to(dtype).to(memory_format=torch.channels_last)


def order_of(model):
    return ForwardOrder({name: p.numel() for name, p in model.named_parameters()})


def apply(model, *operators, seed=1, generation=1, epoch=0):
    Forgetting(model, order_of(model), seed, {}, lambda *_: iter(())).apply(operators, generation, epoch)
    return model


def drawn(distribution="he-normal", **when):
    return apply(network(), Mix(Scope(), Source("draw", distribution)), **when)[0].weight.detach()


def test_llfs_weights_are_drawn_in_place_and_the_rest_is_kept():
    before, after = network(), network()
    address, strides = after[0].weight.data_ptr(), after[0].weight.stride()
    apply(after, Mix(Scope("0"), Source("draw")))
    assert (after[0].weight.data_ptr(), after[0].weight.stride()) == (address, strides)
    changed = [n for n, t in after.state_dict().items() if not torch.equal(t, before.state_dict()[n])]
    assert changed == ["0.weight", "3.weight"]
    bound = 1 / math.sqrt(FAN_IN)  # the bits that runs of older versions have drawn
    old = torch.empty(128, 32, 3, 3).uniform_(-bound, bound, generator=generator(1, "reinitialise 1 0.weight"))
    assert torch.equal(after[0].weight, old)


@pytest.mark.parametrize(
    ("distribution", "std", "kurtosis"),
    [
        ("kaiming-uniform", 1 / math.sqrt(3 * FAN_IN), 1.8),
        ("he-normal", math.sqrt(2 / FAN_IN), 3.0),
        ("unit-normal", 1.0, 3.0),
    ],
)
def test_a_distribution_has_its_closed_form_moments(distribution, std, kurtosis):
    weight = drawn(distribution).double()
    n = weight.numel()
    assert weight.mean().abs() < 5 * std / math.sqrt(n)
    assert weight.std().item() == pytest.approx(std, rel=5 / math.sqrt(n))
    assert (weight**4).mean().item() / std**4 == pytest.approx(kurtosis, rel=0.05)


def test_a_new_networks_batchnorm_is_the_identity():
    model = network()
    for t in (*model[1].parameters(), model[1].running_mean, model[1].running_var):
        t.data.fill_(7.0)
    apply(model, Mix(EVERYTHING, Source("draw", "he-normal")))
    assert [model[1].state_dict()[n].unique().item() for n in ("weight", "bias", "running_mean", "running_var")] == (
        [1, 0, 0, 1]
    )
    assert 0 < model[3].bias.abs().max() <= 1 / math.sqrt(128)


def test_a_draw_is_a_function_of_seed_generation_epoch_and_name():
    assert torch.equal(drawn(), drawn())
    others = [drawn(seed=2), drawn(generation=2), drawn(epoch=3)]
    assert not any(torch.equal(drawn(), other) for other in others)
    later = apply(network(), Mix(Scope("3"), Source("zero")), Mix(Scope(), Source("draw", "he-normal")))
    assert not torch.equal(drawn(), later[0].weight)  # a second operator draws other numbers


@pytest.mark.parametrize("mask", [None, Mask("wels"), Mask("rows", count=9)], ids=["all", "wels", "rows"])
def test_every_dtype_gets_the_same_draw(mask):
    draw = Mix(Scope(), Source("draw"), mask=mask)
    single, double = (apply(network(dtype), draw)[0].weight for dtype in (torch.float32, torch.float64))
    assert double.dtype == torch.float64 and torch.equal(double, single.double())


@pytest.mark.parametrize("anew", [False, True])
def test_a_mask_is_the_same_or_another_one_in_the_next_generation(anew):
    zero = Mix(Scope(), Source("zero"), mask=Mask("wels", 0.3, anew))
    first, second = (apply(network(), zero, generation=g)[0].weight == 0 for g in (1, 2))
    assert first.float().mean().item() == pytest.approx(0.3, abs=0.01)
    assert torch.equal(first, second) is not anew


def test_the_lowest_of_equal_scores_are_the_first():
    found = lowest({"a": torch.tensor([1.0, 0.0, 0.0]), "b": torch.tensor([[0.0, 2.0]])}, 0.4)
    assert found["a"].tolist() == [False, True, True] and found["b"].tolist() == [[False, False]]
    assert not lowest({"a": torch.ones(3)}, 0.0)["a"].any() and lowest({"a": torch.ones(3)}, 1.0)["a"].all()


def test_dnr_scores_augmented_batches_and_dash_the_images_themselves():
    asked = []
    for operator in (Mix(Scope(), Source("zero"), mask=Mask("snip", 0.2, images=0.25)), Align(Scope(), batch=100)):
        model = network()
        Forgetting(model, order_of(model), 0, {}, lambda *how: iter(asked.append(how) or ())).apply([operator], 1, 0)
    assert asked == [(None, 0.25, True), (100, 1.0, False)]


@pytest.mark.parametrize("shape", [(24, 16, 3, 3), (16, 24), (24, 16)], ids=str)
def test_many_iterations_reach_the_polar_factor(shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    result, taps = orthogonalise(weight, 40), weight[0, 0].numel()
    for tap, out in zip(
        weight.flatten(2).unbind(-1) if taps > 1 else [weight],
        result.flatten(2).unbind(-1) if taps > 1 else [result],
        strict=True,
    ):
        u, _, v = torch.linalg.svd(tap, full_matrices=False)
        torch.testing.assert_close(out, u @ v * math.sqrt(shape[0] / shape[1]) / taps, rtol=1e-9, atol=1e-9)


def test_a_scope_that_holds_nothing_ends_in_one_sentence():
    bare = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    phase = Phase("p", 1, rules(all=Rule()), enter=(Mix(Scope(parts=("norm",)), Source("zero")),))
    with pytest.raises(UsageError, match="generation 0, phase p: norm <- zero: the network has no norm there"):
        check_scopes(Timeline("t", ((phase,),), 0.1), bare, order_of(bare))
    with pytest.raises(UsageError, match="what: layer9: the model has no such layer; use one of 0, 2"):
        select(leaves(bare, order_of(bare)), order_of(bare), Scope("layer9"), "what")
    phase = Phase("p", 1, rules(all=Rule()), enter=(Orthogonalise(Scope("2")),), hold=Scope("0", "2"))
    check_scopes(Timeline("t", ((phase,),), 0.1), bare, order_of(bare))
