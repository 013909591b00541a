"""On a GPU: update and augmentation beside torch's own ways and beside a copy, by CUDA events, contenders taking turns.

Each is replayed from a CUDA graph, so that the host's time is nobody's, and the caches are emptied before each.
`bench_step.py` has the whole step; here is that of ResNet-50 at 224 pixels, fed with photographs from files.
"""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from bench_annealed_sgd import DECAY, LR, MOMENTUM, WEIGHT_DECAY, everything_in_torch_ops, parameters, scaled
from bench_step import steps, trainers
from PIL import Image
from torch import Tensor, nn

from seal_fast.config import Config
from seal_fast.kernels import augment
from seal_fast.optim.annealed_sgd import AnnealedSGD
from seal_fast.training import runtime
from seal_fast.training.cuda_graph import Recorder

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

ROUNDS, WARM_UP = 60, 5
COUNT, SIZE, PAD = 20_000, 64, 4
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def device() -> torch.device:
    return runtime.start(Config(device="cuda")).device


def replayed(contenders: dict[str, Callable[[], object]], device: torch.device) -> dict[str, float]:
    """Median microseconds of each contender's work on the device."""
    recorder = Recorder(device)

    def recorded(work: Callable[[], object]) -> Callable[[], None]:
        for _ in range(3):
            recorder.run(work)
        return recorder.record(work)

    graphs = {name: recorded(work) for name, work in contenders.items()}
    larger_than_caches = torch.empty(256 << 20, dtype=torch.uint8, device=device)
    events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {name: [] for name in graphs}
    for _ in range(WARM_UP + ROUNDS):
        for name, replay in graphs.items():
            larger_than_caches.zero_()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            replay()
            end.record()
            events[name].append((begin, end))
    torch.cuda.synchronize(device)
    return {
        name: 1e3 * statistics.median(begin.elapsed_time(end) for begin, end in pairs[WARM_UP:])
        for name, pairs in events.items()
    }


def record(benchmark, times: dict[str, float], moved: int) -> None:
    """Note the times, and what the first contender reaches beside the others; a copy moves `moved` bytes, too."""
    ours, *_ = times
    info = benchmark.extra_info
    for name, microseconds in times.items():
        info[f"{name}, us"] = microseconds
        if name != ours:
            info[f"{name} / {ours}"] = microseconds / times[ours]
    info[f"{ours}, GB/s"] = moved / times[ours] / 1e3
    info["n"] = f"{ROUNDS} rounds"


def copy_of(moved: int, device: torch.device) -> Callable[[], object]:
    source, target = (torch.ones(moved // 2, dtype=torch.uint8, device=device) for _ in range(2))
    return lambda: target.copy_(source)


def weights(model: str) -> list[nn.Parameter]:
    return parameters(model, 1000, "cuda")


@pytest.mark.parametrize("model", ["resnet18", "resnet50"])
def test_plain_update(benchmark, model, device):
    lr = torch.tensor(LR)
    ours = AnnealedSGD(weights(model), lr, MOMENTUM, WEIGHT_DECAY, backend="triton")
    reference = AnnealedSGD(weights(model), lr, MOMENTUM, WEIGHT_DECAY, backend="reference")
    fused, foreach = (
        torch.optim.SGD(weights(model), LR, MOMENTUM, weight_decay=WEIGHT_DECAY, **{kind: True})
        for kind in ("fused", "foreach")
    )
    moved = 20 * ours._momentum.numel()  # weights and momentum both ways, gradients once
    contenders = {
        "ours": ours.step,
        "torch.optim.SGD(fused=True)": fused.step,
        "torch.optim.SGD(foreach=True)": foreach.step,
        "our reference in torch ops": reference.step,
        "copy of as many bytes": copy_of(moved, device),
    }
    record(benchmark, replayed(contenders, device), moved)
    benchmark.pedantic(ours.step, rounds=30, warmup_rounds=3)


@pytest.mark.parametrize("model", ["resnet18", "resnet50"])
def test_update_with_everything(benchmark, model, device):
    """Unscaling, squared norms, weight average and bfloat16 copy too, beside the same in torch's multi-tensor ops."""
    ours = AnnealedSGD(
        weights(model), torch.tensor(LR), MOMENTUM, WEIGHT_DECAY,
        backend="triton", ema_decay=DECAY, bf16_copy=True, norms=True,
    )  # fmt: skip
    scaled(ours)
    moved = 30 * ours._momentum.numel()
    contenders = {
        "ours": ours.step,
        "the same in torch ops": everything_in_torch_ops(weights(model)),
        "copy of as many bytes": copy_of(moved, device),
    }
    record(benchmark, replayed(contenders, device), moved)
    benchmark.pedantic(ours.step, rounds=30, warmup_rounds=3)


BATCHES = pytest.mark.parametrize("batch", [128, 1024])
DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])


def augmentation(batch: int, dtype: torch.dtype, device: torch.device) -> tuple[Callable[[], Tensor], Tensor, Tensor]:
    """Ours, into one buffer; the images it takes from, more than the caches hold; and which."""
    images = torch.randint(0, 256, (COUNT, SIZE, SIZE, 3), dtype=torch.uint8, device=device)
    index = torch.randperm(COUNT, device=device)[:batch]
    out = torch.empty(batch, 3, SIZE, SIZE, dtype=dtype, device=device, memory_format=torch.channels_last)
    fixed = {"size": SIZE, "mean": MEAN, "std": STD, "dtype": dtype, "pad": PAD, "flip": True, "train": True}
    return lambda: augment(images, index, out=out, backend="triton", **fixed), images, index


def torch_batched(images: Tensor, dtype: torch.dtype, index: Tensor) -> Callable[[], Tensor]:
    """The same in batched operations: one gather of whole pixels by their number."""
    device, batch = images.device, len(index)
    steps, side = torch.arange(SIZE, device=device), SIZE + 2 * PAD
    rows_before = torch.arange(batch, device=device)[:, None] * side
    scale = torch.tensor([1 / (255 * s) for s in STD], device=device)
    bias = torch.tensor([-m / s for m, s in zip(MEAN, STD, strict=True)], device=device)

    def run() -> Tensor:
        padded = F.pad(images[index], (0, 0, PAD, PAD, PAD, PAD))
        top, left = torch.randint(0, 2 * PAD + 1, (2, batch, 1), device=device)
        columns = left + torch.where(torch.rand(batch, 1, device=device) < 0.5, SIZE - 1 - steps, steps)
        number = (rows_before + top + steps)[:, :, None] * side + columns[:, None, :]
        pixels = padded.view(-1, 3).index_select(0, number.flatten()).view(batch, SIZE, SIZE, 3)
        return pixels.float().mul_(scale).add_(bias).to(dtype).permute(0, 3, 1, 2)

    return run


@BATCHES
@DTYPES
def test_augment(benchmark, batch, dtype, device):
    ours, images, index = augmentation(batch, dtype, device)
    moved = batch * 3 * SIZE * SIZE * (1 + dtype.itemsize)
    contenders = {
        "ours": ours,
        "batched torch ops": torch_batched(images, dtype, index),
        "copy of as many bytes": copy_of(moved, device),
    }
    record(benchmark, replayed(contenders, device), moved)
    benchmark.pedantic(ours, rounds=30, warmup_rounds=3)


@BATCHES
def test_augment_beside_dali(benchmark, batch, device):
    """DALI finds its batch gathered and padded on the device. From a clock, calls in a row: it has no graph."""
    ours, images, index = augmentation(batch, torch.float32, device)
    times = {"ours, from Python": in_a_row(ours), "DALI crop_mirror_normalize": in_a_row(dali(images[index]))}
    record(benchmark, times, batch * 3 * SIZE * SIZE * 5)
    benchmark.pedantic(ours, rounds=30, warmup_rounds=3)


def in_a_row(call: Callable[[], object]) -> float:
    """Microseconds of one of many calls, the last one's work included."""
    for _ in range(WARM_UP):
        call()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(ROUNDS):
        call()
    torch.cuda.synchronize()
    return 1e6 * (time.perf_counter() - begin) / ROUNDS


def dali(batch: Tensor) -> Callable[[], object]:
    """crop_mirror_normalize alone, in a pipeline that runs ahead."""
    from nvidia.dali import fn, pipeline_def, types

    padded = F.pad(batch, (0, 0, PAD, PAD, PAD, PAD))

    @pipeline_def(batch_size=len(batch), num_threads=4, device_id=torch.cuda.current_device(), seed=0)
    def pipeline():
        decoded = fn.external_source(lambda: padded, batch=True, device="gpu", no_copy=True, layout="HWC")
        return fn.crop_mirror_normalize(
            decoded,
            dtype=types.DALIDataType.FLOAT,
            output_layout="HWC",
            crop=(SIZE, SIZE),
            crop_pos_x=fn.random.uniform(range=(0.0, 1.0)),
            crop_pos_y=fn.random.uniform(range=(0.0, 1.0)),
            mirror=fn.random.coin_flip(),
            mean=[255 * m for m in MEAN],
            std=[255 * s for s in STD],
        )

    built = pipeline()
    built.build()
    return built.run


def photographs(folder: Path, train: int, val: int = 128, size: tuple[int, int] = (500, 375), kinds: int = 32) -> str:
    """A data set of JPEG files of ImageNet's usual size, about 85 kB each; `kinds` different ones, copied."""
    random = np.random.default_rng(0)
    files = []
    for _ in range(kinds):
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(
            size, Image.Resampling.BICUBIC
        )
        pixels = np.asarray(coarse) + random.normal(0, 14, (size[1], size[0], 3))
        buffer = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "jpeg", quality=90)
        files.append(buffer.getvalue())
    for split, count in {"train": train, "val": val}.items():
        for label in range(2):
            (folder / split / str(label)).mkdir(parents=True)
        for i in range(count):
            (folder / split / str(i % 2) / f"{i}.jpg").write_bytes(files[i % kinds])
    return str(folder)


def test_resnet50_from_files(benchmark, tmp_path):
    """224 pixels, random resized crops, decoded by DALI on the GPU anew in every epoch; and that input alone."""
    batch, images = 128, 4096
    settings = {"model": "resnet50", "image_size": 224, "limit_train": images, "compile": True, "device": "cuda"}
    with trainers(photographs(tmp_path / "files", images)) as make:
        trainer = make(batch, input="stream", augmentation="resized-crop", **settings)
        speeds, waits = [], []

        def epoch():
            seconds = steps(trainer)
            speeds.append(batch / seconds)
            waits.append(trainer.input.wait_seconds / trainer.input.steps_per_epoch / seconds)

        epoch()  # compiles, records
        speeds.clear(), waits.clear()
        benchmark.pedantic(epoch, rounds=5)
        decoded = []
        for number in range(3):  # nobody trains on them
            begin = time.perf_counter()
            for _ in trainer.input.train(0, number):
                pass
            trainer.runtime.synchronize()
            decoded.append(images / (time.perf_counter() - begin))
    info = benchmark.extra_info
    for name, values in {"images/s": speeds, "input alone, images/s": decoded}.items():
        info[name] = statistics.median(values)
        info[f"{name}, range"] = f"{min(values):.4g} to {max(values):.4g}"
    info["share of the step waiting for input"] = statistics.median(waits)
    info["peak memory, GiB"] = torch.cuda.max_memory_allocated() / 2**30
    info["n"] = f"{len(speeds)} epochs of {images} images in batches of {batch}"
