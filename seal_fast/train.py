"""Arguments to a finished run: `python -m seal_fast.train`, and `run(config)` for programs."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from seal_fast.utils import openmp  # noqa: F401 (before torch)

# isort: split
from seal_fast import arguments, methods
from seal_fast.config import EXECUTION, Config, to_dict
from seal_fast.data import ImageSet, open_images
from seal_fast.distributed import world as distributed
from seal_fast.distributed.world import World, ignore_sigterm, report_error
from seal_fast.networks import short
from seal_fast.runs import plots
from seal_fast.runs.folder import RunFolder
from seal_fast.runs.logger import to_terminal
from seal_fast.runs.summary import summarise
from seal_fast.training import checkpoint
from seal_fast.training.assembly import assemble, open_input
from seal_fast.training.runtime import environment, graphs, start, wants_gpu
from seal_fast.training.signals import Interrupted
from seal_fast.training.trainer import Trainer
from seal_fast.utils.errors import RunError, UsageError, system_error
from seal_fast.utils.files import write_json
from seal_fast.utils.terminal import prepare_streams, say, shown
from seal_fast.validation import check


def run(config: Config, opened: Callable[..., ImageSet] = open_images) -> dict[str, Any]:
    """Train as configured, into config.out or a new folder under runs/; returns the content of summary.json.

    `opened` may keep the data set of an earlier run.

    Raises:
        UsageError: a setting cannot make a run, or contradicts the run found in config.out.
        RunError: training cannot go on: a corrupt image, a full disk, a loss that is not finite.
        Interrupted: SIGTERM, SIGINT or SIGHUP came; the checkpoint is written.
    """
    with distributed.joined(wants_gpu(check(config)), config.dist_timeout) as world:
        return _run(config, world, opened)


def _run(config: Config, world: World, opened: Callable[..., ImageSet]) -> dict[str, Any]:
    runtime = start(config, world.local_size)
    dataset = world.run_on_all(lambda: opened(config.data, config.on_bad_image))
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
        best, last, test = summary["best"], summary["last"], summary.get("test")
        tested = f"test top-1 {test['test_top1']:.2f} % after generation {test['generation']}; " if test else ""
        trainer.log.say(
            f"best val top-1 {best['val_top1']:.2f} % (generation {best['generation']}, epoch {best['epoch']}; "
            f"chosen on {config.chosen_on}), last {last['val_top1']:.2f} %; {tested}{folder.path}"
        )
        return summary


def agree(config: Config, dataset: ImageSet, world: World) -> Path:
    """The run folder, the same for all processes, after comparing their settings, images and checkpoints.

    Raises UsageError if a process differs, or torchrun would restart a run without --out.
    """
    out = config.out
    if out is None:
        if int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) and world.size > 1:
            raise distributed.on_all_ranks(
                UsageError("torchrun --max-restarts needs --out: without it a restart could not find its run")
            )
        method = methods.timeline(config).method
        name = f"{dataset.name}-{short(config.model)}-{method}-{time.strftime('%Y%m%d-%H%M%S')}"
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


def conclude(trainer: Trainer) -> dict[str, Any] | None:
    """Rank 0 writes summary.json and curves.png from the metrics so far and returns the summary."""
    if not trainer.world.is_main:
        return None
    config, folder = trainer.config, trainer.folder
    rows = folder.rows()
    summary = summarise(
        rows,
        method=trainer.timeline.method,
        best_chosen_on=config.chosen_on,
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
        plots.draw(rows, f"{trainer.timeline.method}, {config.model}: {shown(folder.path.name)}", folder.curves)
    return summary


def main(argv: Sequence[str] | None = None, opened: Callable[..., ImageSet] = open_images) -> int:
    """The command; returns its exit code: 0, 1 (the run failed), 2 (usage), or 128 + the signal that stopped it."""
    prepare_streams()
    to_terminal()
    try:
        run(arguments.parse(sys.argv[1:] if argv is None else argv), opened)
        distributed.leave()
    except Interrupted as interruption:
        report_error(interruption)
        return 128 + interruption.number
    except KeyboardInterrupt:
        say("stopped at once; start again with the same --out to continue from the last checkpoint", "stderr")
        return 130
    except Exception as error:
        if not (sentence := system_error(error)):
            raise
        report_error(sentence)
        return sentence.exit_code
    return 0


if __name__ == "__main__":
    code = main()
    gc.freeze()  # or the interpreter visits once more, at exit, all that torch has imported
    sys.exit(code)
