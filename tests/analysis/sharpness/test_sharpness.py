import json
import shutil

import pytest
import torch
import torch.nn.functional as F
from dense import dense_hessian, with_spectrum
from safetensors.torch import save_file
from small_resnet import build_by_name
from torch import nn

from seal_fast.__main__ import main
from seal_fast.analysis.common import network
from seal_fast.analysis.depth.probes import parameters_by_block, probe_modules
from seal_fast.analysis.sharpness import command
from seal_fast.analysis.sharpness.command import share_inside
from seal_fast.analysis.sharpness.compute import Landscape, Reach, average_case, worst_case
from seal_fast.data import open_images
from seal_fast.data.batches import batches
from seal_fast.utils.errors import RunError


class Quadratic(nn.Module):
    """g . w + w . H w / 2 around 0, whatever the images."""

    def __init__(self, hessian, gradient, at):
        super().__init__()
        self.w = nn.Parameter(at)
        self.hessian, self.gradient, self.at = hessian, gradient, at.clone()

    def forward(self, images):
        d = self.w - self.at
        return self.gradient @ d + d @ self.hessian @ d / 2


def problem(gradient=0.0):
    hessian = with_spectrum([7.0, 3, 2, 1, 0.5, 0.1]).matrix
    g = gradient * torch.arange(6, dtype=torch.float64)
    at = torch.tensor([1.0, -2, 0.5, 3, -0.2, 1], dtype=torch.float64)
    landscape = Landscape(Quadratic(hessian, g, at), lambda out, labels: out)
    return landscape, hessian, g, at


BATCH = torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64)


def most_within(hessian, g, rho):
    """The trust region's maximum on the sphere: (m - H) d = g with m above every eigenvalue and |d| = rho."""
    values, q = torch.linalg.eigh(hessian)
    low, high = float(values[-1]), float(values[-1] + g.norm() / rho)
    for _ in range(200):
        m = (low + high) / 2
        low, high = (m, high) if (q.T @ g / (m - values)).norm() > rho else (low, m)
    d = q @ (q.T @ g / (high - values))
    return float(g @ d + d @ hessian @ d / 2)


def test_worst_case_of_a_quadratic_is_the_trust_regions():
    landscape, hessian, g, at = problem(0.3)
    reaches = [Reach(rho, adaptive) for rho in (0.1, 1.0) for adaptive in (False, True)]
    found = worst_case(landscape, BATCH, reaches, steps=200)
    c = torch.diag(at.abs())
    expected = [most_within(*((c @ hessian @ c, c @ g) if a else (hessian, g)), rho) for rho, a in reaches]
    assert found == pytest.approx(expected, rel=1e-9)
    first = worst_case(landscape, BATCH, [Reach(0.1, False)], steps=1)[0]  # SAM's own point
    d = 0.1 * g / g.norm()
    assert first == pytest.approx(float(g @ d + d @ hessian @ d / 2), rel=1e-12) and first < found[0]
    landscape, hessian, _, at = problem()  # at the minimum: half the largest eigenvalue times rho squared
    c = torch.diag(at.abs())
    found = worst_case(landscape, BATCH, [Reach(0.2, False), Reach(0.2, True), Reach(0, False)], steps=200)
    tops = [float(torch.linalg.eigvalsh(h)[-1]) for h in (hessian, c @ hessian @ c)]
    assert found == pytest.approx([0.02 * tops[0], 0.02 * tops[1], 0], rel=1e-9)


def test_average_case_of_a_quadratic_is_half_the_trace():
    landscape, hessian, _, at = problem(5.0)  # its odd order cancels
    found = average_case(landscape, [BATCH, BATCH], [Reach(0.1, False), Reach(0.1, True)], draws=400) / 4  # images
    for values, h in zip(found.T, (hessian, at.abs() * hessian * at.abs()[:, None]), strict=True):
        error = float(values.std()) / 20
        assert float(values.mean()) == pytest.approx(0.005 * float(h.trace()), abs=4 * error)
        assert float(values.std()) == pytest.approx(0.005 * float(2 * h.square().sum()) ** 0.5, rel=0.25)


def test_share_of_a_gradient():
    vectors = torch.eye(4, dtype=torch.float64)[:2]
    assert share_inside(torch.tensor([3.0, 0, 4, 0]).double(), vectors) == pytest.approx(9 / 25)
    assert share_inside(torch.tensor([0.0, 2, 0, 0]).double(), vectors) == 1
    assert share_inside(torch.zeros(4).double(), vectors) is None


class Tiny(nn.Module):
    def __init__(self, classes=4):
        super().__init__()
        self.body = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 4), nn.Tanh(), nn.Linear(4, 4))
        self.fc = nn.Linear(4, classes)

    def forward(self, images):
        return self.fc(self.body(images).tanh())


def test_a_tiny_networks_figures_are_those_of_its_whole_hessian(image_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(network, "build", lambda *_, **__: Tiny())
    torch.manual_seed(0)
    model = Tiny()
    save_file(model.state_dict(), tmp_path / "tiny.safetensors")
    flags = "--image-size 16 --dtype float64 --top 3 --tol 1e-6 --probes 60 --label-smoothing 0.1 --batch-size 8"
    flags += f" --data {image_folder} --rho 0.3 --adaptive-rho 0.5 --noise 0.01 --adaptive-noise 0.1 --draws 3"
    argv = ["sharpness", str(tmp_path / "tiny.safetensors"), *flags.split(), "--out", str(tmp_path)]
    assert main(argv) == 0
    assert "sharpness of the mean loss over 20 training images" in capsys.readouterr().out
    (result,) = json.loads((tmp_path / "sharpness.json").read_text())
    assert (tmp_path / "sharpness.png").exists()
    figures = {s: {name: value["mean"] for name, value in found.items()} for s, found in result["figures"].items()}

    def loss(logits, labels):
        return F.cross_entropy(logits, labels, label_smoothing=0.1)

    images = open_images(image_folder)
    shown = list(batches(images, images.train, image_size=16, batch_size=20, dtype=torch.float64))
    model = model.double()
    hessian = dense_hessian(model, loss, shown)
    (x, y) = shown[0]
    value = loss(model(x), y)
    value.backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
    values, vectors = torch.linalg.eigh(hessian)
    share = float((vectors[:, -3:].T @ gradient).square().sum() / gradient.square().sum())
    whole = figures["all layers"]
    assert whole["loss"] == pytest.approx(value.item(), rel=1e-9)
    assert whole["largest eigenvalue"] == pytest.approx(float(values[-1]), rel=1e-6)
    assert whole["gradient in the top 3 (%)"] == pytest.approx(100 * share, rel=1e-5)
    trace = result["figures"]["all layers"]["trace"]
    half = (trace["high"] - trace["low"]) / 2
    assert trace["mean"] == pytest.approx(float(hessian.trace()), abs=2 * half) and 0 < half < 0.2 * trace["mean"]
    for block in ("body", "fc"):
        own = dense_hessian(model, loss, shown, [n for n, _ in model.named_parameters() if n.startswith(block)])
        assert figures[block]["largest eigenvalue"] == pytest.approx(float(torch.linalg.eigvalsh(own)[-1]), rel=1e-6)
    # the worst case is no less than SAM's point, in each batch, literally
    rises = []
    for at in (slice(0, 8), slice(8, 16), slice(16, 20)):
        model.zero_grad()
        before = loss(model(x[at]), y[at])
        before.backward()
        norm = float(sum(p.grad.square().sum() for p in model.parameters())) ** 0.5
        moved = {n: p.detach() + 0.3 / norm * p.grad for n, p in model.named_parameters()}
        after = loss(torch.func.functional_call(model, moved, (x[at],)), y[at])
        rises.append((after - before).item() * len(y[at]) / 20)
    assert sum(rises) <= figures["rho 0.3"]["rise of the loss"] < 2 * sum(rises)
    noise = result["figures"]["adaptive noise 0.1"]["rise of the loss"]
    assert noise["count"] == 3 and noise["low"] < noise["mean"] < noise["high"]


def test_the_loss_of_one_class_is_flat(image_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(network, "build", lambda *_, **__: Tiny(1))
    save_file(Tiny(1).state_dict(), tmp_path / "single.safetensors")
    first = min(path for path in (image_folder / "train").iterdir() if path.is_dir())
    for split in ("train", "val"):
        shutil.copytree(first, tmp_path / "one" / split / first.name)
    flags = f"--image-size 16 --dtype float64 --images 1 --data {tmp_path / 'one'} --json"
    assert main(["sharpness", str(tmp_path / "single.safetensors"), *flags.split()]) == 0
    (result,) = json.loads(capsys.readouterr().out)
    assert all(value["mean"] == 0 for found in result["figures"].values() for value in found.values())
    assert list(result["figures"]["all layers"]) == ["loss", "largest eigenvalue", "trace"]  # 0 has no direction


def test_parameters_by_block():
    model = build_by_name("resnet18", 4, "small")
    found = parameters_by_block(model, probe_modules(model))
    assert list(found) == ["stem", *(name for name, _ in model.blocks()), "head"]
    assert [name for names in found.values() for name in names] == [name for name, _ in model.named_parameters()]
    assert found["stem"] == ["conv1.weight", "bn1.weight", "bn1.bias"] and found["head"] == ["fc.weight", "fc.bias"]


def test_generations_and_refusals(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "probe_modules", lambda model: {"layer4.1": model.layer4[1]})  # to be quick
    few = "--images 4 --batch-size 4 --ascent-steps 1 --draws 2 --top 1 --probes 2 --tol 0.5 --max-hvps 3".split()
    sizes = "--rho 0.1 --adaptive-rho 0.5 --noise 0.001 --adaptive-noise 0.1".split()
    argv = ["sharpness", str(folder), "--per-generation", *few, *sizes, "--out", str(tmp_path), "--dtype", "float64"]
    calls, measure = [], command.measure

    def fails_once(*args, **options):
        calls.append(args)
        if len(calls) == 1:
            raise RunError("the products are not those of a symmetric matrix")
        return measure(*args, **options)

    monkeypatch.setattr(command, "measure", fails_once)
    assert main(argv) == 1
    assert "error: seal-0 generation-0: the products are not those of a symmetric matrix" in capsys.readouterr().err
    results = json.loads((tmp_path / "sharpness.json").read_text())
    assert [r["stage"] for r in results] == ["generation-0", "generation-1-ascent", "generation-1"]
    rises = ["rho 0.1", "adaptive rho 0.5", "noise 0.001", "adaptive noise 0.1"]
    assert list(results[0]["figures"]) == [*rises, "stem", "layer4.1", "head"]  # all but what failed
    assert list(results[1]["figures"]) == [*rises, "all layers", "stem", "layer4.1", "head"]
    assert {p.name for p in tmp_path.glob("*.png")} == {"sharpness.png", "sharpness_generations.png"}
    capsys.readouterr()
    for flags, sentence in (
        (["--tol", "1"], "must be above 0 and below 1"),
        (["--rho", "-1"], "--rho -1.0: must be at least 0"),
        (["--top", "51"], "must be at most 50"),
        (["--label-smoothing", "1"], "must be at least 0 and below 1"),
    ):
        assert main(["sharpness", str(folder), *flags]) == 2 and sentence in capsys.readouterr().err
    assert main(["sharpness", str(folder), *few, "--rho", "1e30", "--dtype", "float32"]) == 1
    assert "the loss is not finite at or near the weights" in capsys.readouterr().err
