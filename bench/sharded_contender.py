"""One way to train, in processes of its own: waits to be told, takes an epoch of a few steps, says how long it took.

python bench/sharded_contender.py KIND ADDRESS DATA THREADS           KIND: engine, or zero: torch's own sharding
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

from seal_fast import distributed, runtime
from seal_fast.checkpoint import Position
from seal_fast.config import Config
from seal_fast.data import open_images
from seal_fast.distributed import World
from seal_fast.engine import Engine
from seal_fast.models import build
from seal_fast.run_folder import RunFolder
from seal_fast.train import assemble, open_input

BATCH, IMAGES = 128, 256


@contextlib.contextmanager
def engine(world: World, data: str, threads: int, **changes) -> Iterator[Engine]:
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


def engine_turn(built: Engine) -> Callable[[], dict[str, Any]]:
    optimizer: Any = built.state.optimizer

    def turn() -> dict[str, Any]:
        before = vars(optimizer.exchange.traffic).copy() if built.world.size > 1 else {}
        built.state.position = Position()
        built.train()
        steps = built.input.steps_per_epoch
        sent = {k: (v - before[k]) / steps for k, v in vars(optimizer.exchange.traffic).items()} if before else {}
        momentum = optimizer._momentum
        alone = exchanges(optimizer) if before else 0.0
        return {"state": momentum.numel() * momentum.element_size(), "exchanges": alone, **sent}

    return turn


def exchanges(optimizer: Any) -> float:
    """Seconds that a step's exchanges take with nothing else to do."""
    begin = time.perf_counter()
    for bucket in optimizer._buckets:
        optimizer.exchange.reduce_scatter(bucket.gradient, bucket.everyones)()
        optimizer.exchange.all_gather(optimizer.exchange.gradients, bucket.everyones)()
    return time.perf_counter() - begin


def zero_turn(built: Engine) -> Callable[[], dict[str, Any]]:
    """The same network and input under DistributedDataParallel and ZeroRedundancyOptimizer around torch's fused SGD."""
    from torch.distributed.optim import ZeroRedundancyOptimizer
    from torch.nn.parallel import DistributedDataParallel

    # not the engine's network, on which its own optimiser listens
    model = build("resnet18", built.input.num_classes).to(memory_format=torch.channels_last).train()  # pyright: ignore
    ddp = DistributedDataParallel(model, gradient_as_bucket_view=True)
    optimizer = ZeroRedundancyOptimizer(
        model.parameters(), torch.optim.SGD, lr=0.01, momentum=0.9, weight_decay=5e-4, fused=True
    )

    def turn() -> dict[str, Any]:
        for batch in built.input.train(0, 0):
            with built.runtime.autocast():
                logits = ddp(batch.images)
            F.cross_entropy(logits.float(), batch.labels, label_smoothing=0.1).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        state = [t for s in optimizer.optim.state.values() for t in s.values() if isinstance(t, torch.Tensor)]
        return {"state": sum(t.numel() * t.element_size() for t in state)}

    return turn


def main(kind: str, address: str, data: str, threads: int) -> None:
    with distributed.joined(False, 300) as world, engine(world, data, threads) as built:
        turn = {"engine": engine_turn, "zero": zero_turn}[kind](built)
        steps = built.input.steps_per_epoch
        with Client(address) if world.writes else contextlib.nullcontext() as ask:
            while True:
                if world.firsts(ask.recv() if ask else None) == "end":
                    return
                begin = time.perf_counter()
                said = turn()
                (state,) = world.max(said["state"])
                seconds = (time.perf_counter() - begin - said.get("exchanges", 0.0)) / steps
                if ask:
                    parameters = sum(p.numel() * p.element_size() for p in built.state.model.parameters())
                    ask.send({"seconds": seconds, "parameters": parameters} | said | {"state": state})


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
