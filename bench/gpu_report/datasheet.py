"""What NVIDIA's datasheets and programming guide say of the cards, and what is assumed where they say nothing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """One GPU; peak rates are the datasheet's, without sparsity.

    Attributes:
        name: as the datasheet has it.
        arch: compute capability times ten.
        processors: streaming multiprocessors (SMs).
        bandwidth: of the device memory, bytes a second.
        bf16_rate: operations a second of the tensor cores, bfloat16 or float16.
        tf32_rate: the same for float32 tensors under TF32.
        shared_memory: bytes of shared memory an SM.
        shared_memory_of_block: most bytes of it that one block can have.
        l2_cache: bytes.
    """

    name: str
    arch: int
    processors: int
    bandwidth: float
    bf16_rate: float
    tf32_rate: float
    shared_memory: int
    shared_memory_of_block: int
    l2_cache: int
    registers: int = 65536
    warps: int = 64
    blocks: int = 32

    def occupancy(self, registers: int, shared: int, warps: int) -> float:
        """Shard of an SM's warps that can be resident at once (theoretical occupancy).

        Args:
            registers: a thread.
            shared: bytes of shared memory a block.
            warps: a block.

        Source: CUDA C++ programming guide, compute capabilities 8.0 and 9.0: registers are handed out by 256 a warp,
        shared memory by 128 bytes, of which a block takes 1024 for the system.
        """
        a_warp = -(-max(registers, 1) * 32 // 256) * 256
        # The register file is split between the SM's four schedulers.
        by_registers = 4 * (self.registers // 4 // a_warp) // warps
        by_shared = self.shared_memory // (-(-shared // 128) * 128 + 1024)
        return min(self.warps // warps, self.blocks, by_registers, by_shared) * warps / self.warps


CARDS = {
    card.arch: card
    for card in (
        Card("A100 80GB", 80, 108, 2.04e12, 312e12, 156e12, 164 << 10, 163 << 10, 40 << 20),
        Card("H100 SXM", 90, 132, 3.35e12, 989e12, 494.5e12, 228 << 10, 227 << 10, 50 << 20),
    )
}

# Assumed, not measured here: what the host pays to launch one kernel from Inductor's Python wrapper. The authors of
# Inductor's launcher report 6.8 us without and 9.1 us with 19 arguments (meta-pytorch/tritonbench, pull request 1017).
LAUNCH_SECONDS = 7e-6
# Assumed for an A100: the same for one kernel within a CUDA graph's replay, where the host launches once and the GPU
# moves from node to node. CUDA.jl's manual (CUDA graphs) reports 70 us for a chain of 80 small kernels; on an H200 0.3
# to 0.6 us lay between the kernels of a recorded step (docs/gpu.md).
GRAPH_NODE_SECONDS = 1e-6
