from functools import partial

import numpy as np
import pytest
import torch

from seal_fast.analysis.common.features import Features
from seal_fast.analysis.common.network import open_network
from seal_fast.analysis.transfer import compute
from seal_fast.analysis.transfer.compute import fine_tune, hold_out, knn_probe, linear_probe, scaled
from seal_fast.config import Config
from seal_fast.data import open_images
from seal_fast.models import load_weights
from seal_fast.models.resnet import BasicBlock, ResNet
from seal_fast.runs.stats import wilson
from seal_fast.utils.errors import UsageError


def split(count, seed, classes=3, dimension=12):
    random = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    centres = np.random.default_rng(99).normal(size=(classes, dimension))
    values = centres[labels] + random.normal(size=(count, dimension)) * 1.2
    return Features(torch.from_numpy(values).float(), torch.from_numpy(labels))


TRAIN, TEST = split(150, 0), split(90, 1)
HELD = hold_out(TRAIN.labels.numpy(), "abc", 0.3, seed=5)


def test_a_share_of_every_class_is_held_out():
    labels = np.repeat(np.arange(3), [2, 10, 101])
    held = hold_out(labels, "abc", 0.2, seed=1)
    assert np.bincount(labels[held.choose]).tolist() == [1, 2, 20]
    assert sorted([*held.learn.tolist(), *held.choose.tolist()]) == list(range(113))
    assert torch.equal(held.learn, hold_out(labels, "abc", 0.2, seed=1).learn)
    assert not torch.equal(held.learn, hold_out(labels, "abc", 0.2, seed=2).learn)


def test_what_cannot_be_held_out_ends_in_a_sentence():
    with pytest.raises(UsageError, match="class b has 1 training image"):
        hold_out(np.array([0, 0, 1]), "ab")
    with pytest.raises(UsageError, match=r"one class \(a\)"):
        hold_out(np.zeros(5, int), "a")
    with pytest.raises(UsageError, match="--validation 1: "):
        hold_out(np.array([0, 0, 1, 1]), "ab", 1.0)


def test_the_linear_probe_is_the_protocol_written_with_scikit_learn(monkeypatch):
    from sklearn.linear_model import LogisticRegression

    monkeypatch.setattr(compute, "fit_path", partial(compute.fit_path, tolerance=1e-12))  # one image is close

    penalties = [3.0, 1.0, 0.1, 0.01]
    train, test = (part.double().numpy() for part in scaled(TRAIN.values, TEST.values))
    labels, learn, choose = TRAIN.labels.numpy(), HELD.learn.numpy(), HELD.choose.numpy()

    def fitted(rows, l2):
        model = LogisticRegression(C=1 / (l2 * len(rows)), tol=1e-8, max_iter=5000)
        return model.fit(train[rows], labels[rows])

    scores = [100 * fitted(learn, l2).score(train[choose], labels[choose]) for l2 in penalties]
    best = penalties[int(np.argmax(scores))]
    expected = 100 * fitted(np.arange(150), best).score(test, TEST.labels.numpy())
    found = linear_probe(TRAIN, TEST, 3, HELD, l2=penalties[::-1])
    assert found["validation_top1"] == pytest.approx(dict(zip(map(str, penalties), scores, strict=True)))
    assert found["l2"] == best and found["top1"] == pytest.approx(expected) and 50 < expected < 100
    share = wilson(round(found["top1"] * 0.9), 90)
    assert found["interval"] == {"mean": found["top1"], "low": 100 * share.low, "high": 100 * share.high, "count": 90}


def test_the_linear_probe_does_not_depend_on_the_scale_of_the_features():
    large = [Features(part.values * 1000, part.labels) for part in (TRAIN, TEST)]
    assert linear_probe(*large, 3, HELD)["top1"] == linear_probe(TRAIN, TEST, 3, HELD)["top1"]


def test_knn_is_the_protocol_written_with_scikit_learn():
    from sklearn.neighbors import KNeighborsClassifier

    counts, labels, learn, choose = [1, 3, 7, 15], TRAIN.labels.numpy(), HELD.learn.numpy(), HELD.choose.numpy()
    train, test = TRAIN.values.numpy(), TEST.values.numpy()

    def fitted(rows, k):
        return KNeighborsClassifier(k, algorithm="brute").fit(train[rows], labels[rows])

    scores = [100 * fitted(learn, k).score(train[choose], labels[choose]) for k in counts]
    best = counts[int(np.argmax(scores))]
    found = knn_probe(TRAIN, TEST, 3, HELD, k=[*counts, 10**6])
    assert found["validation_top1"] == pytest.approx(dict(zip(map(str, counts), scores, strict=True)))
    assert found["k"] == best
    assert found["top1"] == pytest.approx(100 * fitted(np.arange(150), best).score(test, TEST.labels.numpy()))


def test_fine_tuning_starts_at_the_weights_with_a_fresh_classifier(image_folder, tmp_path, small_network, monkeypatch):
    from safetensors.torch import load_file, save_file

    from seal_fast.models import initialise_
    from seal_fast.training import assembly

    pretrained = ResNet(BasicBlock, (2, 2, 2, 2), 7, "small", width=8)
    initialise_(pretrained, 3)
    save_file(pretrained.state_dict(), tmp_path / "w.safetensors")
    network = open_network(tmp_path / "w.safetensors", stem="small", image_size=16)
    images = open_images(image_folder)
    started = {}

    def spy(model, path, fc=True, classifier="fc"):
        load_weights(model, path, fc, classifier)
        started.update({name: tensor.clone() for name, tensor in model.state_dict().items()})

    monkeypatch.setattr(assembly, "load_weights", spy)
    settings = Config(epochs=2, lr=0.02, batch_size=8, device="cpu", seed=1)
    found = fine_tune(network, images, settings, tmp_path / "out")
    for name, tensor in pretrained.state_dict().items():
        if not name.startswith("fc."):
            assert torch.equal(started[name], tensor)
    assert started["fc.weight"].shape == (4, 64)  # the four classes of the target
    (run,) = (tmp_path / "out").iterdir()
    ended = load_file(run / "weights" / "last.safetensors")
    assert not torch.equal(ended["conv1.weight"], started["conv1.weight"])  # the whole network learns
    model = ResNet(BasicBlock, (2, 2, 2, 2), 4, "small", width=8).eval()
    model.load_state_dict(ended)
    from seal_fast.data.batches import batches, choose

    ((pixels, labels),) = batches(images, choose(images, "val"), image_size=16, batch_size=12)
    with torch.no_grad():
        assert found["top1"] == pytest.approx(100 * (model(pixels).argmax(1) == labels).double().mean().item())
