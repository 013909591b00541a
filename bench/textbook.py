"""The opponent: a training loop as textbooks and papers' repositories write it, fed by Pillow through a DataLoader.

fp32, NCHW, torch.optim.SGD, a host sync for loss and accuracy in every step. Written for this benchmark, in that style.
"""

from __future__ import annotations

import io
import os
import random
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, Dataset

from seal_fast.models import build

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


class Encoded(Dataset):
    """JPEG or PNG bytes; an item is decoded, padded by 4, cropped, flipped and normalised with Pillow."""

    def __init__(self, blobs: Sequence[bytes], labels: Sequence[int], size: int) -> None:
        self.blobs, self.labels, self.size = blobs, labels, size

    def __len__(self) -> int:
        return len(self.blobs)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        image = Image.open(io.BytesIO(self.blobs[i])).convert("RGB")
        image = ImageOps.expand(image, 4)
        x, y = random.randint(0, image.width - self.size), random.randint(0, image.height - self.size)
        image = image.crop((x, y, x + self.size, y + self.size))
        if random.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 255
        return (pixels - MEAN) / STD, self.labels[i]


class Loop:
    """Trains step by step; `images_per_s(steps)` times a stretch of them, input and statistics included.

    It computes on a GPU where there is one, and has as many workers as there are cores.
    """

    def __init__(self, model: torch.nn.Module, dataset: Dataset, batch_size: int) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model, self.batch_size = model.train().to(self.device), batch_size
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
        workers = len(os.sched_getaffinity(0))
        self.loader = DataLoader(dataset, batch_size, shuffle=True, num_workers=workers, drop_last=True)

    def images_per_s(self, steps: int) -> float:
        """One stretch of steps; starting the workers is not counted."""
        batches = iter(self.loader)
        self.step(*next(batches))
        total_loss, correct = 0.0, 0
        begin = time.perf_counter()
        for _ in range(steps):
            loss, right = self.step(*next(batches))
            total_loss += loss
            correct += right
        seconds = time.perf_counter() - begin
        del batches
        return steps * self.batch_size / seconds

    def step(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[float, int]:
        images, labels = images.to(self.device), labels.to(self.device)
        output = self.model(images)
        loss = F.cross_entropy(output, labels, label_smoothing=0.1)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item(), (output.argmax(1) == labels).sum().item()


class Apart:
    """A loop in a process of its own, where nothing that the trainer sets (threads, memory) reaches it."""

    def __init__(self, make: Callable[..., Any], *arguments: Any) -> None:
        """Start it; `make(*arguments)` is the loop."""
        context = torch.multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, make, arguments))
        self.process.start()
        other.close()

    def images_per_s(self, steps: int) -> float:
        """As `Loop.images_per_s`."""
        self.connection.send(steps)
        return self.connection.recv()

    def close(self) -> None:
        """End the process."""
        self.connection.send(0)
        self.process.join()


def textbook(blobs: Sequence[bytes], labels: Sequence[int], classes: int, size: int, batch_size: int) -> Loop:
    """The loop on ResNet-18."""
    return Loop(build("resnet18", classes), Encoded(blobs, labels, size), batch_size)


def _serve(connection: Connection, make: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """Answer numbers of steps with images per second, until 0 comes."""
    loop = make(*arguments)
    while steps := connection.recv():
        connection.send(loop.images_per_s(steps))
