"""Few-shot heads beside nn.Linear one episode after the other, the linear probe beside scikit-learn.

The features are those of an untrained ResNet-18, or of the weights that $SEAL_FAST_BENCH_WEIGHTS names, on augmented
images of the data set's first ten classes. SEAL_FAST_BENCH_LONG in the environment asks for more shots, for all
episodes one after the other, and for scikit-learn at a second tolerance: minutes.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import time

import numpy as np
import pytest
import torch
from torch import nn

from seal_fast.analysis.fewshot.compute import HeadSettings, linear
from seal_fast.analysis.fewshot.episodes import draw
from seal_fast.analysis.transfer.compute import L2, scaled
from seal_fast.analysis.transfer.linear_probe import fit_path
from seal_fast.data import make_input, open_images
from seal_fast.models import build, load_weights

COUNT, SIZE, CLASSES, LENGTH = 5000, 64, 10, 20.0
LONG = "SEAL_FAST_BENCH_LONG" in os.environ


@pytest.fixture(scope="module")
def features(data):
    """Pooled features float32 [5000, 512] and labels, from as many epochs of the training images as that takes."""
    images = open_images(data)
    train, val = (split.take(np.flatnonzero(split.labels < CLASSES)) for split in (images.train, images.val))
    images = dataclasses.replace(images, train=train, val=val, classes=images.classes[:CLASSES])
    network = build("resnet18", len(images.classes)).eval()
    if weights := os.environ.get("SEAL_FAST_BENCH_WEIGHTS"):
        load_weights(network, weights, fc=False)
    network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    source = make_input(images, image_size=SIZE, batch_size=250, eval_batch_size=250)
    values, labels, epoch = [], [], 0
    with torch.inference_mode():
        while sum(map(len, labels)) < COUNT:
            for batch in source.train(0, epoch):
                values.append(network.embed(batch.images))
                labels.append(batch.labels)
            epoch += 1
    source.close()
    found = torch.cat(values)[:COUNT].clone()
    if not weights:
        # At random weights they are ten times as long as after training, where the protocol's SGD is chaotic: then the
        # same loop in float32 and in float64 ends in other accuracies, and no two programs agree.
        found *= LENGTH / found.norm(dim=1).mean()
    return found, torch.cat(labels)[:COUNT].clone(), len(images.classes)


def sequential(values, shown, settings):
    """The protocol one episode after the other, with torch's own layer, loss and optimiser."""
    accuracies = []
    starts, orders = (shown.heads(0, len(shown), values.shape[1]), shown.orders(0, len(shown), settings.epochs))
    labels, asked = torch.from_numpy(shown.support_labels), torch.from_numpy(shown.query_labels)
    for start, order, rows, queries in zip(starts, orders, shown.support, shown.query, strict=True):
        head = nn.Linear(values.shape[1], shown.ways)
        with torch.no_grad():
            head.weight.copy_(torch.from_numpy(start[:, :-1]))
            head.bias.copy_(torch.from_numpy(start[:, -1]))
        optimizer = torch.optim.SGD(
            head.parameters(),
            lr=settings.lr,
            momentum=settings.momentum,
            dampening=settings.dampening,
            weight_decay=settings.weight_decay,
        )
        support = values[torch.from_numpy(rows)]
        for epoch in torch.from_numpy(order):
            for batch in epoch.split(settings.batch_size):
                optimizer.zero_grad()
                nn.functional.cross_entropy(head(support[batch]), labels[batch]).backward()
                optimizer.step()
        with torch.no_grad():
            accuracies.append((head(values[torch.from_numpy(queries)]).argmax(1) == asked).double().mean().item())
    return np.array(accuracies)


@pytest.mark.parametrize("shots", [5, 20, 50] if LONG else [5])
def test_few_shot(benchmark, features, shots):
    """600 episodes of the protocol; the sequential loop takes turns on some of them and is scaled up to all."""
    values, labels, classes = features
    settings, episodes, rounds = HeadSettings(), 600, 3 if LONG else 2
    part = {5: 20, 20: 4, 50: 2}[shots]
    shown = draw(
        labels.numpy(), [str(c) for c in range(classes)], ways=5, shots=shots, queries=15, episodes=episodes, seed=0
    )
    times: dict[str, list[float]] = {"batched": [], "sequential": []}
    differing = []

    def turn(first: int):
        some = type(shown)(shown.support[:part], shown.query[:part], shown.ways, shown.seed)
        start = time.perf_counter()
        expected = sequential(values, some, settings)
        middle = time.perf_counter()
        found = linear(values, shown, settings).numpy()
        times["sequential"].append((middle - start) * episodes / part)
        times["batched"].append(time.perf_counter() - middle)
        differing.append(int((found[:part] != expected).sum()))

    linear(values, shown, settings)  # warms up
    benchmark.pedantic(turn, args=(0,), rounds=rounds, iterations=1)
    ratios = [s / b for s, b in zip(times["sequential"], times["batched"], strict=True)]
    benchmark.extra_info |= {
        "episodes": episodes,
        "batched: seconds, median": statistics.median(times["batched"]),
        f"sequential: seconds, median, {part} episodes scaled to {episodes}": statistics.median(times["sequential"]),
        "sequential, scaled / batched, median": statistics.median(ratios),
        "sequential, scaled / batched, range": f"{min(ratios):.3g} to {max(ratios):.3g}",
        f"episodes of {part} whose accuracy differs": max(differing),
    }


@pytest.mark.skipif(not LONG, reason="takes minutes: SEAL_FAST_BENCH_LONG=1 runs it")
def test_few_shot_whole(benchmark, features):
    """All 600 5-way 5-shot episodes both ways, once: nothing scaled up."""
    values, labels, classes = features
    names = [str(c) for c in range(classes)]
    shown = draw(labels.numpy(), names, ways=5, shots=5, queries=15, episodes=600, seed=0)
    linear(values, shown)  # warms up
    seconds = {}

    def both():
        start = time.perf_counter()
        found = linear(values, shown).numpy()
        seconds["batched"] = time.perf_counter() - start
        start = time.perf_counter()
        expected = sequential(values, shown, HeadSettings())
        seconds["sequential"] = time.perf_counter() - start
        seconds["differing"] = int((found != expected).sum())

    benchmark.pedantic(both, rounds=1, iterations=1)
    benchmark.extra_info |= {
        "batched: seconds": seconds["batched"],
        "sequential: seconds": seconds["sequential"],
        "sequential / batched": seconds["sequential"] / seconds["batched"],
        "episodes of 600 whose accuracy differs": seconds["differing"],
    }


def test_linear_probe(benchmark, features):
    """The default path of 8 penalties; scikit-learn warm-started along it too, at its tolerance and at a smaller one.

    Its matrix library gets one thread: with two, a fit took twice as long beside its own OpenMP threads.
    """
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    values, labels, classes = features
    inputs, _ = scaled(values, values)
    rows, targets = inputs.double().numpy(), labels.numpy()
    tolerances = (1e-4, 1e-5) if LONG else (1e-4,)  # its default, and one that ends near the optimum

    def theirs(tolerance: float) -> list[tuple[np.ndarray, np.ndarray]]:
        model = LogisticRegression(tol=tolerance, max_iter=10000, warm_start=True)
        found = []
        for l2 in L2:
            model.C = 1 / (l2 * len(rows))
            model.fit(rows, targets)
            found.append((model.coef_.copy(), model.intercept_.copy()))
        return found

    def losses(path: list[tuple[np.ndarray, np.ndarray]]) -> list[float]:
        logits = [torch.from_numpy(rows @ weight.T + bias) for weight, bias in path]
        fits = [nn.functional.cross_entropy(each, labels).item() for each in logits]
        return [fit + l2 / 2 * (weight**2).sum() for fit, l2, (weight, _) in zip(fits, L2, path, strict=True)]

    exact = [found.loss for found in fit_path(inputs, labels, classes, L2, tolerance=1e-9)]

    def gap(reached: list[float]) -> float:
        return max(loss - best for loss, best in zip(reached, exact, strict=True))

    own: list[float] = []
    others: dict[float, list[float]] = {tolerance: [] for tolerance in tolerances}
    gaps: dict[object, float] = {}

    def turn():
        fit_path(inputs, labels, classes, L2[:2])  # warms up after the other's threads
        start = time.perf_counter()
        found = fit_path(inputs, labels, classes, L2)
        own.append(time.perf_counter() - start)
        gaps["own"] = gap([each.loss for each in found])
        for tolerance, taken in others.items():
            start = time.perf_counter()
            with threadpool_limits(1, "blas"):
                path = theirs(tolerance)
            taken.append(time.perf_counter() - start)
            gaps[tolerance] = gap(losses(path))

    benchmark.pedantic(turn, rounds=2 if LONG else 1, iterations=1)
    benchmark.extra_info |= {
        "images x features, classes": f"{len(rows)} x {rows.shape[1]}, {classes}",
        "own: seconds": statistics.median(own),
        "own: loss above the optimum, worst of the path": gaps["own"],
    }
    for tolerance, taken in others.items():
        benchmark.extra_info |= {
            f"scikit-learn, tol {tolerance:g}: seconds": statistics.median(taken),
            f"scikit-learn, tol {tolerance:g} / own": statistics.median(t / o for t, o in zip(taken, own, strict=True)),
            f"scikit-learn, tol {tolerance:g}: loss above the optimum, worst of the path": gaps[tolerance],
        }
