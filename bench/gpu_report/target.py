"""Compile a Triton kernel for a GPU that is not there, and read the compiler's output."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from bench.gpu_report import ptx
from bench.gpu_report.cards import CARDS
from seal_fast.kernels.variant import Variant
from seal_fast.utils.errors import RunError


@dataclass(frozen=True)
class Resources:
    """What a kernel's machine code takes.

    Attributes:
        registers: a thread, as the assembler allotted them.
        stack: bytes of local memory a thread.
        spills: instructions that load from or store to local memory.
    """

    registers: int
    stack: int
    spills: int


@dataclass(frozen=True)
class Compiled:
    """A variant compiled for one architecture.

    Attributes:
        shared: bytes of shared memory a block; the kernels declare none beyond what a launch asks for.
        loads: global loads of the bulk path, bits a thread to how many.
        stores: the same for stores.
        files: the compiler's outputs by suffix: ttir, ptx, cubin.
    """

    variant: Variant
    arch: int
    resources: Resources
    shared: int
    loads: Counter[int]
    stores: Counter[int]
    files: dict[str, bytes]

    @property
    def occupancy(self) -> float:
        """Theoretical occupancy, 0 to 1."""
        return CARDS[self.arch].occupancy(self.resources.registers, self.shared, self.variant.warps)

    @property
    def bytes_per_element(self) -> float:
        """What the bulk path moves: its accesses, times the threads, over the elements of one pass."""
        variant = self.variant
        moved = _bits(self.loads) / variant.readers + _bits(self.stores)
        return moved / 8 * 32 * variant.warps / variant.elements

    @property
    def minimum_bytes_per_element(self) -> float:
        """What any implementation moves."""
        return self.variant.bytes_read + self.variant.bytes_written


def compile_variant(variant: Variant, arch: int) -> Compiled:
    """Compile for compute capability arch / 10; no driver or GPU is asked.

    Raises:
        RunError: triton runs as an interpreter in this process, so that there is nothing to compile.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = variant.kernel
    if not isinstance(kernel, triton.runtime.JITFunction):
        raise RunError("Triton interprets its kernels in this process: unset TRITON_INTERPRET to have them compiled")
    types = {name: variant.types.get(name, "constexpr") for name in kernel.arg_names}
    places = {name: (index,) for index, name in enumerate(kernel.arg_names)}
    aligned = {places[n]: [["tt.divisibility", 16]] for n, t in types.items() if t.startswith("*") and variant.aligned}
    source = ASTSource(kernel, types, {places[n]: value for n, value in variant.constants.items()}, aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options={"num_warps": variant.warps})

    accesses = ptx.bulk(compiled.asm["ptx"])
    return Compiled(
        variant=variant,
        arch=arch,
        resources=read_cubin(compiled.asm["cubin"]),
        shared=compiled.metadata.shared,
        loads=Counter(a.bits for a in accesses if not a.store),
        stores=Counter(a.bits for a in accesses if a.store),
        files={
            "ttir": str(compiled.asm["ttir"]).encode(),
            "ptx": compiled.asm["ptx"].encode(),
            "cubin": compiled.asm["cubin"],
        },
    )


def _bits(accesses: Counter[int]) -> int:
    return sum(bits * count for bits, count in accesses.items())


def read_cubin(cubin: bytes) -> Resources:
    """What a kernel's machine code takes, by the tools in triton's wheel."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        listing = _run(knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(file))
        usage = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", listing)}
        stack, spills = usage["STACK"] + usage["LOCAL"], 0
        if stack:  # registers spill to the stack, so without one there is nothing to look for
            spills = len(re.findall(r"\b(?:LDL|STL)\b", _run(knobs.nvidia.nvdisasm.path, str(file))))
    return Resources(usage["REG"], stack, spills)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RunError(f"{Path(command[0]).name} failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
