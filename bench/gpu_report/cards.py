"""The GPUs that are compiled for, as NVIDIA's datasheets and programming guide describe them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """One GPU.

    Attributes:
        name: the datasheet's.
        arch: compute capability times ten.
        processors: streaming multiprocessors (SMs).
        shared_memory: bytes of shared memory an SM.
        shared_memory_per_block: most bytes of it that one block can have.
        l2_cache: bytes.
        registers, warps, blocks: an SM.
    """

    name: str
    arch: int
    processors: int
    shared_memory: int
    shared_memory_per_block: int
    l2_cache: int
    registers: int = 65536
    warps: int = 64
    blocks: int = 32

    def occupancy(self, registers: int, shared: int, warps: int) -> float:
        """Share of an SM's warps that can be resident at once (theoretical occupancy).

        Args:
            registers: a thread.
            shared: bytes of shared memory a block.
            warps: a block.

        Source: CUDA C++ programming guide, compute capabilities 8.0 and 9.0: registers are allocated by 256 a warp,
        shared memory by 128 bytes, and the system reserves 1024 bytes a block.
        """
        per_warp = -(-max(registers, 1) * 32 // 256) * 256
        # The register file is split between the SM's four schedulers.
        by_registers = 4 * (self.registers // 4 // per_warp) // warps
        by_shared = self.shared_memory // (-(-shared // 128) * 128 + 1024)
        return min(self.warps // warps, self.blocks, by_registers, by_shared) * warps / self.warps


CARDS = {
    card.arch: card
    for card in (
        Card("A100 80GB", 80, 108, 164 << 10, 163 << 10, 40 << 20),
        Card("H100 SXM", 90, 132, 228 << 10, 227 << 10, 50 << 20),
    )
}
