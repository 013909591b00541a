"""The trainer's step compiled for a GPU that is not there, and counted. Runs in a process of its own:

    python -m bench.gpu_report.step '{"arch": 80, "columns": [{"amp": true, "layout": "NHWC"}], ...}'

`step.forward_and_loss` is traced on the CPU as torch.compile traces it there, forward and backward apart. Each graph is
then moved to a CUDA device that `pretend` invents, and handed to Inductor, which writes its Triton kernels and the code
that calls them. Nothing is run.
"""

from __future__ import annotations

import functools
import json
import re
import sys
from dataclasses import asdict, dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from bench.gpu_report import pretend
from bench.gpu_report.cards import CARDS
from seal_fast.utils.errors import RunError

_CUDA = torch.device("cuda:0")
_aten = torch.ops.aten


@dataclass
class Facts:
    """What the compiled forward and backward consist of.

    Attributes:
        amp: under bfloat16 autocast.
        layout: NHWC or NCHW.
        parameters: of the network.
        graphs: how many Dynamo cut the function into, each with its forward and backward; 1 is a step without a break.
        triton_kernels: different ones that Inductor wrote.
        triton_launches: their launches in a step.
        layout_copies: of these, the ones that only move data into another memory layout.
        casts: of these, the ones that only change the type (weights to bfloat16, their gradients back).
        triton_bytes: that they read and write.
        library_calls: by operation; a convolution's backward is up to two, for its input and for its weight.
        library_bytes: that these read and write, each operand once.
        fp32_convolutions: those of them that compute in float32.
        flops: floating-point operations of the library calls.
    """

    amp: bool
    layout: str
    parameters: int
    graphs: int = 0
    triton_kernels: int = 0
    triton_launches: int = 0
    layout_copies: int = 0
    casts: int = 0
    triton_bytes: int = 0
    library_calls: dict[str, int] = field(default_factory=dict)
    library_bytes: int = 0
    fp32_convolutions: int = 0
    flops: int = 0


class _Done(Exception):
    """Everything is compiled; what would now run cannot."""


def compile_step(request: dict[str, Any], amp: bool, layout: str) -> Facts:
    """Compile one step and count it; `pretend.card` must have been called in this process.

    Args:
        request: model, stem, batch, image_size and classes.
        amp: under bfloat16 autocast.
        layout: NHWC or NCHW.
    """
    import torch._functorch.config as functorch
    import torch._inductor.config as inductor
    from torch._inductor.compile_fx import compile_fx

    from seal_fast.kernels import torch_private
    from seal_fast.models import build, layers
    from seal_fast.optim.annealed_sgd import AnnealedSGD
    from seal_fast.training.runtime import Runtime
    from seal_fast.training.step import bf16_weight_overrides, forward_and_loss

    memory = torch.channels_last if layout == "NHWC" else torch.contiguous_format
    model = build(request["model"], request["classes"], request["stem"])
    model.to(memory_format=memory)
    compute = torch.bfloat16 if amp else torch.float32
    runtime = Runtime(torch.device("cpu"), torch.float32, compute, amp, compile=True)
    optimizer = AnnealedSGD(model.named_parameters(), torch.tensor(0.1), bf16_copy=runtime.bf16_weights)
    weights = bf16_weight_overrides(model, optimizer) if runtime.bf16_weights else {}
    size = request["image_size"]
    images = torch.zeros(request["batch"], 3, size, size, dtype=compute).to(memory_format=memory)
    labels = torch.zeros(request["batch"], dtype=torch.int64)
    facts = Facts(amp, layout, sum(p.numel() for p in model.parameters()))
    # Where the CPU has kernels of its own, a GPU takes cuDNN and what Inductor writes.
    network: Any = layers
    for op in ("conv2d", "norm_act"):
        setattr(network, op, functools.partial(getattr(network, op), backend="reference"))
    network.max_pool = torch.nn.functional.max_pool2d

    def forward(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        loss, sums = forward_and_loss(model, runtime, 0.1, weights, images, labels, None)
        return loss, sums

    torch_private.keep_reductions_whole()
    torch._dynamo.reset()
    backend = functools.partial(compile_fx, inner_compile=functools.partial(_compile_for_cuda, facts))
    with (
        inductor.patch(fx_graph_cache=False),
        functorch.patch(force_non_lazy_backward_lowering=True, enable_autograd_cache=False),
    ):
        try:
            torch.compile(forward, fullgraph=True, dynamic=False, backend=backend)(images, labels)
        except _Done:
            return facts
    raise RunError("torch.compile left the step uncompiled")


def _compile_for_cuda(facts: Facts, graph: fx.GraphModule, inputs: list[Any], **options: Any) -> Any:
    """Stands in for Inductor's `compile_fx_inner`: the same, for CUDA tensors instead of the CPU's."""
    from torch._guards import detect_fake_mode
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._inductor.graph import GraphLowering

    for node in graph.graph.nodes:
        if node.kwargs.get("device") is not None:
            node.kwargs = {**node.kwargs, "device": _CUDA}
    graph.recompile()
    calls = sum(_count_library_call(facts, node) for node in graph.graph.nodes if node.op == "call_function")
    GraphLowering.compile_to_module = functools.partialmethod(_count_graph, facts, calls)  # pyright: ignore
    mode = detect_fake_mode(inputs)
    assert mode is not None
    with mode:
        moved = [
            torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=_CUDA) if isinstance(t, Tensor) else t
            for t in inputs
        ]
    compile_fx_inner(graph, moved, **options)
    facts.graphs += not options.get("is_backward", False)

    def stop(*_: object) -> None:
        raise _Done

    return stop


def _count_library_call(facts: Facts, node: fx.Node) -> bool:
    """Add a node of the graph to the facts, if a library does it; whether that is so."""
    from torch.utils.flop_counter import flop_registry

    packet: Any = getattr(node.target, "overloadpacket", None)
    if packet not in flop_registry:
        return False
    values: Any = map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
    args, kwargs = values
    result = node.meta["val"]
    facts.flops += flop_registry[packet](*args, **kwargs, out_val=result)
    if packet is _aten.convolution_backward:
        grad, images, weight, wanted = args[0], args[1], args[2], args[-1]
        calls = [(grad, weight, result[0])] * wanted[0] + [(grad, images, result[1])] * wanted[1]
    else:
        calls = [(*(a for a in args if isinstance(a, Tensor)), result)]
    name = packet.__name__
    facts.library_calls[name] = facts.library_calls.get(name, 0) + len(calls)
    facts.library_bytes += sum(t.numel() * t.element_size() for operands in calls for t in operands)
    facts.fp32_convolutions += len(calls) * ("convolution" in name and args[0].dtype == torch.float32)
    return True


def _count_graph(lowering: Any, facts: Facts, library_calls: int) -> SimpleNamespace:
    """Stands in for `GraphLowering.compile_to_module`: writes the code, counts it, and loads nothing."""
    from torch._inductor import ir, scheduler

    code = lowering.codegen()[0].value
    launches = re.findall(r"^ +(triton_\w+)\.run\(", code, re.M)
    nodes = [n for n in lowering.scheduler.nodes if not isinstance(n, scheduler.NopKernelSchedulerNode)]
    kernels = [n for n in nodes if not n.is_extern()]
    calls = [n for n in nodes if n.is_extern() and not isinstance(n.node, ir.MultiOutput)]
    # One planned kernel may become several launches, but none may vanish.
    if len(launches) < len(kernels) or len(calls) != library_calls:
        raise RunError(
            f"Inductor planned {len(kernels)} kernels and {len(calls)} library calls, and {len(launches)} and "
            f"{library_calls} are seen in its code and in the graph: this report cannot count them"
        )
    facts.triton_launches += len(launches)
    facts.triton_kernels += len(set(launches))
    for kernel in kernels:
        facts.triton_bytes += kernel.get_read_write_buffers_sizes()
        moves = [node.read_writes for node in kernel.get_nodes() if _only_moves(node)]
        same_order = [next(iter(m.reads)).index == next(iter(m.writes)).index for m in moves]
        facts.layout_copies += same_order.count(False)
        facts.casts += len(same_order) == len(kernel.get_nodes()) and all(same_order)
    return SimpleNamespace(call=None, __file__="", value=code)


def _only_moves(node: Any) -> bool:
    """Whether a part of a kernel stores what it loaded, at most in another type."""
    deps = node.read_writes
    # The names are Inductor's; "output" ends every body.
    moving = {"load", "store", "output", "get_index", "to_dtype"}
    return len(deps.reads) == len(deps.writes) == 1 and set(node._body.op_counts) <= moving


def main(request: dict[str, Any]) -> list[dict[str, Any]]:
    """The facts of each column of the request, in order."""
    pretend.card(CARDS[request["arch"]])
    torch.set_float32_matmul_precision("high")
    return [asdict(compile_step(request, **column)) for column in request["columns"]]


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
