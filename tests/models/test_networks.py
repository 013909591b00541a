"""The registered networks beside the ResNets: parameter counts of the papers, and literal float64 forward passes."""

import math

import pytest
import torch
import torch.nn.functional as F

from seal_fast import models
from seal_fast.networks import parse
from seal_fast.utils.errors import UsageError

# Parameters at so many classes. WRN and DenseNet-BC: as their papers round them (36.5M, 0.8M); 121, 169 and ConvNeXt:
# torchvision; VGG-16 for CIFAR with 4,224 biases of convolutions less; ViT: DeiT-Ti's 5,717,416 without its positions
# and class token (198 x 192).
COUNTS = {
    "wrn-28-10": (10, 36_479_194),
    "densenet-bc-100-12": (10, 769_162),
    "densenet121": (1000, 7_978_856),
    "densenet169": (1000, 14_149_480),
    "vgg16-bn": (10, 14_728_266 - 4_224),
    "convnext-tiny": (1000, 28_589_128),
    "vit-tiny": (1000, 5_717_416 - 198 * 192),
}


def bn(s, name, x, training):
    mean, var = s[f"{name}.running_mean"], s[f"{name}.running_var"]
    return F.relu(F.batch_norm(x, mean, var, s[f"{name}.weight"], s[f"{name}.bias"], training))


def conv(s, name, x, stride=1):
    weight = s[f"{name}.weight"]
    return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)


def linear(s, name, x):
    return F.linear(x, s[f"{name}.weight"], s[f"{name}.bias"])


def layer_norm(s, name, x):
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
    return x * s[f"{name}.weight"] + s[f"{name}.bias"]


def wide(s, x, training, depth=1):
    x = conv(s, "conv1", x)
    for layer in (1, 2, 3):
        for i in range(depth):
            p, stride = f"layer{layer}.{i}", 2 if layer > 1 and i == 0 else 1
            y = bn(s, f"{p}.bn1", x, training)
            x = conv(s, f"{p}.shortcut", y, stride) if f"{p}.shortcut.weight" in s else x
            x = x + conv(s, f"{p}.conv2", bn(s, f"{p}.bn2", conv(s, f"{p}.conv1", y, stride), training))
    return linear(s, "fc", bn(s, "bn", x, training).mean((2, 3)))


def dense(s, x, training, depths, stem=None):
    x = conv(s, "conv1", x, 2 if stem == "imagenet" else 1)
    if stem:
        x = bn(s, "bn1", x, training)
    if stem == "imagenet":
        x = F.max_pool2d(x, 3, 2, 1)
    for layer, depth in enumerate(depths, 1):
        if layer > 1:
            p = f"transition{layer - 1}"
            x = F.avg_pool2d(conv(s, f"{p}.conv", bn(s, f"{p}.bn", x, training)), 2)
        for i in range(depth):
            p = f"layer{layer}.{i}"
            y = conv(s, f"{p}.conv1", bn(s, f"{p}.bn1", x, training))
            x = torch.cat([x, conv(s, f"{p}.conv2", bn(s, f"{p}.bn2", y, training))], 1)
    return linear(s, "fc", bn(s, "bn", x, training).mean((2, 3)))


def vgg(s, x, training):
    for layer, depth in enumerate((2, 2, 3, 3, 3), 1):
        for i in range(depth):
            x = bn(s, f"layer{layer}.{i}.bn", conv(s, f"layer{layer}.{i}.conv", x), training)
        x = F.max_pool2d(x, 2)
    return linear(s, "fc", x.mean((2, 3)))


def convnext(s, x, _, patch=4):
    def norm(name, x):
        return layer_norm(s, name, x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    x = norm("down1.1", F.conv2d(x, s["down1.0.weight"], s["down1.0.bias"], patch))
    for layer, depth in enumerate((3, 3, 9, 3), 1):
        if layer > 1:
            x = F.conv2d(norm(f"down{layer}.0", x), s[f"down{layer}.1.weight"], s[f"down{layer}.1.bias"], 2)
        for i in range(depth):
            p = f"layer{layer}.{i}"
            y = F.conv2d(x, s[f"{p}.dwconv.weight"], s[f"{p}.dwconv.bias"], padding=3, groups=x.shape[1])
            y = layer_norm(s, f"{p}.norm", y.permute(0, 2, 3, 1))
            y = linear(s, f"{p}.linear2", F.gelu(linear(s, f"{p}.linear1", y))) * s[f"{p}.gamma"]
            x = x + y.permute(0, 3, 1, 2)
    return linear(s, "fc", layer_norm(s, "norm", x.mean((2, 3))))


def vit(s, x, _, patch=16, heads=1):
    x = F.conv2d(x, s["patches.weight"], s["patches.bias"], patch)
    n, c, height, width = x.shape
    table = torch.zeros(height * width, c, dtype=x.dtype)
    for row in range(height):
        for column in range(width):
            for k in range(c // 4):
                omega = 10000 ** (-k / (c // 4 - 1))
                values = (
                    math.sin(column * omega),
                    math.cos(column * omega),
                    math.sin(row * omega),
                    math.cos(row * omega),
                )
                for part, value in enumerate(values):
                    table[row * width + column, part * (c // 4) + k] = value
    x = x.flatten(2).mT + table
    for layer in (1, 2, 3, 4):
        for i in range(3):
            p = f"layer{layer}.{i}"
            y = layer_norm(s, f"{p}.norm1", x)
            parts = []
            for head in range(heads):
                own = slice(head * c // heads, (head + 1) * c // heads)
                q, k, v = (linear(s, f"{p}.attention.{name}", y)[..., own] for name in ("query", "key", "value"))
                parts.append((q @ k.mT / math.sqrt(c / heads)).softmax(-1) @ v)
            x = x + linear(s, f"{p}.attention.out", torch.cat(parts, -1))
            y = F.gelu(linear(s, f"{p}.linear1", layer_norm(s, f"{p}.norm2", x)), approximate="tanh")
            x = x + linear(s, f"{p}.linear2", y)
    return linear(s, "fc", layer_norm(s, "norm", x).mean(1))


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts_are_the_papers(name):
    classes, count = COUNTS[name]
    with torch.device("meta"):
        model = models.architecture(name, classes)
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    ("name", "stem", "width", "literal"),
    [
        ("wrn-16-2", "imagenet", 0.5, lambda *args: wide(*args, depth=2)),
        ("densenet-bc-16-8", "imagenet", 1.0, lambda *args: dense(*args, (2, 2, 2))),
        ("densenet121", "imagenet", 0.25, lambda *args: dense(*args, (6, 12, 24, 16), "imagenet")),
        ("densenet121", "small", 0.25, lambda *args: dense(*args, (6, 12, 24, 16), "small")),
        ("vgg16-bn", "small", 0.125, vgg),
        ("convnext-tiny", "imagenet", 0.125, convnext),
        ("convnext-tiny", "small", 0.125, lambda *args: convnext(*args, patch=2)),
        ("vit-tiny", "imagenet", 0.125, vit),
        ("vit-tiny", "small", 0.7, lambda *args: vit(*args, patch=4, heads=2)),
    ],
)
def test_outputs_are_a_literal_forward_pass(name, stem, width, literal, training):
    size = 16 if name == "vit-tiny" and stem == "small" else 32
    model = models.build(name, 7, stem, seed=3, width=width).double().train(training)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point() and tensor.ndim == 1:
                tensor.copy_(torch.rand(tensor.shape, generator=random, dtype=torch.float64) + 0.5)
        model.fc.weight.normal_(generator=random)
    x = torch.randn(3, 3, size, size, generator=random, dtype=torch.float64)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    truth = literal(state, x, training)
    torch.testing.assert_close(model(x), truth, rtol=1e-9, atol=1e-9)
    for key, value in model.state_dict().items():  # the running statistics moved as torch moves them
        if key.endswith("num_batches_tracked"):
            assert value == training
        else:
            torch.testing.assert_close(value, state[key], rtol=1e-9, atol=1e-9)


def test_initial_weights_are_the_papers():
    """Standard deviations, within five of their standard errors."""

    def check(p, std):
        assert abs(p.mean()) < 5 * std / math.sqrt(p.numel())
        assert abs(p.std() / std - 1) < 5 / math.sqrt(2 * p.numel())

    wrn = models.build("wrn-16-4", 10)
    check(wrn.layer2[0].conv1.weight, math.sqrt(2 / (128 * 9)))  # fan_out
    assert wrn.fc.weight.abs().max() <= 1 / 16 and wrn.fc.bias.abs().max() == 0
    convnext = models.build("convnext-tiny", 10)
    check(convnext.layer3[0].linear1.weight, 0.02)
    assert convnext.layer3[0].gamma.unique().tolist() == pytest.approx([1e-6])
    vit = models.build("vit-tiny", 10)
    check(vit.patches.weight, math.sqrt(1 / (3 * 16 * 16)))
    check(vit.layer1[0].linear1.weight, math.sqrt(6 / (5 * 192)) / math.sqrt(3))
    check(vit.layer1[0].linear1.bias, 1e-6)
    assert vit.fc.weight.abs().max() == 0
    vgg = models.build("vgg16-bn", 10)
    check(vgg.fc.weight, 0.01)
    for model in (wrn, convnext, vit, vgg):
        norms = [m for m in model.modules() if isinstance(m, (torch.nn.BatchNorm2d, torch.nn.LayerNorm))]
        assert norms and all((m.weight == 1).all() and (m.bias == 0).all() for m in norms)


def test_width_scales_every_network():
    for name in ("resnet50", "wrn-10-8", "densenet169", "vgg16-bn", "convnext-tiny", "vit-tiny"):
        with torch.device("meta"):
            full, half = (models.architecture(name, 10, width=width) for width in (1.0, 0.5))
        assert half.fc.in_features == pytest.approx(full.fc.in_features / 2, rel=0.1)
    assert models.build("resnet18", 10, width=0.5).conv1.weight.shape[0] == 32
    for width in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match=f"^--width {width:g}: must be a finite number above 0$"):
            models.build("resnet18", 10, width=width)


def test_a_network_that_cannot_be_trained_in_memory_is_refused_before_it_takes_any():
    with pytest.raises(
        UsageError, match=r"^--model resnet18 --width 100 has 111,[\d,]* parameters, whose weights, grad"
    ):
        models.build("resnet18", 10, width=100)


def test_names():
    assert parse("wrn-28-10").depths == (4, 4, 4) and parse("densenet-bc-100-12").depths == (16, 16, 16)
    blocks = [name for name, _ in models.architecture("wrn-16-1", 10).blocks()]
    assert (
        blocks == parse("wrn-16-1").blocks() == ["layer1.0", "layer1.1", "layer2.0", "layer2.1", "layer3.0", "layer3.1"]
    )
    for name in ("wrn-27-10", "wrn-28-0", "wrn-4-1", "wrn-28", "vit", "densenet-bc"):
        with pytest.raises(UsageError, match=f"^--model {name}: "):
            parse(name)
