"""The split of a network's parameters into the early and the late group, by a layer threshold in forward order.

Early layers are what SEAL anneals (LLF's "fit hypothesis"), late layers what LLF forgets ("forgetting hypothesis").
Source: arXiv 2304.04858 (the threshold L); arXiv 2202.00155.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from seal_fast.utils.errors import UsageError


@dataclass(frozen=True)
class Partition:
    """Parameter names by group; both the groups and the names within one are in forward order."""

    threshold: str
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
        return f"threshold {self.threshold}: " + "; ".join(parts)


def split(sizes: Mapping[str, int], threshold: str, groups: tuple[str, ...] = ("early", "late")) -> Partition:
    """Split parameters at the first one that belongs to module `threshold`.

    Args:
        sizes: number of elements by parameter name, in forward order (the order of `named_parameters` in a ResNet).
        threshold: a module's name, such as `layer3` or `layer3.1`: it and all that follows is late.
        groups: the timeline's groups; with `fc` among them the classifier is taken out of the late group.

    Raises:
        UsageError: no parameter belongs to `threshold`, or none comes before it.
    """
    names = list(sizes)
    start = next((i for i, name in enumerate(names) if name.startswith(threshold + ".")), None)
    if start is None:
        modules = list(dict.fromkeys(module for name in names for module in _ancestors(name)))
        near = difflib.get_close_matches(threshold, modules, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        top = ", ".join(dict.fromkeys(name.split(".")[0] for name in names))
        raise UsageError(
            f"--layer-threshold {threshold}: the model has no such layer; {hint}use one of {top}, or a block of one"
        )
    if start == 0:
        raise UsageError(f"--layer-threshold {threshold}: nothing comes before it, the early group would be empty")
    late = names[start:]
    fc = [name for name in late if name.startswith("fc.")] if "fc" in groups else []
    members = {"early": names[:start], "late": [name for name in late if name not in fc], "fc": fc}
    return Partition(threshold, {group: tuple(members[group]) for group in groups}, dict(sizes))


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _ancestors(name: str) -> list[str]:
    parts = name.split(".")[:-1]
    return [".".join(parts[: i + 1]) for i in range(len(parts))]
