"""The strong opponents: the same network in plain torch as a careful user writes it, and in Lightning.

bfloat16 autocast, channels-last, fused SGD, images resident and augmented in batched torch operations, no host sync.
Written for this benchmark. Each runs in a process of its own (`textbook.Apart`).
"""

from __future__ import annotations

import io
import logging
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from textbook import MEAN, STD
from torch import Tensor

from seal_fast.models import build

PAD, WARM_UP = 4, 2


class Resident:
    """Images as one uint8 tensor on the device; endless batches, cropped from a border and flipped, normalised."""

    def __init__(self, blobs: Sequence[bytes], labels: Sequence[int], size: int, batch_size: int) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        pixels = [np.asarray(Image.open(io.BytesIO(blob)).convert("RGB")) for blob in blobs]
        images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
        self.images = F.pad(images, (PAD,) * 4).contiguous(memory_format=torch.channels_last).to(self.device)
        self.labels = torch.tensor(labels, device=self.device)
        self.size, self.batch_size = size, batch_size
        self.mean, self.std = (255 * t.to(self.device) for t in (MEAN, STD))
        self.grid = torch.arange(size, device=self.device)

    def batch(self) -> tuple[Tensor, Tensor]:
        """Images drawn at random, float32 channels-last, and their labels."""
        n, device = self.batch_size, self.device
        chosen = torch.randint(len(self.images), (n,), device=device)
        top, left = torch.randint(2 * PAD + 1, (2, n, 1), device=device)
        columns = left + self.grid
        columns = torch.where(torch.rand(n, 1, device=device) < 0.5, columns.flip(1), columns)
        rows = (top + self.grid)[:, :, None]
        images = self.images.permute(0, 2, 3, 1)[chosen[:, None, None], rows, columns[:, None]].permute(0, 3, 1, 2)
        return (images - self.mean) / self.std, self.labels[chosen]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield self.batch()

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


class Loop:
    """Plain torch; `compiled` also compiles the network, on a GPU with CUDA graphs (`reduce-overhead`)."""

    def __init__(
        self, blobs: Sequence[bytes], labels: Sequence[int], classes: int, size: int, batch_size: int, compiled: bool
    ) -> None:
        self.data = Resident(blobs, labels, size, batch_size)
        self.model = build("resnet18", classes).to(self.data.device, memory_format=torch.channels_last).train()
        self.optimizer = sgd(self.model)
        if compiled:
            self.model.compile(mode="reduce-overhead" if self.data.device.type == "cuda" else None)
        self.total = torch.zeros((), device=self.data.device)
        self.images_per_s(WARM_UP)  # compiles

    def images_per_s(self, steps: int) -> float:
        """One stretch of steps, with one look at the loss at its end."""
        self.total.zero_()
        begin = time.perf_counter()
        for _ in range(steps):
            images, labels = self.data.batch()
            with torch.autocast(self.data.device.type, torch.bfloat16):
                loss = F.cross_entropy(self.model(images), labels, label_smoothing=0.1)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.total += loss.detach()
        self.total.item()
        return steps * self.data.batch_size / (time.perf_counter() - begin)


def sgd(model: torch.nn.Module) -> torch.optim.SGD:
    """The recipe's optimiser in its fused form."""
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, fused=True)


class Lightning:
    """Lightning's Trainer in bf16-mixed, without logger, bars and checkpoints, on the same batches."""

    def __init__(self, blobs: Sequence[bytes], labels: Sequence[int], classes: int, size: int, batch_size: int) -> None:
        import lightning

        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        warnings.simplefilter("ignore")

        class Module(lightning.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.network = build("resnet18", classes).to(memory_format=torch.channels_last)

            def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
                return F.cross_entropy(self.network(batch[0]), batch[1], label_smoothing=0.1)

            def configure_optimizers(self) -> torch.optim.Optimizer:
                return sgd(self.network)

        class Clock(lightning.Callback):
            def __init__(self, synchronize: Any) -> None:
                self.synchronize = synchronize

            def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
                if trainer.global_step in (WARM_UP, trainer.max_steps):
                    self.synchronize()
                    self.begin, self.end = getattr(self, "end", 0.0), time.perf_counter()

        self.data, self.module = Resident(blobs, labels, size, batch_size), Module()
        self.clock = Clock(self.data.synchronize)
        self.trainer = lightning.Trainer

    def images_per_s(self, steps: int) -> float:
        """One stretch of steps; the start of the Trainer and its first steps are not counted."""
        off = {f"enable_{name}": False for name in ("progress_bar", "checkpointing", "model_summary")}
        trainer = self.trainer(
            max_steps=WARM_UP + steps, max_epochs=-1, precision="bf16-mixed", logger=False, callbacks=[self.clock],
            devices=1, **off,
        )  # fmt: skip
        trainer.fit(self.module, train_dataloaders=self.data)
        return steps * self.data.batch_size / (self.clock.end - self.clock.begin)
