"""`python -m seal_fast scaling`: a training step on 1 to 64 GPUs, predicted, and which batch hides the network.

The step's bytes and operations are counted in what the compiler makes of it (`step`), the exchanges' bytes follow from
the number of parameters (`wire_bytes`, which the tests hold against counted ones). Rates are the datasheets'; what is
not to be found there is assumed, and stands here.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass

from bench.gpu_report.datasheet import CARDS, GRAPH_NODE_SECONDS, LAUNCH_SECONDS, Card
from seal_fast.methods.partition import split
from seal_fast.utils.table import table

GPUS_PER_NODE = 8
# NVIDIA A100 datasheet: third-generation NVLink, 600 GB/s in both directions together.
NVLINK = 300e9
# One HDR InfiniBand port, 200 Gbit/s in each direction.
PORT = 25e9
# Assumed, not measured here: the share of a link's rate that a ring of NCCL reaches, and what each of its hops costs.
LINK_SHARE = 0.8
HOP_SECONDS = {"node": 3e-6, "network": 10e-6}
# Bytes a parameter that a step moves whatever its batch: its bfloat16 weight read in the forward and in the backward
# pass and its gradient written, and the update under --amp.
COMPILED_BYTES, UPDATE_BYTES = 6, 20
COUNTED_BATCH = 32
PROCESSES = (1, 2, 4, 8, 16, 32, 64)
BATCHES = tuple(2**i for i in range(1, 15))
GLOBAL_BATCHES = (32, 256, 2048)  # whose speed-up is told


@dataclass(frozen=True)
class Work:
    """A network's training step on one GPU, as counted.

    Attributes:
        name: of network and image size.
        parameters: of the network.
        late: share of the parameters in the late group.
        early_backward: share of the backward pass's operations that comes after the late group's gradients.
        bytes_an_image: moved in the device's memory, what does not depend on the batch left out.
        operations_an_image: of convolutions and matrix products.
        launches: of a step.
    """

    name: str
    parameters: int
    late: float
    early_backward: float
    bytes_an_image: float
    operations_an_image: float
    launches: int

    def seconds(self, batch: float, card: Card, processes: int = 1) -> float:
        """A step of `batch` images on one GPU: the longest of moving, computing and launching; a lower bound.

        One process replays a CUDA graph; several launch every kernel from the host.
        """
        launch = GRAPH_NODE_SECONDS if processes == 1 else LAUNCH_SECONDS
        moved = batch * self.bytes_an_image + (COMPILED_BYTES + UPDATE_BYTES) * self.parameters
        computed = batch * self.operations_an_image
        return max(moved / card.bandwidth, computed / card.bf16_rate, self.launches * launch)


def wire_bytes(parameters: int, processes: int) -> float:
    """What each process sends in a step: its share of a reduce-scatter and of an all-gather of float32 numbers."""
    return 2 * exchanged(parameters, processes)


def exchanged(parameters: float, processes: int) -> float:
    """What each process sends in one of the two exchanges."""
    return 4 * parameters * (processes - 1) / processes


def exchange_seconds(parameters: float, processes: int, ports: int) -> float:
    """One exchange in a ring; where it leaves a node, through as many network ports as a node has."""
    within = processes <= GPUS_PER_NODE
    rate = NVLINK if within else min(NVLINK, ports * PORT)
    hop = HOP_SECONDS["node" if within else "network"]
    return exchanged(parameters, processes) / (LINK_SHARE * rate) + (processes - 1) * hop


def network_seconds(work: Work, batch: float, processes: int, ports: int, card: Card, overlap: bool) -> float:
    """How much longer a step takes for its exchanges, those hidden behind the backward pass left out.

    Args:
        work: the network.
        batch: images of a process.
        processes: of the run.
        ports: network ports of a node.
        card: the GPU.
        overlap: whether the late group's gradients leave during the backward pass. Under --compile that is one piece,
            and nothing leaves before its end.
    """
    whole = exchange_seconds(work.parameters, processes, ports)
    if not overlap:
        return 2 * whole
    late = exchange_seconds(work.late * work.parameters, processes, ports)
    early = exchange_seconds((1 - work.late) * work.parameters, processes, ports)
    behind = work.seconds(batch, card, processes) * 2 / 3 * work.early_backward
    return max(0.0, late - behind) + early + whole


def least_batch(work: Work, processes: int, ports: int, card: Card, overlap: bool, share: float) -> int | None:
    """The smallest power of two of images a process for which the network is at most this share of the step."""
    for batch in BATCHES:
        network = network_seconds(work, batch, processes, ports, card, overlap)
        if network <= share * (work.seconds(batch, card, processes) + network):
            return batch
    return None


def count(model: str, image_size: int, arch: int = 80) -> Work:
    """Compile the step for a GPU that need not be there, and count it.

    Raises:
        RunError: this torch or Triton cannot.
    """
    from bench.gpu_report import step_report

    request = {"model": model, "stem": "imagenet", "batch": COUNTED_BATCH, "image_size": image_size, "classes": 200}
    result = step_report.run(request | {"arch": arch, "columns": [{"amp": True, "layout": "NHWC"}]})
    (facts,) = result["columns"]
    moved = facts["predicted"]["bytes"] - (COMPILED_BYTES + UPDATE_BYTES) * facts["parameters"]
    late, early_backward = _shares(model, image_size)
    return Work(
        f"{model.replace('resnet', 'ResNet-')}, {image_size} x {image_size}",
        facts["parameters"],
        late,
        early_backward,
        moved / COUNTED_BATCH,
        facts["flops"] / COUNTED_BATCH,
        facts["predicted"]["launches"],
    )


def _shares(name: str, image_size: int) -> tuple[float, float]:
    """The late group's share of the parameters, and the early convolutions' share of the operations."""
    import torch
    from torch import nn

    from seal_fast.models import MODELS

    with torch.device("meta"):
        model = MODELS[name](200, "imagenet").eval()
    groups = split({n: p.numel() for n, p in model.named_parameters()}, "layer3")
    early, operations = set(groups.groups["early"]), {True: 0, False: 0}

    def counted(module: nn.Module, _inputs: object, output: torch.Tensor, key: str) -> None:
        weight = module.get_parameter("weight")
        operations[key in early] += output.numel() * weight[0].numel()

    for key, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(
                lambda m, i, o, key=key: counted(m, i, o, f"{key}.weight")  # pyright: ignore[reportArgumentType]
            )
    # BatchNorm in evaluation: its own operation for training has no meta kernel
    model(torch.empty(1, 3, image_size, image_size, device="meta"))
    total = sum(groups.sizes.values())
    return groups.count("late") / total, operations[True] / sum(operations.values())


def speed_up(work: Work, batch: int, processes: int, ports: int, card: Card) -> float | None:
    """How many times as fast as one GPU a step of `batch` images is on several, under --compile; None: too few each."""
    each = batch // processes
    if each < 2:
        return None
    network = network_seconds(work, each, processes, ports, card, False) if processes > 1 else 0.0
    return work.seconds(batch, card) / (work.seconds(each, card, processes) + network)


def text(works: Sequence[Work], card: Card, share: float) -> str:
    """A table for each network: the network's predicted time, the batches that hide it, and the speed-up of some."""
    blocks = [f"Predicted for {card.name}, --amp --compile; nothing here was timed."]
    header = ("GPUs", "ports a node", "MB sent a step", "network, ms", f"images a GPU for {share:.0%}", "overlapped")
    for work in works:
        rows: list[tuple[str, ...]] = [(*header, *(f"speed-up at batch {batch}" for batch in GLOBAL_BATCHES))]
        for processes in PROCESSES[1:]:
            for ports in (8, 1) if processes > GPUS_PER_NODE else (0,):
                least = [least_batch(work, processes, ports, card, overlap, share) for overlap in (False, True)]
                gains = [speed_up(work, batch, processes, ports, card) for batch in GLOBAL_BATCHES]
                rows.append(
                    (
                        str(processes),
                        str(ports or "-"),
                        f"{wire_bytes(work.parameters, processes) / 1e6:.1f}",
                        f"{2e3 * exchange_seconds(work.parameters, processes, ports):.2f}",
                        *(str(batch or f"over {BATCHES[-1]}") for batch in least),
                        *("-" if gain is None else f"{gain:.1f}" for gain in gains),
                    )
                )
        one = work.seconds(COUNTED_BATCH, card) * 1e3
        head = (
            f"{work.name}: {work.parameters:,} parameters, {work.late:.0%} of them late; an image moves "
            f"{work.bytes_an_image / 1e6:.1f} MB and takes {work.operations_an_image / 1e9:.1f} GFLOP; "
            f"{work.launches} launches; a step of {COUNTED_BATCH} on one GPU takes {one:.2f} ms or more"
        )
        blocks.append(head + "\n" + table(rows, left=0))
    return "\n\n".join(blocks)


def main(argv: Sequence[str]) -> int:
    """Count, predict and print; returns the exit code.

    Raises:
        RunError: this torch or Triton cannot compile for a GPU that is not there.
    """
    parser = argparse.ArgumentParser(prog="python -m seal_fast scaling", description="Predict a step on 1 to 64 GPUs.")
    parser.add_argument("--arch", type=int, choices=CARDS, default=80, help="80 (A100) or 90 (H100); default: 80")
    parser.add_argument("--models", nargs="+", choices=("resnet18", "resnet34", "resnet50"))
    parser.add_argument("--image-sizes", nargs="+", type=int, default=[64, 224])
    parser.add_argument("--share", type=float, default=0.05, help="of the step for the network; default: 0.05")
    parser.add_argument("--json", action="store_true", help="print what was counted as JSON")
    flags = parser.parse_args(list(argv))
    models = flags.models or ["resnet18", "resnet50"]
    works = [count(model, size, flags.arch) for model in models for size in flags.image_sizes]
    if flags.json:
        print(json.dumps([vars(work) for work in works], indent=2))
    else:
        print(text(works, CARDS[flags.arch], flags.share))
    return 0
