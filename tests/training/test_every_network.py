"""Every registered network, tiny: every method through two short generations, and every analysis."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from seal_fast import Annealer, models, train
from seal_fast.__main__ import main
from seal_fast.config import Config
from seal_fast.methods import METHODS
from seal_fast.models.registry import MODELS
from seal_fast.networks import parse
from seal_fast.runs import plots

NETWORKS = ("wrn-10-1", "densenet-bc-10-8", "vgg16-bn", "convnext-tiny", "vit-tiny")
SHORT = {
    "generations": 2,
    "epochs": 1,
    "warmup_epochs": 0,
    "batch_size": 10,
    "lr": 0.01,
    "limit_train": 10,
    "threads": 1,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_trained_and_read_by_every_command(name, image_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(plots, "draw", lambda *_: None)
    config = Config(model=name, width=0.05, stem="small", data=str(image_folder), ema=0.9, **SHORT)
    for method in ("seal", "llf"):
        length = 2 if method == "seal" else 1
        run = replace(config, method=method, epochs=length, ascent_epochs=length - 1, out=tmp_path / method)
        assert train.run(run)["finished"]
    data = f"--data {image_folder} --no-cache"
    for command in (
        "depth {} --k 3 --pool avg --queries 4",
        f"transfer {{}} {data} --k 3 --l2 1",
        f"fewshot {{}} {data} --ways 2 --shots 1 --queries 1 --episodes 2",
        "hessian {} --images 4 --top 1 --bottom 0 --tol 0.9 --group fc",
    ):
        assert main([*command.format(tmp_path / "llf").split(), "--threads", "1"]) == 0
    assert "products: double backward" in capsys.readouterr().out
    if name == "vit-tiny":  # no BatchNorm
        for command in ("evaluate {1}", "plasticity {1} --images 8", "barrier {0} {1} --points 3 --images 8"):
            names = command.format(tmp_path / "seal", tmp_path / "llf")
            assert main([*names.split(), "--threads", "1", "--out", str(tmp_path)]) == 0


@pytest.mark.parametrize("name", ("resnet18", *NETWORKS))
def test_every_kind_of_method_touches_what_it_should(name):
    """A step in each of two generations, in float64; between them operators act on the tensors that they are for."""
    torch.manual_seed(0)
    images, labels = torch.randn(4, 3, 16, 16, dtype=torch.float64), torch.tensor([0, 1, 2, 3])
    for method in ("seal", "llf", "shrink-perturb", "ke-wels", "fire", "sam"):
        model = models.build(name, 4, "small", width=0.05).double()
        settings = dict(generations=2, epochs=1, warmup_epochs=0, ascent_epochs=0, lr=0.01, threshold="layer2")
        annealer = Annealer(model, method, example=images, **settings)

        def closure(model=model):
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            return float(loss.detach())

        before, late = {}, set(annealer.partition.groups["late"])
        weights = {name for name, p in model.named_parameters() if p.ndim > 1}
        for epoch in annealer:
            changed = {name for name, p in model.named_parameters() if not torch.equal(p, before.get(name, p))}
            if epoch.generation:
                drawn = {"seal": set(), "llf": weights & late, "ke-wels": weights, "fire": weights}
                assert changed == drawn[method] if method in drawn else changed >= weights
            assert annealer.step(closure=closure) < 10
            assert all(p.isfinite().all() for p in model.parameters())
            before = {name: p.detach().clone() for name, p in model.named_parameters()}


ALL = ("resnet18", "resnet34", "resnet50", "densenet121", "densenet169", *NETWORKS)


@pytest.mark.long
@pytest.mark.parametrize("name", ALL)
def test_every_method_trains_it(name, image_folder, tmp_path, monkeypatch):
    """Generation 0 and one that forgets, two steps each; the run stops at numbers that are not finite."""
    assert {parse(name).family for name in ALL} == MODELS.keys()
    monkeypatch.setattr(plots, "draw", lambda *_: None)
    config = Config(model=name, width=0.05, stem="small", data=str(image_folder), **SHORT | {"epochs": 2})
    config = replace(config, ascent_epochs=1, eval_every=9, keep="none", lr=0.001)
    for method in METHODS:
        assert train.run(replace(config, method=method, out=tmp_path / method))["finished"]


@pytest.mark.parametrize("method", ["shrink-perturb", "sam", "lw"])
def test_a_network_without_batchnorm_takes_methods_that_touch_statistics(method, image_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "draw", lambda *_: None)
    config = Config(model="vit-tiny", width=0.05, stem="small", data=str(image_folder), method=method, **SHORT)
    assert train.run(replace(config, keep="none", out=tmp_path / "run"))["finished"]
