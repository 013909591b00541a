"""The split of a network's parameters into groups, at modules in forward order.

Early layers are what SEAL anneals (LLF's "fit hypothesis"), late layers what LLF forgets ("forgetting hypothesis").
Source: arXiv 2304.04858 (the threshold L); arXiv 2202.00155.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field

from seal_fast.utils.errors import UsageError


@dataclass(frozen=True)
class ForwardOrder:
    """Where the parameters and modules of a network come in its forward pass (`seal_fast.models.forward_order`).

    Attributes:
        sizes: number of elements by parameter name, in the order of first use.
        starts: by module, how many of these parameters are used before it is called. A module that is not called begins
            with the first of its parameters.
        classifier: the last linear layer; `fc` stands for it in a network without a module of that name.
    """

    sizes: Mapping[str, int]
    starts: Mapping[str, int] = field(default_factory=dict)
    classifier: str = "fc"

    def __contains__(self, module: str) -> bool:
        return self.resolve(module) in self.modules()

    def resolve(self, module: str) -> str:
        """A module's name; the classifier's for `fc` where nothing is called that."""
        known = module != "fc" or "fc" in self.starts or any(name.startswith("fc.") for name in self.sizes)
        return module if known else self.classifier or module

    def position(self, module: str, what: str) -> int:
        """How many parameters come before a module; UsageError, which `what` begins, if there is no such module."""
        module = self.resolve(module)
        start = self.starts.get(module)
        if start is None:
            start = next((i for i, name in enumerate(self.sizes) if name.startswith(module + ".")), None)
        if start is None:
            near = difflib.get_close_matches(module, self.modules(), 1)
            hint = f"did you mean {near[0]}? " if near else ""
            top = ", ".join(dict.fromkeys(name.split(".")[0] for name in self.modules()))
            raise UsageError(f"{what} {module}: the model has no such layer; {hint}use one of {top}, or a block of one")
        return start

    def modules(self) -> list[str]:
        """All modules that hold parameters or are called, in forward order, each before those that it contains."""
        first: dict[str, int] = {}
        for i, name in enumerate(self.sizes):
            for module in _ancestors(name):
                first.setdefault(module, i)
        places = first | dict(self.starts)
        return sorted(places, key=lambda module: (places[module], module.count("."), module in first))

    def count(self, first: int = 0, stop: int | None = None) -> int:
        """Elements of the parameters from `first` to before `stop`."""
        return sum(list(self.sizes.values())[first:stop])


@dataclass(frozen=True)
class Partition:
    """Parameter names by group; both the groups and the names within one are in forward order."""

    cuts: tuple[str, ...]
    groups: dict[str, tuple[str, ...]]
    order: ForwardOrder

    def count(self, group: str) -> int:
        """Number of parameters (scalars) in a group."""
        return sum(self.order.sizes[name] for name in self.groups[group])

    def __str__(self) -> str:
        total = self.order.count()
        parts = []
        for group, names in self.groups.items():
            share = self.count(group) / total
            span = f"{_module(names[0])} to {_module(names[-1])}" if names else "nothing"
            parts.append(f"{group} {span} ({len(names)} tensors, {self.count(group):,} parameters, {share:.0%})")
        return f"threshold {', '.join(self.cuts) or 'none'}: " + "; ".join(parts)


def split(
    order: ForwardOrder, cuts: tuple[str, ...], groups: tuple[str, ...] = ("early", "late"), flag: str = ""
) -> Partition:
    """Split parameters where the modules `cuts` begin, such as `layer3` or `layer3.1`, into one group more.

    Raises UsageError, which `flag` begins (default: --layer-threshold), if a cut is no module, no parameter comes
    before or after it, or it does not come after the cut before.
    """
    names, flag = list(order.sizes), flag or "--layer-threshold"
    bounds = [0]
    for cut in cuts:
        start = order.position(cut, flag)
        if start == 0:
            raise UsageError(f"{flag} {cut}: nothing comes before it, the {groups[0]} group would be empty")
        if start == len(names):
            raise UsageError(f"{flag} {cut}: no parameter comes after it, the {groups[-1]} group would be empty")
        if start < bounds[-1]:
            raise UsageError(f"{flag} {cut}: the cuts {', '.join(cuts)} are not in forward order")
        bounds.append(start)
    spans = zip(bounds, [*bounds[1:], len(names)], strict=True)
    members = {group: tuple(names[a:b]) for group, (a, b) in zip(groups, spans, strict=True)}
    return Partition(cuts, members, order)


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _ancestors(name: str) -> list[str]:
    parts = name.split(".")[:-1]
    return [".".join(parts[: i + 1]) for i in range(len(parts))]
