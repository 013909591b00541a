"""`AnnealedSGD`: the optimiser around `annealed_sgd_`. Groups are fixed for life; a phase changes only numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from inspect import unwrap
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version
from torch.optim import Optimizer

from seal_fast.kernels.annealed_sgd import HYPERPARAMETERS, Buffers, FlatParameters, annealed_sgd_
from seal_fast.kernels.backend import Backend, resolve
from seal_fast.optim.torch_state import TorchState, check_number


class AnnealedSGD(TorchState):
    """SGD with momentum that descends, ascends or freezes each group of parameters, in one launch for all groups.

    Construction moves the parameters: each becomes a view, of unchanged shape and strides, into one flat buffer. So
    build the optimiser after `model.to(...)`; a model moved later is refused at the next step.

    `lr`, `momentum`, `weight_decay`, `sign` and `lr_multiplier` of all groups live in one float64 device tensor,
    `hyper` [groups, 5], and `param_groups` holds views of it. `set_hyperparameters`, and `fill_` on the views as
    torch's schedulers do it, take effect without a host sync, a recompilation or a new CUDA graph.

    `copy.deepcopy` and `pickle` build a new optimiser with the same state over the copied parameters; copy model and
    optimiser together, as `copy.deepcopy((model, optimizer))`. Gradients and hooks are not copied. Prefer `torch.save`
    to plain pickle, which writes the common buffer anew for each of the model's parameters.

    Args:
        params: groups `{"name": "early", "params": [(name, parameter), ...]}`, or what else torch's optimisers take.
            All parameters must be dense, of one type (float32 or float64), on one device, and share no memory.
        lr: learning rate, a 0-dimensional tensor; its value is copied.
        momentum: factor on the momentum buffer before the gradient is added. No dampening, no Nesterov.
        weight_decay: L2 penalty added to the gradient.
        backend: which kernel runs, see `seal_fast.kernels.backend.resolve`.
        ema_decay: keep an exponential moving average of the weights (see `ema_state`), with this factor on the old; 1
            keeps one that only `average_in` changes.
        bf16_copy: keep a bfloat16 copy of the weights (see `bf16_weights`) that every step refreshes, and take the
            gradients that arrive there.
        norms: keep `norms`, a float64 device tensor [groups, 2] to which every step adds the squared norms of gradient
            (unscaled, before weight decay) and update. Zero it after reading.
        hold: keep masks for `hold`.

    Raises:
        TypeError: `lr` is a Python number.
        ValueError: the parameters cannot share a buffer, or a number is out of range.
        BackendUnavailable: the backend asked for cannot run on the parameters' device.

    Attributes:
        sending: False while a step's gradients add up over several backward passes; only `ShardedSGD` reads it.

    Source: the update is plain SGD; SEAL's ascent (arXiv 2304.04858, section 3) flips the sign after the momentum.
    """

    shards = 1  # equal slices that a group's region of the buffers can be cut into
    sending = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: Tensor,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        *,
        backend: Backend = "auto",
        ema_decay: float | None = None,
        bf16_copy: bool = False,
        norms: bool = False,
        hold: bool = False,
    ) -> None:
        numbers = dict(lr=lr, momentum=momentum, weight_decay=weight_decay, sign=1.0, lr_multiplier=1.0)
        super().__init__(params, numbers)
        self._options = dict(backend=backend, ema_decay=ema_decay, bf16_copy=bf16_copy, norms=norms, hold=hold)
        self._step_supports_amp_scaling = True  # GradScaler then hands over its scale and found_inf, unread

        parameters = [p for group in self.param_groups for p in group["params"]]
        names = [name for group in self.param_groups for name in group.get("param_names", ())]
        group_of = [i for i, group in enumerate(self.param_groups) for _ in group["params"]]
        self._flat = FlatParameters(
            parameters, names or [str(i) for i in range(len(parameters))], group_of, self.shards
        )
        weights = self._flat.buffer
        self.backend = resolve("AnnealedSGD", backend, weights.device)

        def float64(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=weights.device)

        self.hyper = float64(len(self.param_groups), len(HYPERPARAMETERS))
        self._groups: dict[str, dict[str, Tensor]] = {}  # the views of `hyper`
        for i, (group, row) in enumerate(zip(self.param_groups, self.hyper, strict=True)):
            views = dict(zip(HYPERPARAMETERS, row.unbind(), strict=True))
            for name, view in views.items():
                view.fill_(group[name])
            group.update(views, name=group.get("name", f"group{i}"))
            self._groups[group["name"]] = views
        if len(self._groups) != len(self.param_groups):
            raise ValueError("groups must have different names")

        shard = self._shard(weights)
        self._momentum = torch.zeros_like(shard)
        self._ema = self._bf16 = self._held = self.norms = None
        if ema_decay is not None:
            self._ema = shard.clone()
        if bf16_copy:
            self._bf16 = weights.bfloat16()
            self._flat.bf16_weights = [nn.Parameter(view) for view in self._flat.views(self._bf16)]
        if norms:
            self.norms = float64(len(self.param_groups), 2)
        if hold:
            self._held = torch.ones_like(weights, dtype=torch.bool)
        ema, decay = (None, None) if ema_decay in (None, 1) else (self._ema, float64() + ema_decay)
        self._buffers = Buffers(
            weights, self._momentum, self._flat.segments, self.hyper, ema, decay, self._bf16, self.norms
        )
        self._saved = {"momentum_buffer": self._momentum} | ({} if self._ema is None else {"ema": self._ema})
        if self.shards == 1:
            for key, buffer in self._saved.items():
                for p, view in zip(parameters, self._flat.views(buffer), strict=True):
                    self.state[p][key] = view

    # --- the step ----------------------------------------------------------------------------------------------------

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; one without is left alone, its momentum too.

        Raises:
            RuntimeError: since construction a parameter was moved, or a number in `param_groups` replaced.
            ValueError: a gradient is sparse, or neither of its parameter's type nor bfloat16.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._check_groups()
        gradients = self._flat.gradients()
        self._mask(gradients)
        self._update(self._buffers, gradients)
        increment_version([*self._flat.params, *self._flat.bf16_weights])  # the kernel writes through the flat buffers
        return loss

    @torch.no_grad()
    def _update(self, buffers: Buffers, gradients: list[Tensor | None]) -> None:
        scale, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        annealed_sgd_(buffers, gradients, grad_scale=scale, found_inf=found_inf, backend=self.backend)

    def _check_groups(self) -> None:
        for group, views in zip(self.param_groups, self._groups.values(), strict=True):
            for name, view in views.items():
                if group.get(name) is not view:
                    raise RuntimeError(
                        f"{name} of group {group.get('name')!r} was replaced in param_groups, but the kernel reads the "
                        "tensor that was there: use set_hyperparameters, load_state_dict, or fill_ it in place"
                    )

    @torch.no_grad()
    def accumulate(self) -> None:
        """After a backward pass that is not a step's last: add the bfloat16 weights' gradients up in the weights' type.

        Without it autograd would add them up in bfloat16. The step adds those of the last pass.
        """
        for i, weight in enumerate(self._flat.bf16_weights):
            if weight.grad is not None:
                p, gradient = self._flat.params[i], self._flat.gradient(i)
                assert gradient is not None
                p.grad, weight.grad = gradient.to(p.dtype), None

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As in torch, for the gradients of the bfloat16 weights too."""
        if torch.compiler.is_dynamo_compiling():
            super().zero_grad(set_to_none)
        else:  # torch's wrapper imports all of dynamo, only to keep dynamo out of it
            unwrap(Optimizer.zero_grad)(self, set_to_none)
        for weight in self._flat.bf16_weights:
            weight.grad = None if set_to_none or weight.grad is None else weight.grad.zero_()

    def set_hyperparameters(self, group: str, **numbers: float | Tensor) -> None:
        """Write numbers of a group (`lr`, `momentum`, `weight_decay`, `sign`, `lr_multiplier`) into the device tensor.

        Nothing here makes the host wait for the device. sign is +1 (descent) or -1 (ascent); lr_multiplier 0 freezes.

        Raises:
            ValueError: no such group or number, or a number out of range.
        """
        if group not in self._groups:
            raise ValueError(f"no group is called {group!r}; the groups are {', '.join(self._groups)}")
        for name, value in numbers.items():
            check_number(name, value)
        for name, value in numbers.items():
            self._groups[group][name].fill_(value)
