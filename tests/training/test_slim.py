"""KELS's slim network: evaluated and saved at each generation's end."""

from dataclasses import replace

import pytest
import torch
from runs import EXACT, trainer_of
from torch import nn

from seal_fast.analysis.common.network import open_network
from seal_fast.data import open_images
from seal_fast.data.batches import batches
from seal_fast.methods.operators import ZERO, Mask, Mix, Scope
from seal_fast.models import build, forward_order
from seal_fast.runs.folder import RunFolder
from seal_fast.training.assembly import introduction
from seal_fast.training.forgetting import Forgetting
from seal_fast.training.slim import slim_network


def test_it_is_the_network_of_what_every_generation_keeps(image_folder, tmp_path):
    """The whole network computes the same once its other weights, and BatchNorm's other channels, are zero."""
    config = replace(EXACT, data=str(image_folder), method="ke-kels", option="keep=0.5", width=0.25, threads=1)
    config = replace(config, generations=2, epochs=1, warmup_epochs=0, ascent_epochs=0, limit_train=12)
    with trainer_of(config, tmp_path / "run") as trainer:
        trainer.run()
    weights = RunFolder(tmp_path / "run").weights
    network, slim = open_network(weights("last")), open_network(weights("generation-1-slim"))
    assert (network.width, slim.width) == (0.25, 0.125)
    whole, slim = (n.load().double().eval() for n in (network, slim))
    order, zero = forward_order(whole, 16), Mix(Scope(), ZERO, mask=Mask("kels", 0.5))
    Forgetting(whole, order, 0, {}, lambda *_: iter(())).apply([zero], 1, 0)
    for norm in (m for m in whole.modules() if isinstance(m, nn.BatchNorm2d)):
        for value in (norm.weight, norm.bias):
            value.data[len(value) // 2 :] = 0
    images = open_images(image_folder)
    ((x, y),) = batches(images, images.val, image_size=16, batch_size=99, dtype=torch.float64)
    with torch.no_grad():
        logits = slim(x)
        torch.testing.assert_close(logits, whole(x), rtol=1e-9, atol=1e-9)
    rows = RunFolder(tmp_path / "run").rows()
    assert rows[1]["val_slim_top1"] == pytest.approx(100 * (logits.argmax(1) == y).double().mean().item())
    assert [row["val_slim_top5"] for row in rows] == [100, 100]  # of four classes
    assert weights("generation-0-slim").exists()


def test_what_has_none_is_said(image_folder, tmp_path):
    config = replace(EXACT, data=str(image_folder), method="ke-kels", option="keep=0.6", width=0.25)
    with trainer_of(config, tmp_path / "run") as trainer:
        said = "\n".join(introduction(trainer, trainer.input.dataset))
    assert trainer.slim is None and "slim network: none, --width makes no network" in said
    for model in ("densenet-bc-10-8", "vit-tiny"):
        config = replace(config, model=model)
        assert slim_network(build(model, 4, "small", width=0.5), config, 4, 0.5) is None
