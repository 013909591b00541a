"""Arguments to a finished run: `python -m seal_fast.train`, and `run(config)` for programs."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from seal_fast.utils import openmp  # noqa: F401 (before torch)

# isort: split
import torch

from seal_fast import arguments, methods
from seal_fast.config import EXECUTION, Config, difference, dumps, load, to_dict
from seal_fast.curvature.monitor import Curvature
from seal_fast.data import ImageSet, Input, Shard, fits, make_input, open_images
from seal_fast.distributed import world as distributed
from seal_fast.distributed.errors import ignore_sigterm, report_error
from seal_fast.distributed.world import SINGLE_PROCESS, World
from seal_fast.methods.partition import Partition, split
from seal_fast.models import build, load_weights, synchronise_
from seal_fast.optim.annealed_sgd import AnnealedSGD
from seal_fast.optim.ema import ModelEMA
from seal_fast.optim.sharded_sgd import ShardedSGD, SharedScaler
from seal_fast.runs import plots
from seal_fast.runs.folder import RunFolder
from seal_fast.runs.identity import write_provenance
from seal_fast.runs.logger import Log, Silence, to_terminal
from seal_fast.runs.summary import summarise
from seal_fast.training import checkpoint
from seal_fast.training.checkpoint import TrainState
from seal_fast.training.runtime import Runtime, environment, graphs, start, wants_gpu
from seal_fast.training.signals import Interrupted
from seal_fast.training.trainer import Trainer
from seal_fast.utils.errors import RunError, UsageError, system_error
from seal_fast.utils.files import write_json, write_text
from seal_fast.utils.terminal import prepare_streams, say, shown


def run(config: Config) -> dict[str, Any]:
    """Train as configured, into config.out or a new folder under runs/; returns the content of summary.json.

    Raises:
        UsageError: a setting cannot make a run, or contradicts the run found in config.out.
        RunError: training cannot go on: a corrupt image, a full disk, a loss that is not finite.
        Interrupted: SIGTERM, SIGINT or SIGHUP came; the checkpoint is written.
    """
    with distributed.joined(wants_gpu(config), config.dist_timeout) as world:
        return _run(config, world)


def _run(config: Config, world: World) -> dict[str, Any]:
    runtime = start(config, world.local_size)
    dataset = world.run_on_all(lambda: open_images(config.data, config.on_bad_image))
    folder = RunFolder(agree(config, dataset, world))
    with (
        folder.locked() if world.is_main else contextlib.nullcontext(),
        contextlib.closing(world.run_on_all(lambda: open_input(config, runtime, dataset, world))) as batches,
        assemble(config, runtime, dataset, batches, folder, world) as trainer,
    ):
        try:
            trainer.run()
        except BaseException:
            ignore_sigterm()
            with contextlib.suppress(RunError):  # on a full disk the first error is the one to report
                conclude(trainer)
            raise
        summary = world.broadcast_object(conclude(trainer))
        best, last = summary["best"], summary["last"]
        trainer.log.say(
            f"best val top-1 {best['val_top1']:.2f} % (generation {best['generation']}, epoch {best['epoch']}), "
            f"last {last['val_top1']:.2f} %; {folder.path}"
        )
        return summary


def agree(config: Config, dataset: ImageSet, world: World) -> Path:
    """The run folder, the same for all processes, after comparing their settings, images and checkpoints.

    Raises:
        UsageError: a process differs; or torchrun would restart a run without --out.
    """
    out = config.out
    if out is None:
        if int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) and world.size > 1:
            raise distributed.on_all_ranks(
                UsageError("torchrun --max-restarts needs --out: without it a restart could not find its run")
            )
        name = f"{dataset.name}-{config.model}-{config.method}-{time.strftime('%Y%m%d-%H%M%S')}"
        out = Path("runs") / world.broadcast_object(name)
    settings = {name: value for name, value in to_dict(config).items() if name not in EXECUTION}
    path = RunFolder(out).checkpoint
    at = str(checkpoint.load(path).position) if world.size > 1 and path.exists() else "none"
    world.assert_same_on_all_ranks(
        {"settings": settings, "images": dataset.fingerprint, "checkpoint": at},
        {
            "settings": "start all of them with the same flags",
            "images": f"--data {config.data} must be the same images on all machines",
            "checkpoint": f"--out {out} must be one folder that all machines share",
        },
    )
    return out


def open_input(config: Config, runtime: Runtime, dataset: ImageSet, world: World = SINGLE_PROCESS) -> Input:
    """The batches of a configuration, or one process's share of them."""
    kind = config.input
    if kind == "auto" and world.size > 1:  # free memory may differ from process to process, the input may not
        sharing = world.local_size if runtime.device.type == "cpu" else 1
        fit = fits(dataset, config.image_size, config.limit_train, runtime.device, config.augmentation, sharing)
        kind = "stream" if world.max(not fit)[0] else "resident"
    return make_input(
        dataset,
        kind=kind,
        image_size=config.image_size,
        batch_size=config.batch_size,
        eval_batch_size=config.eval_batch_size or max(256, config.batch_size),
        dtype=runtime.compute,
        device=runtime.device,
        seed=config.seed,
        augmentation=config.augmentation,
        shuffle=config.shuffle,
        limit_train=config.limit_train,
        threads=torch.get_num_threads(),
        on_bad_image=config.on_bad_image,
        backend="auto" if config.kernels == "native" else config.kernels,  # the augmentation has no native kernel
        shard=Shard(world.rank, world.size, config.accumulate),
    )


@contextlib.contextmanager
def assemble(
    config: Config,
    runtime: Runtime,
    dataset: ImageSet,
    batches: Input,
    folder: RunFolder,
    world: World = SINGLE_PROCESS,
) -> Iterator[Trainer]:
    """A trainer at the start of its timeline, or at the checkpoint that the folder holds.

    Raises:
        UsageError: a setting cannot make a run, or contradicts the run found in the folder.
    """
    initial = config.init_weights and config.init_weights.resolve()  # so that config.toml runs from any folder
    config = replace(
        config,
        data=dataset.source,
        image_size=batches.image_size,
        input=batches.kind,
        augmentation=batches.augmentation,
        init_weights=initial,
    )
    timeline = methods.timeline(config)
    model = build(config.model, batches.num_classes, stem=config.stem, seed=config.seed)
    if config.init_weights:
        load_weights(model, config.init_weights, fc=config.init_fc)
    link = synchronise_(model) if config.sync_batchnorm and world.size > 1 else None
    model.to(runtime.device, runtime.dtype).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    partition = split({n: p.numel() for n, p in model.named_parameters()}, config.layer_threshold, timeline.groups)
    state = make_state(config, runtime, model, partition, world)
    provenance = {"config": to_dict(replace(config, out=None)), "images": dataset.fingerprint}
    resuming = folder.checkpoint.exists()
    if resuming:
        resume(config, folder, state, provenance, world)
    at = state.position
    if world.is_main:
        if not resuming or not folder.config.exists():
            write_text(folder.config, dumps(config))
        elif (known := load(folder.config, Config())).data != config.data:  # the data set has moved
            write_text(folder.config, dumps(replace(known, data=config.data)))
        write_provenance(
            folder.path,
            data_sha256=dataset.fingerprint,
            init_weights=config.init_weights,
            device=runtime.device.type,
            processes=world.size,
        )
        folder.truncate(at.generation, at.epoch)
    metadata = {
        "model": config.model,
        "stem": config.stem,
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
        if config.hessian_every:
            fed = replace(dataset, train=dataset.train.spread(config.limit_train))
            trainer.curvature = Curvature(config, fed, batches.image_size, runtime.device, world)
        for text in introduction(trainer, dataset):
            log.say(text)
        if resuming:
            log.say(f"continuing from {folder.checkpoint} at {at}")
        yield trainer
    finally:
        log.close()


def make_state(
    config: Config, runtime: Runtime, model: torch.nn.Module, partition: Partition, world: World = SINGLE_PROCESS
) -> TrainState:
    """A fresh training state; the optimiser's groups are the partition's, for life."""
    torch.manual_seed(config.seed)  # nothing here draws from the global generator, but a user's model may
    parameters = dict(model.named_parameters())
    optimizer = (AnnealedSGD if world.size == 1 else partial(ShardedSGD, world=world))(
        [
            {"name": group, "params": [(name, parameters[name]) for name in names]}
            for group, names in partition.groups.items()
        ],
        lr=torch.tensor(config.lr, dtype=torch.float64),
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        backend=config.kernels,
        ema_decay=config.ema or None,
        bf16_copy=runtime.bf16_weights,
        norms=config.log_norms,
    )
    ema = ModelEMA(model, optimizer, config.ema) if config.ema else None
    counters = torch.zeros(4, dtype=torch.float64, device=runtime.device)
    scaler = runtime.scaler() if world.size == 1 else runtime.scaler(SharedScaler)
    return TrainState(model, optimizer, scaler, counters, ema)


def resume(
    config: Config, folder: RunFolder, state: TrainState, provenance: dict[str, Any], world: World = SINGLE_PROCESS
) -> None:
    """Load the checkpoint of the same training into `state`.

    Raises:
        UsageError: it is another training's: the differing settings, or the data set, are named.
    """
    if config.resume == "never":
        raise UsageError(f"--out {folder.path} holds a checkpoint, and --resume never forbids to continue it")
    saved = checkpoint.load(folder.checkpoint)
    if saved.provenance["images"] != provenance["images"]:
        raise UsageError(f"--data {config.data}: not the images that the run in {folder.path} was trained on")
    if changes := difference(Config(**saved.provenance["config"]), config):
        raise UsageError(f"--out {folder.path} holds a run with other settings: {'; '.join(changes)}")
    checkpoint.restore(saved, state, world)


def introduction(trainer: Trainer, dataset: ImageSet) -> list[str]:
    """What a run prints before its first step."""
    config, timeline, batches, world = trainer.config, trainer.timeline, trainer.input, trainer.world
    env = environment(trainer.runtime)
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
        *batches.notes,
        f"model: {config.model}, {config.stem} stem; {trainer.partition}",
        f"method: {timeline.method}, {len(timeline.generations)} generations, {timeline.total_epochs()} epochs",
        f"run folder: {trainer.folder.path}",
    ]


def conclude(trainer: Trainer) -> dict[str, Any] | None:
    """Rank 0 writes summary.json and curves.png from the metrics so far and returns the summary."""
    if not trainer.world.is_main:
        return None
    config, folder = trainer.config, trainer.folder
    rows = folder.rows()
    summary = summarise(
        rows,
        method=config.method,
        finished=trainer.state.position.generation == len(trainer.timeline.generations),
        graphs=graphs(trainer.runtime),
        peak_memory_bytes=trainer.runtime.peak_memory(),
        skipped_images=trainer.input.skipped,
        environment=environment(trainer.runtime),
    )
    write_json(folder.summary, summary)
    if summary["best"]:
        trainer.log.hparams(
            {f"final/{at}_{k}": summary[at][k] for at in ("best", "last") for k in ("val_top1", "val_loss")}
        )
    if rows:
        plots.draw(rows, f"{config.method}, {config.model}: {shown(folder.path.name)}", folder.curves)
    return summary


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code: 0, 1 (the run failed), 2 (usage), or 128 + the signal that stopped it."""
    prepare_streams()
    to_terminal()
    try:
        run(arguments.parse(sys.argv[1:] if argv is None else argv))
        distributed.leave()
    except (UsageError, RunError) as error:
        report_error(error)
        return error.exit_code
    except Interrupted as interruption:
        report_error(interruption)
        return 128 + interruption.number
    except KeyboardInterrupt:
        say("stopped at once; start again with the same --out to continue from the last checkpoint", "stderr")
        return 130
    except (OSError, MemoryError, RuntimeError) as error:
        if not (sentence := system_error(error)):
            raise
        report_error(sentence)
        return sentence.exit_code
    return 0


if __name__ == "__main__":
    code = main()
    gc.freeze()  # or the interpreter visits once more, at exit, all that torch has imported
    sys.exit(code)
