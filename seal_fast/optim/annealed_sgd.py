"""`AnnealedSGD`: the optimiser around `annealed_sgd_`. Groups are fixed for life; a phase changes only numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import profiler
from torch.autograd.graph import increment_version
from torch.compiler import is_dynamo_compiling
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks as _POST_HOOKS
from torch.optim.optimizer import _global_optimizer_pre_hooks as _PRE_HOOKS
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from seal_fast.kernels.annealed_sgd import HYPERPARAMETERS, FlatParameters, annealed_sgd_, native_update
from seal_fast.kernels.backend import Backend, resolve
from seal_fast.optim.param_group import ParamGroup, ParamGroups


class AnnealedSGD(Optimizer):
    """SGD with momentum that descends, ascends or freezes each group of parameters, in one launch for all groups.

    Construction moves the parameters: each becomes a view, of unchanged shape and strides, into one flat buffer, beside
    its momentum. So build the optimiser after `model.to(...)`; a model moved later is refused at the next step.

    `lr`, `momentum`, `weight_decay`, `sign` and `lr_multiplier` of all groups live in one float64 device tensor,
    `hyper` [groups, 5], and `param_groups` holds views of it: `set_hyperparameters`, and
    `param_groups[i]["lr"].fill_(x)` as torch's schedulers do it, take effect
    without a host sync, a recompilation or a new CUDA graph.

    Args:
        params: groups `{"name": "early", "params": [(name, parameter), ...]}`, or what else torch's optimisers take.
            All parameters must be dense, of one type (float32 or float64) and on one device.
        lr: learning rate, a 0-dimensional tensor; its value is copied.
        momentum: factor on the momentum buffer before the gradient is added. No dampening, no Nesterov.
        weight_decay: L2 penalty added to the gradient.
        backend: which kernel runs, see `seal_fast.kernels.backend.resolve`.
        ema_decay: keep an exponential moving average of the weights (see `ema_state`), with this factor on the old.
        bf16_copy: keep a bfloat16 copy of the weights (see `bf16_weights`) that every step refreshes, and take the
            gradients that arrive there.
        norms: keep `norms`, a float64 device tensor [groups, 2] to which every step adds the squared norms of gradient
            (unscaled, before weight decay) and update. Zero it after reading.

    Raises:
        TypeError: `lr` is a Python number.
        ValueError: the parameters cannot share a buffer, or a number is out of range.
        BackendUnavailable: the backend asked for cannot run on the parameters' device.

    Attributes:
        sending: False while a step's gradients add up over several backward passes; only `ShardedSGD` needs to know.

    Source: the update is plain SGD; SEAL's ascent (arXiv 2304.04858, section 3) flips the sign after the momentum.
    """

    shards = 1  # equal slices that a group's stretch of the buffers can be cut into
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
    ) -> None:
        self._fixed = False
        numbers = dict(lr=lr, momentum=momentum, weight_decay=weight_decay, sign=1.0, lr_multiplier=1.0)
        super().__init__(params, numbers)
        self._fixed = True
        self._step_supports_amp_scaling = True  # GradScaler then hands over its scale and found_inf, unread

        parameters = [p for group in self.param_groups for p in group["params"]]
        names = [name for group in self.param_groups for name in group.get("param_names", ())]
        group_of = [i for i, group in enumerate(self.param_groups) for _ in group["params"]]
        names = names or [str(i) for i in range(len(parameters))]
        self._flat = FlatParameters(parameters, names, group_of, self.shards)
        weights = self._flat.buffer
        self.backend = resolve("AnnealedSGD", backend, weights.device)

        self.hyper = torch.empty(
            len(self.param_groups), len(HYPERPARAMETERS), dtype=torch.float64, device=weights.device
        )
        self._views = [dict(zip(HYPERPARAMETERS, row.unbind(), strict=True)) for row in self.hyper]
        groups = []
        for i, (group, views) in enumerate(zip(self.param_groups, self._views, strict=True)):
            for name, view in views.items():
                view.fill_(group[name])
            groups.append(ParamGroup({**group, "name": group.get("name", f"group{i}")}, views))
        self.param_groups = self._own_groups = ParamGroups(groups)
        self._groups = {group["name"]: views for group, views in zip(self.param_groups, self._views, strict=True)}
        if len(self._groups) != len(self.param_groups):
            raise ValueError("groups must have different names")

        own = self._own(weights)
        self._momentum = self._flat.zeros(elements=own.numel())
        self._ema = self._ema_decay = self._bf16 = self.norms = None
        self._bf16_weights: list[nn.Parameter] = []
        if ema_decay is not None:
            self._ema = self._flat.zeros(elements=own.numel()).copy_(own)
            self._ema_decay = torch.full((), ema_decay, dtype=torch.float64, device=weights.device)
        if bf16_copy:
            self._bf16 = self._flat.zeros(torch.bfloat16).copy_(weights)
            self._bf16_weights = [nn.Parameter(view) for view in self._flat.views(self._bf16)]
            self._flat.copies_read = self._bf16_weights
        if norms:
            self.norms = torch.zeros(len(self.param_groups), 2, dtype=torch.float64, device=weights.device)
        self._watched = self._flat.params + self._bf16_weights
        self._native = None  # the kernel on the whole buffers, which stay; where they do not, `annealed_sgd_` is called
        if self.backend == "native" and self.shards == 1:
            optional = dict(ema=self._ema, ema_decay=self._ema_decay, bf16=self._bf16, norms=self.norms)
            self._native = native_update(self._flat, self._momentum, self.hyper, **optional)
        self._kept = {"momentum_buffer": self._momentum} | ({} if self._ema is None else {"ema": self._ema})
        if self.shards == 1:
            for key, buffer in self._kept.items():
                for p, view in zip(parameters, self._flat.views(buffer), strict=True):
                    self.state[p][key] = view

    # --- the step ----------------------------------------------------------------------------------------------------

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; one without is left alone, its momentum too.

        Raises:
            RuntimeError: since construction a parameter was moved or `param_groups` replaced, or a parameter and its
                bfloat16 copy have a gradient each.
            ValueError: a gradient is neither of its parameter's type nor bfloat16.
        """
        if is_dynamo_compiling():
            # A function that steps may be compiled; the step within it is one kernel already, and works on addresses.
            return torch.compiler.disable(self.step)(closure)  # type: ignore[arg-type]
        if self._optimizer_step_pre_hooks or self._optimizer_step_post_hooks or _PRE_HOOKS or _POST_HOOKS:
            return self._step_on_record(closure)
        if profiler._is_profiler_enabled:
            return self._step_on_record(closure)
        return self._step(closure)

    # Torch wraps the step of every optimiser for hooks and the profiler's record. Entering and leaving a record that
    # nobody takes cost a quarter of a millisecond where nothing of it is in the processor's caches, as after a backward
    # pass: as much as all that the host does here. So it is wrapped only for those who look.
    step.hooked = True  # type: ignore[attr-defined]

    def _step(self, closure: Callable[[], Any] | None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._check_groups()
        grad_scale, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        # In such a mode tensors may have no address.
        if is_in_torch_dispatch_mode() or not self._native or not self._native(grad_scale, found_inf):
            self._dispatch(grad_scale, found_inf)
        return loss

    @torch.no_grad()
    def _dispatch(self, grad_scale: Tensor | None, found_inf: Tensor | None) -> None:
        annealed_sgd_(
            self._flat.buffer,
            self._momentum,
            self._flat.gradients(),
            self._flat.segments,
            self.hyper,
            grad_scale=grad_scale,
            found_inf=found_inf,
            ema=self._ema,
            ema_decay=self._ema_decay,
            bf16=self._bf16,
            norms=self.norms,
            backend=self.backend,
        )
        increment_version(self._watched)

    _step_on_record = Optimizer.profile_hook_step(_step)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As in torch, for the gradients of the bfloat16 weights too."""
        super().zero_grad(set_to_none)
        for weight in self._bf16_weights:
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
            _check_number(name, value)
        for name, value in numbers.items():
            self._groups[group][name].fill_(value)

    def reset_momentum(self) -> None:
        """Set all momentum to zero, as a freshly built optimiser has it."""
        self._momentum.zero_()

    # --- what can be kept --------------------------------------------------------------------------------------------

    def momentum_state(self) -> dict[str, Tensor]:
        """Momentum by parameter name: contiguous copies in the parameters' shapes."""
        return self._by_name(self._momentum)

    def load_momentum_state(self, state: Mapping[str, Tensor]) -> None:
        """Write momentum by parameter name, from tensors of any memory layout.

        Raises:
            ValueError: names or shapes are not this optimiser's.
        """
        self._set_by_name(self._momentum, state)

    def ema_state(self) -> dict[str, Tensor]:
        """Averaged weights by parameter name: contiguous copies in the parameters' shapes.

        Raises:
            RuntimeError: the optimiser was built without `ema_decay`.
        """
        return self._by_name(_kept(self._ema, "ema_decay=..."))

    def load_ema_state(self, state: Mapping[str, Tensor]) -> None:
        """Write averaged weights by parameter name, as `load_momentum_state` does momentum."""
        self._set_by_name(_kept(self._ema, "ema_decay=..."), state)

    def _own(self, buffer: Tensor) -> Tensor:
        """The part of a flat buffer that this optimiser updates: all of it; see `seal_fast.sharded`."""
        return buffer

    def _by_name(self, kept: Tensor) -> dict[str, Tensor]:
        return self._flat.copies(kept)

    def _set_by_name(self, kept: Tensor, state: Mapping[str, Tensor]) -> None:
        self._flat.write(kept, state)

    def bf16_weights(self) -> dict[str, Tensor]:
        """The bfloat16 weights by parameter name, with the weights' strides; every step refreshes them.

        They are leaves: a forward pass may read them instead of the parameters (`torch.func.functional_call`), and a
        step uses the bfloat16 gradients that arrive there. A `GradScaler`, which float16 needs, does not see these.

        Raises:
            RuntimeError: the optimiser was built without `bf16_copy`.
        """
        _kept(self._bf16, "bf16_copy=True")
        return dict(zip(self._flat.names, self._bf16_weights, strict=True))

    @torch.no_grad()
    def refresh_bf16(self) -> None:
        """Make the bfloat16 weights anew, after the weights were written by other means than a step."""
        _kept(self._bf16, "bf16_copy=True").copy_(self._flat.buffer)
        increment_version(self._bf16_weights)

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state of torch's form, also one of `torch.optim.SGD`; memory layout, type and device may differ.

        Raises:
            ValueError: the state is not of these groups and shapes, or of another rule (Nesterov, dampening, maximize).
        """
        # torch's loader matches, converts and moves; what it then puts in place is taken out again and written into the
        # buffers that the kernel knows.
        groups, state = self.param_groups, self.state
        super().load_state_dict(state_dict)
        loaded_groups, loaded = self.param_groups, self.state
        self.param_groups, self.state = groups, state

        for own, other in zip(groups, loaded_groups, strict=True):
            if other.get("name", own["name"]) != own["name"]:
                raise ValueError(f"the state is of a group called {other['name']!r}, here it is {own['name']!r}")
            for rule in ("nesterov", "dampening", "maximize"):
                if other.get(rule):
                    raise ValueError(f"the state is of an SGD with {rule}, which AnnealedSGD does not have")
        for key, buffer in self._kept.items():
            # what was not saved starts as in a fresh optimiser
            fresh = torch.zeros_like if key == "momentum_buffer" else torch.clone
            found = [loaded.get(p, {}).get(key) for p in self._flat.params]
            tensors = [fresh(p) if t is None else t for t, p in zip(found, self._flat.params, strict=True)]
            self._flat.write(buffer, dict(zip(self._flat.names, tensors, strict=True)))
        for own, other, views in zip(groups, loaded_groups, self._views, strict=True):
            for name, view in views.items():
                view.fill_(other.get(name, view))
            own.update({key: value for key, value in other.items() if key not in own})
        if self._bf16 is not None:
            self.refresh_bf16()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Part of construction; later it raises RuntimeError, because groups are fixed for life."""
        if self._fixed:
            raise RuntimeError("AnnealedSGD's groups are fixed for life: give them all at construction")
        numbers = {name: param_group.get(name, self.defaults[name]) for name in HYPERPARAMETERS}
        if not isinstance(numbers["lr"], Tensor):
            raise TypeError(
                f"lr must be a tensor, which graphs read anew each step: pass torch.tensor({numbers['lr']})"
            )
        for name, value in numbers.items():
            _check_number(name, value)
        super().add_param_group(param_group)

    def _check_groups(self) -> None:
        if self.param_groups is not self._own_groups:
            raise RuntimeError(
                "param_groups was replaced, and the kernel reads the numbers of the old ones: "
                "use set_hyperparameters, load_state_dict, or fill_ its tensors in place"
            )


def _check_number(name: str, value: float | Tensor) -> None:
    if name not in HYPERPARAMETERS:
        raise ValueError(f"{name} is no number of a group; these are: {', '.join(HYPERPARAMETERS)}")
    if isinstance(value, Tensor):
        if value.dim() != 0:
            raise ValueError(f"{name} must be a 0-dimensional tensor, not one of shape {list(value.shape)}")
    elif name == "sign":
        if value not in (1, -1):
            raise ValueError(f"sign must be 1 (descent) or -1 (ascent), not {value}")
    elif not (0 <= value < math.inf):
        raise ValueError(f"{name} must be a finite number of at least 0, not {value}")


def _kept(buffer: Tensor | None, argument: str) -> Tensor:
    if buffer is None:
        raise RuntimeError(f"this optimiser does not keep that: build AnnealedSGD with {argument}")
    return buffer
