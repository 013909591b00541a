"""k-NN beside scikit-learn and faiss, the whole depth analysis beside scikit-learn probe after probe, and how it grows.

Contenders take turns in one process and give the same neighbours, which is checked. The depth analysis runs on an
untrained ResNet-18 and the images of SEAL_FAST_BENCH_DATA (digits where there are none) at 64 pixels, on vectors that
one forward pass gives both sides. SEAL_FAST_BENCH_LONG in the environment asks for the whole sizes: minutes.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from seal_fast.analysis.common.knn import Search, neighbours, vote
from seal_fast.analysis.depth.compute import Prober
from seal_fast.data import open_images
from seal_fast.models import build
from seal_fast.training import runtime

BANK, QUERIES, SIZE, K = 10_000, 2_000, 512, 30
LONG = "SEAL_FAST_BENCH_LONG" in os.environ
takes_minutes = pytest.mark.skipif(not LONG, reason="takes minutes: SEAL_FAST_BENCH_LONG=1 runs it")


def vectors(count: int, size: int, seed: int) -> torch.Tensor:
    """As a pooled ReLU layer gives them: not negative, correlated."""
    random = torch.Generator().manual_seed(seed)
    mix = torch.randn(size, size, generator=torch.Generator().manual_seed(9)) / size**0.5
    return (torch.randn(count, size, generator=random) @ mix).relu()


def interleaved(contenders: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contender, round by round; a first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds + 1):
        for name, contender in contenders.items():
            start = time.perf_counter()
            contender()
            seconds[name].append(time.perf_counter() - start)
    return {name: times[1:] for name, times in seconds.items()}


def ratios(benchmark, seconds: dict[str, list[float]]) -> None:
    own = statistics.median(seconds["ours"])
    for name, times in seconds.items():
        if name == "ours":
            continue
        by_round = [theirs / mine for theirs, mine in zip(times, seconds["ours"], strict=True)]
        benchmark.extra_info[f"{name} / ours"] = statistics.median(times) / own
        benchmark.extra_info[f"{name} / ours, over rounds"] = f"{min(by_round):.2f} to {max(by_round):.2f}"


def same_sets(found: torch.Tensor, theirs: np.ndarray) -> float:
    """Share of queries whose k neighbours are the same; equal distances may be resolved either way."""
    return float((found.sort(1).values.numpy() == np.sort(theirs, 1)).all(1).mean())


def test_nearest_neighbours(benchmark):
    import faiss
    from sklearn.neighbors import NearestNeighbors

    bank, queries = vectors(BANK, SIZE, 0), vectors(QUERIES, SIZE, 1)
    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatL2(SIZE)
    index.add(bank.numpy())
    brute = NearestNeighbors(n_neighbors=K, algorithm="brute").fit(bank.numpy())
    contenders = {
        "ours": lambda: neighbours(queries, bank, K),
        "scikit-learn brute force": lambda: brute.kneighbors(queries.numpy(), return_distance=False),
        "faiss IndexFlatL2": lambda: index.search(queries.numpy(), K),
    }
    found = neighbours(queries, bank, K)[0]
    benchmark.extra_info["same neighbours as scikit-learn, share of queries"] = same_sets(
        found, brute.kneighbors(queries.numpy(), return_distance=False)
    )
    benchmark.extra_info["same neighbours as faiss (float32), share of queries"] = same_sets(
        found, index.search(queries.numpy(), K)[1]
    )
    ratios(benchmark, interleaved(contenders, rounds=9 if LONG else 4))
    benchmark.pedantic(contenders["ours"], rounds=3)


@pytest.mark.parametrize("what", ["bank", "queries", "probes"])
def test_growth(benchmark, what):
    """Seconds and memory of the search at a quarter, a half and all of the bank, the queries or the probes.

    Seconds are told by row and relative to the whole, so that 1 is linear. Memory is what comes on top of the vectors.
    """
    size = 1024
    bank, queries = vectors(16_000, size, 0), vectors(2_000, size, 1)

    def part(share: float) -> Callable[[], object]:
        shown = bank[: int(share * len(bank))] if what == "bank" else bank[:8_000]
        asked = queries[: int(share * len(queries))] if what == "queries" else queries[:1_000]
        probes = int(share * 8) if what == "probes" else 2

        def run():
            searches = [Search(asked, K) for _ in range(probes)]
            for block in shown.split(512):
                for search in searches:
                    search.add(block)
            for search in searches:
                search.result()

        return run

    seconds = interleaved({str(share): part(share) for share in (0.25, 0.5, 1.0)}, rounds=5 if LONG else 3)
    middle = {float(share): statistics.median(times) for share, times in seconds.items()}
    for share, time_taken in middle.items():
        benchmark.extra_info[f"seconds at {share:g} of the {what}"] = time_taken
        benchmark.extra_info[f"per row, against the whole, at {share:g}"] = time_taken / share / middle[1.0]
        benchmark.extra_info[f"peak memory at {share:g}, MiB"] = peak_mebibytes(part(share))
    benchmark.pedantic(part(0.25), rounds=1)


def peak_mebibytes(run: Callable[[], object]) -> float:
    """What a call takes at its peak beyond what is held before; NaN where the system does not let one ask."""

    def status(name: str) -> float:
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(lines[name].split()[0]) / 1024

    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
        before = status("VmRSS")
    except (OSError, KeyError, AttributeError):
        return float("nan")
    run()
    peak = status("VmHWM") - before
    runtime.keep_freed_memory.cache_clear()  # the heap in huge pages, which trimming has given back
    runtime.keep_freed_memory()
    return peak


@pytest.mark.parametrize(
    "pooling, bank_size, query_size",
    [(1, 20_000, 2_000), (None, 10_000, 2_000)] if LONG else [(1, 4_000, 1_000), (None, 1_500, 500)],
    ids=["avg", "none"],
)
def test_depth_analysis(benchmark, data, pooling, bank_size, query_size):
    """All probes of the analysis: ours as the bank streams by in batches of 512, theirs one probe after the other.

    Whole feature maps come with a smaller bank: scikit-learn needs all of it in memory.
    """
    from sklearn.neighbors import KNeighborsClassifier

    images = open_images(data)
    classes = len(images.classes)
    bank, queries = images.train.spread(bank_size), images.val.spread(query_size)
    network = build("resnet18", classes, seed=0).eval().requires_grad_(False)
    network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    prober = Prober(network, images, 64, pooling, autocast=lambda: torch.autocast("cpu", torch.bfloat16))
    start = time.perf_counter()
    labels, known = prober.vectors([bank])
    _, asked = prober.vectors([queries])
    forward = time.perf_counter() - start
    votes: dict[str, list[torch.Tensor]] = {}

    def ours():
        searches = {name: Search(asked[name], K) for name in known}
        for start in range(0, len(labels), 512):
            for name, search in searches.items():
                search.add(known[name][start : start + 512])
        votes["ours"] = [vote(labels[search.result()[0]], classes) for search in searches.values()]

    def theirs():
        votes["theirs"] = []
        for name, rows in known.items():
            peer = KNeighborsClassifier(K, algorithm="brute").fit(rows.numpy(), labels.numpy())
            votes["theirs"].append(torch.from_numpy(peer.predict(asked[name].numpy())))

    contenders = {"ours": ours, "scikit-learn, probe after probe": theirs}
    if LONG and pooling is None:  # a minute a round
        seconds = {name: [_seconds(contender)] for name, contender in contenders.items()}
    else:
        seconds = interleaved(contenders, rounds=7 if LONG else 3)
    own, other = (statistics.median(times) for times in seconds.values())
    agree = [float((a == b).float().mean()) for a, b in zip(votes["ours"], votes["theirs"], strict=True)]
    benchmark.extra_info |= {
        "bank, queries, probes": f"{len(bank)}, {len(queries)}, {len(known)}",
        "seconds: our probes": own,
        "seconds: scikit-learn's probes": other,
        "seconds: decoding and forward pass, the same for both": forward,
    }
    ratios(benchmark, seconds)
    benchmark.extra_info |= {
        "scikit-learn / ours, decoding and forward pass on both sides": (other + forward) / (own + forward),
        "same votes as scikit-learn, least share over the probes": min(agree),
    }
    benchmark.pedantic(lambda: None, rounds=1)


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


@takes_minutes
def test_depth_command_time_and_memory(benchmark, data, tmp_path):
    """The command in a process of its own: every training image in the bank, 1,000 queries of train and of val each."""
    images = open_images(data)
    save_file(build("resnet18", len(images.classes), seed=0).state_dict(), tmp_path / "untrained.safetensors")
    flags = ["--data", images.source, "--queries", "1000", "--amp", "--json", "--image-size", "64"]
    command = [sys.executable, "-m", "seal_fast", "depth", str(tmp_path / "untrained.safetensors"), *flags]
    printed = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    (result,) = json.loads(printed)
    benchmark.extra_info |= {
        "bank": result["protocol"]["bank"],
        "seconds": result["seconds"],
        "peak memory, GiB": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20,
    }
    benchmark.pedantic(lambda: None, rounds=1)
