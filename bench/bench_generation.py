"""Images per second of the trainer, per phase and method, beside textbook and strong loops: ratios in one run.

ResNet-18, 64x64, batch 128. All contenders take turns, a few steps each per round; figures are medians over rounds, of
which SEAL_FAST_BENCH_LONG in the environment asks for more.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import statistics
import subprocess
import sys
import time

import pytest
import strong
import textbook
import torch
from PIL import Image

from seal_fast.config import Config
from seal_fast.data import open_images
from seal_fast.kernels.torch_private import has_bf16_matmul
from seal_fast.methods import METHODS
from seal_fast.models import build
from seal_fast.runs.folder import RunFolder
from seal_fast.train import assemble, open_input
from seal_fast.training import entry, runtime
from seal_fast.training.checkpoint import Position
from seal_fast.training.trainer import Trainer

LONG = "SEAL_FAST_BENCH_LONG" in os.environ
ON_GPU = torch.cuda.is_available()
BATCH, SIZE, STEPS = 128, 64, 64 if ON_GPU else 4
ROUNDS, PHASE_ROUNDS = (10, 12) if LONG else (3, 8)
VARIANTS = {
    "amp": {"amp": True},
    "amp, compiled": {"amp": True, "compile": True},
    "fp32": {},
}
if LONG:
    VARIANTS["fp32, compiled"] = {"compile": True}


@pytest.fixture(scope="module")
def images(data):
    return open_images(data)


@pytest.fixture(scope="module")
def inputs(images):
    """The input of each computing type and length of epoch, decoded once."""
    made = {}

    def make(config, machine):
        key = machine.compute, config.limit_train
        if key not in made:
            made[key] = open_input(config, machine, images)
        return made[key]

    yield make
    for source in made.values():
        source.close()


@pytest.fixture(scope="module")
def trainers(images, inputs, tmp_path_factory):
    """Engines by configuration; everything stays built between benchmarks."""
    with contextlib.ExitStack() as stack:
        made: dict[Config, Trainer] = {}

        def make(**changes) -> Trainer:
            settings = {
                "data": images.source,
                "image_size": SIZE,
                "batch_size": BATCH,
                "limit_train": min(STEPS * BATCH, len(images.train)),
                "generations": 2,
                "epochs": 2,
                "ascent_epochs": 1,
                "warmup_epochs": 0,
                "lr": 0.01,
                "checkpoint_seconds": 1e9,
            }
            config = Config(**(settings | changes))
            if config not in made:
                machine = runtime.start(config)
                folder = RunFolder(tmp_path_factory.mktemp("run"))
                with contextlib.redirect_stdout(io.StringIO()):
                    entered = assemble(config, machine, images, inputs(config, machine), folder)
                    made[config] = stack.enter_context(entered)
            return made[config]

        yield make


def epoch(trainer: Trainer, generation: int = 0, epoch: int = 0) -> tuple[float, float]:
    """One epoch of real steps, input and counters included: images per second, share waiting for input."""
    state = trainer.state
    state.position = Position(generation, epoch)
    state.counters.zero_()
    state.seconds = state.wait_seconds = 0.0
    phase, _ = trainer.timeline.phase(generation, epoch)
    entry.enter(trainer, phase)
    trainer.set_rates()
    trainer.steps.begin(phase)
    trainer.train()
    images = trainer.read_counters()[3]
    return images / state.seconds, state.wait_seconds / state.seconds


@pytest.fixture
def opponent(images):
    """The textbook loop, on the same images as encoded bytes."""
    loop = textbook.Apart(textbook.textbook, *encoded(images), len(images.classes), SIZE, BATCH)
    yield loop
    loop.close()


def encoded(images) -> tuple[list[bytes], list[int]]:
    """Some training images as encoded bytes, as they lie on the disk; plain pixels are scaled and made PNG files."""
    split = images.train.spread((STEPS + 4) * BATCH)
    read = split.source.read if split.source.encoded else lambda row: as_png(split.source.read(row))
    return [bytes(read(row)) for row in range(len(split))], split.labels.tolist()


def as_png(pixels) -> bytes:
    """Grey pixels [h, w, 1] scaled to the benchmark's size."""
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0]).resize((SIZE, SIZE)).save(buffer, "png")
    return buffer.getvalue()


def record(info: dict, name: str, ours: list[float], theirs: list[float]) -> list[float]:
    """The ratios of speeds measured in turn; their median and range are noted."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    info[name] = statistics.median(ratios)
    info[f"{name}, range"] = f"{min(ratios):.3f} to {max(ratios):.3f}"
    return ratios


def matrix_product_flops() -> float:
    """What the machine reaches in bf16 products of square matrices: the roof over convolutions."""
    machine, side = runtime.start(Config()), 8192 if ON_GPU else 2048
    a = torch.randn(side, side, device=machine.device).to(torch.bfloat16)
    for _ in range(3):
        a @ a
    machine.synchronize()
    begin, count = time.perf_counter(), 10
    for _ in range(count):
        a @ a
    machine.synchronize()
    return 2 * side**3 * count / (time.perf_counter() - begin)


def step_flops(model: torch.nn.Module) -> float:
    """Floating-point operations of one image's forward and backward pass, as the definition of a convolution counts."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        model.double()(torch.randn(2, 3, SIZE, SIZE, dtype=torch.float64)).sum().backward()
    return counter.get_total_flops() / 2


def test_engine_against_textbook_loop(benchmark, trainers, opponent, images):
    contenders = {name: trainers(**changes) for name, changes in VARIANTS.items()}
    speeds: dict[str, list[float]] = {"textbook": []} | {name: [] for name in contenders}
    waits: list[float] = []
    for trainer in contenders.values():
        epoch(trainer)  # compiles
    opponent.images_per_s(1)

    def one_round():
        speeds["textbook"].append(opponent.images_per_s(STEPS))
        for name, trainer in contenders.items():
            speed, wait = epoch(trainer)
            speeds[name].append(speed)
            waits.append(wait)

    benchmark.pedantic(one_round, rounds=ROUNDS)
    info = benchmark.extra_info
    info["textbook loop, images/s"] = base = statistics.median(speeds["textbook"])
    for name in contenders:
        info[f"{name}, images/s"] = statistics.median(speeds[name])
        record(info, f"{name} / textbook", speeds[name], speeds["textbook"])
    for precision in ("amp", "fp32"):
        if (compiled := f"{precision}, compiled") in speeds:
            record(info, f"compiled / eager, {precision}", speeds[compiled], speeds[precision])
    info["share of the step waiting for input"] = statistics.median(waits)
    roof = matrix_product_flops()
    info["bf16 matrix product, GFLOP/s"] = roof / 1e9
    work = step_flops(build("resnet18", len(images.classes)))
    info["amp, share of the matrix product's rate"] = statistics.median(speeds["amp"]) * work / roof
    info["n"] = f"{ROUNDS} rounds of {STEPS} steps of {BATCH}; textbook {base:.0f} images/s"


@pytest.mark.parametrize("batch", [128, 32])
def test_trainer_against_strong_loops(benchmark, trainers, images, batch):
    """Plain torch as a careful user writes it, eager and compiled, and Lightning; batches of 128 and the papers' 32."""
    data = *encoded(images), len(images.classes), SIZE, batch
    with contextlib.ExitStack() as stack:
        opponents: dict[str, textbook.Apart] = {}
        kinds = {"strong": (strong.Loop, *data, False), "strong, compiled": (strong.Loop, *data, True)}
        if importlib.util.find_spec("lightning"):
            kinds["Lightning"] = strong.Lightning, *data
        else:
            benchmark.extra_info["Lightning"] = "not installed: pip install 'seal-fast[lightning]'"
        for name, (make, *arguments) in kinds.items():
            opponents[name] = textbook.Apart(make, *arguments)
            stack.callback(opponents[name].close)
        contenders = {n: trainers(**VARIANTS[n], batch_size=batch) for n in ("amp", "amp, compiled")}
        speeds: dict[str, list[float]] = {name: [] for name in (*opponents, *contenders)}
        for trainer in contenders.values():
            epoch(trainer)  # compiles
        for opponent in opponents.values():
            opponent.images_per_s(1)

        def one_round():
            for name, opponent in opponents.items():
                speeds[name].append(opponent.images_per_s(STEPS * BATCH // batch))
            for name, trainer in contenders.items():
                speeds[name].append(epoch(trainer)[0])

        benchmark.pedantic(one_round, rounds=ROUNDS)
    info = benchmark.extra_info
    for name, values in speeds.items():
        info[f"{name}, images/s"] = statistics.median(values)
    record(info, "amp / strong", speeds["amp"], speeds["strong"])
    record(info, "amp, compiled / strong, compiled", speeds["amp, compiled"], speeds["strong, compiled"])
    if "Lightning" in speeds:
        record(info, "amp / Lightning", speeds["amp"], speeds["Lightning"])
    info["n"] = f"{ROUNDS} rounds of {STEPS * BATCH // batch} steps of {batch}"


def test_phases_of_every_method(benchmark, trainers):
    """A step of every method beside one of SEAL's descent; those that ascend: descent, ascent, ascent, descent.

    A phase changes no more than numbers, so short turns measure it as well as long ones, and what disturbs the machine
    falls on both. Where bfloat16 is emulated, in float32 with the papers' batches of 32.
    """
    amp = ON_GPU or has_bf16_matmul()
    batch = BATCH if amp else 32
    contenders = {m: trainers(method=m, amp=amp, batch_size=batch, limit_train=batch) for m in METHODS}
    speeds: dict[tuple[str, str], list[float]] = {}
    seals: dict[tuple[str, str], list[float]] = {}

    def one_round():
        for method, trainer in contenders.items():
            g = len(trainer.timeline.generations) - 1
            names = [phase.name for phase in trainer.timeline.generations[g]]
            for e in (1, 0, 0, 1) if "ascent" in names else (1,):
                key = method, trainer.timeline.phase(g, e)[0].name
                if e == 1:
                    seals.setdefault(key, []).append(epoch(contenders["seal"], 1, 1)[0])
                speeds.setdefault(key, []).append(epoch(trainer, g, e)[0])

    for trainer in contenders.values():
        epoch(trainer)
    benchmark.pedantic(one_round, rounds=PHASE_ROUNDS)
    info, every = benchmark.extra_info, []
    for (method, phase), values in speeds.items():
        info[f"{method} {phase}, images/s"] = statistics.median(values)
        if (method, phase) in seals:
            record(info, f"{method} {phase}, time of a step / SEAL's", seals[method, phase], values)
    for method in contenders:
        if (method, "ascent") in speeds:
            name = f"{method}, ascent / descent"
            every += record(info, name, speeds[method, "ascent"], speeds[method, "descent"])
    info["ascent / descent, all methods"] = statistics.median(every)
    info["n"] = f"{PHASE_ROUNDS} rounds of a step of {batch}, of those that ascend two pairs"


def test_logging(benchmark, trainers):
    """Progress every `--log-every` steps and a row of metrics with its events, against an epoch of 100,000 images."""
    trainer = trainers(amp=True)
    speed, _ = epoch(trainer)
    names = "train_loss train_top1 val_loss val_top1 val_top5 images_per_s seconds input_wait_seconds compile_seconds"
    row = {"generation": 0, "epoch": 0, "phase": "descent"} | dict.fromkeys(names.split(), 1.0) | {"images": 100_000}
    for group, (rate, sign) in trainer.set_rates().items():
        row |= {f"lr_{group}": rate, f"direction_{group}": sign}

    def log_one_epoch():
        with contextlib.redirect_stdout(io.StringIO()):
            for _ in range(100_000 // BATCH // trainer.config.log_every):
                trainer.show_progress()
            trainer.log.epoch(row)

    benchmark.pedantic(log_one_epoch, rounds=20)
    benchmark.extra_info["counters read in an epoch"] = 100_000 // BATCH // trainer.config.log_every
    benchmark.extra_info["logging / epoch of 100,000 images"] = benchmark.stats.stats.median / (100_000 / speed)


def test_import(benchmark):
    """Import time of seal_fast over that of torch, in fresh processes."""
    code = "import time, torch; begin = time.perf_counter(); import seal_fast.train; print(time.perf_counter() - begin)"
    seconds = []

    def one_round():
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        seconds.append(float(done.stdout))

    benchmark.pedantic(one_round, rounds=2, warmup_rounds=1)
    benchmark.extra_info["import seal_fast.train over import torch, s"] = statistics.median(seconds[1:])


def test_compile_cache(benchmark, tmp_path):
    """Seconds of compilation of a first and of a second process."""
    flags = "--data digits --stem small --generations 1 --epochs 1 --ascent-epochs 0 --limit-train 256 --compile --amp"
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    seconds = []

    def one_round():
        out = tmp_path / f"run{len(seconds)}"
        command = [sys.executable, "-m", "seal_fast.train", "--out", str(out), "--batch-size", "128", *flags.split()]
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        seconds.append(json.loads((out / "summary.json").read_text())["compile_seconds"])

    benchmark.pedantic(one_round, rounds=2)
    cold, warm = seconds
    benchmark.extra_info["cold compile, s"] = cold
    benchmark.extra_info["warm compile, s"] = warm
    benchmark.extra_info["warm / cold"] = warm / cold
