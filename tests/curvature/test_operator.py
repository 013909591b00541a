import copy

import pytest
import torch
from dense import dense_hessian, images, resnet, smoothed
from torch import nn

from seal_fast.curvature import HessianOperator, lanczos, power
from seal_fast.data import open_images
from seal_fast.data.batches import batches, choose
from seal_fast.models.order import group_names
from seal_fast.utils.errors import RunError, UsageError


def eye(n):
    return torch.eye(n, dtype=torch.float64)


class Mlp(nn.Sequential):
    def __init__(self):
        torch.manual_seed(0)
        super().__init__(nn.Flatten(), nn.Linear(12, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))
        self.double().eval()


class BatchStatistics(nn.Module):
    """BatchNorm in train mode, written out; torch.func's own of it is not symmetric."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(6).double()), nn.Parameter(torch.zeros(6).double())

    def forward(self, x):
        return (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt() * self.weight + self.bias


def split(x, y, *sizes):
    return list(zip(x.split(sizes), y.split(sizes), strict=True))


def test_every_eigenvalue_of_a_resnet():
    """One network whole: the operator's matrix, both ends of its spectrum by both solvers, in float64."""
    x, y = images()
    model = resnet()
    truth = dense_hessian(model, smoothed, [(x, y)])
    operator = HessianOperator(model, smoothed, split(x, y, 5, 4, 3))
    assert operator.method == "R-operator" and operator.images == 12
    n = operator.shape[0]
    found = torch.cat([operator @ part.T for part in eye(n).split(100)], 1)
    assert operator.hvps == n
    torch.testing.assert_close(found, truth, rtol=0, atol=1e-12 * float(truth.abs().max()))
    values = torch.linalg.eigvalsh(truth)
    assert float(values[0]) < -0.01 and float(values[-1]) > 1  # indefinite, and mostly near zero
    by_lanczos = lanczos(operator, 5, 2, tol=1e-9)
    assert by_lanczos.top.values == pytest.approx(values.flip(0)[:5].tolist(), rel=1e-7)
    assert by_lanczos.bottom.values == pytest.approx(values[:2].tolist(), rel=1e-7)
    assert power(operator, 3, tol=1e-6).top.values == pytest.approx(values.flip(0)[:3].tolist(), rel=1e-5)


@pytest.mark.parametrize("batchnorm", ["eval", "train"])
def test_any_model_by_double_backward(batchnorm):
    x = torch.randn(9, 3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.arange(9) % 3
    model = Mlp()
    before = {name: b.clone() for name, b in model.named_buffers()}
    parts = split(x, y, 5, 4)
    operator = HessianOperator(model, smoothed, parts, batchnorm=batchnorm)
    assert operator.method == "double backward" and not model.training and not model[2].training
    assert all(torch.equal(b, before[name]) for name, b in model.named_buffers())
    if batchnorm == "train":
        model[2] = BatchStatistics()
    truth = dense_hessian(model, smoothed, parts)
    torch.testing.assert_close(operator @ eye(operator.shape[0]), truth, rtol=1e-10, atol=1e-12)
    whole = HessianOperator(Mlp(), smoothed, [(x, y)], batchnorm=batchnorm) @ eye(operator.shape[0])
    assert torch.allclose(whole, truth, atol=1e-9) == (batchnorm == "eval")  # train mode depends on the split


def test_train_mode_of_a_resnet_leaves_it_alone():
    model = resnet()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    operator = HessianOperator(model, smoothed, [images()], batchnorm="train")
    other = HessianOperator(model, smoothed, [images()])
    assert operator.method == "double backward"
    v = torch.randn(operator.shape[0], generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(operator @ v, other @ v, rtol=1e-2)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items()) and not model.training


def test_the_cache_changes_nothing_but_what_is_read_again():
    class Batches(list):
        reads = 0

        def __iter__(self):
            Batches.reads += 1
            return super().__iter__()

    x, y = images()
    for model, pixels in ((resnet(), x), (Mlp(), x[..., :2, :2])):
        products = []
        for cache_bytes in (1 << 30, 100_000, 0):
            parts = Batches(split(pixels, y, 4, 4, 4))
            operator = HessianOperator(model, smoothed, parts, cache_bytes=cache_bytes)
            reads = Batches.reads
            products.append(operator @ torch.arange(operator.shape[0]).cos())
            assert Batches.reads - reads == (len(operator._cache) < 3) >= (cache_bytes == 0)
        torch.testing.assert_close(products[1], products[0], rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(products[2], products[0], rtol=1e-13, atol=1e-13)


def test_gradient_and_loss_are_of_all_images():
    x, y = images()
    model = resnet()
    loss = smoothed(model(x), y)
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
    for method in ("r-operator", "double-backward"):
        operator = HessianOperator(model, smoothed, split(x, y, 7, 5), method=method)
        assert operator.loss_value == pytest.approx(loss.item(), rel=1e-12)
        torch.testing.assert_close(operator.gradient, gradient, rtol=1e-10, atol=1e-12)


def test_scipy_takes_it():
    import numpy as np
    from scipy.sparse.linalg import eigsh

    operator = HessianOperator(Mlp(), smoothed, [(images()[0][..., :2, :2], images()[1])])
    dense = operator @ eye(operator.shape[0])
    outside = operator.to_scipy()
    assert outside.shape == operator.shape
    np.testing.assert_allclose(outside @ np.eye(operator.shape[0]), dense.numpy(), atol=1e-12)
    top = eigsh(outside, k=2, which="LA", return_eigenvectors=False)
    assert sorted(top) == pytest.approx(torch.linalg.eigvalsh(dense)[-2:].tolist(), rel=1e-8)


def test_a_quadratic_has_its_known_spectrum():
    """Least squares: the Hessian is 2 X^T X / N, whatever the weights; one direction is not seen at all."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(30, 8, generator=draw, dtype=torch.float64)
    x[:, 7] = x[:, 0]  # rank-deficient
    model = nn.Linear(8, 1, bias=False).double()
    operator = HessianOperator(model, lambda out, y: (out[:, 0] - y).square().mean(), [(x, torch.ones(30))])
    truth = torch.linalg.eigvalsh(2 * x.T @ x / 30)
    found = lanczos(operator, 7, 1, tol=1e-12)
    assert found.top.values == pytest.approx(truth.flip(0)[:7].tolist(), rel=1e-10)
    assert found.bottom.values == pytest.approx([0], abs=1e-12)


def test_groups_are_blocks_of_the_whole():
    model = resnet()
    early, late = group_names(model, "early"), group_names(model, "late")
    assert early + late == group_names(model, "all") == [n for n, _ in model.named_parameters()]
    assert early[-1].startswith("layer2") and group_names(model, "early", "layer2")[-1].startswith("layer1")
    assert group_names(model, "layer4.0") == [n for n in late if n.startswith("layer4.0.")]
    assert group_names(model, "fc.weight") == ["fc.weight"]
    names = group_names(model, "layer4.0")
    operator = HessianOperator(model, smoothed, [images()], names)
    truth = dense_hessian(model, smoothed, [images()], names)
    values = torch.linalg.eigvalsh(truth)
    assert lanczos(operator, 2, tol=1e-8).top.values == pytest.approx(values.flip(0)[:2].tolist(), rel=1e-7)
    for method in ("r-operator", "double-backward"):
        whole = HessianOperator(model, smoothed, [images()], method=method)
        before = whole @ torch.ones(whole.shape[0])
        part = whole.part(names)
        torch.testing.assert_close(part @ eye(len(truth))[:, :3], truth[:, :3], rtol=0, atol=1e-12 * float(values[-1]))
        torch.testing.assert_close(part.gradient, operator.gradient, rtol=1e-10, atol=1e-14)
        assert part.shape == truth.shape and part.hvps == 3 and whole.hvps == 1
        torch.testing.assert_close(whole @ torch.ones(whole.shape[0]), before, rtol=1e-12, atol=1e-14)
    with pytest.raises(UsageError, match="--group layer9: the model has no such layer; choose all, early"):
        group_names(model, "layer9")
    with pytest.raises(UsageError, match="that layer has no parameters"):
        group_names(Mlp(), "0")


def test_what_cannot_be_is_said():
    model, batch = resnet(), images()
    with pytest.raises(UsageError, match="no images"):
        HessianOperator(model, smoothed, [])
    with pytest.raises(UsageError, match="read only once"):
        HessianOperator(model, smoothed, iter([batch]))
    with pytest.raises(UsageError, match="no parameter called conv7"):
        HessianOperator(model, smoothed, [batch], ["conv7"])
    with pytest.raises(UsageError, match="no parameters was asked for"):
        HessianOperator(model, smoothed, [batch], [])
    with pytest.raises(UsageError, match="R-operator is for"):
        HessianOperator(Mlp(), smoothed, [batch], method="r-operator")
    with pytest.raises(ValueError, match="columns of as many"):
        HessianOperator(model, smoothed, [batch]) @ torch.zeros(3)
    operator = HessianOperator(model, smoothed, [batch])
    with pytest.raises(RunError, match="NaN or infinite"):
        operator @ torch.full((operator.shape[0],), float("nan"))
    with torch.no_grad():
        model.fc.weight.fill_(float("nan"))
    with pytest.raises(RunError, match="these weights have diverged"):
        HessianOperator(model, smoothed, [batch])


@pytest.fixture(scope="module")
def trained():
    """A ResNet-18 of width 8 on digits, trained in float64 so that every processor gets the same, and 128 images."""
    found = open_images("digits")
    chosen = choose(found, "train", 512, spread=True)
    x, y = next(iter(batches(found, chosen, image_size=8, batch_size=512, dtype=torch.float64)))
    model = resnet(depths=(2, 2, 2, 2), width=8, classes=10)
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.01, momentum=0.9)
    for step in range(1, 25):
        rows = torch.arange(64) + 64 * (step % 8)
        optimizer.zero_grad()
        smoothed(model(x[rows]), y[rows]).backward()
        optimizer.step()
    return model.eval(), x[:128], y[:128]


@pytest.fixture(scope="module")
def exact(trained):
    """Both ends of the spectrum in float64."""
    model, x, y = trained
    return lanczos(HessianOperator(model, smoothed, [(x, y)]), 5, 1, tol=1e-5)


@pytest.mark.parametrize(("top", "bottom", "limit"), [(1, 0, 6), (5, 0, 18), (0, 1, 24)])
def test_products_for_a_thousandth(trained, exact, top, bottom, limit):
    """Within 1e-3 of the same network's values in float64, asked for at 1e-6."""
    model, x, y = trained
    operator = HessianOperator(copy.deepcopy(model).float(), smoothed, [(x.float(), y)])
    start = None if bottom else operator.gradient if top == 1 else operator.outlying()
    result = lanczos(operator, top, bottom, start=start)
    assert result.hvps <= limit
    assert result.top.values == pytest.approx(exact.top.values[:top], rel=1e-3)
    assert result.bottom.values == pytest.approx(exact.bottom.values[:bottom], rel=1e-3)


def test_float32_is_full_float32():
    """Training allows TF32 on a GPU; a product turns it off and restores the setting."""
    seen = set()

    def loss(output, labels):
        seen.add((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))
        return nn.functional.cross_entropy(output, labels)

    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high")
    try:
        x, y = images()
        operator = HessianOperator(Mlp().float(), loss, [(x.float().flatten(1)[:, :12], y)], cache_bytes=0)
        operator @ torch.ones(operator.shape[0])
        assert seen == {("highest", False)}
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before[0])
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before


@pytest.mark.parametrize("cache_bytes", [0, 1 << 30])
def test_outlying_is_a_random_direction_of_the_gauss_newton_matrix(cache_bytes):
    """J^T A xi, by autograd in one batch; the operator's batches, kept or not, do not matter."""
    x, y = images()
    model, names = resnet(width=2), ["conv1.weight", "bn1.bias", "layer3.0.downsample.1.weight", "fc.weight", "fc.bias"]
    operator = HessianOperator(model, smoothed, split(x, y, 7, 5), names, cache_bytes=cache_bytes)
    xi = torch.randn(3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    logits = model(x)
    (slope,) = torch.autograd.grad(smoothed(logits, y), logits, create_graph=True)
    (curved,) = torch.autograd.grad(slope, logits, xi.expand(12, 3), retain_graph=True)
    leaves = [dict(model.named_parameters())[name] for name in names]
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(logits, leaves, curved)])
    torch.testing.assert_close(operator.outlying(5), expected, rtol=1e-11, atol=1e-13)
    plain = HessianOperator(model, smoothed, [(x, y)], names, method="double-backward")
    assert torch.equal(plain.outlying(), plain.gradient)
