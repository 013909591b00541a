import copy
import itertools
import json
import math
import shutil
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from small_resnet import build_by_name
from torch import nn
from torch.optim.swa_utils import update_bn

from seal_fast.__main__ import main
from seal_fast.analysis.barrier.command import Barrier
from seal_fast.analysis.barrier.compute import evaluate, height, line, plane, recompute_statistics
from seal_fast.data import open_images
from seal_fast.data.batches import batches
from seal_fast.utils.errors import UsageError


def network(seed):
    torch.manual_seed(seed)
    body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))
    return nn.Sequential(body, nn.Flatten(), nn.Dropout(0.5), nn.Linear(32, 4)).double().eval()


def shown(*sizes):
    draw = torch.Generator().manual_seed(1)
    return [
        (torch.randn(n, 3, 6, 6, generator=draw, dtype=torch.float64), torch.randint(4, (n,), generator=draw))
        for n in sizes
    ]


def test_a_line_is_that_of_literal_torch():
    first, last, train, val = network(0), network(1), shown(6, 6), shown(5, 3)
    found = line(copy.deepcopy(first), *map(weights, (first, last)), 5, train, {"train": train, "val": val})
    for i, share in enumerate((0, 0.25, 0.5, 0.75, 1)):
        between = copy.deepcopy(first)
        for p, a, b in zip(between.parameters(), first.parameters(), last.parameters(), strict=True):
            p.data = (1 - share) * a.data + share * b.data
        update_bn([images for images, _ in train], between.train())  # its dropout does not reach the statistics
        between.eval()
        for name, part in (("train", train), ("val", val)):
            images, labels = (torch.cat(x) for x in zip(*part, strict=True))
            logits = between(images).detach()
            assert found[name]["loss"][i] == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-12)
            assert found[name]["top1"][i] == pytest.approx(100 * float((logits.argmax(1) == labels).double().mean()))


def test_a_plane_holds_its_three_networks_and_literal_points():
    three, train, val = [network(seed) for seed in range(3)], shown(6, 6), shown(5)
    corners = [weights(model) for model in three]
    found = plane(copy.deepcopy(three[0]), corners, 3, train, {"val": val})
    flat = [torch.cat([p.flatten() for p in corner.values()]) for corner in corners]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        distance = math.dist(found["corners"][i], found["corners"][j])
        assert distance == pytest.approx(float(torch.dist(flat[i], flat[j])), rel=1e-12)
    (_, _), (wide, _), (over, high) = found["corners"]
    assert found["x"][0] == pytest.approx(min(0, over) - (max(wide, over) - min(0, over)) / 4)
    for row, column in ((0, 0), (1, 2)):
        y, x = found["y"][row], found["x"][column]
        b = y / high  # first + a (second - first) + b (third - first)
        a = x / wide - b * over / wide
        between = copy.deepcopy(three[0])
        for p, *ends in zip(between.parameters(), *(model.parameters() for model in three), strict=True):
            p.data = (1 - a - b) * ends[0].data + a * ends[1].data + b * ends[2].data
        update_bn([images for images, _ in train], between.train())
        logits, labels = between.eval()(val[0][0]).detach(), val[0][1]
        expected = float(F.cross_entropy(logits, labels))
        assert found["splits"]["val"]["loss"][3 * row + column] == pytest.approx(expected, rel=1e-10)
    with pytest.raises(UsageError, match="on one line"):
        plane(copy.deepcopy(three[0]), [corners[0], corners[1], corners[0]], 3, train, {"val": val})


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_statistics_are_means_over_images_and_modes_and_momenta_stay():
    model, train = network(0), shown(5, 2, 1)
    recompute_statistics(model, train)
    maps = [model[0][0](images) for images, _ in train[:2]]  # one image alone has no variance
    norm = model[0][1]
    expected = sum(len(x) * x.var((0, 2, 3)) for x in maps) / 7
    torch.testing.assert_close(norm.running_var, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(norm.running_mean, torch.cat(maps).mean((0, 2, 3)), rtol=1e-12, atol=1e-14)
    assert norm.momentum == 0.1 and not any(m.training for m in model.modules())


def test_heights():
    assert height([1.0, 4.0, 3.0]) == 2.0  # above the middle of 1 and 3
    assert height([1.0, 1.5, 3.0]) == 0.0
    assert height([0.3, 0.3, 0.3, 0.3]) == 0.0
    same = network(0)
    found = line(copy.deepcopy(same), weights(same), weights(same), 4, shown(6), {"val": shown(5)})
    assert height(found["val"]["loss"]) == 0 and len(set(found["val"]["loss"])) == 1
    same[3].bias.data.fill_(torch.nan)
    assert evaluate(same, shown(5))[1] == 0


def test_runs_are_joined_inside_and_between(runs, folder, image_folder, tmp_path, capsys):
    flags = ["--per-generation", "--points", "3", "--images", "8", "--batch-size", "8", "--json"]
    assert main(["barrier", *map(str, runs), *flags, "--plane", "2"]) == 0
    results = json.loads(capsys.readouterr().out.replace("null", "NaN"))
    assert "8 train images and 8 val images" in Barrier().table(results)
    by_name = {r["subject"]: r for r in results}
    assert [line["kind"] for line in by_name["seal-0 generation-1-ascent"]["lines"]] == ["across the ascent"]
    last = by_name["seal-0 generation-1"]
    assert [(line["kind"], line["from"]) for line in last["lines"]] == [
        ("across a generation", "seal-0 generation-0"),
        ("to other groups", "restart-0 generation-1"),
    ]
    other = by_name["seal-1 generation-1"]  # of two seeds the second has the line, or it would count twice
    assert [(line["kind"], line["from"]) for line in other["lines"]][1:] == [
        ("to other seeds", "seal-0 generation-1"),
        ("to other groups and seeds", "restart-0 generation-1"),
    ]
    there, back = (
        next(line for line in by_name[a]["lines"] if line["from"] == b)["splits"]["val"]
        for a, b in itertools.permutations(("seal-0 generation-1", "restart-0 generation-1"))
    )
    assert there["loss"] == back["loss"][::-1] and there["top1"] == back["top1"][::-1]
    assert last["figures"]["to other groups, val"]["loss barrier"]["mean"] == height(there["loss"])
    # the middle of the line across the ascent, literally
    states = [load_file(folder / "weights" / f"{s}.safetensors") for s in ("generation-0", "generation-1-ascent")]
    model = build_by_name("resnet18", 4, "small")
    model.load_state_dict({k: (a + states[1][k]) / 2 if a.is_floating_point() else a for k, a in states[0].items()})
    images = open_images(image_folder)
    size = last["protocol"]["image_size"]
    train = images.train.spread(12).spread(8)
    ((pixels, _),) = batches(images, train, image_size=size, batch_size=8)
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(pixels)
        ((pixels, labels),) = batches(images, images.val.spread(8), image_size=size, batch_size=8)
        expected = float(F.cross_entropy(model.eval()(pixels), labels))
    found = by_name["seal-0 generation-1-ascent"]["lines"][0]["splits"]["val"]["loss"][1]
    assert found == pytest.approx(expected, rel=1e-5)
    assert [r["subject"] for r in results if "plane" in r] == ["seal-0 generation-1"]
    assert last["plane"]["networks"] == [f"seal-0 generation-{stage}" for stage in ("0", "1-ascent", "1")]
    assert all(len(values["loss"]) == 4 for values in last["plane"]["splits"].values())
    both = [by_name["seal-0 generation-1-ascent"], last]
    Barrier().plot(both, lambda name: tmp_path / f"{name}.png")
    names = {"barrier.png", "barrier_generations.png", "barrier_plane.png"}
    assert {p.name for p in tmp_path.glob("*.png")} == names
    assert main(["barrier", *map(str, runs[:2]), "--plane", "2"]) == 2
    assert "--plane 2: needs three networks" in capsys.readouterr().err


def test_equal_networks_have_no_barrier_and_different_ones_no_line(folder, image_folder, tmp_path, capsys, caplog):
    weights = folder / "weights" / "last.safetensors"
    copy_of = shutil.copy(weights, tmp_path / "copy.safetensors")
    flags = ["--data", str(image_folder), "--points", "3", "--json", "--image-size", "16"]
    save_file(build_by_name("resnet50", 4, "small").state_dict(), tmp_path / "other.safetensors", {"model": "resnet50"})
    names = [str(weights), str(copy_of), str(tmp_path / "other.safetensors")]
    assert main(["barrier", *names, *flags, "--stem", "small"]) == 0
    results = json.loads(capsys.readouterr().out)
    for result in results[:2]:
        (kind,) = {section.split(",")[0] for section in result["figures"]}
        assert kind == "to other groups"
        assert [v["mean"] for found in result["figures"].values() for v in found.values()] == [0, 0, 0, 0]
    assert results[2]["figures"] == {} and "have different parameters: no line joins them" in caplog.text


def test_refusals(folder, capsys):
    assert main(["barrier", str(folder)]) == 2
    assert "there is no second network; name several runs" in capsys.readouterr().err
    assert main(["barrier", str(folder), "--per-generation", "--points", "2"]) == 2
    several = Barrier()
    several.world = SimpleNamespace(size=2)
    with pytest.raises(UsageError, match="runs in one process: start it without torchrun"):
        several.open()
