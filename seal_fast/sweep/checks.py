"""What would stop a trial before its first step, found before anything starts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from seal_fast.config import Config
from seal_fast.data import ImageSet, open_images
from seal_fast.methods import timeline
from seal_fast.methods.partition import split
from seal_fast.models import build
from seal_fast.sweep.plan import Trial
from seal_fast.utils.errors import RunError, UsageError


def check_trials(trials: Iterable[Trial], *, here: bool) -> dict[str, ImageSet]:
    """The data sets of the trials by the value of --data, once everything that can be checked without training is.

    Args:
        trials: of the sweep.
        here: whether they will run on this machine, so that its devices count.

    Raises:
        UsageError: a trial cannot run; it is named.
    """
    images: dict[str, ImageSet] = {}
    networks: dict[tuple[Any, ...], dict[str, int]] = {}
    done: set[tuple[Any, ...]] = set()
    for trial in trials:
        config = trial.config
        checks: list[tuple[tuple[Any, ...], Callable[[], None]]] = [
            (("device", config.device), lambda c=config: _device(c) if here else None),
            (("weights", config.init_weights), lambda c=config: _weights(c)),
            (("data", config.data, config.batch_size, config.limit_train), lambda c=config: _images(c, images)),
            (
                ("layer", config.model, config.stem, config.layer_threshold, timeline(config).groups),
                lambda c=config: _layer(c, networks),
            ),
        ]
        for key, check in checks:
            if key not in done:
                done.add(key)
                try:
                    check()
                except (UsageError, RunError) as error:
                    raise UsageError(f"{trial.name}: {error}") from None
    return images


def _device(config: Config) -> None:
    import torch

    if config.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: this machine has no CUDA device that torch can use")


def _weights(config: Config) -> None:
    if config.init_weights and not config.init_weights.is_file():
        raise UsageError(f"--init-weights {config.init_weights}: no such file")


def _images(config: Config, images: dict[str, ImageSet]) -> None:
    if config.data not in images:
        images[config.data] = open_images(config.data, config.on_bad_image)
    count = len(images[config.data].train.spread(config.limit_train))
    if config.batch_size > count:
        raise UsageError(f"--batch-size {config.batch_size} is larger than the training set of {count} images")


def _layer(config: Config, networks: dict[tuple[Any, ...], dict[str, int]]) -> None:
    key = (config.model, config.stem)
    if key not in networks:
        networks[key] = {n: p.numel() for n, p in build(config.model, 2, stem=config.stem).named_parameters()}
    split(networks[key], config.layer_threshold, timeline(config).groups)
