"""Networks that are not seal_fast's: attention, a class token, parts in another order than they are used in."""

import math
import re
import sys
from dataclasses import replace

import pytest
import torch
from runs import EXACT
from safetensors.torch import load_file
from torch import nn

from seal_fast import models, train
from seal_fast.__main__ import main
from seal_fast.analysis.common.network import open_network
from seal_fast.methods.operators import EVERYTHING, Mix, Scope, Source
from seal_fast.methods.partition import split
from seal_fast.models import registry
from seal_fast.runs.folder import RunFolder
from seal_fast.sweep.folder import SweepFolder
from seal_fast.sweep.plan import Plan, Trial
from seal_fast.training import checkpoint
from seal_fast.training.forgetting import Forgetting, leaves, select
from seal_fast.utils.errors import UsageError

SOURCE = """
import torch
from torch import nn

class Tiny(nn.Module):
    def __init__(self, num_classes, width):
        super().__init__()
        self.head = nn.Linear(width, num_classes)  # registered first, used last
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.conv = nn.Conv2d(3, width, 4, 4)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        x = self.conv(x).flatten(2).mT
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        y = self.norm(x)
        return self.head(self.drop((x + self.attention(y, y, y, need_weights=False)[0]).mean(1)))

class Breaking(Tiny):
    def forward(self, x):
        return super().forward(x) * (2 if float(x.detach().sum()) == 1e9 else 1)

def tiny(num_classes, width=8):
    return Tiny(num_classes, width)

def breaking(num_classes):
    return Breaking(num_classes, 8)

def normalised(num_classes, momentum):
    norm = nn.BatchNorm2d(8, momentum=momentum)
    return nn.Sequential(nn.Conv2d(3, 8, 4, 4), norm, nn.ReLU(), nn.Flatten(), nn.Linear(128, num_classes))

def number(num_classes):
    return 3

def wrong(num_classes):
    return Tiny(num_classes + 1, 8)

def narrow(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(7, num_classes))
"""


@pytest.fixture(autouse=True)
def module(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("user")
    (folder / "mine.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "mine", raising=False)


def test_the_forward_order_is_that_of_use():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    model = models.build("mine:tiny(width=16)", 5).train()
    order = models.forward_order(model, 16, 5)
    assert torch.equal(torch.get_rng_state(), state) and model.training and model.norm.training
    assert list(order.sizes) == [
        *("conv.weight", "conv.bias", "token", "norm.weight", "norm.bias"),
        *("attention.in_proj_bias", "attention.in_proj_weight"),  # as torch passes them on
        *("attention.out_proj.weight", "attention.out_proj.bias", "head.weight", "head.bias"),
    ]
    assert order.classifier == "head" and order.position("fc", "") == order.position("head", "") == 9
    assert split(order, ("attention",)).groups["early"] == tuple(list(order.sizes)[:5])
    assert split(order, ("drop",)).groups["late"] == ("head.weight", "head.bias")  # a module without parameters
    with pytest.raises(UsageError, match="--layer-threshold attentoin: .* did you mean attention"):
        split(order, ("attentoin",))
    with pytest.raises(UsageError, match="no parameter comes after it"):
        split(models.forward_order(nn.Sequential(nn.Flatten(), nn.Linear(12, 2), nn.ReLU()), 2), ("2",))


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_resnets_blocks_begin_where_they_are_registered(name):
    model = models.build(name, 10, "small", width=0.125)
    order, registered = models.forward_order(model, 16, 10), [name for name, _ in model.named_parameters()]
    for module in ["bn1", "layer1", "layer2", "layer3", "layer4", "fc", *[name for name, _ in model.blocks()]]:
        start = next(i for i, parameter in enumerate(registered) if parameter.startswith(module + "."))
        if start and module != "layer1":
            assert set(split(order, (module,)).groups["early"]) == set(registered[:start])


def test_initial_weights_are_the_modules_own_from_the_seed():
    first, again, other = (models.build("mine:tiny", 5, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.token, other.token) and (first.norm.weight == 1).all()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere:net", "cannot be imported .*nowhere"),
        ("mine:none", "cannot be imported .*none"),
        ("mine:tiny(8)", "write package.module:factory"),
        ("mine:tiny(depth=open)", "write package.module:factory"),
        ("mine:tiny(**{})", "write package.module:factory"),
        ("mine:9(depth=8)", "write package.module:factory"),
        ("my net:tiny", "write package.module:factory"),
        ("mine:tiny(num_classes=3)", "num_classes is the data's"),
        ("mine:tiny(depth=8)", "the call fails .*depth"),
        ("mine:number", "returns int, no torch.nn.Module"),
        ("mine:wrong", r"returns a tensor of shape \(2, 201\) for 2 images and 200 classes"),
        ("mine:narrow", "fails on images of 64 px"),
    ],
)
def test_a_factory_that_gives_no_network_ends_in_a_sentence(name, message, capsys):
    assert main(["layers", "--model", name]) == 2
    text = capsys.readouterr().err
    assert re.search(f"^error: --model .*{message}", text) and text.count("\n") == 1


def test_layers_are_listed(capsys):
    assert main(["layers", "--model", "mine:tiny"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0][1] == "2,504" and lines[0][-1] == "head"
    assert [line[0] for line in lines[4:]] == ["norm", "attention", "attention.out_proj", "drop", "head"]
    assert lines[-1] == ["head", "1,800", "28.1", "71.9"]
    assert main(["layers", "--layer-threshold", "layer3"]) == 0
    assert "early conv1 to layer2.1.bn2" in capsys.readouterr().out


def test_operators_know_attention_and_leave_alone_what_they_do_not():
    model = models.build("mine:tiny(width=64)", 5)
    order, before = models.forward_order(model, 16), {name: p.clone() for name, p in model.named_parameters()}
    parts = {leaf.name: leaf.part for leaf in leaves(model, order)}
    assert parts["attention.in_proj_weight"] == "weight" and parts["attention.in_proj_bias"] == "bias"
    assert parts["token"] == parts["norm.weight"] == "norm"
    draw = Mix(EVERYTHING, Source("draw", "he-normal"))
    Forgetting(model, order, 0, {}, lambda *_: iter(())).apply([draw], 1, 0)
    std = math.sqrt(2 / 64)
    assert model.attention.in_proj_weight.std().item() == pytest.approx(std, rel=0.05)
    assert torch.equal(model.token, before["token"]) and (model.norm.weight == 1).all()
    late = select(leaves(model, order), order, Scope("attention"), "what")
    assert [leaf.name for leaf in late] == ["attention.in_proj_weight", "attention.out_proj.weight", "head.weight"]


@pytest.fixture
def run(image_folder, tmp_path):
    config = replace(EXACT, model="mine:tiny", layer_threshold="attention", data=str(image_folder), generations=2)
    config = replace(config, epochs=2, method="seal+llf", dtype="float32", ema=0.9, out=tmp_path / "run", threads=1)
    return config


def test_a_run_of_an_own_network(run, image_folder, tmp_path, capsys):
    """It trains, resumes, and every analysis reads it."""
    train.run(run)
    assert checkpoint.load(RunFolder(run.out).checkpoint).position.generation == 2
    train.run(run)  # finished: nothing to do
    network = open_network(run.out, model=["mine:other", "mine:tiny"])
    assert (network.classifier, network.num_classes) == ("head", 4)
    weights = network.weights
    assert network.load().head.out_features == 4
    with pytest.raises(UsageError, match="says that it is of mine:tiny; drop the flag"):
        open_network(weights, model="mine:other")
    assert main(f"depth {run.out} --model mine:tiny --k 3 --probes nothing".split()) == 2
    assert "--probes nothing: the network has no module called 'nothing'" in capsys.readouterr().err
    data = str(image_folder)
    for command in (
        f"depth {run.out} --k 3 --probes conv,attention --out {tmp_path}",
        f"transfer {run.out} --data {data} --no-cache --k 3 --l2 1 --fine-tune --fine-tune-epochs 1",
        f"fewshot {run.out} --data {data} --no-cache --ways 2 --shots 1 --queries 1 --episodes 2",
        f"hessian {run.out} --images 8 --top 1 --bottom 0 --tol 0.5 --group late --threads 1",
    ):
        assert main([*command.split(), "--model", "mine:tiny"]) == 0
    printed = capsys.readouterr().out
    assert "4 probes" in printed and "products: double backward" in printed
    with pytest.raises(UsageError, match="--layer-threshold layer3: the model has no such layer"):
        train.run(replace(run, method="seal", layer_threshold="layer3", out=tmp_path / "no"))
    train.run(replace(run, method="restart", layer_threshold="layer3", ema=0.0, out=tmp_path / "restart"))


def test_a_folder_alone_never_names_code_to_import(run, image_folder, tmp_path, monkeypatch, capsys):
    """An analysis, a resume and a resumed sweep refuse before the module is imported, until a command names it."""
    train.run(replace(run, generations=1, epochs=1, ascent_epochs=0, warmup_epochs=0, method="restart"))
    space = tmp_path / "space.toml"
    space.write_text(f'data = "{image_folder}"\nmodel = "mine:tiny"\nlayer_threshold = "attention"\ngenerations = 1\n')
    trial = Trial("0000", {}, replace(run, out=None))
    folder = SweepFolder(tmp_path / "sweep")
    with folder.locked():
        folder.write_plan(Plan((trial,)), search="grid", samples=None, search_seed=0, space=str(space))
    monkeypatch.setattr(registry, "_made", lambda *_: pytest.fail("imported"))
    for command in (f"depth {run.out} --k 3", f"depth {run.out / 'weights/last.safetensors'} --k 3"):
        assert main(command.split()) == 2
        assert "is of mine:tiny, which is code to import: name it with --model" in capsys.readouterr().err
    assert main(["study", str(run.out), "--only", "depth", "--dry-run"]) == 2
    assert "is of mine:tiny, which is code to import: name it with --model" in capsys.readouterr().err
    assert main(["study", str(run.out), "--only", "depth", "--dry-run", "--model", "mine:tiny"]) == 0
    assert "--model mine:tiny --out" in capsys.readouterr().out
    assert train.main(["--out", str(run.out)]) == 2
    assert "to continue it, name it too, with --model mine:tiny, if you trust it" in capsys.readouterr().err
    for more in ([], ["--dry-run"]):
        assert main(["sweep", "--out", str(folder.path), "--resume", *more]) == 2
        assert f"to continue it, name its space file too ({space}), if you trust it" in capsys.readouterr().err
    monkeypatch.undo()
    assert train.main(["--out", str(run.out), "--model", "mine:tiny"]) == 0


def test_a_graph_break_is_said_and_the_network_is_trained_uncompiled(run, caplog):
    short = {"generations": 1, "epochs": 1, "warmup_epochs": 0, "ascent_epochs": 0}
    summary = train.run(replace(run, model="mine:breaking", method="restart", compile=True, **short))
    assert summary["finished"] and caplog.text.count("--compile: this network is no whole graph") == 1


def test_swa_measures_the_same_statistics_whatever_batchnorms_momentum(image_folder, tmp_path):
    """Weights do not depend on running statistics, so the averages are the same; None is a cumulative mean."""
    found = []
    for momentum in (0.1, None, 0.0):
        out = tmp_path / str(momentum)
        config = replace(EXACT, data=str(image_folder), method="swa", layer_threshold="1", out=out, threads=1)
        train.run(replace(config, model=f"mine:normalised(momentum={momentum})"))
        found.append(load_file(out / "weights" / "last-ema.safetensors"))
    for name in ("0.weight", "1.running_mean", "1.running_var"):
        for other in found[1:]:
            torch.testing.assert_close(found[0][name], other[name], rtol=1e-10, atol=1e-12)
    assert not torch.equal(found[0]["1.running_mean"], torch.zeros(8, dtype=torch.float64))
