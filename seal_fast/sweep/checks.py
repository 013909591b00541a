"""Checks of the trials before anything starts."""

from __future__ import annotations

from collections.abc import Iterable

from seal_fast.methods import timeline
from seal_fast.methods.partition import split
from seal_fast.sweep.plan import Trial
from seal_fast.utils.errors import RunError, UsageError


def check_trials(trials: Iterable[Trial], *, here: bool) -> dict[str, tuple[int, int]]:
    """Numbers of training and validation images of each trial, by its name, after all checks that need no training.

    `here` says that they will run on this machine, so that its devices count. Raises UsageError, naming the trial, if
    one cannot run.
    """
    import torch

    from seal_fast.data import ImageSet, open_images, select
    from seal_fast.models import build, forward_order

    sizes: dict[str, tuple[int, int]] = {}
    opened: dict[str, ImageSet] = {}
    splits: set[object] = set()
    for trial in trials:
        config = trial.config
        try:
            if here and config.device == "cuda" and not torch.cuda.is_available():
                raise UsageError("--device cuda: this machine has no CUDA device that torch can use")
            if config.init_weights and not config.init_weights.is_file():
                raise UsageError(f"--init-weights {config.init_weights}: no such file")
            if config.data not in opened:
                opened[config.data] = open_images(config.data, config.on_bad_image)
            images = select(opened[config.data], **config.selection())
            count, _ = sizes[trial.name] = len(images.train), len(images.val)
            if config.batch_size > count:
                raise UsageError(f"--batch-size {config.batch_size} is larger than the training set of {count} images")
            line = timeline(config)
            if (key := (config.model, config.stem, config.width, line.cuts, line.groups)) not in splits:
                model = build(config.model, 2, stem=config.stem, width=config.width)
                order = forward_order(model, config.image_size or 64, 2, f"--model {config.model}")
                split(order, line.cuts, line.groups)
                splits.add(key)
        except (UsageError, RunError) as error:
            raise UsageError(f"{trial.name}: {error}") from None
    return sizes
