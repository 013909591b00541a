"""k-NN beside scikit-learn and faiss, the whole depth analysis beside scikit-learn probe after probe, and how it grows.

Contenders take turns in one process and give the same neighbours, which is checked. The depth analysis runs on an
untrained ResNet-18 and the images of SEAL_FAST_BENCH_DATA (digits where there are none) at 64 pixels: bank 20,000 and
2,000 queries, or as many as there are. Their vectors are those that one forward pass gives.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from seal_fast.analysis.depth import Prober, probe_votes
from seal_fast.analysis.knn import Search, neighbours
from seal_fast.data import open_images
from seal_fast.models import build

BANK, QUERIES, SIZE, K = 10_000, 2_000, 512, 30


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
    ratios(benchmark, interleaved(contenders, rounds=9))
    benchmark.pedantic(contenders["ours"], rounds=3)


@pytest.mark.parametrize("what", ["bank", "queries"])
def test_growth_of_the_search(benchmark, what):
    """Seconds for a quarter, a half and the whole, per row and relative to the whole: 1 is linear."""
    bank, queries = vectors(4 * BANK, SIZE, 0), vectors(2 * QUERIES, SIZE, 1)

    def part(share: float) -> Callable[[], object]:
        few, all_bank = (
            queries[: int(share * len(queries))],
            bank[: BANK if what == "queries" else int(share * len(bank))],
        )
        return lambda: neighbours(few if what == "queries" else queries[:1000], all_bank, K)

    seconds = interleaved({str(share): part(share) for share in (0.25, 0.5, 1.0)}, rounds=5)
    middle = {float(share): statistics.median(times) for share, times in seconds.items()}
    for share, time_taken in middle.items():
        benchmark.extra_info[f"seconds at {share:g} of the {what}"] = time_taken
        benchmark.extra_info[f"per row, against the whole, at {share:g}"] = time_taken / share / middle[1.0]
    benchmark.pedantic(part(0.25), rounds=2)


@pytest.mark.parametrize(
    "pooling, bank_size, query_size", [(1, 20_000, 2_000), (None, 10_000, 2_000)], ids=["avg", "none"]
)
def test_depth_analysis(benchmark, data, pooling, bank_size, query_size):
    """Ours: decoding, forward pass and probes in a stream. Theirs: the probes, on vectors that lie in memory already.

    Whole feature maps come with a smaller bank: scikit-learn needs all of it in memory.
    """
    from sklearn.neighbors import KNeighborsClassifier

    images = open_images(data)
    bank = images.train.spread(bank_size)
    queries = images.val.spread(query_size)
    network = build("resnet18", len(images.classes), seed=0).eval().requires_grad_(False)
    network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    prober = Prober(network, images, 64, pooling, autocast=lambda: torch.autocast("cpu", torch.bfloat16))
    start = time.perf_counter()
    found = probe_votes(prober, bank, {"val": queries}, K)["val"].votes
    everything = time.perf_counter() - start

    labels, known = prober.vectors([bank])
    _, asked = prober.vectors([queries])
    ours, theirs, agree = 0.0, 0.0, []
    for name, votes in zip(known, found, strict=True):
        start = time.perf_counter()
        search = Search(asked[name], K)
        for block in known[name].split(512):
            search.add(block)
        search.result()
        middle = time.perf_counter()
        peer = KNeighborsClassifier(K, algorithm="brute").fit(known[name].numpy(), labels.numpy())
        agree.append(float((peer.predict(asked[name].numpy()) == votes.numpy()).mean()))
        ours, theirs = ours + middle - start, theirs + time.perf_counter() - middle
    benchmark.extra_info |= {
        "bank, queries": f"{len(bank)}, {len(queries)}",
        "seconds: ours with decoding and forward pass": everything,
        "seconds: our probes alone": ours,
        "seconds: scikit-learn's probes alone": theirs,
        "scikit-learn's probes / our probes": theirs / ours,
        "scikit-learn's probes / ours with everything": theirs / everything,
        "same with decoding and forward pass on both sides": (theirs + everything - ours) / everything,
        "same votes as scikit-learn, least share over the probes": min(agree),
    }
    benchmark.pedantic(lambda: None, rounds=1)


def test_depth_command_time_and_memory(benchmark, data, tmp_path):
    """The command in a process of its own: every training image in the bank, 1,000 queries of train and of val each."""
    images = open_images(data)
    save_file(build("resnet18", len(images.classes), seed=0).state_dict(), tmp_path / "untrained.safetensors")
    flags = ["--data", images.source, "--queries", "1000", "--amp", "--json", "--image-size", "64"]
    command = [sys.executable, "-m", "seal_fast", "depth", str(tmp_path / "untrained.safetensors"), *flags]
    printed = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    (result,) = json.loads(printed)
    benchmark.extra_info |= {
        "bank": result["bank"],
        "seconds": result["seconds"],
        "peak memory, GiB": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20,
    }
    benchmark.pedantic(lambda: None, rounds=1)
