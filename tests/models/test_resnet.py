"""The ResNets against torchvision's known facts and an independent float64 forward written from the paper."""

import math
import struct

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from seal_fast import models
from seal_fast.utils.errors import UsageError

# (blocks a layer, convolutions a block, expansion, parameters at 1000 classes as torchvision documents them)
FACTS = {
    "resnet18": ((2, 2, 2, 2), 2, 1, 11_689_512),
    "resnet34": ((3, 4, 6, 3), 2, 1, 21_797_672),
    "resnet50": ((3, 4, 6, 3), 3, 4, 25_557_032),
}


def torchvision_shapes(name, num_classes):
    """State-dict names and shapes, in torchvision's order, worked out from the architecture's table."""
    depths, convs, expansion, _ = FACTS[name]
    shapes = {}

    def conv_norm(conv, norm, outputs, inputs, k):
        shapes[f"{conv}.weight"] = (outputs, inputs, k, k)
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{norm}.{part}"] = (outputs,)
        shapes[f"{norm}.num_batches_tracked"] = ()

    conv_norm("conv1", "bn1", 64, 3, 7)
    inputs = 64
    for layer, depth in enumerate(depths, 1):
        width = 32 * 2**layer
        outputs = width * expansion
        for i in range(depth):
            prefix = f"layer{layer}.{i}"
            kernels = (3, 3) if convs == 2 else (1, 3, 1)
            channels = [inputs] + [width] * (convs - 1) + [outputs]
            for j, k in enumerate(kernels, 1):
                conv_norm(f"{prefix}.conv{j}", f"{prefix}.bn{j}", channels[j], channels[j - 1], k)
            if i == 0 and (layer > 1 or expansion > 1):
                conv_norm(f"{prefix}.downsample.0", f"{prefix}.downsample.1", outputs, inputs, 1)
            inputs = outputs
    shapes["fc.weight"] = (num_classes, inputs)
    shapes["fc.bias"] = (num_classes,)
    return shapes


def oracle(name, state, x, stem, training):
    """The forward pass in float64 from the state dict alone, by F.conv2d and F.batch_norm."""
    depths, convs, expansion, _ = FACTS[name]
    s = {k: v.clone().double() for k, v in state.items()}

    def conv_norm(conv, norm, x, stride):
        w = s[f"{conv}.weight"]
        y = F.conv2d(x, w, stride=stride, padding=w.shape[-1] // 2)
        mean, var = (s[f"{norm}.running_mean"], s[f"{norm}.running_var"])
        return F.batch_norm(y, mean, var, s[f"{norm}.weight"], s[f"{norm}.bias"], training)

    x = F.relu(conv_norm("conv1", "bn1", x.double(), 2 if stem == "imagenet" else 1))
    if stem == "imagenet":
        x = F.max_pool2d(x, 3, 2, 1)
    for layer, depth in enumerate(depths, 1):
        for i in range(depth):
            p, stride, y = f"layer{layer}.{i}", 2 if layer > 1 and i == 0 else 1, x
            for j in range(1, convs + 1):
                here = stride if j == (1 if convs == 2 else 2) else 1
                y = conv_norm(f"{p}.conv{j}", f"{p}.bn{j}", y, here)
                y = F.relu(y) if j < convs else y
            if f"{p}.downsample.0.weight" in s:
                x = conv_norm(f"{p}.downsample.0", f"{p}.downsample.1", x, stride)
            x = F.relu(x + y)
    return F.linear(x.mean((2, 3)), s["fc.weight"], s["fc.bias"]), s


@pytest.mark.parametrize("name", FACTS)
def test_names_shapes_and_counts_are_torchvisions(name):
    model = models.build(name, 1000)
    assert sum(p.numel() for p in model.parameters()) == FACTS[name][3]
    assert {k: tuple(v.shape) for k, v in model.state_dict().items()} == torchvision_shapes(name, 1000)
    assert list(model.state_dict()) == list(torchvision_shapes(name, 1000))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("stem", ["imagenet", "small"])
@pytest.mark.parametrize("name", FACTS)
def test_forward_in_float64(name, stem, training):
    model = models.build(name, 7, stem, seed=3, width=0.125).double().train(training)
    for norm in (m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)  # not the identity, so that a swapped norm shows
        torch.nn.init.uniform_(norm.bias, -0.2, 0.2)
        torch.nn.init.uniform_(norm.running_var, 0.5, 1.5)
    x = torch.randn(4, 3, 16, 16, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    expected, after = oracle(name, before, x, stem, training)
    torch.testing.assert_close(model(x), expected, rtol=1e-9, atol=1e-9)
    for key, value in model.state_dict().items():
        if key.endswith("num_batches_tracked"):
            assert value == before[key] + training
        else:
            torch.testing.assert_close(value, after[key], rtol=1e-9, atol=1e-9)


def test_stems_and_blocks():
    x = torch.randn(2, 3, 32, 32)
    for stem, size in (("imagenet", 8), ("small", 32)):
        model = models.build("resnet18", 5, stem).eval()
        maps = model.stem(x)
        assert [name for name, _ in model.blocks()] == [f"layer{k}.{i}" for k in (1, 2, 3, 4) for i in (0, 1)]
        assert maps.shape == (2, 64, size, size)
        for _, block in model.blocks():
            maps = block(maps)
        assert maps.shape == (2, 512, size // 8, size // 8)
        torch.testing.assert_close(model.fc(maps.mean((2, 3))), model(x))
    assert model.conv1.weight.shape == (64, 3, 3, 3)


def test_initial_weights():
    model = models.build("resnet50", 200, seed=11)
    for name, p in model.named_parameters():
        if p.ndim > 1:
            std, n = math.sqrt(2 / p[0].numel()), p.numel()
            # Five standard errors: of the mean of n normals, and of their standard deviation.
            assert abs(p.mean()) < 5 * std / math.sqrt(n), name
            assert abs(p.std() - std) < 5 * std / math.sqrt(2 * n), name
            assert abs((p.abs() > 2 * std).float().mean() - 0.0455) < 5 * math.sqrt(0.0455 / n) + 1e-9, name
        elif name == "fc.bias":
            assert p.abs().max() <= 1 / math.sqrt(2048) and abs(p.std() * math.sqrt(2048 * 3) - 1) < 0.2
        else:
            assert (p == (1.0 if name.endswith("weight") else 0.0)).all()


def test_initial_weights_depend_on_seed_and_name_alone():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    a = models.build("resnet18", 10, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.randn(5)
    b, c = models.build("resnet18", 10, seed=1), models.build("resnet18", 10, seed=2)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.conv1.weight, c.conv1.weight)
    # The same name and shape in another network, another memory format and another dtype draw the same numbers.
    assert torch.equal(models.build("resnet34", 10, seed=1).layer1[1].conv2.weight, a.layer1[1].conv2.weight)
    last = a.layer1[1].conv2.weight.detach().double().to(memory_format=torch.channels_last)
    assert torch.equal(models.he_normal_(torch.empty_like(last), 1, "layer1.1.conv2.weight"), last)
    assert not torch.equal(a.layer1[0].conv1.weight, a.layer1[0].conv2.weight)


def test_initial_weights_do_not_depend_on_the_dtype():
    single = models.build("resnet18", 10, seed=1)
    torch.set_default_dtype(torch.float64)
    try:
        double = models.build("resnet18", 10, seed=1)
    finally:
        torch.set_default_dtype(torch.float32)
    for p, q in zip(single.parameters(), double.parameters(), strict=True):
        assert q.dtype == torch.float64 and torch.equal(p.double(), q)


def test_weights_round_trip(tmp_path):
    path = tmp_path / "w.safetensors"
    source = models.build("resnet18", 10, seed=1)
    source(torch.randn(2, 3, 32, 32))
    save_file(source.state_dict(), path)
    target = models.build("resnet18", 10, seed=2).to(memory_format=torch.channels_last)
    models.load_weights(target, path)
    for name, value in target.state_dict().items():
        assert torch.equal(value, source.state_dict()[name]), name
    assert target.conv1.weight.is_contiguous(memory_format=torch.channels_last)


def test_weights_without_fc_or_counters(tmp_path):
    path = tmp_path / "w.safetensors"
    source = models.build("resnet18", 10, seed=1)
    state = source.state_dict()
    save_file({k: v for k, v in state.items() if not k.startswith("fc.")}, path)
    target = models.build("resnet18", 5, seed=2)
    fresh = target.fc.weight.clone()
    models.load_weights(target, path)
    assert torch.equal(target.conv1.weight, source.conv1.weight) and torch.equal(target.fc.weight, fresh)
    save_file({k: v for k, v in state.items() if "num_batches" not in k}, path)
    models.load_weights(models.build("resnet18", 10), path)
    models.load_weights(target, path, fc=False)
    assert torch.equal(target.fc.weight, fresh)


def test_wrong_weights_are_refused_in_a_sentence(tmp_path):
    path = tmp_path / "w.safetensors"
    model = models.build("resnet18", 200)
    save_file(models.build("resnet18", 1000).state_dict(), path)
    with pytest.raises(UsageError, match=r"1000 classes, the model has 200: .*--no-init-fc"):
        models.load_weights(model, path)
    save_file(models.build("resnet50", 200).state_dict(), path)
    with pytest.raises(UsageError, match=r"another architecture .*--model"):
        models.load_weights(model, path)
    save_file(models.build("resnet18", 200, "small").state_dict(), path)
    with pytest.raises(UsageError, match=r"another stem: its conv1.weight is 64x3x3x3.*--stem"):
        models.load_weights(model, path)
    path.write_bytes(struct.pack("<Q", 1 << 40) + b"not a header")
    with pytest.raises(UsageError, match="not a readable safetensors file"):
        models.load_weights(model, path)
    with pytest.raises(UsageError, match="no such file"):
        models.load_weights(model, tmp_path / "none.safetensors")


def test_unknown_names():
    with pytest.raises(UsageError, match="--model vgg: no network has that name; choose one of"):
        models.build("vgg", 10)
    with pytest.raises(UsageError, match="unknown stem 'tiny'"):
        models.build("resnet18", 10, "tiny")  # pyright: ignore


def test_torch_func_sees_through_the_kernels():
    """A Hessian product by torch.func equals double backward, though the kernels' own formulas take no part in it."""
    torch.manual_seed(0)
    model = models.build("resnet18", 3).to(memory_format=torch.channels_last).eval()
    x = torch.randn(2, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    y = torch.tensor([0, 2])
    weights = dict(model.named_parameters())
    v = {name: torch.randn_like(p) for name, p in weights.items()}

    def loss(parameters):
        return F.cross_entropy(torch.func.functional_call(model, parameters, (x,)), y)

    detached = {name: p.detach() for name, p in weights.items()}
    _, product = torch.func.jvp(torch.func.grad(loss), (detached,), (v,))
    gradient = torch.autograd.grad(loss(weights), list(weights.values()), create_graph=True)
    truth = torch.autograd.grad(gradient, list(weights.values()), grad_outputs=list(v.values()))
    for (name, ours), theirs in zip(product.items(), truth, strict=True):
        assert (ours - theirs).norm() <= 1e-2 * theirs.norm(), name  # float32: the softmax is nearly saturated
