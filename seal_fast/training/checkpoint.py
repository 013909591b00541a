"""Checkpoints: one safetensors file that holds TrainState and nothing else.

Everything outside TrainState (data order, augmentation, learning rate, phase) follows from the position and the seed.
safetensors cannot execute code when loaded, and the rest of the state is JSON in its header.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from seal_fast.config import Config
from seal_fast.distributed.world import SINGLE_PROCESS, World
from seal_fast.methods.partition import Partition
from seal_fast.methods.schedule import Timeline
from seal_fast.optim.annealed_sgd import AnnealedSGD
from seal_fast.optim.ema import ModelEMA
from seal_fast.optim.sharded_sgd import ShardedSGD, SharedScaler
from seal_fast.training.examples import Examples
from seal_fast.training.runtime import Runtime
from seal_fast.utils.errors import RunError, UsageError, errno_of, reason
from seal_fast.utils.files import read_tensors, write_atomically

FORMAT = "seal_fast checkpoint 1"


@dataclass
class Position:
    """The next step to take: a generation, an epoch of it, a step of that."""

    generation: int = 0
    epoch: int = 0
    step: int = 0

    def __str__(self) -> str:
        return f"generation {self.generation}, epoch {self.epoch}, step {self.step}"


@dataclass
class Best:
    """The best evaluation so far: top-1 in percent, and after which epoch."""

    top1: float = -1.0
    generation: int = 0
    epoch: int = 0


@dataclass
class TrainState:
    """Everything that changes while training.

    counters: float64 [4] on the device: sums over this epoch's images of loss, top-1 hits, top-5 hits, and images.
    ema: averages of the model, with --ema or a timeline's average; averaged: epochs of the run whose end is in it.
    examples: records of single training examples, with --record-examples.
    snapshot: a copy of the network in eval mode, if the timeline takes any.
    entered: norms of the weights by group, as the phase began, in its first epoch; None until that has been entered.
    norms_from: the step of this epoch from which the optimiser's `norms` are summed.
    seconds, wait_seconds: spent on this epoch's steps so far, and within that on waiting for input.
    """

    model: nn.Module
    optimizer: AnnealedSGD
    scaler: torch.amp.GradScaler
    counters: Tensor
    ema: ModelEMA | None = None
    snapshot: nn.Module | None = None
    examples: Examples | None = None
    entered: dict[str, float] | None = None
    averaged: int = 0
    norms_from: int = 0
    position: Position = field(default_factory=Position)
    best: Best = field(default_factory=Best)
    seconds: float = 0.0
    wait_seconds: float = 0.0


def make_state(
    config: Config,
    timeline: Timeline,
    runtime: Runtime,
    model: nn.Module,
    partition: Partition,
    world: World = SINGLE_PROCESS,
) -> TrainState:
    """A fresh training state; its groups are the partition's, for life. UsageError if two averages are asked for."""
    needs, decay = timeline.needs(), timeline.ema_decay(config.ema)
    snapshot = copy.deepcopy(model).eval().requires_grad_(False) if "snapshot" in needs else None
    parameters = dict(model.named_parameters())
    groups = partition.groups.items()
    optimizer = (AnnealedSGD if world.size == 1 else partial(ShardedSGD, world=world))(
        [{"name": group, "params": [(name, parameters[name]) for name in names]} for group, names in groups],
        lr=torch.tensor(config.lr, dtype=torch.float64),
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        backend=config.kernels,
        ema_decay=decay,
        bf16_copy=runtime.bf16_weights,
        norms=config.log_norms,
        hold="held" in needs,
    )
    ema = None if decay is None else ModelEMA(model, optimizer, decay)
    counters = torch.zeros(4, dtype=torch.float64, device=runtime.device)
    scaler = runtime.scaler() if world.size == 1 else runtime.scaler(SharedScaler)
    return TrainState(model, optimizer, scaler, counters, ema, snapshot)


def extra_tensors(state: TrainState) -> dict[str, Mapping[str, Tensor]]:
    """The tensors of a state beside its model and counters, by part and name; called by all processes."""
    optimizer = state.optimizer
    return {
        "momentum": optimizer.momentum_state(),
        "ema": state.ema.state_dict() if state.ema else {},
        "snapshot": state.snapshot.state_dict() if state.snapshot is not None else {},
        "held": optimizer.held_state() if optimizer.holds else {},
    }


def load_extra_tensors(state: TrainState, part: Callable[[str], Mapping[str, Tensor]]) -> None:
    """Write what `extra_tensors` returned, as far as the state keeps it; ValueError for other names or shapes."""
    state.optimizer.load_momentum_state(part("momentum"))
    if state.ema:
        state.ema.load_state_dict(part("ema"))
    if state.snapshot is not None:
        state.snapshot.load_state_dict(part("snapshot"))
    if state.optimizer.holds:
        state.optimizer.hold(part("held"))


def dense(tensors: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """Copies in host memory, in the logical (contiguous) layout: files do not depend on how memory is laid out."""
    return {prefix + name: torch.empty(t.shape, dtype=t.dtype).copy_(t.detach()) for name, t in tensors.items()}


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file atomically; RunError if it cannot be written, and what `path` held is intact."""
    from safetensors.torch import save_file

    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata))


def save(path: Path, state: TrainState, provenance: dict[str, Any], world: World = SINGLE_PROCESS) -> None:
    """Write a checkpoint atomically; RunError if it cannot be written, and the previous one is intact.

    All processes of `world` take part and rank 0 writes; the file does not depend on how many there are. `load` gives
    the provenance back.
    """
    tensors = dense(state.model.state_dict(), "model.") if world.is_main else {}
    extra, counters = extra_tensors(state), world.sum(state.counters)
    norms = state.optimizer.norms
    if norms is not None:
        norms = world.sum(norms)
    examples = state.examples.state_dict(world) if state.examples else {}
    if not world.is_main:
        return
    for part, values in (extra | {"examples": examples}).items():
        tensors |= dense(values, f"{part}.")
    tensors |= {} if norms is None else {"norms": norms.cpu()}
    tensors |= {"counters": counters.cpu(), "rng": torch.get_rng_state()}
    if state.counters.is_cuda:
        tensors["rng_cuda"] = torch.cuda.get_rng_state(state.counters.device)
    plain = {
        "position": asdict(state.position),
        "best": asdict(state.best),
        "scaler": state.scaler.state_dict(),
        "entered": state.entered,
        "averaged": state.averaged,
        "norms_from": state.norms_from,
        "seconds": state.seconds,
        "wait_seconds": state.wait_seconds,
        "identity": provenance,
    }
    save_tensors(path, tensors, {"format": FORMAT, "state": json.dumps(plain)})


@dataclass(frozen=True)
class Saved:
    """A checkpoint's content: tensors by name, and the plain values."""

    tensors: dict[str, Tensor]
    plain: dict[str, Any]

    @property
    def provenance(self) -> dict[str, Any]:
        """The run's configuration and the fingerprint of its images."""
        return self.plain["identity"]

    @property
    def position(self) -> Position:
        """The next step."""
        return Position(**self.plain["position"])


def load(path: Path) -> Saved:
    """Read a checkpoint; RunError if it cannot be read, is damaged, or is none of this program."""
    from safetensors import SafetensorError

    try:
        tensors, metadata = read_tensors(path)
        if metadata.get("format") != FORMAT:
            raise RunError(f"{path} is not a checkpoint that this version reads ({FORMAT}); start with another --out")
        return Saved(tensors, json.loads(metadata["state"]))
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        if errno_of(error):
            raise RunError(f"{path} could not be read ({reason(error)}); nothing was changed") from None
        raise RunError(f"{path} is damaged ({error}); delete it to start over, or choose another --out") from None


def restore(saved: Saved, state: TrainState, world: World = SINGLE_PROCESS) -> None:
    """Put a checkpoint's content into a freshly built state, in place; UsageError if it is another network's."""
    model = _part(saved.tensors, "model.")
    own = state.model.state_dict()
    wrong = {n for n in own.keys() | model.keys() if n not in own or n not in model or own[n].shape != model[n].shape}
    if wrong:
        raise UsageError(f"the checkpoint is of another model: {len(wrong)} tensors differ, such as {min(wrong)}")
    with torch.no_grad():
        for name, tensor in own.items():  # copied in place: parameters stay views into the optimiser's buffer
            tensor.copy_(model[name])
    load_extra_tensors(state, lambda part: _part(saved.tensors, f"{part}."))
    if state.examples:
        state.examples.load_state_dict(_part(saved.tensors, "examples."), world)
    state.entered, state.averaged = saved.plain.get("entered"), saved.plain.get("averaged", 0)
    state.counters.copy_(saved.tensors["counters"])
    norms = state.optimizer.norms
    state.norms_from = saved.plain.get("norms_from", 0) if "norms" in saved.tensors else saved.position.step
    if norms is not None and "norms" in saved.tensors:
        norms.copy_(saved.tensors["norms"])
    if not world.is_main:  # these are summed over the processes
        state.counters.zero_()
        if norms is not None:
            norms.zero_()
    torch.set_rng_state(saved.tensors["rng"])
    if state.counters.is_cuda and "rng_cuda" in saved.tensors:
        torch.cuda.set_rng_state(saved.tensors["rng_cuda"], state.counters.device)
    if state.scaler.is_enabled():
        state.scaler.load_state_dict(saved.plain["scaler"])
    state.position = saved.position
    state.best = Best(**saved.plain["best"])
    state.seconds, state.wait_seconds = saved.plain["seconds"], saved.plain["wait_seconds"]


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
