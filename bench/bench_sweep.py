"""Sweeps beside the same runs one after the other; scheduling, starting, memory of the data set, the report.

By default a few pretended trials, memory and the report. SEAL_FAST_BENCH_LONG=1 schedules a thousand, and measures
packed trials, what the sweep takes from them, and the compile cache too: about ten minutes.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from seal_fast.config import Config, dumps, load
from seal_fast.runs.folder import RunFolder
from seal_fast.sweep.process import environment

LONG = bool(os.environ.get("SEAL_FAST_BENCH_LONG"))
TESTS = Path(__file__).parents[1] / "tests"
CORES = len(os.sched_getaffinity(0))
TICKS = os.sysconf("SC_CLK_TCK")
TRIAL_SECONDS = 120  # the length of trial by which what a sweep costs is judged
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


class Watch(threading.Thread):
    """Looks at a sweep's processes: what its own ones compute, trainers apart, and when which trainer runs.

    samples: (time, CPU seconds so far), every second. starts, ends: of trainers, in seconds since the machine's start.
    """

    def __init__(self, pid):
        super().__init__(daemon=True)
        self.root, self.samples, self.ended = pid, [], threading.Event()
        self.starts, self.ends = {}, {}
        self.spent = {}  # by process; what one that has ended had spent still counts
        self.trainers = set()  # remembered, as one that has just ended has no command line any more

    def run(self):
        for beat in itertools.count():
            if self.ended.wait(0.05):
                return
            now = time.clock_gettime(time.CLOCK_BOOTTIME)
            self.ends |= {p: now for p in self.starts if p not in self.ends and not os.path.exists(f"/proc/{p}")}
            if beat % 20 == 0:
                self.samples.append((now, self._look()))

    def _look(self):
        parents, spent, begun, trainers = {}, {}, {}, self.trainers
        for place in Path("/proc").glob("[0-9]*"):
            try:
                fields = (place / "stat").read_text().rpartition(")")[2].split()
                pid = int(place.name)
                parents[pid], spent[pid] = int(fields[1]), (int(fields[11]) + int(fields[12])) / TICKS
                begun[pid] = int(fields[19]) / TICKS
                if b"seal_fast.train" in (place / "cmdline").read_bytes():
                    trainers.add(pid)
            except (OSError, IndexError):
                continue
        family = {self.root}
        while more := {child for child, parent in parents.items() if parent in family} - family:
            family |= more
        self.starts |= {pid: begun[pid] for pid in family & trainers if parents[pid] not in trainers}
        self.spent |= {pid: spent[pid] for pid in family - trainers if pid in spent}
        return sum(self.spent.values())

    def share(self, start, end):
        """Of all cores, between two times."""
        inside = [sample for sample in self.samples if start <= sample[0] <= end]
        (first, before), (last, after) = inside[0], inside[-1]
        return (after - before) / (last - first) / CORES


def numbers(folder):
    """A run's metrics without times."""
    times = {"images_per_s", "seconds", "input_wait_seconds", "compile_seconds"}
    return [{key: value for key, value in row.items() if key not in times} for row in folder.rows()]


@long
def test_packed_trials(benchmark, tmp_path):
    """As many trials at a time as there are cores, one thread each, beside one after the other with all threads.

    On digits scaled to 64: with the validation images of other sets, short trials would be evaluation for the most.
    """
    trials, images, epochs = 8, 1408, 3
    config = Config(
        data="digits", image_size=64, batch_size=128, limit_train=images, generations=1, epochs=epochs, ascent_epochs=0,
        warmup_epochs=0, lr=0.01, amp=True, keep="none",
    )  # fmt: skip
    space = space_of(config, tmp_path, trials)
    (tmp_path / "config.toml").write_text(dumps(config))
    sweep = tmp_path / "sweep"
    watches = []

    def train(seed, threads):
        trainer = [sys.executable, "-m", "seal_fast.train", "--config", str(tmp_path / "config.toml")]
        out = tmp_path / f"{threads}-{seed}"
        quiet([*trainer, "--threads", str(threads), "--seed", str(seed), "--out", str(out)])
        return RunFolder(out)

    def serial():
        for seed in range(trials):
            train(seed, CORES)

    def packed():
        flags = ["--out", str(sweep), "--concurrent", str(CORES), "--threads", "1"]
        command = [sys.executable, "-m", "seal_fast", "sweep", str(space), *flags]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            watches.append(Watch(process.pid))
            watches[0].start()
        watches[0].ended.set()
        assert process.returncode == 0

    one = seconds(serial)
    both = benchmark.pedantic(seconds, args=(packed,))
    rows = json.loads((sweep / "results.json").read_text())
    assert [row["state"] for row in rows] == ["finished"] * trials
    for row in rows[:2]:
        seed = load(RunFolder(sweep / "trials" / row["trial"]).config, Config()).seed
        assert numbers(RunFolder(sweep / "trials" / row["trial"])) == numbers(train(seed, 1))

    trained = sum(row["seconds"] for row in rows)
    alone = sum(row["seconds"] for s in range(trials) for row in RunFolder(tmp_path / f"{CORES}-{s}").rows())
    starts, ends = sorted(watches[0].starts.values()), sorted(watches[0].ends.values())
    assert len(starts) == trials
    gaps = [start - end for start, end in zip(starts[CORES:], ends, strict=False)]
    gap, share = sum(gaps) / len(gaps), watches[0].share(starts[0], ends[-CORES])
    benchmark.extra_info |= {
        "trials, training images of each": f"{trials}, {epochs} x {images}",
        f"one after the other, {CORES} threads (s)": one,
        f"sweep, {CORES} at a time, 1 thread each, Ray's start included (s)": both,
        "sooner by": one / both,
        "training steps alone, sooner by": alone / (trained / CORES),
        "from a trainer's end to the next one's start (s)": gap,
        "share of the cores that the sweep itself takes": f"{share:.2%}",
        "both, of a trial of 2 minutes": f"{gap / TRIAL_SECONDS + share:.2%}",
    }


def test_scheduling(benchmark, tmp_path):
    """Pretended trials that take no time: seconds of scheduling, ledger included, and of Ray's start."""
    pytest.importorskip("ray", reason="Ray is an optional extra")
    trials = 1000 if LONG else 40
    command = [sys.executable, str(TESTS / "helpers" / "stub_sweep.py"), str(tmp_path), str(trials), "2"]
    done = {}

    def run():
        done["out"] = subprocess.run(command, check=True, capture_output=True, text=True).stdout

    whole = benchmark.pedantic(seconds, args=(run,))
    fit = float(re.search(r"fit (\S+)", done["out"])[1])
    benchmark.extra_info |= {
        "trials, of 3 generations each": trials,
        "Ray's import, start and end (s)": whole - fit,
        "scheduling per trial (s)": fit / trials,
        "share of a trial of 2 minutes": f"{fit / trials / TRIAL_SECONDS:.3%}",
    }


@pytest.mark.parametrize("seeds", [3, 1])
def test_report_of_a_thousand_runs(benchmark, tmp_path, seeds):
    """Rows of three seeds each; and rows as a random search makes them, no two runs of the same settings."""
    sys.path[:0] = [str(TESTS / "helpers")]
    import browser
    from pretend import pretend_rows

    from seal_fast.report.analyses import Analyses
    from seal_fast.report.content import content, page
    from seal_fast.runs.collection import Run, Runs, group_by_training

    if browser.find() is None:
        pytest.skip("no Chromium on this machine")
    config = Config(generations=10, epochs=40, ascent_epochs=10, eval_every=1)
    runs = []
    for i in range(-(-1000 // seeds)):
        rows = pretend_rows(replace(config, seed=i), 50 + i / 50)
        settings = {"lr": 0.001 * 1.005**i, "method": ("seal", "llf")[i % 2]}
        configs = [replace(config, seed=s, **settings) for s in range(seeds)]
        runs += [Run(c, {}, (), Path(f"{i}-{c.seed}"), rows, "finished") for c in configs]
    path = tmp_path / "report.html"
    found, none = Runs(runs, []), Analyses([], {}, [])
    writing = seconds(lambda: path.write_text(page(content(found, group_by_training(runs), none, "large"))))
    with browser.page() as driver:
        benchmark.pedantic(driver.open, args=(path,))
        timing = driver.run("performance.getEntriesByType('navigation')[0].loadEventEnd")
    benchmark.extra_info |= {
        "runs, epochs each": f"{len(runs)}, {config.generations * config.epochs}",
        "rows of the table": len({run.config.lr for run in runs}),
        "computing the page (s)": writing,
        "opening it in Chromium (s)": timing / 1000,
        "size (MB)": path.stat().st_size / 1e6,
    }


# The trainer, but it ends with its first step.
FIRST_STEP = """
import os, sys
from seal_fast import train
from seal_fast.training.steps import Steps
take = Steps.take
def first(self, batch):
    take(self, batch)
    self.state.counters.cpu()
    os._exit(3)
Steps.take = first
train.main(sys.argv[1:])
"""


@long
@pytest.mark.parametrize("threads", [1, CORES])
def test_start_with_a_warm_cache(benchmark, tmp_path, threads):
    """From the start of a trial's process to the end of its first step: the first trial of its shape, and the second.

    Threads as a sweep divides them: those of the compiler are as many.
    """
    flags = "--data digits --image-size 64 --batch-size 128 --amp --compile".split()
    common = environment(tmp_path / "shared", threads) | {"SEAL_FAST_SHARED_IMAGES": str(tmp_path / "images")}
    count = iter(range(9))

    def start(*without):
        out = ["--out", str(tmp_path / str(next(count))), "--threads", str(threads)]
        command = [sys.executable, "-c", FIRST_STEP, *(flag for flag in flags if flag not in without), *out]
        assert subprocess.run(command, env=common, stdout=subprocess.DEVNULL).returncode == 3

    start("--compile")  # decodes the images for all of them
    plain = seconds(start, "--compile")
    cold = seconds(start)
    warm = benchmark.pedantic(seconds, args=(start,))
    benchmark.extra_info |= {
        "threads": threads,
        "cold (s)": cold,
        "warm (s)": warm,
        "uncompiled (s)": plain,
        "warm / cold": warm / cold,
    }


# Reads every image through the augmentation, then tells the sizes of the map and of what it holds besides.
OPEN = """
import re, sys
import torch
from seal_fast.data import make_input, open_images
def held(kind, part):
    regions = re.split(r"\\n(?=[0-9a-f]+-[0-9a-f]+ )", open("/proc/self/smaps").read())
    return sum(int(re.search(kind + r": +(\\d+)", r)[1]) for r in regions if part in r.partition("\\n")[0])
images = open_images(sys.argv[1])
before = held("Anonymous", "")
source = make_input(images, "resident", image_size=64, batch_size=128, eval_batch_size=128, threads=1)
for batches in (source.train(0, 0), source.evaluation()):
    for batch in batches:
        pass
print("ready", flush=True)
sys.stdin.readline()
print(held("Pss", ".images"), held("Anonymous", "") - before, flush=True)
sys.stdin.readline()
"""


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
        sizes = [[int(size) / 1024 for size in run.stdout.readline().split()] for run in runs]
        for run in runs:
            run.communicate("\n")
        return [sum(column) for column in zip(*sizes, strict=True)]

    held(1)  # decodes
    one, beside = held(1)
    four, _ = benchmark.pedantic(held, args=(4,))
    benchmark.extra_info |= {
        "one process (MiB)": one,
        "four processes (MiB)": four,
        "growth": f"{four / one - 1:.2%}",
        "private memory of a process for feeding them (MiB)": beside,
    }
