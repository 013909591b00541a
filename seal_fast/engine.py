"""The training loop: the only one. It asks the timeline for the phase of (generation, epoch) and obeys it.

The step takes no value back from the device; `Engine.read_counters` is the one place that does, on log steps and at the
end of an epoch. Nothing here knows which method runs.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from seal_fast import checkpoint
from seal_fast.checkpoint import Best, Position, TrainState
from seal_fast.config import Config
from seal_fast.data import Input
from seal_fast.errors import RunError
from seal_fast.forgetting import reinitialise
from seal_fast.log import Log
from seal_fast.optim import AnnealedSGD
from seal_fast.partition import Partition
from seal_fast.run_folder import RunFolder
from seal_fast.runtime import Runtime, compile_seconds
from seal_fast.schedule import Phase, Timeline


class Interrupted(Exception):
    """SIGTERM or SIGINT came; the step is finished and the checkpoint written."""

    def __init__(self, number: int, position: Position, folder: Path) -> None:
        super().__init__(
            f"stopped by {signal.Signals(number).name} before {position}, the checkpoint is written; "
            f"continue with: python -m seal_fast.train --out {folder}"
        )
        self.number = number


def hits(logits: Tensor, labels: Tensor) -> Tensor:
    """Rank of the true class: 0 is a top-1 hit, below 5 a top-5 hit.

    Among equal logits the lower class index comes first, as in argmax: a network that says the same of every class is
    not credited with them all.
    """
    own = logits.gather(1, labels[:, None])
    lower = torch.arange(logits.shape[1], device=logits.device) < labels[:, None]
    return ((logits > own) | ((logits == own) & lower)).sum(1)


def measure(
    model: nn.Module,
    runtime: Runtime,
    smoothing: float,
    weights: dict[str, Tensor],
    images: Tensor,
    labels: Tensor,
    valid: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Forward pass, loss and counters: what is compiled, once in train and once in eval mode.

    Args:
        model: the network.
        runtime: where and in which types it computes.
        smoothing: of the labels.
        weights: by name, tensors that take the place of parameters; see `weights_to_read`.
        images: [B, 3, S, S].
        labels: int64 [B].
        valid: bool [B], False for padding; None without any.

    Returns:
        The mean loss, and float64 [4] sums of loss, top-1 hits, top-5 hits and images, padding left out.
    """
    with runtime.autocast():
        logits = functional_call(model, weights, (images,), tie_weights=False)
    logits = logits.to(runtime.dtype)
    losses = F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
    rank = hits(logits, labels)
    weight = torch.ones_like(losses) if valid is None else valid.to(losses.dtype)
    sums = torch.stack([losses.detach() * weight, (rank < 1) * weight, (rank < 5) * weight, weight])
    return losses.mean(), sums.sum(1, dtype=torch.float64)


def weights_to_read(model: nn.Module, optimizer: AnnealedSGD) -> dict[str, Tensor]:
    """The optimiser's bfloat16 copies of what autocast would cast in every forward pass, by parameter name.

    Those are the parameters of convolutions and linear layers; BatchNorm's stay float32. The rounding is the same, so
    results are those of plain autocast to the bit.
    """
    cast = {
        f"{name}.{parameter}"
        for name, module in model.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
        for parameter, _ in module.named_parameters(recurse=False)
    }
    return {name: weight for name, weight in optimizer.bf16_weights().items() if name in cast}


@dataclass
class Engine:
    """Everything a run is made of, put together by `train.py`.

    identity is written into every checkpoint, so that a later process knows whose it is.
    """

    config: Config
    timeline: Timeline
    partition: Partition
    runtime: Runtime
    input: Input
    state: TrainState
    folder: RunFolder
    log: Log
    identity: dict[str, Any]
    metadata: dict[str, str]

    def __post_init__(self) -> None:
        model, runtime, smoothing = self.state.model, self.runtime, self.config.label_smoothing
        weights = weights_to_read(model, self.state.optimizer) if runtime.bf16_weights else {}

        def forward(images: Tensor, labels: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
            return measure(model, runtime, smoothing, weights, images, labels, valid)

        self.eager: Callable[..., tuple[Tensor, Tensor]] = forward
        self.forward: Callable[..., tuple[Tensor, Tensor]] = self.runtime.compiled(forward)
        self.stop: int | None = None  # the signal that asked us to stop
        self.saved = time.monotonic()
        self.best_weights: dict[str, Tensor] | None = None
        self.profile: Callable[[], None] = lambda: None  # told after every step

    # --- the run -----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Train from the state's position to the end of the timeline.

        Raises:
            Interrupted: a signal came; a checkpoint was written after the step in hand.
            RunError: the loss is not finite, or a file cannot be written.
        """
        with self.signals(), self.profiler():
            while self.state.position.generation < len(self.timeline.generations):
                self.epoch()
            self.save("last")

    def epoch(self) -> None:
        """One epoch of the timeline, its evaluation and its row of metrics."""
        at = self.state.position
        phase, start = self.timeline.phase(at.generation, at.epoch)
        if at.step == 0:
            if at.epoch == start:
                self.enter(phase)
            self.state.counters.zero_()
            self.state.seconds = self.state.wait_seconds = 0.0
        self.set_rates(phase)
        compiling = self.train()
        loss, top1, _, images = self.read_counters()

        last_of_phase = at.epoch + 1 == start + phase.epochs
        due = last_of_phase or (at.epoch + 1) % self.config.eval_every == 0
        val_loss, val_top1, val_top5 = self.evaluate() if due else (None, None, None)
        rates = self.rates(phase)
        self.log.epoch(
            {
                "generation": at.generation,
                "epoch": at.epoch,
                "phase": phase.name,
                **{f"lr_{group}": rate for group, (rate, _) in rates.items()},
                **{f"direction_{group}": direction for group, (_, direction) in rates.items()},
                "train_loss": loss,
                "train_top1": top1,
                "val_loss": val_loss,
                "val_top1": val_top1,
                "val_top5": val_top5,
                "images_per_s": images / max(self.state.seconds, 1e-9),
                "seconds": self.state.seconds,
                "input_wait_seconds": self.state.wait_seconds,
                "compile_seconds": compiling,
                "images": int(images),
            }
        )
        if val_top1 is not None and val_top1 > self.state.best.top1:
            self.state.best = Best(val_top1, at.generation, at.epoch)
            self.best_weights = {name: t.detach().clone() for name, t in self.state.model.state_dict().items()}
        self.finish(phase, last_of_phase)

    def enter(self, phase: Phase) -> None:
        """What a phase does once, before its first step. Doing it twice is doing it once, so a resume may repeat it."""
        if phase.forget:
            reinitialise(
                dict(self.state.model.named_parameters()),
                self.partition.groups[phase.forget.group],
                phase.forget.distribution,
                self.config.seed,
                self.state.position.generation,
            )
        if phase.clear_momentum:
            self.state.optimizer.clear_momentum()

    def rates(self, phase: Phase) -> dict[str, tuple[float, int]]:
        """Learning rate after the phase's scale, and direction, by group."""
        lr = self.timeline.learning_rate(self.state.position.generation, self.state.position.epoch)
        return {group: (lr * rule.scale, rule.direction) for group, rule in phase.rules().items()}

    def set_rates(self, phase: Phase) -> None:
        """Write this epoch's numbers into the optimiser's device tensor."""
        lr = self.timeline.learning_rate(self.state.position.generation, self.state.position.epoch)
        for group, rule in phase.rules().items():
            self.state.optimizer.set_hyper(
                group, lr=lr, direction=rule.direction, scale=rule.scale, weight_decay=rule.weight_decay
            )

    # --- steps -------------------------------------------------------------------------------------------------------

    def train(self) -> float:
        """The rest of this epoch's steps; returns the seconds of compilation among them, which `seconds` leaves out."""
        state, at = self.state, self.state.position
        state.model.train()
        self.refresh_weights()
        compiled_before, self.input.wait_seconds = compile_seconds(self.runtime), 0.0
        seconds_before, wait_before = state.seconds, state.wait_seconds
        begin = time.perf_counter()

        def account() -> float:
            compiling = compile_seconds(self.runtime) - compiled_before
            state.seconds = seconds_before + time.perf_counter() - begin - compiling
            state.wait_seconds = wait_before + self.input.wait_seconds
            return compiling

        for batch in self.input.train(at.generation, at.epoch, at.step):
            # a last, smaller batch would make a third graph: it takes the same way uncompiled
            full = len(batch.labels) == self.config.batch_size
            loss, sums = (self.forward if full else self.eager)(batch.images, batch.labels)
            state.scaler.scale(loss).backward()
            state.scaler.step(state.optimizer)
            state.scaler.update()
            state.optimizer.zero_grad(set_to_none=True)
            state.counters += sums
            at.step += 1
            self.profile()
            if at.step % self.config.log_every == 0:
                self.show_progress()
            if self.stop or time.monotonic() - self.saved > self.config.checkpoint_seconds:
                account()
                self.checkpoint()
        self.runtime.synchronize()
        return account()

    @torch.no_grad()
    def evaluate(self) -> tuple[float, float, float]:
        """Loss, top-1 and top-5 (percent) on the validation set; batches are of one size, padding is masked out."""
        self.state.model.eval()
        self.refresh_weights()
        sums = torch.zeros(4, dtype=torch.float64, device=self.runtime.device)
        for batch in self.input.evaluation():
            sums += self.forward(batch.images, batch.labels, batch.valid)[1]
        loss, top1, top5, images = sums.tolist()
        return loss / images, 100 * top1 / images, 100 * top5 / images

    def refresh_weights(self) -> None:
        """Follow what wrote the parameters since the last step: forgetting, a checkpoint, or any other."""
        if self.runtime.bf16_weights:
            self.state.optimizer.refresh_bf16()

    def read_counters(self) -> tuple[float, float, float, float]:
        """The one place where training waits for the device: mean loss, top-1, top-5 (percent), images.

        Raises:
            RunError: the loss is NaN or infinite.
        """
        loss, top1, top5, images = self.state.counters.tolist()
        if not abs(loss) < float("inf"):
            self.diverged("the training loss is NaN or infinite")
        images = max(images, 1.0)
        return loss / images, 100 * top1 / images, 100 * top5 / images, images

    def show_progress(self) -> None:
        """Read the counters and show them."""
        loss, top1, _, images = self.read_counters()
        at = self.state.position
        phase, _ = self.timeline.phase(at.generation, at.epoch)
        self.log.progress(
            f"g{at.generation} e{at.epoch} {phase.name}  loss {loss:.4f}  top-1 {top1:.2f} %",
            at.step / self.input.steps_per_epoch,
        )

    # --- keeping -----------------------------------------------------------------------------------------------------

    def finish(self, phase: Phase, last_of_phase: bool) -> None:
        """Move on to the next epoch, and keep the weights and the checkpoint that are due here."""
        at = self.state.position
        generation, epoch = self.timeline.after(at.generation, at.epoch)
        if generation > at.generation and self.config.keep != "none":
            self.save(f"generation-{at.generation}")
        elif last_of_phase and phase.name == "ascent" and self.config.keep == "ascents":
            self.save(f"generation-{at.generation}-ascent")
        self.state.position = Position(generation, epoch)
        if generation > at.generation or self.stop or time.monotonic() - self.saved > self.config.checkpoint_seconds:
            self.checkpoint()

    def save(self, name: str, tensors: dict[str, Tensor] | None = None) -> None:
        """Write weights that need nothing but their file: its header says the network."""
        tensors = self.state.model.state_dict() if tensors is None else tensors
        checkpoint.save_tensors(self.folder.weights(name), checkpoint.dense(tensors), self.metadata)

    def checkpoint(self) -> None:
        """Write the state, if it is sound, and obey a signal that waits.

        Raises:
            Interrupted: there was one.
            RunError: loss or weights are not finite; the checkpoint before stays.
        """
        self.read_counters()
        finite = torch.stack([torch.isfinite(p).all() for p in self.state.model.parameters()]).all()
        if not finite:
            self.diverged("the weights are NaN or infinite")
        if self.best_weights is not None:
            self.save("best", self.best_weights)
            self.best_weights = None
        checkpoint.save(self.folder.checkpoint, self.state, self.identity)
        self.log.flush()
        self.saved = time.monotonic()
        if self.stop:
            self.save("last")
            raise Interrupted(self.stop, self.state.position, self.folder.path)

    def diverged(self, what: str) -> None:
        """Stop, naming place and cure."""
        at = self.state.position
        phase, _ = self.timeline.phase(at.generation, at.epoch)
        path = self.folder.checkpoint
        good = "there is no checkpoint yet"
        if path.exists():
            good = f"the last good checkpoint is {path} ({checkpoint.load(path).position})"
        raise RunError(
            f"{what} in generation {at.generation}, epoch {at.epoch}, {phase.name} phase, at or before step {at.step}; "
            f"{good}. Lower --lr or --ascent-scale, or lengthen --warmup-epochs, in a new --out"
        )

    @contextmanager
    def signals(self):
        """SIGTERM and SIGINT ask for a stop after the step in hand; a second SIGINT stops at once."""

        def ask(number: int, _frame: object) -> None:
            self.stop = number
            signal.signal(signal.SIGINT, signal.default_int_handler)

        old = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    @contextmanager
    def profiler(self):
        """Record steps 6 to 10 of this process under --profile, in TensorBoard's format."""
        if not self.config.profile:
            yield
            return
        from torch.profiler import ProfilerActivity, profile, schedule, tensorboard_trace_handler

        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (self.runtime.device.type == "cuda")
        handler = tensorboard_trace_handler(str(self.folder.profile))
        with profile(
            activities=activities,
            schedule=schedule(wait=4, warmup=1, active=5, repeat=1),
            on_trace_ready=handler,
            record_shapes=True,
            profile_memory=True,
        ) as recorder:
            self.profile = recorder.step
            yield
