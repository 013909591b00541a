"""Every Triton kernel in every variant, compiled for every card: resources, access widths, bytes."""

from __future__ import annotations

import importlib
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.gpu_report.cards import CARDS
from bench.gpu_report.target import Compiled, compile_variant
from seal_fast.kernels.variant import VECTOR_BITS, Variant
from seal_fast.utils.errors import RunError
from seal_fast.utils.table import table

OPS = ("annealed_sgd", "augment")


def variants() -> Iterator[Variant]:
    """The variants of all ops."""
    for op in OPS:
        yield from importlib.import_module(f"seal_fast.kernels.{op}.variants").variants()


def compile_all(archs: Sequence[int]) -> list[Compiled]:
    """Every variant, for every architecture."""
    chosen = list(variants())
    return [compile_variant(variant, arch) for arch in archs for variant in chosen]


def faults(compiled: Compiled) -> list[str]:
    """What is wrong with a compiled kernel, in words; nothing if it is as it must be."""
    found, variant, resources = [], compiled.variant, compiled.resources
    if resources.spills or resources.stack:
        found.append(f"spills registers: {resources.spills} accesses, {resources.stack} bytes of stack")
    wanted = {"load": (compiled.loads, variant.load_bits), "store": (compiled.stores, variant.store_bits)}
    for kind, (accesses, right) in wanted.items():
        if not accesses or min(accesses) < right:
            found.append(f"{kind}s {_widths(accesses) or 'nothing'} bits wide, {right} are possible")
    excess = compiled.bytes_per_element / compiled.minimum_bytes_per_element - 1
    if abs(excess) > 0.05:
        found.append(f"moves {excess:+.0%} bytes beside the minimum")
    return found


def dump(kernels: Sequence[Compiled], folder: Path) -> None:
    """Write each kernel's `<kernel>-<variant>-sm_<arch>.{ttir,ptx,cubin}`.

    Raises:
        RunError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for k in kernels:
            for suffix, content in k.files.items():
                (folder / f"{k.variant.op}-{k.variant.name}-sm_{k.arch}.{suffix}").write_bytes(content)
    except OSError as error:
        raise RunError(f"--dump {folder}: cannot be written ({error.strerror}); choose another folder") from None


def row(compiled: Compiled) -> dict[str, Any]:
    """One kernel as plain values, for JSON."""
    variant = compiled.variant
    return {
        "kernel": variant.op,
        "variant": variant.name,
        "arch": compiled.arch,
        "registers": compiled.resources.registers,
        "spills": compiled.resources.spills,
        "stack_bytes": compiled.resources.stack,
        "shared_bytes": compiled.shared,
        "theoretical_occupancy": compiled.occupancy,
        "load_bits": dict(compiled.loads),
        "store_bits": dict(compiled.stores),
        "bytes_per_element": compiled.bytes_per_element,
        "minimum_bytes_per_element": compiled.minimum_bytes_per_element,
        "narrow_because": variant.narrow,
        "faults": faults(compiled),
    }


def text(kernels: Sequence[Compiled]) -> str:
    """The report as tables, one a card and kernel, with the reasons for narrow accesses below."""
    parts = []
    for (arch, op), group in itertools.groupby(kernels, lambda k: (k.arch, k.variant.op)):
        members = list(group)
        rows: list[Sequence[str]] = ["variant,regs,spills,stack,shared,occupancy,loads,stores,bytes,minimum".split(",")]
        for k in members:
            r = k.resources
            sizes = [str(n) for n in (r.registers, r.spills, r.stack, k.shared)]
            moved = [_widths(k.loads), _widths(k.stores)]
            per_element = [f"{b:.4g}" for b in (k.bytes_per_element, k.minimum_bytes_per_element)]
            rows.append([k.variant.name, *sizes, f"{k.occupancy:.0%}", *moved, *per_element])
        parts.append(f"{op} for {CARDS[arch].name} (sm_{arch})\n{table(rows)}")
        parts += [f"{k.variant.name}: {fault}" for k in members for fault in faults(k)]
    parts.append(
        "loads, stores: of one thread on the bulk path, count x bits. bytes, minimum: memory traffic an element.\n"
        f"{VECTOR_BITS} bits is the widest access; narrower ones have a reason:" + _reasons(kernels)
    )
    return "\n\n".join(parts)


def _reasons(kernels: Sequence[Compiled]) -> str:
    names: dict[tuple[str, str], list[str]] = {}
    for op, name, reason in dict.fromkeys((k.variant.op, k.variant.name, k.variant.narrow) for k in kernels):
        names.setdefault((op, reason), []).append(name)
    return "".join(f"\n- {op} {', '.join(found)}: {reason}" for (op, reason), found in names.items() if reason)


def _widths(accesses: Counter[int]) -> str:
    return " + ".join(f"{count} x {bits}" for bits, count in sorted(accesses.items(), reverse=True))
