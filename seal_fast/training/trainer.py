"""The training loop, the only one: it asks the timeline for the phase of (generation, epoch) and follows it.

A step takes no value back from the device; `Trainer.read_counters` is the one place that does, on log steps and at an
epoch's end. Nothing here knows which method runs.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from seal_fast.config import Config
from seal_fast.data import Input
from seal_fast.distributed.world import World, on_all_ranks
from seal_fast.methods.partition import Partition
from seal_fast.methods.schedule import Phase, Timeline
from seal_fast.models import Link
from seal_fast.runs.folder import RunFolder
from seal_fast.runs.logger import Log
from seal_fast.training import checkpoint, entry, evaluation
from seal_fast.training.checkpoint import Best, Position, TrainState
from seal_fast.training.forgetting import Values
from seal_fast.training.profiling import profiler
from seal_fast.training.runtime import Runtime, compile_seconds
from seal_fast.training.signals import Interrupted, StopFlags, stop_signals
from seal_fast.training.slim import Slim
from seal_fast.training.steps import Steps
from seal_fast.utils.errors import RunError

# (batch size, share of the training images, whether they are augmented as in training, generation, epoch) -> images
# and labels in batches, the same on every process
Images = Callable[[int, float, bool, int, int], Iterator[tuple[Tensor, Tensor]]]


@dataclass
class Trainer:
    """Trains a model through a timeline; `train.assemble` builds one.

    Args:
        provenance: written into every checkpoint; a resumed run compares it.
        metadata: header of the weights files.
        link: the model's synchronised BatchNorm, under --sync-batchnorm.
        initial: the weights and statistics that the run began with, if the timeline needs them.
        images: training images, for operators that score weights by gradients.
        slim: of a timeline with a mask by kels, evaluated and saved at each generation's end.
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
    initial: Values = field(default_factory=dict)
    images: Images | None = None
    slim: Slim | None = None
    curvature: Callable[[Any, Callable[[], bool]], dict[str, Any]] | None = None

    def __post_init__(self) -> None:
        self.steps = Steps(self.config, self.timeline, self.runtime, self.state, self.input, self.world.size, self.link)
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
            if at.epoch == start and self.state.entered is None:
                entry.enter(self, phase)
            self.state.counters.zero_()
            self.state.norms_from = 0
            if self.state.optimizer.norms is not None:
                self.state.optimizer.norms.zero_()
            self.state.seconds = self.state.wait_seconds = 0.0
        rates = self.set_rates()
        self.steps.begin(phase)
        compiling = self.train()
        loss, top1, _, images = self.read_counters()

        last_of_phase = at.epoch + 1 == start + phase.epochs
        evaluation.record_examples(self, last_of_phase)
        due = last_of_phase or (at.epoch + 1) % self.config.eval_every == 0
        val_loss, val_top1, val_top5 = evaluation.evaluate(self) if due else (None, None, None)
        ends = self.timeline.after(at.generation, at.epoch)[0] > at.generation
        others = evaluation.evaluate_others(self) if ends else {}
        entry.average_epoch(self.state, self.timeline, phase, at.epoch - start)
        average = evaluation.evaluate_average(self, phase, due)
        curvature = evaluation.measure_curvature(self) if last_of_phase else {}
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
                **others,
                **average,
                **evaluation.norms(self),
                **{f"weight_norm_{group}": norm for group, norm in (self.state.entered or {}).items()},
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

    def set_rates(self) -> dict[str, tuple[float, int]]:
        """Write this epoch's numbers into the optimiser's device tensor; learning rate and sign by group."""
        rates = self.timeline.rates(self.state.position.generation, self.state.position.epoch)
        for group, numbers in rates.items():
            self.state.optimizer.set_hyperparameters(group, **numbers)
        return {group: (n["lr"] * n["lr_multiplier"], int(n["sign"])) for group, n in rates.items()}

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
            self.between_steps = False
            if not self.steps.take(batch):
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

    def refresh_weights(self) -> None:
        """Bring the bfloat16 copies up to date with parameters that something else than a step has changed."""
        if self.runtime.bf16_weights:
            self.state.optimizer.refresh_bf16()

    def read_counters(self) -> tuple[float, float, float, float]:
        """The one place where training waits for the device: mean loss, top-1, top-5 (percent), images.

        Raises RunError if the loss is NaN or infinite.
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
        if generation > at.generation:
            evaluation.save_examples(self)
        self.state.position, self.state.entered = Position(generation, epoch), None
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
            raise Interrupted(self.flags.stop, self.state.position, self.folder.path, self.config.model)

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
