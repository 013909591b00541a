"""The trials of a sweep: named, checked, and each a training of its own."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from seal_fast.config import Config, flag, override
from seal_fast.methods import timeline
from seal_fast.runs.identity import Training, short, varied_settings
from seal_fast.sweep.space import Space
from seal_fast.utils.errors import UsageError
from seal_fast.validation import check

_NAME_LENGTH = 80


@dataclass(frozen=True)
class Trial:
    """One run of a sweep.

    Attributes:
        name: of its run folder.
        settings: those that vary over the sweep and have an effect on this run, with its values.
        config: the whole configuration.
    """

    name: str
    settings: dict[str, Any]
    config: Config

    @cached_property
    def epochs(self) -> int:
        """Length of the run in epochs."""
        return timeline(self.config).total_epochs()

    @property
    def generations(self) -> int:
        """Number of learning-rate cycles."""
        return len(timeline(self.config).generations)


@dataclass(frozen=True)
class Plan:
    """The trials, and the number of combinations left out because another one trains the same."""

    trials: tuple[Trial, ...]
    repeated: int = 0

    @property
    def varied(self) -> list[str]:
        """Names of the settings that vary; the seed comes last."""
        names = dict.fromkeys(name for trial in self.trials for name in trial.settings)
        return sorted(names, key=lambda name: name == "seed")


def make(space: Space, *, search: str, samples: int, seeds: int | None, search_seed: int = 0) -> Plan:
    """The trials of a space, each combination with the seeds 0 to seeds - 1; UsageError if one of them is impossible.

    `search` is grid (every combination, if nothing is drawn) or random (so many `samples`, drawn by `search_seed`).
    """
    if search == "grid" and space.drawn:
        cure = "use --search random with --samples, or name its values in a grid"
        raise UsageError(f"--search grid: {space.path} draws {space.drawn[0]} from a range; {cure}")
    if seeds is not None and ("seed" in space.axes or any("seed" in part.fixed for part in space.parts)):
        raise UsageError(f"--seeds {seeds}: {space.path} names the seeds already; drop one of the two")
    combinations = [
        settings | ({} if seeds is None else {"seed": seed})
        for part in space.parts
        for settings in part.settings(samples, search_seed, enumerate_choices=search == "grid")
        for seed in range(seeds or 1)
    ]
    different: dict[object, tuple[dict[str, Any], Config]] = {}
    for settings in combinations:
        config = resolve(space, settings)
        different.setdefault(training(config), (settings, config))
    # all combinations with one seed before the next: a sweep that is stopped half way has whole seeds to compare
    chosen = sorted(different.values(), key=lambda combination: combination[1].seed)
    configs = [config for _, config in chosen]
    seeded = len({config.seed for config in configs}) > 1
    acting = varied_settings([Training(config) for config in configs])
    trials = []
    for (settings, config), effective in zip(chosen, acting, strict=True):
        order = dict.fromkeys(name for name in (*space.axes, *effective) if name in effective)
        varied = {name: effective[name] for name in order} | ({"seed": config.seed} if seeded else {})
        # the name holds what this part of the space sets; the number alone makes it unique
        name = trial_name(len(trials), {n: value for n, value in varied.items() if n in settings}, len(configs))
        trials.append(Trial(name, varied, config))
    return Plan(tuple(trials), len(combinations) - len(trials))


def resolve(space: Space, settings: dict[str, Any]) -> Config:
    """The configuration of a combination, with absolute paths, as a worker may start in another folder.

    Raises UsageError, naming its varying settings, if it cannot make a run.
    """
    config = override(space.base, settings, str(space.path))
    try:
        data = os.path.expanduser(os.path.expandvars(config.data))
        if "$" in data:
            raise UsageError(f"data = {config.data!r}: that variable is not set")
        if data not in ("auto", "digits"):
            data = str(Path(data).absolute())
        return check(replace(config, data=data, init_weights=config.init_weights and config.init_weights.absolute()))
    except UsageError as error:
        varying = ", ".join(f"{n} = {v!r}" for n, v in settings.items() if n in space.axes or n == "seed")
        raise UsageError(f"{space.path}: {varying}{': ' if varying else ''}{error}") from None


def training(config: Config) -> object:
    """A key that is equal for configurations that train the same; settings without effect are not in it."""
    return Training(config).key, config.seed


def trial_name(number: int, settings: dict[str, Any], count: int = 0) -> str:
    """The name of a trial: its number among so many, and its settings."""
    text = ",".join(f"{flag(name)[2:]}={short(value)}" for name, value in settings.items())
    safe = re.sub(r"[^\w.,=+-]+", "-", text)[:_NAME_LENGTH]
    return f"{number:0{max(4, len(str(count - 1)))}d}" + (f"-{safe}" if safe else "")
