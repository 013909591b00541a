"""Timelines as text: TOML that reads back as the same timeline, and lines to read.

Values equal to their defaults are left out. Equal generations that follow each other are written once, with `repeat`.
"""

from __future__ import annotations

import tomllib
from dataclasses import MISSING, fields, is_dataclass
from itertools import groupby
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from seal_fast.methods.operators import Operator
from seal_fast.methods.schedule import Phase, Rule, Rules, Timeline
from seal_fast.utils.errors import UsageError
from seal_fast.utils.files import read_text

# An operator's name in a file: mix, orthogonalise, align, rescale.
_OPERATORS = {kind.__name__.lower(): kind for kind in get_args(Operator)}


def dumps(timeline: Timeline) -> str:
    """A timeline as TOML."""
    import tomli_w

    values = _plain(timeline)
    generations = [(phases, len(list(same))) for phases, same in groupby(timeline.generations)]
    values["generations"] = [
        ({"repeat": count} if count > 1 else {}) | {"phases": [_plain(phase) for phase in phases]}
        for phases, count in generations
    ]
    return tomli_w.dumps(values)


def loads(text: str) -> Timeline:
    """The timeline that TOML describes; UsageError, naming the place and what is wrong, if it describes none."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"not a TOML file ({error})") from None
    generations: list[Any] = []
    for i, entry in enumerate(_list(values.get("generations", []), "generations")):
        where = f"generations[{i}]"
        _known(entry, {"repeat", "phases"}, where)
        repeat = _value(int, entry.get("repeat", 1), f"{where}.repeat")
        if repeat < 1:
            raise UsageError(f"{where}.repeat is {repeat}: it must be at least 1")
        phases = _value(tuple[Phase, ...], entry.get("phases", []), f"{where}.phases")
        generations += [phases] * repeat
    return _value(Timeline, {**values, "generations": tuple(generations)}, "")


def load(path: Path) -> Timeline:
    """The timeline in a file; UsageError as of `loads`, or if it cannot be read."""
    try:
        return loads(read_text(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--timeline {path}: cannot be read ({error})") from None
    except UsageError as error:
        raise UsageError(f"--timeline {path}: {error}") from None


def describe(timeline: Timeline) -> str:
    """A line for the run and one for each phase."""
    lines = [f"{timeline.method}: {len(timeline.generations)} generations, {timeline.total_epochs()} epochs"]
    for g, phases in enumerate(timeline.generations):
        start = 0
        for phase in phases:
            epochs = [timeline.rates(g, e) for e in range(start, start + phase.epochs)]
            groups = ", ".join(f"{group} {_verb([rates[group] for rates in epochs])}" for group in timeline.groups)
            once = ["take a snapshot"] if phase.snapshot else []
            once += map(str, phase.enter)
            if phase.reset_momentum:
                once.append(f"reset momentum of {phase.reset_momentum}")
            if phase.hold:
                once.append(f"hold zeros of {phase.hold}")
            entry = f"; first: {', '.join(once)}" if once else ""
            extras = "".join(f"; {extra}" for extra in (phase.loss, phase.average, phase.sharpness) if extra)
            lines.append(f"  g{g} epochs {start}-{start + phase.epochs - 1} {phase.name}: {groups}{extras}{entry}")
            start += phase.epochs
    return "\n".join(lines)


def _verb(rates: list[dict[str, float]]) -> str:
    peak = max(r["lr"] * r["lr_multiplier"] for r in rates)
    if not any(r["lr_multiplier"] for r in rates):
        return "frozen"
    verb = "ascends" if rates[0]["sign"] < 0 else "descends"
    return f"{verb} (lr up to {peak:g}, weight decay {rates[0]['weight_decay']:g})"


def _plain(value: Any) -> Any:
    """Dataclasses as tables, rules as a table by group."""
    if is_dataclass(value) and not isinstance(value, type):
        kind = type(value).__name__.lower()
        head = {"operator": kind} if kind in _OPERATORS else {}
        given = [(f, getattr(value, f.name)) for f in fields(value)]
        return head | {f.name: _plain(v) for f, v in given if v != f.default or f.default is MISSING}
    if isinstance(value, tuple):
        if value and all(isinstance(pair, tuple) and isinstance(pair[-1], Rule) for pair in value):
            return {name: _plain(rule) for name, rule in value}
        return [_plain(item) for item in value]
    return value


def _value(hint: Any, value: Any, where: str) -> Any:
    """A TOML value as what a field declares; UsageError if its type is another, or the dataclass refuses it."""
    if hint == Rules:
        _known(value, None, where)
        return tuple((name, _value(Rule, rule, f"{where}.{name}")) for name, rule in value.items())
    if hint == Operator:
        _known(value, None, where)
        kind = value.get("operator")
        if kind not in _OPERATORS:
            raise UsageError(f"{where}: operator is {kind!r}: choose one of {', '.join(_OPERATORS)}")
        return _value(_OPERATORS[kind], {k: v for k, v in value.items() if k != "operator"}, where)
    if is_dataclass(hint):
        hints, below = get_type_hints(hint), f"{where}." if where else ""
        _known(value, set(hints), where or "the timeline")
        missing = [f.name for f in fields(hint) if f.default is MISSING and f.name not in value]
        if missing:
            raise UsageError(f"{where or 'the timeline'} has no {missing[0]}")
        try:
            return hint(**{name: _value(hints[name], item, f"{below}{name}") for name, item in value.items()})  # pyright: ignore[reportCallIssue]
        except UsageError as error:
            placed = not where or str(error).startswith(where)
            raise error if placed else UsageError(f"{where}: {error}") from None
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is UnionType:
        return _value(arguments[0], value, where)
    if origin is tuple:
        if isinstance(value, tuple):  # generations, made above
            return value
        return tuple(_value(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(_list(value, where)))
    if origin is Literal:
        if value not in arguments:
            raise UsageError(f"{where} is {value!r}: choose one of {', '.join(map(repr, arguments))}")
        return value
    accepted = (int, float) if hint is float else hint
    if not isinstance(value, accepted) or (isinstance(value, bool) and hint is not bool):
        kind = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}[hint]
        raise UsageError(f"{where} is {value!r}: it must be {kind}")
    return hint(value)


def _known(value: Any, names: set[str] | None, where: str) -> None:
    if not isinstance(value, dict):
        raise UsageError(f"{where} is {value!r}: it must be a table")
    if names is not None and (unknown := sorted(value.keys() - names)):
        raise UsageError(f"{where} has no setting {unknown[0]}; it has {', '.join(sorted(names))}")


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise UsageError(f"{where} is {value!r}: it must be a list")
    return value
