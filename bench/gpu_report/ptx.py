"""Reading PTX: which global loads and stores the bulk of the data takes, how wide they are, and how many."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_ACCESS = re.compile(r"(ld|st)\.global(?:\.[\w:]+)*?(?:\.v(\d))?\.[bsuf](\d+)\s+(.*)")
_BRANCH = re.compile(r"bra(?:\.uni)?\s+(\$\w+)")
_LABEL = re.compile(r"(\$\w+):")
_REGISTER = re.compile(r"%[a-zA-Z]+\d+|%tid")


@dataclass(frozen=True)
class Access:
    """One global load or store instruction of a thread.

    Attributes:
        store: else it is a load.
        bits: that the thread moves with it.
    """

    store: bool
    bits: int


@dataclass
class _Block:
    """Instructions without a jump among them, and where control goes after the last."""

    accesses: list[Access] = field(default_factory=list)
    after: list[str] = field(default_factory=list)


def bulk(ptx: str) -> list[Access]:
    """The accesses of the path through the kernel that moves most bytes, a loop's body counted once.

    Only those whose address depends on the thread are data; what all threads of a block read from one address (tables,
    hyper-parameters) costs a block one transaction and is left out.
    """
    lines = [line for raw in ptx.splitlines() if (line := raw.split("//")[0].strip())]
    blocks = _blocks(lines, _from_thread_index(lines))

    best: dict[str, list[Access]] = {}

    def walk(name: str, above: frozenset[str]) -> list[Access]:
        if name not in best:
            # An edge back to a block above is a loop's: not taken.
            ways = [walk(after, above | {name}) for after in blocks[name].after if after not in above | {name}]
            best[name] = blocks[name].accesses + max(ways, key=_bits, default=[])
        return best[name]

    return walk("", frozenset())


def _bits(accesses: list[Access]) -> int:
    return sum(access.bits for access in accesses)


def _from_thread_index(lines: list[str]) -> set[str]:
    """The registers whose value may differ between the threads of a block."""
    sources: list[tuple[list[str], set[str]]] = []
    for line in lines:
        # `@%p op.type destination, sources;` where a destination may be a list in braces
        match = re.match(r"(?:@!?%p\d+\s+)?[\w.:]+\s+(\{[^}]*\}|[^,]+)(,.*)", line)
        if match and not line.startswith("st."):
            sources.append((_REGISTER.findall(match[1]), set(_REGISTER.findall(match[2]))))
    differing = {"%tid"}
    while True:
        more = {r for written, read in sources if read & differing for r in written} - differing
        if not more:
            return differing
        differing |= more


def _blocks(lines: list[str], differing: set[str]) -> dict[str, _Block]:
    name, blocks = "", {"": _Block()}
    for line in lines:
        block = blocks[name]
        if label := _LABEL.match(line):
            block.after.append(label[1])
            name = label[1]
            blocks[name] = _Block()
        elif branch := _BRANCH.search(line):
            block.after.append(branch[1])
            # What follows belongs to a block of its own, reached by falling through a conditional branch only.
            name = f"{name}+"
            blocks[name] = _Block()
            if line.startswith("@"):
                block.after.append(name)
        elif re.search(r"\b(ret|exit);", line) and not line.startswith("@"):
            name = f"{name}+"
            blocks[name] = _Block()
        elif access := _ACCESS.search(line):
            kind, vector, bits, operands = access.groups()
            address = re.search(r"\[([^]]*)\]", operands)
            if address and differing & set(_REGISTER.findall(address[1])):
                block.accesses.append(Access(kind == "st", int(vector or 1) * int(bits)))
    return blocks
