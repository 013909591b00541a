import pytest
import torch
from dense import dense_hessian, images, resnet, smoothed

from seal_fast.curvature.double_backward import DoubleBackward
from seal_fast.curvature.r_operator.products import ROperator
from seal_fast.models.resnet import BasicBlock, Bottleneck


def directions(model, names, m):
    draw = torch.Generator().manual_seed(3)
    parameters = dict(model.named_parameters())
    return {n: torch.randn(m, *parameters[n].shape, generator=draw, dtype=torch.float64) for n in names}


def product(operator, batches, direction):
    return operator.multiply([operator.record(*batch) for batch in batches], direction)


def close(found, expected, tolerance=1e-12):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        scale = value.detach().abs().max().clamp(min=1e-3)
        torch.testing.assert_close(found[name], value, rtol=0, atol=float(tolerance * scale), msg=name)


@pytest.mark.parametrize("vectors", [1, 3])
@pytest.mark.parametrize("stem", ["imagenet", "small"])
@pytest.mark.parametrize(("block", "depths"), [(BasicBlock, (2, 2, 1, 1)), (Bottleneck, (1, 2, 1, 1))])
def test_equals_double_backward(block, depths, stem, vectors):
    """Every layer type: stem, max-pool, both blocks, identity and downsampling paths, pooling, linear layer, loss."""
    model = resnet(block, depths, stem, width=4)
    batches = [tuple(t[:5] for t in images(size=16)), tuple(t[5:] for t in images(size=16))]
    names = [name for name, _ in model.named_parameters()]
    direction = directions(model, names, vectors)
    fast, slow = ROperator(model, smoothed, names), DoubleBackward(model, smoothed, names)
    close(product(fast, batches, direction), product(slow, batches, direction))
    close(fast.gradient(), slow.gradient())


@pytest.mark.parametrize(
    "prefix", ["conv1", "bn1", "layer1.0.conv2", "layer2", "layer3.0.downsample.1", "layer3.0.conv1", "layer4", "fc"]
)
def test_blocks_of_some_parameters(prefix):
    """What a group leaves out is skipped, and what is left is the block of the whole."""
    model = resnet(depths=(1, 2, 1, 1), width=3)
    names = [name for name, _ in model.named_parameters() if name.startswith(prefix)]
    direction = directions(model, names, 2)
    found = product(ROperator(model, smoothed, names), [images()], direction)
    close(found, product(DoubleBackward(model, smoothed, names), [images()], direction))


def test_equals_the_dense_hessian_under_another_loss():
    def loss(logits, labels):
        return (logits.sigmoid() * torch.arange(3)).square().mean() + logits.exp().mean()

    model = resnet()
    names = [name for name, _ in model.named_parameters() if "layer3" in name or "bn1" in name]
    direction = directions(model, names, 2)
    found = torch.cat([p.flatten(1) for p in product(ROperator(model, loss, names), [images()], direction).values()], 1)
    flat = torch.cat([d.flatten(1) for d in direction.values()], 1)
    expected = 12 * flat @ dense_hessian(model, loss, [images()], names)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


def test_float32_is_as_precise_as_float32():
    names = [name for name, _ in resnet(width=16).named_parameters()]
    direction = directions(resnet(width=16), names, 1)
    double = product(ROperator(resnet(width=16), smoothed, names), [images()], direction)
    model = resnet(width=16, dtype=torch.float32)
    single = product(ROperator(model, smoothed, names), [images(dtype=torch.float32)], direction)
    difference = torch.cat([(single[n] - double[n]).detach().flatten() for n in names]).norm()
    assert difference < 1e-5 * torch.cat([double[n].detach().flatten() for n in names]).norm()


def test_recording_again_gives_the_same_products():
    model = resnet(width=2)
    names = [name for name, _ in model.named_parameters()]
    operator = ROperator(model, smoothed, names)
    operator.record(*images())
    gradient = {name: g.clone() for name, g in operator.gradient().items()}
    direction = directions(model, names, 1)
    found = [operator.multiply([operator.record(*images(), accumulate=False)], direction) for _ in range(2)]
    close(found[0], found[1], 0)
    close(operator.gradient(), gradient, 0)
    assert operator.record(*images(), accumulate=False).nbytes > 12 * 3 * 64 * 8
