"""The training loop, the only one: it asks the timeline for the phase of (generation, epoch) and follows it.

A step takes no value back from the device; `Trainer.read_counters` is the one place that does, on log steps and at an
epoch's end. Nothing here knows which method runs.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from seal_fast.config import Config
from seal_fast.data import Input, MicroBatch
from seal_fast.distributed.world import World, on_all_ranks
from seal_fast.methods.partition import Partition
from seal_fast.methods.schedule import Phase, Timeline
from seal_fast.models import Link
from seal_fast.runs.folder import RunFolder
from seal_fast.runs.logger import Log
from seal_fast.training import checkpoint, cuda_graph
from seal_fast.training.checkpoint import Best, Position, TrainState
from seal_fast.training.forgetting import reinitialise
from seal_fast.training.profiling import profiler
from seal_fast.training.runtime import Runtime, compile_seconds
from seal_fast.training.signals import Interrupted, StopFlags, stop_signals
from seal_fast.training.step import bf16_weight_overrides, forward_and_loss
from seal_fast.utils.errors import RunError

WHOLE = MicroBatch()


@dataclass
class Trainer:
    """Trains a model through a timeline; `train.assemble` builds one.

    Args:
        provenance: written into every checkpoint; a resumed run compares it.
        metadata: header of the weights files.
        link: the model's synchronised BatchNorm, under --sync-batchnorm.
        curvature: callable(model, should_stop) returning extra metrics, called at the end of a phase.
    """

    config: Config
    timeline: Timeline
    partition: Partition
    runtime: Runtime
    input: Input
    state: TrainState
    folder: RunFolder
    log: Log
    provenance: dict[str, Any]
    metadata: dict[str, str]
    world: World = World()
    link: Link | None = None
    curvature: Callable[[Any, Callable[[], bool]], dict[str, Any]] | None = None

    def __post_init__(self) -> None:
        model, runtime, smoothing = self.state.model, self.runtime, self.config.label_smoothing
        weights = bf16_weight_overrides(model, self.state.optimizer) if runtime.bf16_weights else {}

        def forward(images: Tensor, labels: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
            return forward_and_loss(model, runtime, smoothing, weights, images, labels, valid)

        self.eager: Callable[..., tuple[Tensor, Tensor]] = forward
        self.forward: Callable[..., tuple[Tensor, Tensor]] = runtime.compiled(forward)
        self.full_step: Callable[[Tensor, Tensor], None] = functools.partial(self.step, self.forward)
        if self.world.size == self.config.accumulate == 1 and cuda_graph.possible(runtime, self.state.scaler):
            self.full_step = graph = cuda_graph.StepGraph(self.full_step, *self.input.buffers(), runtime.device)
            self.input.out = graph.images
        self.flags = StopFlags(self.world, self.config.log_every, self.config.checkpoint_seconds)
        self.best_weights: dict[str, Tensor] | None = None
        self.profile: Callable[[], None] = lambda: None  # called after every step
        self.between_steps = True

    # --- the run -----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Train from the state's position to the end of the timeline.

        Raises:
            Interrupted: a signal came; a checkpoint was written after the step in hand.
            RunError: the loss is not finite, or a file cannot be written.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(stop_signals(lambda number: setattr(self.flags, "signal", number)))
            if self.config.profile and self.world.is_main:
                self.profile = stack.enter_context(profiler(self.folder.profile, self.runtime.device))
            try:
                while self.state.position.generation < len(self.timeline.generations):
                    self.epoch()
            except Interrupted:
                raise
            except BaseException:
                self.rescue()
                raise
            self.save("last")

    def epoch(self) -> None:
        """One epoch of the timeline, its evaluation and its row of metrics."""
        at = self.state.position
        phase, start = self.timeline.phase(at.generation, at.epoch)
        if at.step == 0:
            if at.epoch == start:
                self.enter(phase)
            self.state.counters.zero_()
            self.state.norms_from = 0
            if self.state.optimizer.norms is not None:
                self.state.optimizer.norms.zero_()
            self.state.seconds = self.state.wait_seconds = 0.0
        rates = self.set_rates(phase)
        compiling = self.train()
        loss, top1, _, images = self.read_counters()

        last_of_phase = at.epoch + 1 == start + phase.epochs
        due = last_of_phase or (at.epoch + 1) % self.config.eval_every == 0
        val_loss, val_top1, val_top5 = self.evaluate() if due else (None, None, None)
        average = self.evaluate_average(due)
        curvature = self.measure_curvature() if last_of_phase else {}
        self.log.epoch(
            {
                "generation": at.generation,
                "epoch": at.epoch,
                "phase": phase.name,
                **{f"lr_{group}": rate for group, (rate, _) in rates.items()},
                **{f"direction_{group}": sign for group, (_, sign) in rates.items()},
                "train_loss": loss,
                "train_top1": top1,
                "val_loss": val_loss,
                "val_top1": val_top1,
                "val_top5": val_top5,
                **average,
                **self.norms(),
                "images_per_s": images / max(self.state.seconds, 1e-9),
                "seconds": self.state.seconds,
                "input_wait_seconds": self.state.wait_seconds,
                "compile_seconds": compiling,
                "images": int(images),
                **curvature,
            }
        )
        if val_top1 is not None and val_top1 > self.state.best.top1:
            if self.world.is_main:
                self.best_weights = {name: t.detach().clone() for name, t in self.state.model.state_dict().items()}
            self.state.best = Best(val_top1, at.generation, at.epoch)
        self.finish(phase, last_of_phase)

    def enter(self, phase: Phase) -> None:
        """Run a phase's one-time actions (re-initialise weights, reset momentum).

        Idempotent, so a resumed run may repeat it.
        """
        if phase.forget:
            reinitialise(
                dict(self.state.model.named_parameters()),
                self.partition.groups[phase.forget.group],
                phase.forget.distribution,
                self.config.seed,
                self.state.position.generation,
            )
        if phase.reset_momentum:
            self.state.optimizer.reset_momentum()

    def set_rates(self, phase: Phase) -> dict[str, tuple[float, int]]:
        """Write this epoch's numbers into the optimiser's device tensor; learning rate and sign by group."""
        lr = self.timeline.learning_rate(self.state.position.generation, self.state.position.epoch)
        for group, rule in phase.rules().items():
            self.state.optimizer.set_hyperparameters(
                group, lr=lr, sign=rule.sign, lr_multiplier=rule.lr_multiplier, weight_decay=rule.weight_decay
            )
        return {group: (lr * rule.lr_multiplier, rule.sign) for group, rule in phase.rules().items()}

    # --- steps -------------------------------------------------------------------------------------------------------

    def train(self) -> float:
        """Take the rest of this epoch's steps; returns the seconds of compilation, which `seconds` leaves out."""
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
            part = batch.micro_batch
            if self.link:
                self.link.connected = part.shared
            self.between_steps = False
            full = len(batch.labels) == self.input.micro_batch_size and part.shared == (self.world.size > 1)
            if full and part.weight == 1:
                self.full_step(batch.images, batch.labels)
            else:  # a smaller last batch is not compiled: it would be a third graph
                self.step(self.forward if full else self.eager, batch.images, batch.labels, part)
            if not part.last:
                continue
            at.step += 1
            self.between_steps = True
            self.profile()
            self.flags.steps_left -= 1
            if self.flags.steps_left <= 0:
                self.show_progress()
            if self.flags.pending():
                account()
                self.checkpoint()
        self.runtime.synchronize()
        return account()

    def step(
        self, forward: Callable[..., tuple[Tensor, Tensor]], images: Tensor, labels: Tensor, part: MicroBatch = WHOLE
    ) -> None:
        """One training step, or a part of one; changes tensors in place only."""
        state = self.state
        loss, sums = forward(images, labels)
        if part.counted:
            state.counters += sums
        state.optimizer.sending = part.last
        state.scaler.scale(loss if part.weight == 1 else loss * part.weight).backward()
        if not part.last:
            state.optimizer.accumulate()
            return
        state.scaler.step(state.optimizer)
        state.scaler.update()
        if state.ema:
            state.ema.update()
        state.optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def evaluate(self) -> tuple[float, float, float]:
        """Loss, top-1 and top-5 (percent) on the validation set; all batches have one size, padding is masked out.

        Raises:
            RunError: the loss is NaN or infinite.
        """
        self.state.model.eval()
        self.refresh_weights()
        if not self.link:  # each process has running statistics of its own images
            self.world.broadcast_(*self.state.model.buffers())
        sums = torch.zeros(4, dtype=torch.float64, device=self.runtime.device)
        for batch in self.input.evaluation():
            sums += self.forward(batch.images, batch.labels, batch.valid)[1]
        loss, top1, top5, images = self.world.sum(sums).tolist()
        if not abs(loss) < float("inf"):
            self.diverged("the validation loss is NaN or infinite")
        return loss / images, 100 * top1 / images, 100 * top5 / images

    def evaluate_average(self, due: bool) -> dict[str, float | None]:
        """The row's columns under --ema: `evaluate` with the averaged weights and statistics."""
        names = ("val_ema_loss", "val_ema_top1", "val_ema_top5")
        if not self.state.ema:
            return {}
        if not due:
            return dict.fromkeys(names)
        with self.state.ema.applied():
            return dict(zip(names, self.evaluate(), strict=True))

    def norms(self) -> dict[str, float]:
        """The row's columns under --log-norms: see `Config.log_norms`."""
        norms, steps = self.state.optimizer.norms, max(1, self.input.steps_per_epoch - self.state.norms_from)
        if norms is None:
            return {}
        rows = dict(zip(self.partition.groups, self.world.sum(norms).tolist(), strict=True))
        return {
            f"{what}_norm2_{group}": row[i] / steps
            for i, what in enumerate(("grad", "update"))
            for group, row in rows.items()
        }

    def measure_curvature(self) -> dict[str, Any]:
        """The row's figures of curvature, in a generation that is due; a failure is logged and stops nothing.

        Raises:
            Interrupted: a signal came; the measurement is made after resuming, at the same weights.
        """

        def should_stop() -> bool:
            if self.world.size > 1:
                self.read_counters()
            return self.flags.pending() and self.flags.stop is not None

        if not self.curvature or (self.state.position.generation + 1) % self.config.hessian_every:
            return {}
        try:
            figures = self.curvature(self.state.model, should_stop)
        except RunError as error:
            self.log.say(f"curvature could not be measured: {error}")
            return {}
        if self.flags.stop:
            self.checkpoint()
        return figures

    def refresh_weights(self) -> None:
        """Bring the bfloat16 copies up to date with parameters that something else than a step has changed."""
        if self.runtime.bf16_weights:
            self.state.optimizer.refresh_bf16()

    def read_counters(self) -> tuple[float, float, float, float]:
        """The one place where training waits for the device: mean loss, top-1, top-5 (percent), images.

        Raises:
            RunError: the loss is NaN or infinite.
        """
        loss, top1, top5, images = self.flags.exchange(self.state.counters)
        if not abs(loss) < float("inf"):
            self.diverged("the training loss is NaN or infinite")
        images = max(images, 1.0)
        return loss / images, 100 * top1 / images, 100 * top5 / images, images

    def show_progress(self) -> None:
        """Read the counters and show them."""
        loss, top1, _, _ = self.read_counters()
        at = self.state.position
        phase, _ = self.timeline.phase(at.generation, at.epoch)
        self.log.progress(
            f"g{at.generation} e{at.epoch} {phase.name}  loss {loss:.4f}  top-1 {top1:.2f} %",
            at.step / self.input.steps_per_epoch,
        )

    # --- files -------------------------------------------------------------------------------------------------------

    def finish(self, phase: Phase, last_of_phase: bool) -> None:
        """Move on to the next epoch; save the weights and the checkpoint that are due here."""
        at = self.state.position
        generation, epoch = self.timeline.after(at.generation, at.epoch)
        if generation > at.generation and self.config.keep != "none":
            self.save(f"generation-{at.generation}")
        elif last_of_phase and phase.name == "ascent" and self.config.keep == "ascents":
            self.save(f"generation-{at.generation}-ascent")
        self.state.position = Position(generation, epoch)
        if self.world.size > 1:
            self.read_counters()
        if self.flags.pending() or generation > at.generation:
            self.checkpoint()

    def save(self, name: str, tensors: dict[str, Tensor] | None = None) -> None:
        """Write weights, and their averages unless `tensors` are given; the header describes the network."""
        files = {name: self.state.model.state_dict() if tensors is None else tensors}
        if self.state.ema and tensors is None:
            files[f"{name}-ema"] = self.state.ema.state_dict()  # on all processes
        for file, values in files.items():
            if self.world.is_main:
                checkpoint.save_tensors(self.folder.weights(file), checkpoint.dense(values), self.metadata)

    def checkpoint(self) -> None:
        """Write the state if loss and weights are finite, then obey a signal that came.

        Raises:
            Interrupted: there was one.
            RunError: loss or weights are not finite; the checkpoint before stays.
        """
        self.read_counters()
        if not torch.stack([torch.isfinite(p).all() for p in self.state.model.parameters()]).all():
            self.diverged("the weights are NaN or infinite")
        if self.best_weights is not None:
            self.save("best", self.best_weights)
            self.best_weights = None
        checkpoint.save(self.folder.checkpoint, self.state, self.provenance, self.world)
        self.log.flush()
        self.flags.saved = time.monotonic()
        if self.flags.stop:
            self.save("last")
            raise Interrupted(self.flags.stop, self.state.position, self.folder.path)

    def rescue(self) -> None:
        """After an error, write the checkpoint if this is a single process between two steps, in a finite state."""
        if self.world.size == 1 and self.between_steps:
            with contextlib.suppress(Exception):  # the first error is the one to report
                self.checkpoint()

    def diverged(self, what: str) -> None:
        """Stop, naming place and cure."""
        self.between_steps = False  # this state is not to be kept
        at = self.state.position
        phase, _ = self.timeline.phase(at.generation, at.epoch)
        path = self.folder.checkpoint
        good = "there is no checkpoint yet"
        if path.exists():
            good = f"the last good checkpoint is {path} ({checkpoint.load(path).position})"
        raise on_all_ranks(
            RunError(
                f"{what} in generation {at.generation}, epoch {at.epoch}, {phase.name} phase, at or before step "
                f"{at.step}; {good}. Lower --lr or --ascent-scale, or lengthen --warmup-epochs, in a new --out"
            )
        )
