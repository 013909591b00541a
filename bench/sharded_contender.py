"""One way to train, in processes of its own: waits to be told, takes an epoch of a few steps, says how long it took.

python bench/sharded_contender.py KIND ADDRESS DATA THREADS           KIND: trainer, or zero: torch's own sharding
torchrun --nproc-per-node 2 bench/sharded_contender.py ...
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Client
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from seal_fast.config import Config
from seal_fast.data import open_images
from seal_fast.distributed import world as distributed
from seal_fast.distributed.world import World
from seal_fast.models import build
from seal_fast.runs.folder import RunFolder
from seal_fast.train import assemble, open_input
from seal_fast.training import runtime
from seal_fast.training.checkpoint import Position
from seal_fast.training.trainer import Trainer

BATCH, IMAGES = 128, 1024


@contextlib.contextmanager
def trainer(world: World, data: str, threads: int, **changes) -> Iterator[Trainer]:
    images = open_images(data)
    config = Config(
        data=images.source, image_size=64, batch_size=BATCH, limit_train=IMAGES, amp=True, threads=threads,
        generations=1, epochs=1, ascent_epochs=0, warmup_epochs=0, lr=0.01, checkpoint_seconds=1e9, **changes,
    )  # fmt: skip
    machine = runtime.start(config, world.local_size)
    source = open_input(config, machine, images, world)
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.closing(source),
        contextlib.redirect_stdout(io.StringIO()),
        assemble(config, machine, images, source, RunFolder(Path(folder)), world) as built,
    ):
        yield built


def trainer_turn(built: Trainer) -> Callable[[], dict[str, Any]]:
    def turn() -> dict[str, Any]:
        built.state.position = Position()
        passed = loopback_bytes()
        built.train()
        momentum = built.state.optimizer._momentum
        state = momentum.numel() * momentum.element_size()
        return {"state": state, "loopback": loopback_bytes() - passed}

    return turn


def loopback_bytes() -> int:
    lines = Path("/proc/net/dev").read_text().splitlines()
    return next(int(line.split(":")[1].split()[0]) for line in lines if line.strip().startswith("lo:"))


def zero_turn(built: Trainer) -> Callable[[], dict[str, Any]]:
    """The same network and input under DistributedDataParallel and ZeroRedundancyOptimizer around torch's fused SGD."""
    from torch.distributed.optim import ZeroRedundancyOptimizer
    from torch.nn.parallel import DistributedDataParallel

    # not the trainer's network, whose gradients ShardedSGD takes
    model = build("resnet18", built.input.num_classes).to(memory_format=torch.channels_last).train()  # pyright: ignore
    ddp = DistributedDataParallel(model, gradient_as_bucket_view=True)
    optimizer = ZeroRedundancyOptimizer(
        model.parameters(), torch.optim.SGD, lr=0.01, momentum=0.9, weight_decay=5e-4, fused=True
    )

    def turn() -> dict[str, Any]:
        passed = loopback_bytes()
        for batch in built.input.train(0, 0):
            with built.runtime.autocast():
                logits = ddp(batch.images)
            F.cross_entropy(logits.float(), batch.labels, label_smoothing=0.1).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        state = [t for s in optimizer.optim.state.values() for t in s.values() if isinstance(t, torch.Tensor)]
        return {"state": sum(t.numel() * t.element_size() for t in state), "loopback": loopback_bytes() - passed}

    return turn


def main(kind: str, address: str, data: str, threads: int) -> None:
    with distributed.joined(False, 300) as world, trainer(world, data, threads) as built:
        turn = (zero_turn if kind == "zero" else trainer_turn)(built)
        steps = built.input.steps_per_epoch
        with Client(address) if world.is_main else contextlib.nullcontext() as ask:
            while True:
                if world.broadcast_object(ask.recv() if ask else None) == "end":
                    return
                begin = time.perf_counter()
                row = turn()
                (state,) = world.max(row["state"])
                seconds = (time.perf_counter() - begin) / steps
                if ask:
                    parameters = sum(p.numel() * p.element_size() for p in built.state.model.parameters())
                    ask.send({"seconds": seconds, "parameters": parameters} | row | {"state": state})


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
