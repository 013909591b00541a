"""The split of a network's parameters into groups, at modules in forward order.

Early layers are what SEAL anneals (LLF's "fit hypothesis"), late layers what LLF forgets ("forgetting hypothesis").
Source: arXiv 2304.04858 (the threshold L); arXiv 2202.00155.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from seal_fast.utils.errors import UsageError


@dataclass(frozen=True)
class Partition:
    """Parameter names by group; both the groups and the names within one are in forward order."""

    cuts: tuple[str, ...]
    groups: dict[str, tuple[str, ...]]
    sizes: dict[str, int]

    def count(self, group: str) -> int:
        """Number of parameters (scalars) in a group."""
        return sum(self.sizes[name] for name in self.groups[group])

    def __str__(self) -> str:
        total = sum(self.sizes.values())
        parts = []
        for group, names in self.groups.items():
            share = self.count(group) / total
            span = f"{_module(names[0])} to {_module(names[-1])}" if names else "nothing"
            parts.append(f"{group} {span} ({len(names)} tensors, {self.count(group):,} parameters, {share:.0%})")
        return f"threshold {', '.join(self.cuts) or 'none'}: " + "; ".join(parts)


def split(
    sizes: Mapping[str, int], cuts: tuple[str, ...], groups: tuple[str, ...] = ("early", "late"), flag: str = ""
) -> Partition:
    """Split parameters where the modules `cuts` begin.

    Args:
        sizes: number of elements by parameter name, in forward order (the order of `named_parameters` in a ResNet).
        cuts: modules' names, such as `layer3` or `layer3.1`: each begins a group.
        groups: the groups' names, one more than cuts.
        flag: that the cuts come from; default --layer-threshold.

    Raises:
        UsageError: no parameter belongs to a cut, none comes before it, or it does not come after the cut before.
    """
    names, flag = list(sizes), flag or "--layer-threshold"
    bounds = [0]
    for cut in cuts:
        start = position(names, cut, flag)
        if start == 0:
            raise UsageError(f"{flag} {cut}: nothing comes before it, the {groups[0]} group would be empty")
        if start < bounds[-1]:
            raise UsageError(f"{flag} {cut}: the cuts {', '.join(cuts)} are not in forward order")
        bounds.append(start)
    spans = zip(bounds, [*bounds[1:], len(names)], strict=True)
    members = {group: tuple(names[a:b]) for group, (a, b) in zip(groups, spans, strict=True)}
    return Partition(cuts, members, dict(sizes))


def position(names: Iterable[str], module: str, what: str) -> int:
    """The index of the first of `names` that belongs to a module.

    Raises:
        UsageError: there is none; `what` begins the sentence.
    """
    names = list(names)
    start = next((i for i, name in enumerate(names) if name.startswith(module + ".")), None)
    if start is None:
        modules = list(dict.fromkeys(module for name in names for module in _ancestors(name)))
        near = difflib.get_close_matches(module, modules, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        top = ", ".join(dict.fromkeys(name.split(".")[0] for name in names))
        raise UsageError(f"{what} {module}: the model has no such layer; {hint}use one of {top}, or a block of one")
    return start


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _ancestors(name: str) -> list[str]:
    parts = name.split(".")[:-1]
    return [".".join(parts[: i + 1]) for i in range(len(parts))]
