"""BatchNorm over processes against torch's on the whole batch, in float64: values, statistics and gradients."""

import pytest
import torch
from processes import together
from torch import nn

from seal_fast.distributed.world import joined
from seal_fast.models import synchronise_
from seal_fast.models.resnet import normalise

SIZES = (2, 5, 1)  # images of each process


def layer():
    torch.manual_seed(1)
    norm = nn.BatchNorm2d(3).double()
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        norm.bias.normal_()
    return norm


def batch():
    draw = torch.Generator().manual_seed(2)
    x, residual, out = (torch.randn(sum(SIZES), 3, 4, 2, generator=draw, dtype=torch.float64) for _ in range(3))
    return 1000 + x, residual, out  # far from zero: sums of squares would lose digits


def on_one_process():
    norm, (x, residual, out) = layer(), batch()
    x.requires_grad_()
    residual.requires_grad_()
    y = torch.relu(norm(x) + residual)
    y.backward(out)
    return y.detach(), x.grad, residual.grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var


def on_many():
    with joined(False, 30) as world:
        model = nn.Sequential(layer())
        order = [name for name, _ in model.named_parameters()]
        synchronise_(model)
        assert [name for name, _ in model.named_parameters()] == order
        norm = model[0]
        x, residual, out = (t.split(SIZES)[world.rank].clone() for t in batch())
        x.requires_grad_()
        residual.requires_grad_()
        y = normalise(norm, x, residual)
        y.backward(out)
        for gradient in (norm.weight.grad, norm.bias.grad):
            torch.distributed.all_reduce(gradient)
        shared = [t.tolist() for t in (norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var)]
        return [t.tolist() for t in (y.detach(), x.grad, residual.grad)] + shared


def test_it_equals_batchnorm_on_the_whole_batch():
    expected = on_one_process()
    answers = [[torch.tensor(t, dtype=torch.float64) for t in answer] for answer in together(3, on_many)]
    for i, whole in enumerate(expected):
        parts = whole.split(SIZES) if i < 3 else [whole] * 3
        for answer, part in zip(answers, parts, strict=True):
            torch.testing.assert_close(answer[i], part, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("training", [True, False])
def test_alone_it_is_batchnorm(training):
    """In evaluation, and where every process has the same whole batch."""
    from seal_fast.models.sync_batchnorm import Link, SyncBatchNorm2d

    x = batch()[0]
    plain, changed = layer().train(training), layer().train(training)
    changed.__class__ = SyncBatchNorm2d
    changed.link = Link(0, 3, connected=not training)
    assert torch.equal(normalise(plain, x), normalise(changed, x))
    assert torch.equal(plain.running_var, changed.running_var)
