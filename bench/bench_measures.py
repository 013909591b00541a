"""CKA within and between four networks beside torch_cka, and every measure of four runs.

ResNet-18 on the images of SEAL_FAST_BENCH_DATA (digits where there are none), CKA at 64 pixels. Where torch_cka is not
installed (pip install --no-deps torch_cka), its place takes a literal loop that computes both Gram matrices anew for
each pair of layers, as torch_cka does. SEAL_FAST_BENCH_LONG in the environment asks for 2,000 images instead of 500,
and for the study of four runs, at SEAL_FAST_BENCH_SIZE pixels (32): minutes.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import os
import re
import resource
import subprocess
import sys
import time

import pytest
import torch
from bench_analysis import interleaved, ratios

from seal_fast import train
from seal_fast.analysis.depth.compute import Prober
from seal_fast.analysis.similarity.compute import cka, grams, hsic
from seal_fast.config import Config
from seal_fast.data import open_images
from seal_fast.data.batches import batches
from seal_fast.models import build

LONG = "SEAL_FAST_BENCH_LONG" in os.environ
SIZE = int(os.environ.get("SEAL_FAST_BENCH_SIZE", "32"))
IMAGES, BATCH, NETWORKS = 2000 if LONG else 500, 250, 4
PEER = "torch_cka" if importlib.util.find_spec("torch_cka") else "literal Gram matrices for each pair"


def peer_cka(first, second, names, shown):
    """[layers, layers] of two networks on a list of (images, labels)."""
    if PEER == "torch_cka":
        whole = torch.utils.data.TensorDataset(*(torch.cat(parts) for parts in zip(*shown, strict=True)))
        loader = torch.utils.data.DataLoader(whole, BATCH)
        peer = importlib.import_module("torch_cka").CKA(first, second, "first", "second", names, names)
        peer.compare(loader, loader)
        for model in (first, second):  # it never removes its hooks
            for module in model.modules():
                module._forward_hooks.clear()
        return peer.export()["CKA"]
    sums = torch.zeros(3, len(names), len(names))
    for images, _ in shown:
        x, y = (outputs(model, names, images) for model in (first, second))
        for (i, a), (j, b) in itertools.product(enumerate(x), enumerate(y)):
            k, m = (features @ features.T for features in (a, b))
            for matrix in (k, m):
                matrix.fill_diagonal_(0)
            sums[:, i, j] += torch.stack([full_hsic(k, m), full_hsic(k, k), full_hsic(m, m)])
    return sums[0] / (sums[1] * sums[2]).sqrt()


def outputs(model, names, images):
    found: list[torch.Tensor] = []
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda _, args, y: found.append(y.flatten(1))) for name in names
    ]
    model(images)
    for hook in hooks:
        hook.remove()
    return found


def full_hsic(k, m):
    """The unbiased estimator on whole matrices with zeros on the diagonal."""
    n, one = len(k), torch.ones(len(k), 1)
    middle = (one.T @ k @ one) * (one.T @ m @ one) / ((n - 1) * (n - 2))
    return (torch.trace(k @ m) + middle.squeeze() - 2 / (n - 2) * (one.T @ k @ m @ one).squeeze()) / (n * (n - 3))


@torch.no_grad()
def test_similarity_of_four_networks(benchmark, data):
    """Each with itself and all pairs, at the eight blocks; ours decodes the images, and has three more probes."""
    images = open_images(data)
    split = images.val.spread(IMAGES)
    models = [build("resnet18", len(images.classes), seed=i).eval().requires_grad_(False) for i in range(NETWORKS)]
    models = [model.to(memory_format=torch.channels_last) for model in models]
    names = [name for name, _ in models[0].blocks()]
    shown = [(x.clone(), y) for x, y in batches(images, split, image_size=64, batch_size=BATCH)]
    pairs = list(itertools.combinations_with_replacement(range(NETWORKS), 2))
    found: dict[str, list[torch.Tensor]] = {}

    def ours():
        held = [grams(Prober(model, images, 64, None, BATCH), split) for model in models]
        own = [hsic(some, some).diagonal() for some in held]
        found["ours"] = [cka(hsic(held[i], held[j]), own[i], own[j]) for i, j in pairs]

    def theirs():
        found["theirs"] = [peer_cka(models[i], models[j], names, shown) for i, j in pairs]

    seconds = interleaved({"ours": ours, PEER: theirs}, rounds=3)
    differing = [float((a[2:-1, 2:-1] - b).abs().max()) for a, b in zip(found["ours"], found["theirs"], strict=True)]
    ratios(benchmark, seconds)
    benchmark.extra_info |= {
        "images, networks, pairs": f"{len(split)}, {NETWORKS}, {len(pairs)}",
        f"largest difference to {PEER}": max(differing),
    }
    benchmark.pedantic(lambda: None, rounds=1)


@pytest.mark.skipif(not LONG, reason="takes minutes: SEAL_FAST_BENCH_LONG=1 runs it")
def test_every_measure_of_four_runs(benchmark, data, tmp_path):
    """The study of two seeds of two methods, at most 2,000 images a split, in a process of its own."""
    short = {"generations": 2, "epochs": 2, "ascent_epochs": 1, "warmup_epochs": 0, "keep": "ascents", "data": data}
    short |= {"limit_train": min(2000, len(open_images(data).train)), "image_size": SIZE, "record_examples": True}
    for method, seed in itertools.product(("seal", "restart"), (0, 1)):
        train.run(Config(method=method, seed=seed, out=tmp_path / f"{method}-{seed}", **short))
    command = [sys.executable, "-m", "seal_fast", "study", str(tmp_path), "--images", "2000"]
    start = time.perf_counter()
    printed = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    benchmark.extra_info |= {
        "pixels a side": SIZE,
        "seconds in all": time.perf_counter() - start,
        "peak memory, GiB": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20,
    }
    for name, seconds in re.findall(r"^(\w+) \(\d+ of \d+\): \d+ runs, (?:failed after )?(\d+) s", printed, re.M):
        benchmark.extra_info[f"seconds: {name}"] = int(seconds)
    assert (tmp_path / "study" / "report.html").exists()
    benchmark.pedantic(lambda: None, rounds=1)
