"""What a run tells while it goes: terminal, metrics.jsonl, TensorBoard, and Weights & Biases when asked for."""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

from seal_fast.config import Config, to_dict
from seal_fast.runs.folder import RunFolder
from seal_fast.utils.errors import UsageError
from seal_fast.utils.terminal import dropping, say, shown

_CHARTS = ("train", "val", "test", "clean", "lr", "direction", "grad", "update", "hessian")


class _Terminal(logging.StreamHandler):
    """Writes to what sys.stdout is when a message comes, which a notebook or a redirection may have changed."""

    def emit(self, record: logging.LogRecord) -> None:
        say(self.format(record))


def to_terminal() -> None:
    """Show what the package's logger says (which data were found, which kernel is missing) as plain lines."""
    logger = logging.getLogger("seal_fast")
    if not logger.handlers:
        handler = _Terminal()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)


def clock(seconds: float) -> str:
    """A duration as h:mm:ss."""
    minutes, s = divmod(int(seconds + 0.5), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{s:02d}"


def line(row: dict[str, Any], left: float) -> str:
    """One epoch as a line of text."""
    lrs = "/".join(f"{row[name]:.5f}" for name in row if name.startswith("lr_"))
    val = "" if row["val_top1"] is None else f"  val {row['val_top1']:5.2f} % (top-5 {row['val_top5']:5.2f} %)"
    val += f"  test {row['test_top1']:5.2f} %" if "test_top1" in row else ""
    return (
        f"g{row['generation']} e{row['epoch']:03d} {row['phase']:<7}  lr {lrs}  loss {row['train_loss']:.4f}"
        f"  top-1 {row['train_top1']:5.2f} %{val}  {row['images_per_s']:.0f} images/s  {clock(left)} left"
    )


class Log:
    """Fans every epoch's row out to all places; `epochs` is the run's length, for the time left."""

    def __init__(self, folder: RunFolder, config: Config, epochs: int, done: int) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        self.folder, self.config = folder, config
        self.epochs = epochs
        self.done = done
        self.begin = time.monotonic()
        self.fresh = 0
        # purge_step hides what was written after the checkpoint that this process continues from
        self.board = SummaryWriter(_writable_name(folder.tensorboard), purge_step=done or None)
        self.wandb = _wandb(folder, config) if config.wandb else None
        self.live = _progress_bar(epochs, done) if sys.stdout and sys.stdout.isatty() else None

    def say(self, text: str) -> None:
        """Print a line above the live display."""
        if not self.live:
            return say(text)
        with dropping():
            self.live.console.print(text)

    def progress(self, text: str, share: float) -> None:
        """Within an epoch: what to show, and how much of the epoch is done (0 to 1)."""
        if self.live:
            self.live.update(self.live.task_ids[0], description=text, completed=self.done + share)

    def left(self) -> float:
        """Seconds that the rest of the run will take, at this process's pace so far."""
        spent = time.monotonic() - self.begin
        return spent / self.fresh * (self.epochs - self.done) if self.fresh else 0.0

    def epoch(self, row: dict[str, Any]) -> None:
        """Record a finished epoch."""
        self.done += 1
        self.fresh += 1
        self.folder.append(row)
        numbers = {name: value for name, value in row.items() if isinstance(value, int | float)}
        for name, value in numbers.items():
            self.board.add_scalar(_tag(name), value, self.done)
        if self.wandb:
            self.wandb.log(numbers | {"phase": row["phase"]}, step=self.done)
        self.say(line(row, self.left()))

    def hparams(self, metrics: dict[str, float]) -> None:
        """Write the settings beside the run's final metrics, for TensorBoard's HParams page."""
        from torch.utils.tensorboard.summary import hparams

        settings = {k: shown(v) if isinstance(v, str) else v for k, v in to_dict(self.config).items()}
        for summary in hparams(settings, metrics):
            self.board._get_file_writer().add_summary(summary)
        for name, value in metrics.items():
            self.board.add_scalar(name, value, self.done)

    def flush(self) -> None:
        """Hand everything to the operating system (TensorBoard buffers)."""
        self.board.flush()

    def close(self) -> None:
        """End the display and the writers."""
        if self.live:
            with dropping():
                self.live.stop()
        self.board.close()
        if self.wandb:
            self.wandb.finish()


class Silence(Log):
    """The log of every process but the first: it does nothing."""

    def __init__(self, *_: Any) -> None:
        pass

    def _nothing(self, *_: Any, **__: Any) -> None:
        pass

    say = progress = epoch = flush = close = _nothing


def _writable_name(folder: Path) -> str:
    """The folder, by its descriptor if its name is not valid text: TensorBoard encodes names strictly."""
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder) if shown(folder) == str(folder) else f"/proc/self/fd/{os.open(folder, os.O_RDONLY)}"


def _tag(name: str) -> str:
    """TensorBoard groups charts by what stands before the slash: train/loss, val/top1, lr/early, hessian/top."""
    head, _, tail = name.partition("_")
    return f"{head}/{tail}" if head in _CHARTS else f"run/{name}"


def _wandb(folder: RunFolder, config: Config) -> Any:
    try:
        import wandb
    except ImportError:
        raise UsageError("--wandb: Weights & Biases is not installed; pip install 'seal-fast[wandb]'") from None
    # A fixed id lets a resumed process continue the same W&B run; another folder may have the same name.
    name, place = folder.path.name, hashlib.sha256(os.fsencode(folder.path.resolve())).hexdigest()[:8]
    ours = {"project": "seal_fast", "id": f"{name}-{place}", "name": name, "dir": folder.path, "resume": "allow"}
    return wandb.init(**ours, config=to_dict(config))


def _progress_bar(epochs: int, done: int) -> Any:
    """A progress bar over the whole run; its text is the state of the current epoch."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %"))
    bar = Progress(*columns, TimeElapsedColumn())
    bar.add_task("starting", total=epochs, completed=done)
    bar.start()
    return bar
