"""The native augmentation beside batched torch ops, DALI, and Pillow with a DataLoader: ratios in one run.

A batch of 128 images of 64x64 out of 20,000 (past every cache), zero-pad 4, crop, flip, normalise. Contenders take
turns, batch by batch, and each takes rows that nobody has just read. Figures are medians over the rounds, and beside
them the fastest rounds, which others' load on the machine disturbs least.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from seal_fast.kernels import augment, native

COUNT, BATCH, SIZE, PAD, ROUNDS = 20_000, 128, 64, 4, 60
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SCALE = torch.tensor([1 / (255 * s) for s in STD])
BIAS = torch.tensor([-m / s for m, s in zip(MEAN, STD, strict=True)])
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}

pytestmark = pytest.mark.skipif(not native.available(), reason="the native kernels are not installed")


@pytest.fixture(scope="module")
def images() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (COUNT, SIZE, SIZE, 3), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def batches() -> list[Tensor]:
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(1))
    return list(order[: COUNT // BATCH * BATCH].view(-1, BATCH))


def ours(images: Tensor, dtype: torch.dtype, train: bool = True) -> Callable[[Tensor], object]:
    out = torch.empty(BATCH, 3, SIZE, SIZE, dtype=dtype, memory_format=torch.channels_last)
    fixed = {"size": SIZE, "mean": MEAN, "std": STD, "dtype": dtype, "pad": PAD, "flip": True, "train": train}
    return lambda index: augment(images, index, out=out, backend="native", **fixed)


def interleaved(contenders: dict[str, Callable[[Tensor], object]], batches: list[Tensor]) -> dict[str, list[float]]:
    """Seconds a batch of each contender, round by round."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    turn = 0
    for _ in range(ROUNDS + 3):
        for name, contender in contenders.items():
            index = batches[turn % len(batches)]
            turn += 1
            start = time.perf_counter()
            contender(index)
            times[name].append(time.perf_counter() - start)
    return {name: t[3:] for name, t in times.items()}  # the first three rounds warm up


def ratio(benchmark, name: str, peer: list[float], own: list[float], unit: float = 1.0) -> None:
    benchmark.extra_info[name] = unit * statistics.median(peer) / statistics.median(own)
    benchmark.extra_info[f"{name}, fastest rounds"] = unit * min(peer) / min(own)


def torch_batched(images: Tensor, dtype: torch.dtype, batch: int = BATCH) -> Callable[[Tensor], object]:
    """The fastest of several ways to write it in batched ops: one gather of whole pixels by their number."""
    device = images.device
    steps, side = torch.arange(SIZE, device=device), SIZE + 2 * PAD
    rows_before = torch.arange(batch, device=device)[:, None] * side
    scale, bias = SCALE.to(device), BIAS.to(device)

    def run(index: Tensor) -> Tensor:
        padded = F.pad(images[index], (0, 0, PAD, PAD, PAD, PAD))
        top, left = torch.randint(0, 2 * PAD + 1, (2, batch, 1), device=device)
        columns = left + torch.where(torch.rand(batch, 1, device=device) < 0.5, SIZE - 1 - steps, steps)
        number = (rows_before + top + steps)[:, :, None] * side + columns[:, None, :]
        pixels = padded.view(-1, 3).index_select(0, number.flatten()).view(batch, SIZE, SIZE, 3)
        return pixels.float().mul_(scale).add_(bias).to(dtype).permute(0, 3, 1, 2)

    return run


def dali(images: Tensor, dtype: torch.dtype) -> Callable[[Tensor], object]:
    """crop_mirror_normalize alone: its batches are gathered and padded beforehand, and not copied in."""
    from nvidia.dali import fn, pipeline_def, types

    padded = F.pad(images[: 16 * BATCH], (0, 0, PAD, PAD, PAD, PAD)).numpy()
    ready = [padded[i * BATCH : (i + 1) * BATCH] for i in range(16)]
    kinds = {torch.float16: types.DALIDataType.FLOAT16, torch.float32: types.DALIDataType.FLOAT}

    @pipeline_def(batch_size=BATCH, num_threads=torch.get_num_threads(), device_id=None, seed=0)
    def pipeline():
        decoded = fn.external_source(lambda info: ready[info % len(ready)], batch=True, no_copy=True, layout="HWC")
        return fn.crop_mirror_normalize(
            decoded,
            dtype=kinds[dtype],
            output_layout="HWC",
            crop=(SIZE, SIZE),
            crop_pos_x=fn.random.uniform(range=(0.0, 1.0)),
            crop_pos_y=fn.random.uniform(range=(0.0, 1.0)),
            mirror=fn.random.coin_flip(),
            mean=[255 * m for m in MEAN],
            std=[255 * s for s in STD],
        )

    # Synchronous, so that it works on its own batch during its own turn.
    built = pipeline(exec_async=False, exec_pipelined=False)
    built.build()
    return lambda index: built.run()


class PillowImages(torch.utils.data.Dataset):
    """Decoded images as Pillow holds them; a sample is padded, cropped, flipped and normalised one by one."""

    def __init__(self, images: Tensor):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Tensor:
        from PIL import Image, ImageOps

        image = ImageOps.expand(Image.fromarray(self.images[i].numpy()), border=PAD, fill=0)
        top, left, flip = np.random.randint(0, 2 * PAD + 1, 2).tolist() + [np.random.rand() < 0.5]
        image = image.crop((left, top, left + SIZE, top + SIZE))
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else image
        tensor = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).contiguous().float().div(255)
        return tensor.sub_(torch.tensor(MEAN)[:, None, None]).div_(torch.tensor(STD)[:, None, None])


def measure(benchmark, contender: Callable[[Tensor], object], batches: list[Tensor]) -> None:
    """The row of pytest-benchmark's own table."""
    rows = iter(batches * 2)
    benchmark.pedantic(contender, setup=lambda: ((next(rows),), {}), rounds=100, warmup_rounds=5)
    benchmark.extra_info["native module"] = native.require().__name__.split(".")[-1]


@pytest.mark.parametrize("name", ["bf16", "fp32"])
def test_against_batched_torch(benchmark, images, batches, name):
    contenders = {"ours": ours(images, DTYPES[name]), "torch": torch_batched(images, DTYPES[name])}
    seconds = interleaved(contenders, batches)
    ratio(benchmark, "batched torch ops / ours", seconds["torch"], seconds["ours"])
    measure(benchmark, contenders["ours"], batches)


@pytest.mark.parametrize("name", ["fp16", "fp32"])
def test_against_dali(benchmark, images, batches, name):
    contenders = {"ours": ours(images, DTYPES[name]), "DALI": dali(images, DTYPES[name])}
    seconds = interleaved(contenders, batches)
    ratio(benchmark, "DALI crop_mirror_normalize / ours", seconds["DALI"], seconds["ours"])
    measure(benchmark, contenders["ours"], batches)


def test_against_pillow_and_dataloader(benchmark, images, batches):
    """Two workers fill the machine, so turns are whole runs of batches: theirs, then ours, three times."""
    loader = torch.utils.data.DataLoader(
        PillowImages(images[: 48 * BATCH]), batch_size=BATCH, shuffle=True, num_workers=2, persistent_workers=True
    )
    contender = ours(images, torch.float32)
    pillow, kernel = [], []
    for _ in range(3):
        theirs = iter(loader)
        for _ in range(8):
            next(theirs)
        start = time.perf_counter()
        drawn = sum(1 for _ in theirs)
        pillow.append((time.perf_counter() - start) / drawn)
        kernel += interleaved({"ours": contender}, batches)["ours"]
    ratio(benchmark, "Pillow + DataLoader (2 workers) / ours", pillow, kernel)
    measure(benchmark, contender, batches)


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", DTYPES)
def test_share_of_the_copy_bandwidth(benchmark, images, batches, name, train):
    """Against a copy of as many bytes, read from anywhere in the set and written to one reused batch, as here."""
    contender = ours(images, DTYPES[name], train)
    moved = BATCH * 3 * SIZE * SIZE * (1 + DTYPES[name].itemsize)
    pool, target = images.view(-1), torch.empty(moved // 2, dtype=torch.uint8)

    def copy(index: Tensor) -> None:
        start = int(index[0]) * (pool.numel() - target.numel()) // COUNT
        target.copy_(pool[start : start + target.numel()])

    seconds = interleaved({"ours": contender, "copy": copy}, batches)
    benchmark.extra_info["GB/s of the copy, fastest round"] = moved / min(seconds["copy"]) / 1e9
    ratio(benchmark, "percent of the copy bandwidth", seconds["copy"], seconds["ours"], unit=100.0)
    measure(benchmark, contender, batches)
