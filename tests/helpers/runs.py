"""Short runs: their settings, how one is killed, and all that must be equal in two of them."""

import time
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from seal_fast.config import Config
from seal_fast.data import open_images
from seal_fast.runs.folder import RunFolder
from seal_fast.training import checkpoint, runtime, steps, trainer
from seal_fast.training.assembly import assemble, open_input

EXACT = Config(
    model="resnet18",
    stem="small",
    generations=3,
    epochs=3,
    ascent_epochs=1,
    warmup_epochs=1,
    batch_size=8,
    lr=0.01,
    dtype="float64",
    augmentation="none",
    shuffle=False,
    eval_every=1,
    seed=5,
)


# 20 images in batches of 8: 3 steps an epoch, 27 steps, phases of 1 and 2 epochs
BASE = Config(generations=3, epochs=3, ascent_epochs=1, warmup_epochs=1, batch_size=8, eval_every=1, seed=3)


TIMES = {"images_per_s", "seconds", "input_wait_seconds", "compile_seconds"}


# The small stem, because the ImageNet stem leaves 1 x 1 of 16 x 16 images, and of a 3 x 3 kernel of stride 2 over that
# torch 2.13's CPU convolution returns memory that it never wrote as the bfloat16 gradient.
AMP = replace(BASE, stem="small", amp=True, method="seal+llf", generations=2, epochs=2, keep="ascents")


class Killed(BaseException):
    """Stands for SIGKILL: nothing after it runs but what a dead process would have left on the disk."""


def die_at(monkeypatch, step, error=Killed, between=False):
    """Kill training in its `step`-th step of this process, after the forward pass, or between it and the one before."""
    taken = iter(range(10**9))
    if between:
        train = trainer.Trainer.train

        def broken(self):
            batches = self.input.train

            def until(*at):
                for batch in batches(*at):
                    if next(taken) == step:
                        raise error
                    yield batch

            self.input.train = until
            try:
                return train(self)
            finally:
                self.input.train = batches

        return monkeypatch.setattr(trainer.Trainer, "train", broken)
    original = steps.forward_and_loss

    def forward_and_loss(model, *rest, **extra):
        found = original(model, *rest, **extra)
        if model.training and next(taken) == step:
            raise error
        return found

    monkeypatch.setattr(steps, "forward_and_loss", forward_and_loss)


def outcome(out):
    """All that must not depend on an interruption: every kept weight, the final state, the metrics without clocks."""
    folder = RunFolder(out)
    weights = {p.name: load_file(p) for p in (out / "weights").iterdir()}
    rows = [{k: v for k, v in row.items() if k not in TIMES} for row in folder.rows()]
    saved = checkpoint.load(folder.checkpoint)
    plain = {k: v for k, v in saved.plain.items() if k in ("position", "best", "scaler")}
    return weights, saved.tensors, rows, plain


def assert_identical(a, b):
    for left, right in zip((*a[0].values(), a[1]), (*(b[0][name] for name in a[0]), b[1]), strict=True):
        assert left.keys() == right.keys()
        assert [name for name in left if not torch.equal(left[name], right[name])] == []
    assert a[0].keys() == b[0].keys()
    assert a[2] == b[2] and a[3] == b[3]


def assert_close(out, other, tolerance=1e-10, parts=("model.", "momentum."), rows=True):
    (kept, state, metrics, _), (kept_there, there, metrics_there, _) = outcome(out), outcome(other)
    assert kept.keys() == kept_there.keys() and state.keys() == there.keys()
    tensors = {name: t for name, t in state.items() if name.startswith(parts)}
    for name, tensor in tensors.items():
        torch.testing.assert_close(
            tensor, there[name], rtol=tolerance, atol=tolerance, msg=lambda m, name=name: f"{name}: {m}"
        )
    assert len(metrics) == len(metrics_there)
    if rows:
        for row, row_there in zip(metrics, metrics_there, strict=True):
            assert row == {
                k: pytest.approx(v, rel=tolerance, abs=tolerance) if isinstance(v, float) else v
                for k, v in row_there.items()
            }


@contextmanager
def trainer_of(config, folder):
    machine = runtime.start(config)
    images = open_images(config.data)
    source = open_input(config, machine, images)
    with assemble(config, machine, images, source, RunFolder(folder)) as trainer:
        yield trainer


def await_checkpoint(path):
    patience = time.monotonic() + 240
    while not path.exists():
        assert time.monotonic() < patience, "no checkpoint was written"
        time.sleep(0.02)
    return time.monotonic()
