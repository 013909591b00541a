"""Networks beside ResNet against a plain loop: the trainer's step, input and counters included, by that of plain torch.

The plain loop has the same layers in torch's own operations, bfloat16 autocast, channels-last and torch.optim.SGD, and
is given its batches; where bfloat16 is emulated, both are in float32. Ratios in one run, contenders taking turns.
SEAL_FAST_BENCH_LONG in the environment adds rounds.
"""

from __future__ import annotations

import functools
import time

import pytest
import torch
import torch.nn.functional as F

from bench.bench_step import compare, steps, trainers
from seal_fast import kernels
from seal_fast.kernels.torch_private import has_bf16_matmul
from seal_fast.models import build, layers

STEPS, SIZE = 8, 32
AMP = has_bf16_matmul()
NETWORKS = {"wrn-16-4": 32, "densenet-bc-40-12": 32, "vgg16-bn": 64}  # batch sizes


@pytest.fixture(scope="module")
def trainer_of(data):
    with trainers(data) as make:
        yield make


class Plain:
    """A loop over given batches; a call is so many steps, in seconds a step."""

    def __init__(self, name: str, classes: int, batch: int) -> None:
        self.model = build(name, classes, "small").to(memory_format=torch.channels_last).train()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
        self.images = torch.randn(batch, 3, SIZE, SIZE).to(memory_format=torch.channels_last)
        self.labels = torch.randint(classes, (batch,))

    def __call__(self, monkeypatch: pytest.MonkeyPatch) -> float:
        with monkeypatch.context() as patch:
            for name in ("norm_act", "conv2d"):
                patch.setattr(layers, name, functools.partial(getattr(kernels, name), backend="reference"))
            begin = time.perf_counter()
            for _ in range(STEPS):
                with torch.autocast("cpu", torch.bfloat16, enabled=AMP):
                    logits = self.model(self.images)
                F.cross_entropy(logits.float(), self.labels, label_smoothing=0.1).backward()
                self.optimizer.step()
                self.optimizer.zero_grad()
            return (time.perf_counter() - begin) / STEPS


@pytest.mark.parametrize("name", NETWORKS)
def test_step_against_a_plain_loop(benchmark, trainer_of, monkeypatch, name):
    batch = NETWORKS[name]
    images = STEPS * batch
    trainer = trainer_of(batch, model=name, stem="small", image_size=SIZE, limit_train=images, amp=AMP)
    plain = Plain(name, trainer.input.num_classes, batch)
    contenders = {"seal_fast": lambda: steps(trainer), "plain loop": lambda: plain(monkeypatch)}
    compare(benchmark, contenders, "seal_fast", images)
