"""Every registered network, tiny: SEAL and LLF through two short generations, and every analysis."""

from dataclasses import replace

import pytest

from seal_fast import train
from seal_fast.__main__ import main
from seal_fast.config import Config
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


@pytest.mark.parametrize("method", ["shrink-perturb", "sam", "lw"])
def test_a_network_without_batchnorm_takes_methods_that_touch_statistics(method, image_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "draw", lambda *_: None)
    config = Config(model="vit-tiny", width=0.05, stem="small", data=str(image_folder), method=method, **SHORT)
    assert train.run(replace(config, keep="none", out=tmp_path / "run"))["finished"]
