"""Sweeps beside the same runs one after the other; scheduling, starting, memory of the data set, the report.

By default the scheduling of a few pretended trials and the report. SEAL_FAST_BENCH_LONG=1 schedules a thousand, and
measures packed trials, memory and the compile cache too, in a few minutes each.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from seal_fast.config import Config, dumps
from seal_fast.run_folder import RunFolder
from seal_fast.sweep.process import Process

LONG = bool(os.environ.get("SEAL_FAST_BENCH_LONG"))
TESTS = Path(__file__).parents[1] / "tests"
CORES = len(os.sched_getaffinity(0))
long = pytest.mark.skipif(not LONG, reason="takes longer: set SEAL_FAST_BENCH_LONG=1")


def seconds(function, *arguments):
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def quiet(command, **options):
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, **options)


def space_of(config, folder, trials):
    text = dumps(replace(config, threads=None)) + f"seed = {{ grid = {list(range(trials))} }}\n"
    path = folder / "space.toml"
    path.write_text(re.sub(r"^(seed|resume) = [^{\n]*\n", "", text, flags=re.MULTILINE))
    return path


@long
def test_packed_trials(benchmark, tmp_path):
    """As many trials at a time as there are cores, one thread each, beside one after the other with all threads.

    On digits scaled to 64: with the validation images of other sets, short trials would be evaluation for the most.
    """
    trials, images = 8, 1408
    config = Config(
        data="digits", image_size=64, batch_size=128, limit_train=images, generations=1, epochs=1, ascent_epochs=0,
        warmup_epochs=0, lr=0.01, amp=True, keep="none",
    )  # fmt: skip
    space = space_of(config, tmp_path, trials)
    trainer = [sys.executable, "-m", "seal_fast.train", "--config", str(tmp_path / "config.toml")]
    trainer += ["--threads", str(CORES)]
    (tmp_path / "config.toml").write_text(dumps(config))

    def serial():
        for seed in range(trials):
            quiet([*trainer, "--seed", str(seed), "--out", str(tmp_path / f"serial-{seed}")])

    def packed():
        flags = ["--out", str(tmp_path / "sweep"), "--concurrent", str(CORES), "--threads", "1"]
        quiet([sys.executable, "-m", "seal_fast", "sweep", str(space), *flags])

    one = seconds(serial)
    both = benchmark.pedantic(seconds, args=(packed,))
    rows = json.loads((tmp_path / "sweep" / "results.json").read_text())
    assert [row["state"] for row in rows] == ["finished"] * trials
    trained = sum(row["seconds"] for row in rows)
    alone = sum(row["seconds"] for s in range(trials) for row in RunFolder(tmp_path / f"serial-{s}").rows())
    benchmark.extra_info |= {
        "trials, training images of each": f"{trials}, {images}",
        f"one after the other, {CORES} threads (s)": one,
        f"sweep, {CORES} at a time, 1 thread each, Ray's start included (s)": both,
        "sooner by": one / both,
        "training steps alone, sooner by": alone / (trained / CORES),
    }


def test_scheduling(benchmark, tmp_path):
    """Pretended trials that take no time: seconds of scheduling, ledger included, and of Ray's start."""
    pytest.importorskip("ray", reason="Ray is an optional extra")
    trials = 1000 if LONG else 40
    command = [sys.executable, str(TESTS / "sweep" / "stub_sweep.py"), str(tmp_path), str(trials), "2"]
    done = {}

    def run():
        done["out"] = subprocess.run(command, check=True, capture_output=True, text=True).stdout

    whole = benchmark.pedantic(seconds, args=(run,))
    fit = float(re.search(r"fit (\S+)", done["out"])[1])
    benchmark.extra_info |= {
        "trials, of 3 generations each": trials,
        "Ray's import, start and end (s)": whole - fit,
        "scheduling per trial (s)": fit / trials,
        "share of a trial of 2 minutes": f"{fit / trials / 120:.3%}",
    }


def test_report_of_a_thousand_runs(benchmark, tmp_path):
    sys.path[:0] = [str(TESTS), str(TESTS / "report")]
    import browser
    from pretend import pretend_rows
    from seal_fast.report.content import content
    from seal_fast.report.page import page
    from seal_fast.report.runs import Run

    if browser.find() is None:
        pytest.skip("no Chromium on this machine")
    config = Config(generations=10, epochs=40, ascent_epochs=10, eval_every=1)
    runs = []
    for i in range(334):
        rows = pretend_rows(replace(config, seed=i), 50 + i / 50)
        settings = {"lr": 0.001 * 1.02**i, "method": ("seal", "llf")[i % 2]}
        runs += [Run(f"{i}-{s}", "finished", replace(config, seed=s, **settings), rows) for s in range(3)]
    path = tmp_path / "report.html"
    writing = seconds(lambda: path.write_text(page(content(runs, "large"))))
    with browser.page() as driver:
        benchmark.pedantic(driver.open, args=(path,))
        timing = driver.run("performance.getEntriesByType('navigation')[0].loadEventEnd")
    benchmark.extra_info |= {
        "runs, epochs each": f"{len(runs)}, {config.generations * config.epochs}",
        "computing the page (s)": writing,
        "opening it in Chromium (s)": timing / 1000,
        "size (MB)": path.stat().st_size / 1e6,
    }


@long
def test_start_with_a_warm_cache(benchmark, tmp_path):
    """From the start of a trial's process to its end after two steps: the first of its shape, and the second."""
    config = Config(
        data="digits", image_size=64, batch_size=128, limit_train=256, generations=1, epochs=1, ascent_epochs=0,
        warmup_epochs=0, amp=True, compile=True, keep="none",
    )  # fmt: skip

    def start(name, **changes):
        process = Process(tmp_path / name, replace(config, **changes), CORES, tmp_path / "shared")
        assert process.wait(0) is None
        assert process.join() == 0
        return process.ends[0]

    plain = seconds(lambda: start("plain", compile=False))  # decodes the images for all of them
    plain = seconds(lambda: start("plain again", compile=False))
    cold = seconds(start, "cold")
    warm = benchmark.pedantic(seconds, args=(start, "warm"))
    benchmark.extra_info |= {
        "cold (s)": cold,
        "warm (s)": warm,
        "uncompiled (s)": plain,
        "warm / cold": warm / cold,
    }


OPEN = """
import re, sys, time
import torch
from seal_fast.data import make_input, open_images
source = make_input(open_images(sys.argv[1]), "resident", image_size=64, batch_size=128, eval_batch_size=128, threads=1)
for pixels in source._pixels.values():
    pixels.amax()
print("ready", flush=True)
sys.stdin.readline()
regions = re.split(r"\\n(?=[0-9a-f]+-[0-9a-f]+ )", open("/proc/self/smaps").read())
print(sum(int(re.search(r"Pss: +(\\d+)", r)[1]) for r in regions if "pixels.npy" in r.partition("\\n")[0]), flush=True)
sys.stdin.readline()
"""


@long
def test_memory_of_the_data_set(benchmark, data, tmp_path):
    """Proportional set sizes of the mapped images, summed over one process and over four."""

    def held(count):
        environment = dict(os.environ) | {"SEAL_FAST_SHARED_IMAGES": str(tmp_path), "OMP_NUM_THREADS": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
        runs = [subprocess.Popen([sys.executable, "-c", OPEN, data], **pipes) for _ in range(count)]
        for run in runs:
            while run.stdout.readline() != "ready\n":
                assert run.poll() is None
        for run in runs:
            run.stdin.write("\n")
            run.stdin.flush()
        sizes = [int(run.stdout.readline()) for run in runs]
        for run in runs:
            run.communicate("\n")
        return sum(sizes) / 1024

    one = held(1)
    four = benchmark.pedantic(held, args=(4,))
    benchmark.extra_info |= {"one process (MiB)": one, "four processes (MiB)": four, "growth": f"{four / one - 1:.2%}"}
