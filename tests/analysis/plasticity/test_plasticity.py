import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from small_resnet import build_by_name

from seal_fast.__main__ import main
from seal_fast.analysis.plasticity.compute import dormant, effective_rank, per_image, reading, sign_changes
from seal_fast.data import open_images
from seal_fast.data.batches import batches


def test_figures_are_those_of_literal_numpy(folder, image_folder, tmp_path, capsys):
    out = tmp_path / "results"
    flags = ["--per-generation", "--images", "9", "--batch-size", "4", "--tau", "0.9", "--out", str(out)]
    assert main(["plasticity", str(folder), *flags]) == 0
    assert "plasticity on 9 training images" in capsys.readouterr().out
    results = json.loads((out / "plasticity.json").read_text())
    assert [r["stage"] for r in results] == ["generation-0", "generation-1-ascent", "generation-1"]
    assert {p.name for p in out.glob("*.png")} == {"plasticity.png", "plasticity_generations.png"}
    model = build_by_name("resnet18", 4, "small").double().eval()
    model.load_state_dict(load_file(folder / "weights" / "generation-1.safetensors"))
    images = open_images(image_folder)
    split = images.train.spread(12).spread(9)
    ((x, y),) = batches(images, split, image_size=results[0]["protocol"].get("image_size"), batch_size=9)
    idle = units = 0
    F.cross_entropy(model(x.double()), y, label_smoothing=0.1).backward()
    with torch.no_grad():
        x = model.stem(x.double())
        for name, block in model.blocks():
            x = block(x)
            maps = x.numpy()
            activity = np.abs(maps).mean((0, 2, 3))
            found = activity <= 0.9 * activity.mean()
            idle, units = idle + found.sum(), units + len(found)
            values = np.linalg.svd(maps.mean((2, 3)), compute_uv=False)
            shares = values / values.sum()
            shown = results[2]["figures"][name]
            assert shown["dormant units (%)"]["mean"] == pytest.approx(100 * found.mean())
            rank = np.exp(-(shares * np.log(shares)).sum())
            assert shown["effective rank"]["mean"] == pytest.approx(rank, rel=1e-4)  # the network ran in float32
    gradients = {name: p.grad for name, p in model.named_parameters()}
    states = [load_file(folder / "weights" / f"{r['stage']}.safetensors") for r in results]
    parts = {"stem": ("conv1.", "bn1."), **{name: (f"{name}.",) for name, _ in model.blocks()}, "head": ("fc.",)}
    assert list(results[2]["figures"]) == [*parts, "all layers"]
    for part, start in (parts | {"all layers": ("",)}).items():
        names = [name for name in gradients if name.startswith(start)]
        flat = torch.cat([gradients[name].flatten() for name in names])
        shown = {name: value["mean"] for name, value in results[2]["figures"][part].items()}
        assert shown["gradient norm"] == pytest.approx(float(flat.norm()), rel=1e-4)
        first, _, last = (np.sign(np.concatenate([state[name].numpy().ravel() for name in names])) for state in states)
        expected = 100 * float((first == -last).mean() - (first == 0).mean())
        for kind in ("from the start", "across a generation"):  # generation 0 is both
            assert shown[f"sign changes {kind} (%)"] == pytest.approx(expected)
    assert "sign changes across the ascent (%)" in results[1]["figures"]["head"]
    fc = results[2]["layers"]["fc"]
    assert fc["gradient norm"] == results[2]["figures"]["head"]["gradient norm"]["mean"]
    assert not any("sign" in name for name in results[0]["figures"]["all layers"])
    assert results[2]["figures"]["all layers"]["dormant units (%)"]["mean"] == pytest.approx(100 * idle / units)


def test_ranks_of_known_features():
    assert effective_rank(torch.eye(5)) == pytest.approx(5, rel=1e-12)
    assert effective_rank(torch.ones(6, 3)) == pytest.approx(1, abs=1e-12)
    assert effective_rank(torch.zeros(6, 3)) == 0
    assert effective_rank(torch.diag(torch.tensor([3.0, 1.0]))) == pytest.approx(4 / 3**0.75, rel=1e-12)


def test_units_of_maps_tokens_and_vectors():
    draw = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 3, 4, 5, generator=draw)
    for x in (maps, maps.flatten(2).mT):  # the same as tokens
        activity, features = per_image(x)
        torch.testing.assert_close(activity, maps.abs().mean((2, 3)))
        torch.testing.assert_close(features, maps.mean((2, 3)))
    vectors = torch.tensor([[1.0, -2.0]])
    assert [x.tolist() for x in per_image(vectors)] == [[[1, 2]], [[1, -2]]]
    assert dormant(torch.tensor([[0.0, 2, 4], [1, 2, 3]]), 0.25).tolist() == [True, False, False]  # 0.5, 2, 3.5 of 2
    assert dormant(torch.tensor([[0.0, 1]]), 0).tolist() == [True, False]


def test_sign_changes_are_of_entries_that_were_and_are_not_zero():
    before, after = torch.tensor([1.0, -1, 0, 2, -1e-30]), torch.tensor([-1.0, -2, 3, 0, 1e-30])
    assert sign_changes({"w": before}, {"w": after}, ["w"]) == pytest.approx(40)
    assert sign_changes({"w": before}, {"w": before}, ["w"]) == 0


def test_a_dead_network_is_dormant_and_hooks_are_gone(image_folder, tmp_path, capsys):
    model = build_by_name("resnet18", 4, "small")
    dead = {name: x.zero_() if x.is_floating_point() else x for name, x in model.state_dict().items()}
    save_file(dead, tmp_path / "dead.safetensors")
    flags = ["--data", str(image_folder), "--stem", "small", "--image-size", "16", "--json"]
    assert main(["plasticity", str(tmp_path / "dead.safetensors"), *flags]) == 0
    (result,) = json.loads(capsys.readouterr().out)
    for found in result["figures"].values():
        means = {name: value["mean"] for name, value in found.items()}
        assert means.get("dormant units (%)", 100) == 100 and means.get("effective rank", 0) == 0
    assert result["figures"]["layer1.0"]["gradient norm"]["mean"] == 0  # no gradient comes through
    assert result["figures"]["head"]["gradient norm"]["mean"] > 0  # the bias still has one
    modules = dict(model.blocks())
    with reading(modules) as found:
        model.eval()(torch.zeros(2, 3, 16, 16))
    assert found.keys() == modules.keys() and not found["layer1.0"][0][0].requires_grad
    assert not any(module._forward_hooks for module in modules.values())
    assert main(["plasticity", str(tmp_path / "dead.safetensors"), *flags, "--tau", "-1"]) == 2
