"""Training steps: forward pass, backward pass, update; under SAM the first two twice."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from seal_fast.config import Config
from seal_fast.data import Batch, Input, MicroBatch
from seal_fast.kernels import philox
from seal_fast.methods.operators import Loss, Sharpness
from seal_fast.methods.schedule import Phase, Timeline
from seal_fast.models import Link
from seal_fast.training import cuda_graph
from seal_fast.training.checkpoint import TrainState
from seal_fast.training.runtime import Runtime
from seal_fast.training.step import bf16_weight_overrides, forward_and_loss, loss_numbers, two_passes

# Images, labels, whether they make a full micro-batch, which one it is, and the rows of the examples.
Part = tuple[Tensor, Tensor, bool, MicroBatch, Tensor | None]


class Steps:
    """Takes the steps of a run; nothing here makes the host wait for the device.

    Under --compile the network is one graph in train and one in eval mode for the whole run; a distilling phase adds
    its own. On CUDA each kind of step (with or without SAM, with or without distillation; of a full batch, of a smaller
    last one, of an evaluation) is recorded once.

    Attributes:
        forward: images, labels and, in evaluation, which are valid -> loss and sums.
    """

    def __init__(
        self,
        config: Config,
        timeline: Timeline,
        runtime: Runtime,
        state: TrainState,
        source: Input,
        processes: int,
        link: Link | None = None,
    ) -> None:
        self.config, self.runtime, self.state, self.input = config, runtime, state, source
        self.processes, self.link = processes, link
        model, snapshot, smoothing = state.model, state.snapshot, config.label_smoothing
        weights = bf16_weight_overrides(model, state.optimizer) if runtime.bf16_weights else {}
        record = state.examples is not None

        def forward(images: Tensor, labels: Tensor, *more: Tensor, **extra: Tensor) -> tuple[Tensor, ...]:
            return forward_and_loss(model, runtime, smoothing, weights, images, labels, *more, record=record, **extra)

        def teach(images: Tensor) -> Tensor:
            with runtime.autocast():
                return snapshot(images).to(runtime.dtype)  # pyright: ignore[reportOptionalCall]

        self.forward, self.teach = runtime.compiled(forward), runtime.compiled(teach)

        def zeros(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=runtime.device)

        self.numbers = zeros(6) if "loss" in timeline.needs() else None
        self.share = zeros() if config.mixup else None
        self.parts: list[Part] = []  # of a step of SAM
        # What recorded steps read and write: batches by the number of their images, rows, an evaluation's sums.
        self.recorded = config.accumulate == processes == 1 and cuda_graph.possible(runtime)
        self.recordings: dict[tuple[Sharpness | None, bool, int], cuda_graph.StepGraph] = {}
        self.recorded_evaluation: cuda_graph.StepGraph | None = None
        self.buffers: dict[int, tuple[Tensor, Tensor]] = {}
        self.rows = zeros(source.micro_batch_size, dtype=torch.int64) if record else None
        self.sums = zeros(4)
        source.numbered = record
        self.begin(timeline.generations[0][0])

    def begin(self, phase: Phase) -> None:
        """Take the steps of this phase from now on."""
        if self.numbers is not None:
            self.numbers.copy_(loss_numbers(phase.loss or Loss(), self.config.label_smoothing))
        self.sharpness, self.distils = phase.sharpness, phase.loss is not None and phase.loss.distil > 0

    @property
    def replays(self) -> bool:
        """Whether steps are recorded and replayed."""
        return self.recorded and self.forward.whole

    def recording(self, size: int) -> cuda_graph.StepGraph:
        """The recorded step on a batch of this size."""
        kind, full = (self.sharpness, self.distils, size), size == self.input.micro_batch_size
        if kind not in self.recordings:
            if size not in self.buffers:
                images, labels = self.input.buffers(size)
                self.buffers[size] = images, labels if self.share is None else labels.repeat(2, 1)
                if full:
                    self.input.out = images
            rows = None if self.rows is None else self.rows[:size]
            step = functools.partial(self.step, full=full, cut=MicroBatch(), rows=rows)
            self.recordings[kind] = cuda_graph.StepGraph(step, self.buffers[size], self.runtime.device)
        return self.recordings[kind]

    def take(self, batch: Batch) -> bool:
        """A step, or a part of one; whether it ended a step."""
        cut, size = batch.micro_batch, len(batch.labels)
        if self.link:
            self.link.connected = cut.shared
        self.seed(cut)
        labels = batch.labels if self.share is None else self._mix(self.share, batch)
        if self.replays:
            if self.rows is not None and batch.rows is not None:
                self.rows[:size].copy_(batch.rows)
            self.recording(size)(batch.images, labels)
        else:
            full = size == self.input.micro_batch_size and cut.shared == (self.processes > 1)
            self.step(batch.images, labels, full, cut, batch.rows)
        return cut.last

    def evaluate(self, images: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
        """Sums of loss, top-1 hits, top-5 hits and images, float64 [4], until the next call; in eval mode."""
        if not self.replays:
            return self.forward(images, labels, valid)[1]
        if self.recorded_evaluation is None:

            def step(*batch: Tensor) -> None:
                self.sums.copy_(self.forward(*batch)[1])

            buffers = (*self.input.buffers(len(labels)), torch.empty_like(valid))
            self.recorded_evaluation = cuda_graph.StepGraph(step, buffers, self.runtime.device)
        self.recorded_evaluation(images, labels, valid)
        return self.sums

    def seed(self, cut: MicroBatch) -> None:
        """Seed torch's generator, from which a network draws (dropout), by the place of these images in the run."""
        number = self._number(cut.start, philox.FORWARD)
        if self.runtime.device.type == "cuda":
            torch.cuda.manual_seed(number)
        else:
            torch.default_generator.manual_seed(number)

    def _number(self, position: int, purpose: int) -> int:
        at = self.state.position
        return philox.number(self.config.seed, at.generation, at.epoch, position, purpose)

    def _mix(self, share: Tensor, batch: Batch) -> Tensor:
        """Mix a batch's images in place; returns the labels of both images of each mixture, [2, B].

        mixup (Zhang et al., ICLR 2018, arXiv 1710.09412): one share for all of a step; partners come from a random
        permutation of the images that are computed at once.
        """
        start = batch.micro_batch.start
        step = self._number(start // self.config.batch_size, philox.MIXUP)
        first = np.random.default_rng(step).beta(self.config.mixup, self.config.mixup)
        share.fill_(first)
        order = np.random.default_rng(self._number(start, philox.PAIRS)).permutation(len(batch.labels))
        partner = torch.from_numpy(order).to(self.runtime.device, non_blocking=True)
        batch.images.lerp_(batch.images[partner], 1 - first)
        return torch.stack([batch.labels, batch.labels[partner]])

    def step(self, images: Tensor, labels: Tensor, full: bool, cut: MicroBatch, rows: Tensor | None) -> None:
        """One training step, or a part of one; changes tensors in place only."""
        state, part = self.state, (images, labels, full, cut, rows)
        if self.sharpness is None:
            self._backward(*part, last=cut.last)
        else:
            self.parts.append(part)
        if not cut.last:
            return
        if self.sharpness is not None:
            self._twice(self.sharpness)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        if state.ema:
            state.ema.update()
        state.optimizer.zero_grad(set_to_none=True)

    def _backward(
        self,
        images: Tensor,
        labels: Tensor,
        full: bool,
        cut: MicroBatch,
        rows: Tensor | None,
        last: bool,
        counted: bool = True,
    ) -> None:
        """Gradients of a part; `last` of those that make a step's. A smaller one is not compiled: a graph saved."""
        state, extra = self.state, {}
        forward, teach = (self.forward, self.teach) if full else (self.forward.function, self.teach.function)
        if self.numbers is not None:
            extra["numbers"] = self.numbers
        if self.share is not None:
            extra["share"] = self.share
        if self.distils:
            with torch.no_grad():
                extra["teacher"] = teach(images)
        loss, sums, *margins = forward(images, labels, **extra)
        if cut.counted and counted:
            state.counters += sums
            if state.examples is not None and rows is not None:
                state.examples.write(rows, *margins)
        state.optimizer.sending = last
        state.scaler.scale(loss if cut.weight == 1 else loss * cut.weight).backward()
        if not last:
            state.optimizer.accumulate()

    def _twice(self, sharpness: Sharpness) -> None:
        parts, self.parts = self.parts, []

        def gradients(first: bool) -> None:
            for part in parts:
                cut = part[3]
                if self.link:
                    self.link.connected = cut.shared
                if not self.replays:  # a recording cannot be seeded: there the second pass draws anew
                    self.seed(cut)
                self._backward(*part, last=not first and part is parts[-1], counted=first)

        two_passes(self.state.model, self.state.optimizer, sharpness, lambda: gradients(True), lambda: gradients(False))
