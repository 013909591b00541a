"""`Method`, the base of all methods: a frozen dataclass of options that makes a timeline of a configuration.

Options are given as `--option keep=0.5` and checked here; what most timelines share is here too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from inspect import getdoc
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from seal_fast.methods.operators import EVERYTHING, require
from seal_fast.methods.schedule import Curve, Phase, Rule, Timeline, rules
from seal_fast.utils.errors import UsageError

if TYPE_CHECKING:
    from seal_fast.config import Config


@dataclass(frozen=True)
class Method:
    """A training method; its fields are its options, which the docstring explains."""

    def timeline(self, config: Config) -> Timeline:
        """What it does in which epochs; UsageError if an option or a setting makes no timeline."""
        raise NotImplementedError


def descends(config: Config, **changes: Any) -> Rule:
    """Plain SGD."""
    return Rule(weight_decay=config.weight_decay, **changes)


def plain(config: Config, epochs: int | None = None, *, fresh: bool = True, **changes: Any) -> Phase:
    """A phase of ordinary SGD, a generation long by default; `fresh` clears the momentum as a new optimiser does."""
    length = config.epochs if epochs is None else epochs
    given: dict[str, Any] = {
        "name": "descent",
        "rules": rules(all=descends(config)),
        "reset_momentum": EVERYTHING if fresh else None,
    }
    return Phase(epochs=length, **given | changes)


def cycles(config: Config, later: Iterable[Iterable[Phase]], **changes: Any) -> Timeline:
    """Generation 0 is plain training; `later` are the phases of the others. Each is a whole learning-rate cycle."""
    first = plain(config, fresh=False)
    return timeline(config, ((first,), *map(tuple, later)), **changes)


def repeated(config: Config, *phases: Phase) -> Timeline:
    """`cycles` in which all generations after the first have the same phases."""
    return cycles(config, [phases] * (config.generations - 1))


def single(config: Config, phases: Iterable[Phase], **changes: Any) -> Timeline:
    """One learning-rate cycle as long as all generations together; the warm-up is as long as one generation's."""
    return timeline(config, (tuple(phases),), **changes)


def stretches(config: Config, every: int, first: int = 0) -> list[int]:
    """Lengths in epochs that fill all generations: `first`, if not 0, then `every` again and again, the rest last."""
    total = config.epochs * config.generations
    starts = [0, *range(first or every, total, every)]
    return [end - start for start, end in zip(starts, [*starts[1:], total], strict=True)]


def timeline(config: Config, generations: tuple[tuple[Phase, ...], ...], **changes: Any) -> Timeline:
    """A timeline of the configured method, with the configured learning rate, its curve, and threshold.

    Raises UsageError if the method has a curve of its own, or no cycle is as long as the configured one.
    """
    curve, longest = Curve.parse(config.lr_curve, config.warmup()), max(sum(p.epochs for p in g) for g in generations)
    own = config.lr_curve != "cosine" and "curve" in changes
    require(not own, f"--lr-curve {config.lr_curve}: {config.method} has a curve of its own; drop the flag")
    late = f"--lr-curve {config.lr_curve}: its last step comes after the cycle of {longest} epochs"
    require(max(curve.steps, default=0) < longest, late)
    given: dict[str, Any] = {"curve": curve, "cuts": (config.layer_threshold,)}
    return Timeline(config.method, generations, config.lr, **given | changes)


# --- options ---------------------------------------------------------------------------------------------------------


def parse_options(kind: type[Method], method: str, text: str) -> Method:
    """A method with the options of a text such as `keep=0.5,anew=true`; a later one overrides an earlier one.

    Raises UsageError, naming what there is, if there is no such option, or its value is of another type.
    """
    hints, values = get_type_hints(kind), {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        name = name.replace("-", "_")
        if name not in hints or not equals:
            names = ", ".join(f"{field.name}={_shown(field.default)}" for field in fields(kind))
            there = f"its options are {names}" if names else "it has none"
            raise UsageError(f"--option {part}: not an option of --method {method}; {there}")
        values[name] = _typed(hints[name], value, f"--option {part}")
    return kind(**values)


def canonical(made: Method) -> str:
    """The options that differ from the defaults, as `parse_options` reads them."""
    changed = [(f.name, getattr(made, f.name)) for f in fields(made) if getattr(made, f.name) != f.default]
    return ",".join(f"{name}={_shown(value)}" for name, value in changed)


def explain(kind: type[Method]) -> str:
    """What a method is, and its options with their defaults."""
    defaults = [f"{field.name}={_shown(field.default)}" for field in fields(kind)]
    return f"{getdoc(kind)}\n" + (f"\nDefaults: {', '.join(defaults)}\n" if defaults else "\nNo options.\n")


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return "/".join(value)
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def _typed(hint: Any, text: str, what: str) -> Any:
    if get_origin(hint) is UnionType:
        if text == "none":
            return None
        hint = get_args(hint)[0]
    if get_origin(hint) is Literal:
        if text not in get_args(hint):
            raise UsageError(f"{what}: must be one of {', '.join(get_args(hint))}")
        return text
    if get_origin(hint) is tuple:
        return tuple(text.split("/"))
    try:
        if hint is bool:
            return {"true": True, "false": False}[text.lower()]
        if hint is float and not math.isfinite(float(text)):
            raise ValueError
        return hint(text)
    except (ValueError, KeyError):
        kind = {bool: "true or false", int: "a whole number", float: "a number"}[hint]
        raise UsageError(f"{what}: must be {kind}") from None
