"""Models and batches as people have them: dropout, attention, labels in a dict, loaders that shuffle, weight norm."""

import pytest
import torch
import torch.nn.functional as F
from dense import images, resnet, smoothed, with_spectrum
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from seal_fast.curvature import HessianOperator, density, lanczos, power, ritz
from seal_fast.utils.errors import RunError, UsageError


def features(count=9):
    x = torch.randn(count, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x, torch.arange(count) % 3


def network(*middle):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 6), nn.Tanh(), *middle, nn.Linear(6, 3)).double()


def matrix(operator):
    return operator @ torch.eye(operator.shape[0], dtype=torch.float64)


@pytest.mark.parametrize("cache_bytes", [0, 1 << 30])
@pytest.mark.parametrize("batchnorm", ["eval", "train"])
def test_dropout_is_off_and_every_mode_is_restored(cache_bytes, batchnorm):
    x, y = features()
    model = network(nn.Dropout(0.5), nn.BatchNorm1d(6).double())
    model.train()
    model[3].eval()
    operator = HessianOperator(model, smoothed, [(x, y)], batchnorm=batchnorm, cache_bytes=cache_bytes)
    assert [module.training for module in model] == [True, True, True, False, True] and model.training
    without = network(nn.Identity(), nn.BatchNorm1d(6).double()).eval()
    truth = HessianOperator(without, smoothed, [(x, y)], batchnorm=batchnorm)
    torch.testing.assert_close(matrix(operator), matrix(truth), rtol=1e-12, atol=1e-14)

    def fail(output, labels):
        raise RuntimeError("no loss")

    with pytest.raises(RuntimeError, match="no loss"):
        HessianOperator(model, fail, [(x, y)])
    assert [module.training for module in model] == [True, True, True, False, True] and model.training


@pytest.mark.parametrize("labels", [lambda y: {"class": y, "weight": y}, lambda y: (y, y)], ids=["dict", "tuple"])
@pytest.mark.parametrize("method", ["r-operator", "double-backward"])
def test_images_are_counted_from_images(labels, method):
    def loss(logits, labels):
        return smoothed(logits, labels["class"] if isinstance(labels, dict) else labels[0])

    x, y = images()
    parts = [(x[:7], y[:7]), (x[7:], y[7:])]
    found = HessianOperator(resnet(), loss, [(x, labels(y)) for x, y in parts], ["fc.weight"], method=method)
    truth = HessianOperator(resnet(), smoothed, parts, ["fc.weight"], method=method)
    assert found.images == 12 and found.loss_value == pytest.approx(truth.loss_value, rel=1e-14)
    torch.testing.assert_close(matrix(found), matrix(truth), rtol=1e-12, atol=1e-14)


def test_images_may_be_a_dict():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network()

        def forward(self, images):
            return self.inner(images["pixels"])

    x, y = features()
    operator = HessianOperator(Named(), smoothed, [({"pixels": x[:5]}, y[:5]), ({"pixels": x[5:]}, y[5:])])
    truth = HessianOperator(network(), smoothed, [(x, y)])
    assert operator.images == 9
    torch.testing.assert_close(matrix(operator), matrix(truth), rtol=1e-11, atol=1e-13)


def test_a_loader_that_shuffles_is_refused():
    x, y = images()
    loader = DataLoader(TensorDataset(x, y), batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(0))
    whole = HessianOperator(resnet(), smoothed, loader)
    operator = HessianOperator(resnet(), smoothed, loader, cache_bytes=whole._cache[0].nbytes * 3 // 2)
    assert len(operator._cache) == 1
    with pytest.raises(
        UsageError, match=r"the loss of batch \d was .*a loader that shuffles or augments\? pass a list"
    ):
        operator @ torch.ones(operator.shape[0])


def test_a_batch_that_goes_or_comes_is_refused():
    x, y = features()
    for count in (1, 3):
        parts = [(x[:3], y[:3]), (x[3:6], y[3:6])]
        operator = HessianOperator(network(), smoothed, parts, cache_bytes=0)
        parts[:] = [(x[:3], y[:3]), (x[3:6], y[3:6]), (x[6:], y[6:])][:count]
        with pytest.raises(UsageError, match=f"the loss of batch {min(count, 2)} was"):
            operator @ torch.ones(operator.shape[0])


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.TransformerEncoderLayer(12, 2, 8, dropout=0.3, batch_first=True, dtype=torch.float64)
        self.head = nn.Linear(12, 3, dtype=torch.float64)

    def forward(self, x):
        return self.head(self.layer(x).mean(1))


def test_attention_has_its_hessian():
    """Fused attention has no second derivative; checked by differences of the gradient."""
    x = torch.randn(5, 4, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y, model = torch.arange(5) % 3, Attention().train()
    operator = HessianOperator(model, smoothed, [(x, y)])
    v = torch.randn(operator.shape[0], generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert model.training
    steps, model = {}, model.eval()
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    for sign in (1, -1):
        nn.utils.vector_to_parameters(flat + sign * 1e-5 * v, model.parameters())
        steps[sign] = HessianOperator(model, smoothed, [(x, y)]).gradient
    truth = (steps[1] - steps[-1]) / 2e-5
    assert float((operator @ v - truth).norm()) < 1e-6 * float(truth.norm())


def weight_normed():
    model = network()
    nn.utils.parametrizations.weight_norm(model[0])
    return model


@pytest.mark.parametrize("solve", [lanczos, power, density])
def test_a_wrong_second_derivative_is_refused(solve):
    """torch's own of parametrised weight norm is not symmetric."""
    operator = HessianOperator(weight_normed(), smoothed, [features()])
    found = matrix(operator)
    assert float((found - found.T).norm()) > 0.01 * float(found.norm())
    with pytest.raises(RunError, match=r"not symmetric .* parametrized weight_norm"):
        solve(operator)


@pytest.mark.parametrize("solve", [lanczos, power, density])
def test_one_percent_of_asymmetry_is_refused(solve):
    operator = with_spectrum([20.0, 10, -5] + torch.linspace(-1, 2, 77).tolist())
    draw = torch.Generator().manual_seed(0)
    skew = torch.randn(80, 80, generator=draw, dtype=torch.float64)
    skew -= skew.T.clone()
    operator.matrix = operator.matrix + 0.01 * 20 * skew / torch.linalg.matrix_norm(skew, 2)
    with pytest.raises(RunError, match="not symmetric"):
        solve(operator)


@pytest.mark.parametrize(("dtype", "largest"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=str)
def test_rounding_is_far_below_the_threshold(dtype, largest, monkeypatch):
    """Also after restarts, in closed spaces, and at a minimum where the gradient cancels."""
    seen = []

    def check(forward, backward, scale, given):
        assert given == dtype
        seen.append(float((forward - backward).abs().max()) / scale if len(forward) else 0.0)

    monkeypatch.setattr(ritz, "check_symmetry", check)
    x, y = images(12, dtype=dtype)
    operator = HessianOperator(resnet(width=8, dtype=dtype), smoothed, [(x, y)])
    lanczos(operator, 2, 1, tol=1e-4, basis=12)
    density(operator, 1, 25)
    power(operator, 2, tol=1e-2)
    minimum = HessianOperator(
        network().to(dtype), lambda out, y: F.mse_loss(out, out.detach() * 1.0001), [features_of(dtype)]
    )
    density(minimum, 1, 30)
    assert len(seen) > 60 and max(seen) < largest


def features_of(dtype):
    x, y = features()
    return x.to(dtype), y
