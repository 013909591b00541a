"""Parameters as views of one flat buffer, and further buffers (momentum, averages, copies) that are laid out alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from seal_fast.kernels.annealed_sgd.layout import ALIGNMENT, BEGIN, is_dense, same_order, segment_table


class FlatParameters:
    """Moves parameters into one flat buffer; each stays the same object, with its shape and strides.

    A channels-last weight thus lies there in channels-last order, and gradients, which autograd lays out like their
    parameters, line up with it element by element.

    Args:
        params: dense tensors of one type (float32 or float64) on one device, which share no memory.
        names: of the parameters, for errors and states.
        groups: the group of each, a row of the `hyper` table; those of one group are neighbours.
        shards: each group's region of the buffer can be cut into so many equal slices.

    Attributes:
        buffer: the weights [n].
        segments: where each lies, for `annealed_sgd_`.
        regions: first and past-the-last element of each group's region, padding included.
        bf16_weights: none, or a copy of each parameter, whose gradient is added to the parameter's.

    Raises:
        ValueError: the parameters cannot share a buffer; the message says which and why.
    """

    def __init__(self, params: Sequence[Tensor], names: Sequence[str], groups: Sequence[int], shards: int = 1) -> None:
        self.params, self.names = list(params), list(names)
        self._check()
        first = self.params[0]
        self.segments, elements = segment_table([p.numel() for p in self.params], groups, ALIGNMENT * shards)
        self.begins: list[int] = self.segments[:, BEGIN].tolist()
        starts = [b for b, group, before in zip(self.begins, groups, [None, *groups], strict=False) if group != before]
        self.regions = list(zip(starts, [*starts[1:], elements], strict=True))
        self.bf16_weights: Sequence[Tensor] = ()
        self.buffer = torch.zeros(elements, dtype=first.dtype, device=first.device)
        for p, view in zip(self.params, self.views(self.buffer), strict=True):
            view.copy_(p.detach())
            p.data = view
        self._addresses = [p.data_ptr() for p in self.params]

    def views(self, buffer: Tensor) -> list[Tensor]:
        """A buffer of this layout, seen as tensors of the parameters' shapes and strides."""
        return [
            buffer[begin : begin + p.numel()].as_strided(p.shape, p.stride())
            for begin, p in zip(self.begins, self.params, strict=True)
        ]

    def copies(self, buffer: Tensor) -> dict[str, Tensor]:
        """A buffer of this layout as contiguous copies by parameter name."""
        contiguous = [view.clone(memory_format=torch.contiguous_format) for view in self.views(buffer)]
        return dict(zip(self.names, contiguous, strict=True))

    @torch.no_grad()
    def write(self, buffer: Tensor, state: Mapping[str, Tensor]) -> None:
        """Write tensors by parameter name, of any memory layout, into a buffer of this layout.

        Raises:
            ValueError: names or shapes are not those of the parameters; nothing is written then.
        """
        if wrong := set(self.names) ^ state.keys():
            raise ValueError(f"the state is of other parameters: {min(wrong)} is not in both")
        values = [state[name] for name in self.names]
        for name, p, value in zip(self.names, self.params, values, strict=True):
            if value.shape != p.shape:
                raise ValueError(f"{name} has shape {list(p.shape)}, and in the state {list(value.shape)}")
        for view, value in zip(self.views(buffer), values, strict=True):
            view.copy_(value)

    def check_in_place(self) -> None:
        """Raise RuntimeError if a parameter was moved out of the buffer; reads no device memory."""
        addresses = list(map(Tensor.data_ptr, self.params))
        if addresses != self._addresses:
            name = next(n for n, a, b in zip(self.names, addresses, self._addresses, strict=True) if a != b)
            raise RuntimeError(
                f"parameter {name} was moved (by model.to() or a new .data) after its optimiser was built: "
                "move the model first, then build the optimiser"
            )

    def gradient(self, index: int) -> Tensor | None:
        """A parameter's gradient, its bfloat16 copy's, or the sum of both; ValueError if sparse or of another type."""
        param = self.params[index]
        own, copy = param.grad, self.bf16_weights[index].grad if self.bf16_weights else None
        gradient = own if copy is None else copy if own is None else own + copy
        if gradient is None:
            return None
        if gradient.layout is not torch.strided:
            raise ValueError(
                f"the gradient of {self.names[index]} is sparse, and this update takes dense ones only: "
                "build its layer with sparse=False"
            )
        if gradient.dtype not in (param.dtype, torch.bfloat16):
            raise ValueError(
                f"the gradient of {self.names[index]} is {gradient.dtype}: it must be {param.dtype} or bfloat16"
            )
        return gradient

    def gradients(self) -> list[Tensor | None]:
        """The gradients as autograd left them; one in another memory order than its parameter is copied.

        Raises:
            RuntimeError: a parameter was moved.
            ValueError: see `gradient`.
        """
        self.check_in_place()
        grads = [self.gradient(i) for i in range(len(self.params))]
        for i, (p, g) in enumerate(zip(self.params, grads, strict=True)):
            if g is not None and not (g.stride() == p.stride() or (is_dense(g) and same_order(g, p))):
                grads[i] = torch.empty_like(p).copy_(g.detach())
        return grads

    def _check(self) -> None:
        if not self.params:
            raise ValueError("there are no parameters to optimise")
        if len(set(self.names)) != len(self.names):
            raise ValueError("parameter names must differ from each other")
        first = self.params[0]
        for name, p in zip(self.names, self.params, strict=True):
            if p.dtype not in (torch.float32, torch.float64):
                raise ValueError(f"parameter {name} is {p.dtype}: keep master weights in float32 or float64")
            if p.dtype != first.dtype or p.device != first.device:
                raise ValueError(
                    f"parameter {name} is {p.dtype} on {p.device} and {self.names[0]} is {first.dtype} on "
                    f"{first.device}: parameters share one buffer, so give them one type and one device"
                )
            if p.layout is not torch.strided or not is_dense(p):
                raise ValueError(f"parameter {name} is not dense in memory: make it contiguous first")
        ranges = sorted(
            (p.data_ptr(), p.data_ptr() + p.numel() * p.element_size(), name)
            for name, p in zip(self.names, self.params, strict=True)
            if p.numel()
        )
        for (_, end, name), (begin, _, other) in zip(ranges, ranges[1:], strict=False):
            if begin < end:
                raise ValueError(
                    f"parameters {name} and {other} share memory (tied weights, or views of one tensor): "
                    "give shared weights once, as model.parameters() does, and clone views"
                )
