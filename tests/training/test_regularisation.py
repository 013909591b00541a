"""--dropout and --mixup: against a literal loop in float64, interrupted, and where they must do nothing."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from literal import literal_philox
from runs import EXACT, assert_identical, die_at, outcome
from safetensors.torch import load_file
from test_trainer import read_images

from seal_fast import models, train
from seal_fast.curvature.operator import HessianOperator
from seal_fast.runs.folder import RunFolder
from seal_fast.training import assembly
from seal_fast.training.steps import Steps
from seal_fast.utils.errors import UsageError
from seal_fast.validation import check

SHORT = dict(method="restart", generations=2, epochs=2, warmup_epochs=0, eval_every=9, threads=1)
BOTH = replace(EXACT, **SHORT, mixup=0.4, dropout=0.25)


def number(seed, generation, epoch, position, purpose):
    words = literal_philox((position, epoch, generation, purpose << 16), (seed, 0))
    return (words[0] << 31) | (words[1] >> 1)


def literal(config, folder, parts):
    """SGD on mixtures, spelled out; `parts` are the positions that are computed at once. Figures of each epoch."""
    model = assembly.build(config.model, 4, config.stem, config.seed).double().train()
    images, labels = read_images(folder)
    buffers, figures = {}, []
    for generation in range(config.generations):
        buffers = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
        for epoch in range(config.epochs):
            rate = config.lr / 2 * (1 + np.cos(np.pi * epoch / config.epochs))
            loss_sum = hits = 0.0
            for start in range(0, 20, config.batch_size):
                stop = min(20, start + config.batch_size)
                place = (config.seed, generation, epoch)
                step = number(*place, start // config.batch_size, 13)
                share = np.random.default_rng(step).beta(config.mixup, config.mixup)
                gradients = [0.0] * len(buffers)
                for low, high in ((a, b) for a, b in parts if start <= a < stop):
                    x, y = images[low:high], labels[low:high]
                    pairs = np.random.default_rng(number(*place, low, 14)).permutation(high - low)
                    mixed = share * x + (1 - share) * x[pairs]
                    draw = torch.Generator().manual_seed(number(*place, low, 12))
                    features = model.embed(mixed)
                    kept = torch.empty_like(features).bernoulli_(1 - config.dropout, generator=draw)
                    logits = model.fc(features * kept / (1 - config.dropout))
                    for weight, target in ((share, y), (1 - share, y[pairs])):
                        loss = F.cross_entropy(logits, target, label_smoothing=0.1) * weight
                        found = torch.autograd.grad(loss, [*model.parameters()], retain_graph=True)
                        gradients = [
                            g + f * (high - low) / (stop - start) for g, f in zip(gradients, found, strict=True)
                        ]
                        loss_sum += float(loss.detach()) * (high - low)
                        hits += weight * int((logits.argmax(1) == target).sum())
                for (name, p), gradient in zip(model.named_parameters(), gradients, strict=True):
                    buffers[name] = config.momentum * buffers[name] + gradient + config.weight_decay * p.detach()
                    p.data -= rate * buffers[name]
            figures.append((loss_sum / 20, 100 * hits / 20))
    return model.state_dict(), figures


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({}, [(0, 8), (8, 16), (16, 20)]),
        ({"accumulate": 2}, [(0, 4), (4, 8), (8, 12), (12, 16), (16, 18), (18, 20)]),
        ({"dropout": 0.0}, [(0, 8), (8, 16), (16, 20)]),
    ],
    ids=["both", "in two parts", "mixup alone"],
)
def test_equals_a_literal_loop(changes, parts, image_folder, tmp_path, shallow_network):
    config = replace(BOTH, data=str(image_folder), **changes)
    train.run(replace(config, out=tmp_path))
    expected, figures = literal(config, image_folder, parts)
    for name, tensor in load_file(RunFolder(tmp_path).weights("last")).items():
        if name.endswith("num_batches_tracked"):
            continue
        torch.testing.assert_close(tensor, expected[name], rtol=1e-9, atol=1e-10, msg=lambda m, name=name: name + m)
    rows = RunFolder(tmp_path).rows()
    assert [(row["train_loss"], row["train_top1"]) for row in rows] == [pytest.approx(pair) for pair in figures]
    assert len({top1 for _, top1 in figures if top1 % 5}) > 0  # parts of hits


OWN = """
from torch import nn

def net(num_classes):
    head = nn.BatchNorm1d(8), nn.Dropout(0.1), nn.Linear(8, num_classes)
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(768, 8), *head)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "dropping.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "dropping", raising=False)
    return replace(EXACT, **SHORT, model="dropping:net", layer_threshold="5", mixup=0.4)


def test_both_passes_of_sam_draw_at_their_own_place(image_folder, tmp_path, monkeypatch, shallow_network):
    places, seed = [], Steps.seed
    monkeypatch.setattr(Steps, "seed", lambda self, cut: (places.append((cut.start, cut.stop)), seed(self, cut)))
    config = replace(
        EXACT, **SHORT | {"method": "sam", "generations": 1, "epochs": 1, "ascent_epochs": 0}, dropout=0.25
    )
    train.run(replace(config, data=str(image_folder), out=tmp_path))
    assert places == [place for place in ((0, 8), (8, 16), (16, 20)) for _ in range(3)]  # the step's, and each pass's


@pytest.mark.parametrize("method", ["sam", "swa"])
def test_a_resumed_run_is_the_same_to_the_bit(method, image_folder, tmp_path, monkeypatch, own):
    """Also with dropout of one's own, before BatchNorm, whose statistics swa measures anew in train mode."""
    config = replace(own, method=method, data=str(image_folder), checkpoint_seconds=0)
    train.run(replace(config, out=tmp_path / "whole"))
    with monkeypatch.context() as patch:
        die_at(patch, 7, ZeroDivisionError, between=True)
        if method == "swa":  # a whole epoch is done, and its statistics are not
            patch.undo()
            patch.setattr("seal_fast.training.evaluation.measure_statistics", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train.run(replace(config, out=tmp_path / "run"))
    torch.manual_seed(99)
    train.run(replace(config, out=tmp_path / "run"))
    assert_identical(outcome(tmp_path / "whole"), outcome(tmp_path / "run"))


@pytest.mark.parametrize(("method", "batchnorm"), [("r-operator", "eval"), ("double-backward", "train")])
def test_no_hessian_sees_dropout(method, batchnorm):
    model = models.build("resnet18", 3, "small", width=0.125).double()
    batches = [(torch.randn(4, 3, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 0]))]
    vector = torch.randn(sum(p.numel() for p in model.parameters()), dtype=torch.float64)
    products = []
    for share in (0.0, 0.5):
        model.dropout = share
        model.train()
        products.append(HessianOperator(model, F.cross_entropy, batches, method=method, batchnorm=batchnorm) @ vector)
        assert model.training
    assert torch.equal(*products)


def test_dropout_is_for_registered_networks():
    with pytest.raises(UsageError, match="--dropout 0.5: is for registered networks; give --model a.b:net its own"):
        check(replace(EXACT, model="a.b:net", dropout=0.5))
    with pytest.raises(UsageError, match="--mixup -1"):
        check(replace(EXACT, mixup=-1))
