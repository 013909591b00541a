"""A configuration to a trainer: input, network, state, checkpoint."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seal_fast import methods
from seal_fast.config import Config, difference, dumps, load, override, to_dict
from seal_fast.curvature.monitor import Curvature
from seal_fast.data import ImageSet, Input, Shard, fits, make_input, select
from seal_fast.distributed.world import SINGLE_PROCESS, World
from seal_fast.methods import text
from seal_fast.methods.partition import split
from seal_fast.methods.schedule import Timeline
from seal_fast.models import build, forward_order, load_weights, synchronise_
from seal_fast.runs.folder import RunFolder
from seal_fast.runs.identity import check_initial_weights, write_provenance
from seal_fast.runs.logger import Log, Silence
from seal_fast.training import checkpoint
from seal_fast.training.checkpoint import TrainState
from seal_fast.training.examples import Examples
from seal_fast.training.forgetting import check_scopes
from seal_fast.training.runtime import Runtime, environment
from seal_fast.training.slim import slim_network
from seal_fast.training.trainer import Trainer
from seal_fast.utils.errors import UsageError
from seal_fast.utils.files import write_text


def open_input(config: Config, runtime: Runtime, dataset: ImageSet, world: World = SINGLE_PROCESS) -> Input:
    """The batches of a configuration, or one process's share of them."""
    kind, dataset = config.input, select(dataset, **config.selection())
    if kind == "auto" and world.size > 1:  # free memory may differ from process to process, the input may not
        sharing = world.local_size if runtime.device.type == "cpu" else 1
        fit = fits(dataset, config.image_size, runtime.device, config.augmentation, sharing)
        kind = "stream" if world.max(not fit)[0] else "resident"
    return make_input(
        dataset,
        kind=kind,
        image_size=config.image_size,
        batch_size=config.batch_size,
        eval_batch_size=config.eval_batch_size or max(config.batch_size, evaluated_at_once(config, runtime, dataset)),
        dtype=runtime.compute,
        device=runtime.device,
        seed=config.seed,
        augmentation=config.augmentation,
        shuffle=config.shuffle,
        threads=torch.get_num_threads(),
        on_bad_image=config.on_bad_image,
        backend="auto" if config.kernels == "native" else config.kernels,  # the augmentation has no native kernel
        shard=Shard(world.rank, world.size, config.accumulate),
    )


def evaluated_at_once(config: Config, runtime: Runtime, dataset: ImageSet) -> int:
    """Images: 256; on a GPU all of a validation set up to 1,024, if they have 64 pixels or fewer."""
    small = (config.image_size or dataset.native_size or 64) <= 64
    return min(1024, max(256, len(dataset.val))) if runtime.device.type == "cuda" and small else 256


@contextlib.contextmanager
def assemble(
    config: Config,
    runtime: Runtime,
    dataset: ImageSet,
    batches: Input,
    folder: RunFolder,
    world: World = SINGLE_PROCESS,
) -> Iterator[Trainer]:
    """A trainer at the timeline's start, or at the folder's checkpoint; UsageError if a setting fits neither."""
    initial = config.init_weights and config.init_weights.resolve()  # so that config.toml runs from any folder
    config = replace(
        config,
        data=dataset.source,
        image_size=batches.image_size,
        input=batches.kind,
        augmentation=batches.augmentation,
        init_weights=initial,
        method="timeline" if config.timeline else config.method,
    )
    timeline = methods.timeline(config)
    model = build(config.model, batches.num_classes, stem=config.stem, seed=config.seed, width=config.width)
    if config.dropout:
        model.dropout = config.dropout
    order = forward_order(model, batches.image_size, batches.num_classes, f"--model {config.model}")
    needs, resuming = timeline.needs(), folder.checkpoint.exists()
    if config.init_weights and ("initial" in needs or not resuming):
        load_weights(model, config.init_weights, config.init_fc, order.classifier)
    link = synchronise_(model) if config.sync_batchnorm and world.size > 1 else None
    model.to(runtime.device, runtime.dtype).to(memory_format=torch.channels_last)
    if config.layer_threshold not in order and not timeline.effective().cuts:
        timeline = timeline.effective()  # the threshold makes no difference
    partition = split(order, timeline.cuts, timeline.groups, "--timeline: cut" if config.timeline else "")
    check_scopes(timeline, model, order)
    initial_values = checkpoint.dense(model.state_dict()) if "initial" in needs else {}
    state = checkpoint.make_state(config, timeline, runtime, model, partition, world)
    if config.record_examples:
        phases = max(map(len, timeline.generations))
        state.examples = Examples(batches.train_size, phases, runtime.device, runtime.dtype)
    provenance = {"config": to_dict(replace(config, out=None)), "images": dataset.fingerprint}
    if resuming:
        resume(config, timeline, folder, state, provenance, world)
    at = state.position
    if world.is_main:
        if not resuming or not folder.config.exists():
            beside = config.timeline and Path(folder.timeline.name)
            write_text(folder.config, dumps(replace(config, timeline=beside)))
        else:  # data set and initial weights may have moved, and generations may be more
            known = load(folder.config, Config())
            now = {"data": config.data, "init_weights": initial or known.init_weights}
            if (new := replace(known, generations=config.generations, **now)) != known:
                write_text(folder.config, dumps(new))
        if not resuming or not folder.timeline.exists() or text.load(folder.timeline) != timeline:
            write_text(folder.timeline, text.dumps(timeline))
        write_provenance(
            folder.path,
            data_sha256=dataset.fingerprint,
            init_weights=config.init_weights,
            device=runtime.device.type,
            processes=world.size,
            resuming=resuming,
        )
        folder.truncate(at.generation, at.epoch)
    metadata = {
        "model": config.model,
        "stem": config.stem,
        "width": f"{config.width:g}",
        "classifier": order.classifier,
        "num_classes": str(batches.num_classes),
        "image_size": str(batches.image_size),
    }
    log = (Log if world.is_main else Silence)(
        folder, config, timeline.total_epochs(), timeline.index(at.generation, at.epoch)
    )
    try:
        trainer = Trainer(
            config, timeline, partition, runtime, batches, state, folder, log, provenance, metadata, world, link
        )
        trainer.initial = initial_values
        if "images" in needs:
            trainer.images = partial(score_images, config, batches)
        if (keep := timeline.slim()) is not None:
            trainer.slim = slim_network(model, config, batches.num_classes, keep)
        if config.hessian_every:
            trainer.curvature = Curvature(config, batches.dataset, batches.image_size, runtime.device, world)
        for line in introduction(trainer, dataset):
            log.say(line)
        if resuming:
            log.say(f"continuing from {folder.checkpoint} at {at}")
        yield trainer
    finally:
        log.close()


def score_images(
    config: Config, batches: Input, size: int, share: float, augmented: bool, generation: int, epoch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Training images in the order of an epoch, whole on every process; see `seal_fast.training.trainer.Images`."""
    left = max(1, round(share * batches.train_size))
    source = make_input(
        batches.dataset,
        "stream",
        image_size=batches.image_size,
        batch_size=min(size, batches.train_size),
        eval_batch_size=size,
        augmentation=batches.augmentation if augmented else "none",
        dtype=getattr(torch, config.dtype),
        device=batches.device,
        seed=config.seed,
        shuffle=config.shuffle,
        threads=config.threads,
        on_bad_image=config.on_bad_image,
    )
    with contextlib.closing(source):
        for batch in source.train(generation, epoch):
            yield batch.images[:left], batch.labels[:left]
            left -= len(batch.labels)
            if left <= 0:
                return


def resume(
    config: Config,
    timeline: Timeline,
    folder: RunFolder,
    state: TrainState,
    provenance: dict[str, Any],
    world: World = SINGLE_PROCESS,
) -> None:
    """Load the checkpoint into `state`; UsageError, naming what differs, if it is another training's."""
    if config.resume == "never":
        raise UsageError(f"--out {folder.path} holds a checkpoint, and --resume never forbids to continue it")
    saved = checkpoint.load(folder.checkpoint)
    if saved.provenance["images"] != provenance["images"]:
        raise UsageError(f"--data {config.data}: not the images that the run in {folder.path} was trained on")
    if changes := difference(override(Config(), saved.provenance["config"], str(folder.checkpoint)), config):
        raise UsageError(f"--out {folder.path} holds a run with other settings: {'; '.join(changes)}")
    if folder.timeline.exists() and not timeline.extends(text.load(folder.timeline)):
        more = config.generations > saved.provenance["config"]["generations"]
        what = f"--timeline {config.timeline}" if config.timeline else f"--method {config.method}"
        what += f" --generations {config.generations}" * more
        raise UsageError(f"{what}: not the timeline that the run in {folder.path} follows; choose another --out")
    if "initial" in timeline.needs() or (config.init_weights and config.init_weights.exists()):
        check_initial_weights(folder.path, config.init_weights)
    checkpoint.restore(saved, state, world)


def introduction(trainer: Trainer, dataset: ImageSet) -> list[str]:
    """What a run prints before its first step."""
    config, timeline, batches, world = trainer.config, trainer.timeline, trainer.input, trainer.world
    env, lacks_slim = environment(trainer.runtime), timeline.slim() is not None and not trainer.slim
    shared = (
        f"{world.size} processes of {batches.micro_batch_size} images each at once; "
        f"BatchNorm statistics {'over all' if trainer.link else 'of each'}"
    )
    return [
        f"seal_fast {env['seal_fast']} on {env['gpu'] or env['cpu']}, {env['threads']} threads, "
        f"torch {env['torch']}, {env['compute']}{', compiled' if config.compile else ''}",
        f"data: {config.data} ({dataset.name}): {batches.train_size} training and {batches.val_size} validation "
        f"images, {batches.num_classes} classes, {batches.image_size} px, {batches.kind}",
        *([shared] if world.size > 1 else []),
        *(["train_loss and train_top1 are of mixed images"] if config.mixup else []),
        *batches.notes,
        f"model: {config.model}, {config.stem} stem"
        f"{f', width {config.width:g}' if config.width != 1 else ''}; {trainer.partition}",
        f"method: {timeline.method}, {len(timeline.generations)} generations, {timeline.total_epochs()} epochs",
        *(["slim network: none, --width makes no network of the channels kept"] if lacks_slim else []),
        f"run folder: {trainer.folder.path}",
    ]
