"""The space of a sweep: a TOML file with values for training flags.

A plain value holds for every run. A table varies a setting: `{ grid = [...] }` takes every value; `{ choice = [...] }`,
`{ uniform = [low, high] }`, `{ loguniform = [low, high] }` and `{ int = [low, high] }` draw one. `preset` or `config`
name the settings underneath. Each `[[union]]` is a product of its own over the settings before it, so that ablations
can vary one setting at a time. Nothing here imports torch or Ray.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from seal_fast.config import Config, load, override
from seal_fast.presets import PRESETS
from seal_fast.utils.errors import UsageError, did_you_mean

KINDS = ("grid", "choice", "uniform", "loguniform", "int")
_SETTINGS = [field.name for field in fields(Config)]
_KEYS = ("preset", "config", "union")
_RESERVED = {
    "out": "the sweep names the run folders",
    "resume": "the sweep resumes by itself",
    "threads": "the sweep divides the threads; see --threads",
}


@dataclass(frozen=True)
class Axis:
    """How a setting varies: `values` are those of a grid or choice, or the two ends of a range, both included."""

    name: str
    kind: str
    values: tuple[Any, ...]

    def draw(self, sample: int, seed: int) -> Any:
        """The value of a sample; it depends on the setting's name, the sample's number and the seed alone."""
        digest = hashlib.sha256(f"{seed} {sample} {self.name}".encode()).digest()
        random = np.random.default_rng(int.from_bytes(digest[:8], "little"))
        if self.kind in ("grid", "choice"):
            return self.values[int(random.integers(len(self.values)))]
        low, high = self.values
        if self.kind == "int":
            return int(random.integers(low, high, endpoint=True))
        if self.kind == "uniform":
            return float(random.uniform(low, high))
        return float(math.exp(random.uniform(math.log(low), math.log(high))))


@dataclass(frozen=True)
class Part:
    """One product of axes over fixed settings."""

    fixed: dict[str, Any]
    axes: tuple[Axis, ...]

    def settings(self, samples: int, seed: int, enumerate_choices: bool) -> Iterator[dict[str, Any]]:
        """Every combination. All points of the grid get the same draws, so that they can be compared in pairs."""
        listed = [a for a in self.axes if a.kind == "grid" or enumerate_choices and a.kind == "choice"]
        drawn = [a for a in self.axes if a not in listed]
        for sample in range(samples if drawn else 1):
            values = {axis.name: axis.draw(sample, seed) for axis in drawn}
            for point in itertools.product(*(axis.values for axis in listed)):
                yield self.fixed | values | dict(zip((axis.name for axis in listed), point, strict=True))


@dataclass(frozen=True)
class Space:
    """A space of settings: the union of `parts` over `base`, which the defaults, a preset or a file give."""

    path: Path
    base: Config
    parts: tuple[Part, ...]

    @cached_property
    def axes(self) -> dict[str, Axis]:
        """The settings that vary, by name."""
        return {axis.name: axis for part in self.parts for axis in part.axes}

    @property
    def drawn(self) -> list[str]:
        """Settings drawn from a range, which a grid cannot list."""
        return [axis.name for axis in self.axes.values() if axis.kind in ("uniform", "loguniform", "int")]


def read(path: Path) -> Space:
    """A space file, with its names and types checked; UsageError if it cannot be read, or one of them is wrong."""
    try:
        content = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UsageError(f"{path}: not a TOML file ({error})") from None
    base = _base(path, content)
    unions = content.pop("union", [{}])
    if not (isinstance(unions, list) and unions and all(isinstance(u, dict) for u in unions)):
        raise UsageError(f"{path}: write each part of the union as a table of its own, [[union]]")
    for name in (name for table in (content, *unions) for name in table):
        if _key(name) not in _SETTINGS:
            raise UsageError(f"{path}: unknown setting {name}{did_you_mean(_key(name), (*_SETTINGS, *_KEYS))}")
    parts = []
    for union in unions:
        # a part replaces settings above it, whether spelt with - or _
        merged = {_key(name): (name, value) for table in (content, union) for name, value in table.items()}
        if reserved := next((name for name in merged if name in _RESERVED), ""):
            raise UsageError(f"{path}: {reserved} cannot be swept over, {_RESERVED[reserved]}")
        fixed = {key: value for key, (_, value) in merged.items() if not isinstance(value, dict)}
        axes = tuple(_axis(path, base, name, value) for name, value in merged.values() if isinstance(value, dict))
        override(base, fixed, str(path))
        parts.append(Part(fixed, axes))
    return Space(path, base, tuple(parts))


def _key(name: str) -> str:
    return name.replace("-", "_")


def _base(path: Path, content: dict[str, Any]) -> Config:
    base, preset, file = Config(), content.pop("preset", None), content.pop("config", None)
    if preset is not None:
        if str(preset) not in PRESETS:
            hint = did_you_mean(str(preset), PRESETS) or f"; choose one of {', '.join(PRESETS)}"
            raise UsageError(f"{path}: preset {preset!r} is unknown{hint}")
        base = override(base, PRESETS[preset], f"preset {preset}")
    if file is not None:
        if not isinstance(file, str):
            raise UsageError(f"{path}: config must be the name of a TOML file")
        try:
            base = load(path.parent / file, base)
        except UsageError as error:
            raise UsageError(f"{path}: config = {file!r}: {str(error).removeprefix('--config ')}") from None
    return base


def _axis(path: Path, base: Config, name: str, table: dict[str, Any]) -> Axis:
    """One varying setting; UsageError if the kind is unknown, or a value is not one of the setting's."""
    what = f"{path}: {name}"
    if len(table) != 1 or next(iter(table)) not in KINDS:
        kinds = ", ".join(f"{{ {kind} = [...] }}" for kind in KINDS)
        hint = next(filter(None, (did_you_mean(kind, KINDS) for kind in table if kind not in KINDS)), "")
        raise UsageError(f"{what} must be a value or one of {kinds}{hint}")
    (kind, values), key = next(iter(table.items())), _key(name)
    if not isinstance(values, list) or not values:
        raise UsageError(f"{what}: {kind} needs a list of values in square brackets")
    for value in values:
        override(base, {key: value}, str(path))
    if kind in ("grid", "choice"):
        if twice := next((f"{value!r}" for i, value in enumerate(values) if value in values[:i]), ""):
            raise UsageError(f"{what}: {kind} names {twice} twice")
        return Axis(key, kind, tuple(values))
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in values)
    if len(values) != 2 or not numbers or not values[0] < values[1]:
        raise UsageError(f"{what}: {kind} needs two numbers, the lower first")
    if kind == "loguniform" and values[0] <= 0:
        raise UsageError(f"{what}: loguniform needs numbers above 0, not {values[0]}")
    if kind == "int" and not all(isinstance(v, int) for v in values):
        raise UsageError(f"{what}: int needs whole numbers")
    if kind != "int":
        override(base, {key: (values[0] + values[1]) / 2}, str(path))  # refuses settings that are whole numbers
    return Axis(key, kind, tuple(values))


def all_drawn(space: Space) -> Space:
    """The same space with grids turned into choices."""

    def drawn(axis: Axis) -> Axis:
        return replace(axis, kind="choice") if axis.kind == "grid" else axis

    return replace(space, parts=tuple(replace(part, axes=tuple(map(drawn, part.axes))) for part in space.parts))
