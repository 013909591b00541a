"""Eigenvalues of the Hessian beside PyHessian, curvlinops with scipy's eigsh, and hessian-eigenthings.

ResNet-18 of width 16, trained here for a moment on real images of 64x64; 64 of these images, or 256 with
SEAL_FAST_BENCH_LONG set; eval-mode BatchNorm, one batch and channels-last for everybody. Errors are relative, against
the float64 values of `reference`.
"""

from __future__ import annotations

import copy
import importlib.util
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hessian_peers import NEEDS, curvlinops_eigsh, eigenthings, loss, pyhessian, pyhessian_density
from safetensors.torch import load_file, save_file

from seal_fast.curvature import HessianOperator, density, lanczos
from seal_fast.data import open_images
from seal_fast.data.batches import batches, choose
from seal_fast.models import initialise_
from seal_fast.models.resnet import BasicBlock, ResNet
from seal_fast.training import runtime

LONG = "SEAL_FAST_BENCH_LONG" in os.environ
IMAGES, SIZE = 256 if LONG else 64, 64
KEPT = Path(__file__).parent / "results"


def network(width, classes):
    model = ResNet(BasicBlock, (2, 2, 2, 2), classes, "imagenet", width)
    initialise_(model, 0)
    return model.to(memory_format=torch.channels_last)


def trained(data, width=16, images=4096, epochs=8):
    """The network, and the first images that it was trained on; made once and kept in bench/results."""
    found = open_images(data)
    kept = KEPT / f"hessian-{found.fingerprint[:8]}-{width}.safetensors"
    model = network(width, len(found.classes))
    if not kept.exists():
        split = choose(found, "train", min(images, len(found.train)), spread=True)
        parts = list(batches(found, split, image_size=SIZE, batch_size=512))
        x, y = (torch.cat([part[i] for part in parts]) for i in (0, 1))
        optimizer = torch.optim.SGD(model.train().parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
        steps = epochs * len(x) // 64
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps + 1)
        draw = torch.Generator().manual_seed(0)
        for _ in range(steps):
            rows = torch.randint(0, len(x), (64,), generator=draw)
            optimizer.zero_grad()
            loss(model(x[rows]), y[rows]).backward()
            optimizer.step()
            schedule.step()
        tensors = {name: t.contiguous() for name, t in model.state_dict().items()}
        kept.parent.mkdir(exist_ok=True)
        save_file({"x": x[:1024].contiguous(), "y": y[:1024], **tensors}, kept)
    tensors = load_file(kept)
    x, y = tensors.pop("x").contiguous(memory_format=torch.channels_last), tensors.pop("y")
    model.load_state_dict(tensors)
    return model.eval(), x, y


@pytest.fixture(scope="module")
def problem(data):
    runtime.keep_freed_memory()  # as every program of seal_fast does; it serves all contenders
    model, x, y = trained(data)
    return model, x[:IMAGES].contiguous(memory_format=torch.channels_last), y[:IMAGES]


@pytest.fixture(scope="module")
def reference(problem):
    """The five largest and the most negative eigenvalues: float64 Rayleigh-Ritz, by double backward."""
    model, x, y = problem
    found = lanczos(HessianOperator(model, loss, [(x, y)]), 5, 1, tol=1e-5, vectors=True, max_hvps=500, basis=200)
    vectors = torch.cat([found.top.vectors, found.bottom.vectors])
    parts = list(zip(x.double().split(32), y.split(32), strict=True))
    double = HessianOperator(copy.deepcopy(model).double(), loss, parts, method="double-backward", cache_bytes=0)
    products = torch.cat([double.multiply(v[None]) for v in vectors])
    values = torch.linalg.eigvalsh(vectors @ products.T).tolist()
    return values[:0:-1], values[0]


def ours(problem, top=0, bottom=0):
    model, x, y = problem
    operator = HessianOperator(model, loss, [(x, y)])
    start = None if bottom else operator.gradient if top == 1 else operator.outlying()
    found = lanczos(operator, top, bottom, start=start)
    return found.top.values or found.bottom.values, found.hvps


def race(benchmark, truth, contenders, rounds):
    """Everybody that is installed in turn, `rounds` times; seconds, products and errors into the table."""
    for name in list(contenders):
        package = NEEDS.get(name.split(",")[0])
        if package and importlib.util.find_spec(package) is None:
            del contenders[name]
            benchmark.extra_info[f"{name}: not installed"] = package
    seconds, outcome = {name: [] for name in contenders}, {}

    def one_round():
        for name, run in contenders.items():
            begin = time.perf_counter()
            outcome[name] = run()
            seconds[name].append(time.perf_counter() - begin)

    benchmark.pedantic(one_round, rounds=rounds)
    info = benchmark.extra_info
    for name, (values, hvps) in outcome.items():
        error = max(abs(value / t - 1) for value, t in zip(values, truth, strict=True)) if truth else None
        info[f"{name}: seconds"] = statistics.median(seconds[name])
        info[f"{name}: products"] = hvps
        if error is not None:
            info[f"{name}: relative error"] = error
        if name != "seal_fast":
            ratios = [a / b for a, b in zip(seconds[name], seconds["seal_fast"], strict=True)]
            info[f"seal_fast is faster than {name} by"] = statistics.median(ratios)
    info["n"], info["images"] = rounds, IMAGES


def test_top5(benchmark, problem, reference):
    mine = {}

    def seal_fast():
        mine["found"] = ours(problem, top=5)
        return mine["found"]

    race(
        benchmark,
        reference[0],
        {
            "seal_fast": seal_fast,
            "PyHessian": lambda: pyhessian(problem, 5),
            "curvlinops, eigsh": lambda: curvlinops_eigsh(problem, top=5),
            "hessian-eigenthings, our steps": lambda: eigenthings(problem, 5, mine["found"][1]),
        },
        rounds=1,
    )


def test_top1(benchmark, problem, reference):
    contenders = {"seal_fast": lambda: ours(problem, top=1), "PyHessian": lambda: pyhessian(problem, 1)}
    race(benchmark, reference[0][:1], contenders, rounds=5 if LONG else 3)


@pytest.mark.skipif(not LONG, reason="takes minutes: SEAL_FAST_BENCH_LONG=1 runs it")
def test_most_negative(benchmark, problem, reference):
    contenders = {
        "seal_fast": lambda: ours(problem, bottom=1),
        "curvlinops, eigsh": lambda: curvlinops_eigsh(problem, bottom=1),
    }
    race(benchmark, [reference[1]], contenders, rounds=1)


def test_density(benchmark, problem):
    """One probe."""
    model, x, y = problem
    steps = 100 if LONG else 40

    def mine():
        return [], density(HessianOperator(model, loss, [(x, y)]), 1, steps).hvps

    race(benchmark, None, {"seal_fast": mine, "PyHessian": lambda: pyhessian_density(problem, steps)}, rounds=1)


@pytest.mark.parametrize("width", [16, 64])
def test_product_in_gradients(benchmark, data, problem, width):
    """What a product with 1, 4, 8 and 16 vectors costs beside one gradient, and double backward with its graph kept."""
    model = problem[0] if width == 16 else network(64, problem[0].fc.out_features).eval()
    count = IMAGES if width == 16 else IMAGES // 4
    x, y = problem[1][:count].contiguous(memory_format=torch.channels_last), problem[2][:count]
    parameters = list(model.parameters())
    graph = torch.autograd.grad(loss(model(x), y), parameters, create_graph=True)
    vector = [torch.randn_like(p) for p in parameters]
    operator = HessianOperator(model, loss, [(x, y)])
    blocks = {m: torch.randn(m, operator.shape[0]) for m in ((1, 4, 8, 16) if width == 16 or LONG else (1,))}
    contenders = {
        "gradient": lambda: torch.autograd.grad(loss(model(x), y), parameters),
        "double backward, graph kept": lambda: torch.autograd.grad(graph, parameters, vector, retain_graph=True),
        "double backward, graph rebuilt": lambda: torch.autograd.grad(
            torch.autograd.grad(loss(model(x), y), parameters, create_graph=True), parameters, vector
        ),
        **{f"product with {m}": (lambda m=m: operator.multiply(blocks[m])) for m in blocks},
    }
    seconds = {name: [] for name in contenders}

    def one_round():
        for name, run in contenders.items():
            begin = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - begin)

    benchmark.pedantic(one_round, rounds=5 if LONG else 3, warmup_rounds=1)
    info, base = benchmark.extra_info, statistics.median(seconds["gradient"][1:])
    info[f"width {width}, {count} images: gradient, s"] = base
    for name in list(contenders)[1:]:
        vectors = int(name.split()[-1]) if name.startswith("product") else 1
        info[f"{name}, gradients a vector"] = statistics.median(seconds[name][1:]) / base / vectors


def test_growth(benchmark, data):
    """Seconds a product over images, and products over k."""
    model, x, y = trained(data)

    def run(count, k):
        begin = time.perf_counter()
        parts = list(zip(x[:count].split(256), y[:count].split(256), strict=True))
        operator = HessianOperator(model, loss, parts)
        found = lanczos(operator, k, start=operator.gradient if k == 1 else operator.outlying())
        return (time.perf_counter() - begin) / found.hvps, found.hvps

    def one_round():
        for count in (IMAGES, 2 * IMAGES, 4 * IMAGES):
            benchmark.extra_info[f"{count} images, seconds a product"] = run(count, 1)[0]
        for k in (1, 2, 5, 10):
            seconds, products = run(IMAGES, k)
            benchmark.extra_info[f"top {k} of {IMAGES} images, products"] = products
            benchmark.extra_info[f"top {k} of {IMAGES} images, seconds"] = seconds * products

    benchmark.pedantic(one_round, rounds=1)


@pytest.mark.skipif(not LONG, reason="64 images take less than importing does: SEAL_FAST_BENCH_LONG=1 runs it")
def test_memory(benchmark, data):
    """Peak memory of a process of its own for top-1, over what it holds with the problem loaded."""

    def peak(who):
        done = subprocess.run([sys.executable, __file__, who, data], check=True, capture_output=True, text=True)
        return int(done.stdout.split()[-1]) / 2**10

    trained(data)
    found = {}
    benchmark.pedantic(lambda: found.update({who: peak(who) for who in ("ours", "pyhessian")}), rounds=1)
    for who, size in found.items():
        benchmark.extra_info[f"{who}, MiB over the problem itself"] = size


def resident(which):
    """KiB: VmRSS now, or VmHWM at its peak since `clear_refs` was last written to."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(which))


if __name__ == "__main__":
    torch.set_num_threads(2)
    model, x, y = trained(sys.argv[2])
    problem = model, x[:IMAGES].contiguous(memory_format=torch.channels_last), y[:IMAGES]
    run = {"ours": lambda: ours(problem, top=1), "pyhessian": lambda: pyhessian(problem, 1)}[sys.argv[1]]
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew: loading had its own
    before = resident("VmRSS")
    run()
    print(resident("VmHWM") - before)
