"""The trials of a sweep, decided before anything starts: named, checked, and each different from every other."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from seal_fast.config import EXECUTION, Config, check, flag, override, to_dict
from seal_fast.methods import timeline
from seal_fast.sweep.space import Space
from seal_fast.utils.errors import UsageError
from seal_fast.utils.files import write_json

FORMAT = "seal_fast sweep 1"
# The timeline says all that these do, so that two configurations of equal timelines need not agree in them.
_IN_TIMELINE = frozenset(
    "generations epochs ascent_epochs ascent_scale ascent_weight_decay reinit warmup_epochs".split()
)
_NAME_LENGTH = 80


@dataclass(frozen=True)
class Trial:
    """One run of a sweep.

    Attributes:
        name: of its run folder.
        settings: what varies over the sweep, with this run's values.
        config: the whole configuration.
    """

    name: str
    settings: dict[str, Any]
    config: Config

    @property
    def epochs(self) -> int:
        """Length of the run in epochs."""
        return timeline(self.config).total_epochs()

    @property
    def generations(self) -> int:
        """Number of learning-rate cycles."""
        return len(timeline(self.config).generations)


@dataclass(frozen=True)
class Plan:
    """The trials, and how many combinations of the space were left out because another trains the same."""

    trials: tuple[Trial, ...]
    repeated: int = 0

    @property
    def varied(self) -> list[str]:
        """The settings that vary."""
        return list(dict.fromkeys(name for trial in self.trials for name in trial.settings))


def make(space: Space, *, search: str, samples: int, seeds: int | None, search_seed: int = 0) -> Plan:
    """The trials of a space that is listed (`grid`) or drawn from (`random`).

    Raises:
        UsageError: the space cannot be searched that way, or a run in it cannot be.
    """
    if search == "grid" and space.drawn:
        raise UsageError(
            f"--search grid: {space.path} draws {space.drawn[0]} from a range, which no grid can list; "
            "use --search random with --samples, or name its values in a grid"
        )
    names = {name for part in space.parts for name in part.fixed}
    if seeds is not None and ("seed" in names or "seed" in space.axes):
        raise UsageError(f"--seeds {seeds}: {space.path} names the seeds already; drop one of the two")
    combinations = [
        settings | ({} if seeds is None else {"seed": seed})
        for part in space.parts
        for settings in part.settings(samples, search_seed, enumerate_choices=search == "grid")
        for seed in range(seeds or 1)
    ]
    return of_settings(space, combinations)


def of_settings(
    space: Space, combinations: Sequence[dict[str, Any]], first: int = 0, named: Iterable[str] | None = None
) -> Plan:
    """Trials of combinations, numbered from `first`; one that trains what another trains already is left out.

    Names say the settings in `named`, or else those in which the combinations differ.

    Raises:
        UsageError: a combination cannot make a run; what varies in it is named.
    """
    kept: dict[object, tuple[dict[str, Any], Config]] = {}
    for settings in combinations:
        config = space.config(settings)
        try:
            config = check(_resolved(config))
        except UsageError as error:
            varying = {name: value for name, value in settings.items() if name in space.axes or name == "seed"}
            where = f"{space.path}: {_show(varying)}" if varying else f"{space.path}"
            raise UsageError(f"{where}: {error}") from None
        kept.setdefault(training(config), (settings, config))
    everything = [settings for settings, _ in kept.values()]
    varied = list(space.axes) + (["seed"] if any("seed" in s for s in everything) and "seed" not in space.axes else [])
    varied += [
        name
        for name in dict.fromkeys(n for s in everything for n in s)
        if name not in varied and len({repr(getattr(config, name)) for _, config in kept.values()}) > 1
    ]
    differ = [name for name in varied if len({repr(getattr(c, name)) for _, c in kept.values()}) > 1]
    shown = differ if named is None else list(named)
    shown.sort(key=lambda name: name == "seed")
    width = max(4, len(str(first + len(kept) - 1)))
    trials = tuple(
        # the name says what this part of the space sets; the number alone makes it unique
        Trial(_name(first + i, width, {n: settings[n] for n in shown if n in settings}), _plain(config, varied), config)
        for i, (settings, config) in enumerate(kept.values())
    )
    return Plan(trials, len(combinations) - len(kept))


def training(config: Config) -> object:
    """Equal for configurations that train the same: settings without effect on their method do not count."""
    line = timeline(config)
    phases = [phase for generation in line.generations for phase in generation]
    split = any(phase.forget or len(set(phase.rules().values())) > 1 for phase in phases)
    left_out = EXECUTION | _IN_TIMELINE | (set() if split else {"layer_threshold"})
    rest = tuple(getattr(config, field.name) for field in fields(Config) if field.name not in left_out)
    return line, rest, config.data, config.init_weights, config.init_fc


def write(plan: Plan, path: Path, **said: Any) -> None:
    """Write a plan and what else is `said` of the sweep.

    Raises:
        RunError: the file cannot be written.
    """
    trials = [{"name": t.name, "settings": t.settings, "config": to_dict(t.config)} for t in plan.trials]
    write_json(path, {"format": FORMAT, **said, "repeated": plan.repeated, "trials": trials})


def parse(content: Iterable[dict[str, Any]], path: Path) -> tuple[Trial, ...]:
    """Trials as `write` wrote them.

    Raises:
        UsageError: the file is of another make.
    """
    return tuple(
        Trial(item["name"], item["settings"], override(Config(), item["config"], str(path))) for item in content
    )


def _resolved(config: Config) -> Config:
    """Paths made absolute: a worker may start anywhere."""
    data = config.data
    if data not in ("auto", "digits"):
        data = str(Path(data).absolute())
    return replace(config, data=data, init_weights=config.init_weights and config.init_weights.absolute())


def _plain(config: Config, names: Sequence[str]) -> dict[str, Any]:
    values = to_dict(config)
    return {name: values.get(name) for name in names}


def _show(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name} = {value!r}" for name, value in settings.items())


def _name(number: int, width: int, settings: dict[str, Any]) -> str:
    said = ",".join(
        f"{flag(n)[2:]}={v:.4g}" if isinstance(v, float) else f"{flag(n)[2:]}={v}" for n, v in settings.items()
    )
    safe = re.sub(r"[^\w.,=+-]+", "-", said)[:_NAME_LENGTH]
    return f"{number:0{width}d}" + (f"-{safe}" if safe else "")
