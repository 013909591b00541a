"""A network whose channels were permuted is the same network, and is recovered."""

import json

import pytest
import torch
from safetensors.torch import save_file
from small_resnet import build_by_name
from torch import nn

from seal_fast.__main__ import main
from seal_fast.analysis.barrier.align import channel_axes, matched, permuted


def trained(name, seed):
    """A network of width 8 whose BatchNorms have weights and statistics of their own."""
    model, draw = build_by_name(name, 4, "small", seed), torch.Generator().manual_seed(seed)
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            tensor.data.copy_(torch.rand(tensor.shape, generator=draw) + 0.5)
    return model.eval()


def shuffled(model, seed):
    """Its state with every group of channels in a random order, and these orders."""
    axes, state, draw = channel_axes(model), model.state_dict(), torch.Generator().manual_seed(seed)
    sizes = {group: len(state[n].movedim(i, 0)) for n, of in axes.items() for i, group in enumerate(of) if group}
    orders = {group: torch.randperm(size, generator=draw) for group, size in sizes.items()}
    return permuted(state, axes, orders), orders


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_permuted_network_computes_the_same_and_is_recovered(name):
    model = trained(name, 1).double()
    state, orders = shuffled(model, 2)
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = model(images).detach()
    kept = {key: value.clone() for key, value in model.state_dict().items()}
    assert not torch.equal(state["layer3.1.conv1.weight"], kept["layer3.1.conv1.weight"])
    model.load_state_dict(state)
    torch.testing.assert_close(model(images).detach(), expected, rtol=1e-10, atol=1e-10)
    axes = channel_axes(model)
    found = matched(dict(model.named_parameters()), kept, axes)
    assert all(torch.equal(orders[group][order], torch.arange(len(order))) for group, order in found.items())
    back = permuted(model.state_dict(), axes, found)
    assert all(torch.equal(back[key], kept[key]) for key in kept)


def test_the_command_finds_no_barrier_to_a_permuted_copy(image_folder, tmp_path, capsys):
    model = trained("resnet18", 3)
    save_file(model.state_dict(), tmp_path / "one.safetensors")
    save_file(shuffled(model, 4)[0], tmp_path / "other.safetensors")
    argv = ["barrier", *(str(tmp_path / f"{name}.safetensors") for name in ("one", "other")), "--stem", "small"]
    argv += f"--data {image_folder} --image-size 16 --images 8 --batch-size 8 --points 3 --json".split()
    spread = {}
    for flag in ([], ["--align"]):
        assert main([*argv, *flag]) == 0
        result = json.loads(capsys.readouterr().out)[0]
        losses = result["lines"][0]["splits"]["train"]["loss"]
        spread[bool(flag)] = max(losses) - min(losses)
        assert result["protocol"].get("aligned") == ("by weight matching" if flag else None)
    assert spread[False] > 1e-2 and spread[True] < 1e-5
    assert result["figures"]["to other groups, train"]["loss barrier"]["mean"] < 1e-5
    for seed, name in enumerate(("one", "other")):
        save_file(trained("wrn-10-8", seed).state_dict(), tmp_path / f"{name}.safetensors")
    assert main([*argv, "--model", "wrn-10-8", "--align"]) == 1
    assert "--align: one is of wrn-10-8; it knows resnet18, -34 and -50" in capsys.readouterr().err
