"""`AnnealedSGD`: the optimiser around `annealed_sgd_`. Groups are fixed for life; a phase changes only numbers."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from inspect import unwrap
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version
from torch.optim import Optimizer

from seal_fast.kernels.annealed_sgd import HYPERPARAMETERS, Buffers, FlatParameters, annealed_sgd_
from seal_fast.kernels.backend import Backend, resolve

# What torch.optim.SGD reads from a state's groups beside the numbers.
_SGD = dict(dampening=0, nesterov=False, maximize=False)


class AnnealedSGD(Optimizer):
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
    ) -> None:
        self._fixed = False
        numbers = dict(lr=lr, momentum=momentum, weight_decay=weight_decay, sign=1.0, lr_multiplier=1.0)
        super().__init__(params, numbers)
        self._fixed = True
        self._options = dict(backend=backend, ema_decay=ema_decay, bf16_copy=bf16_copy, norms=norms)
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
        self._ema = self._bf16 = self.norms = None
        if ema_decay is not None:
            self._ema = shard.clone()
        if bf16_copy:
            self._bf16 = weights.bfloat16()
            self._flat.bf16_weights = [nn.Parameter(view) for view in self._flat.views(self._bf16)]
        if norms:
            self.norms = float64(len(self.param_groups), 2)
        decay = None if ema_decay is None else float64() + ema_decay
        self._buffers = Buffers(
            weights, self._momentum, self._flat.segments, self.hyper, self._ema, decay, self._bf16, self.norms
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
        self._update(self._buffers, self._flat.gradients())
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
            _check_number(name, value)
        for name, value in numbers.items():
            self._groups[group][name].fill_(value)

    def reset_momentum(self) -> None:
        """Set all momentum to zero, as a freshly built optimiser has it."""
        self._momentum.zero_()

    # --- averaged and bfloat16 weights -------------------------------------------------------------------------------

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Within, the parameters hold their averages; afterwards their own values again, to the bit.

        Raises:
            RuntimeError: the optimiser was built without `ema_decay`.
        """
        average = self._full(_required(self._ema, "ema_decay=..."))
        weights = self._flat.buffer.clone()
        try:
            self._overwrite(average)
            yield
        finally:
            self._overwrite(weights)

    @torch.no_grad()
    def _overwrite(self, weights: Tensor) -> None:
        self._flat.buffer.copy_(weights)
        increment_version(self._flat.params)
        if self._bf16 is not None:
            self.refresh_bf16()

    def bf16_weights(self) -> dict[str, Tensor]:
        """The bfloat16 weights by parameter name, with the weights' strides; every step refreshes them.

        They are leaves: a forward pass may read them instead of the parameters (`torch.func.functional_call`), and a
        step uses the bfloat16 gradients that arrive there. A `GradScaler`, which float16 needs, does not see these.

        Raises:
            RuntimeError: the optimiser was built without `bf16_copy`.
        """
        _required(self._bf16, "bf16_copy=True")
        return dict(zip(self._flat.names, self._flat.bf16_weights, strict=True))

    @torch.no_grad()
    def refresh_bf16(self) -> None:
        """Make the bfloat16 weights anew, after the weights were written by other means than a step."""
        _required(self._bf16, "bf16_copy=True").copy_(self._flat.buffer)
        increment_version(self._flat.bf16_weights)

    # --- state -------------------------------------------------------------------------------------------------------

    def momentum_state(self) -> dict[str, Tensor]:
        """Momentum by parameter name: contiguous copies in the parameters' shapes."""
        return self._flat.copies(self._full(self._momentum))

    def load_momentum_state(self, state: Mapping[str, Tensor]) -> None:
        """Write momentum by parameter name, from tensors of any memory layout.

        Raises:
            ValueError: names or shapes are not this optimiser's.
        """
        self._write(self._momentum, state)

    def ema_state(self) -> dict[str, Tensor]:
        """Averaged weights as `momentum_state` returns momentum; RuntimeError without `ema_decay`."""
        return self._flat.copies(self._full(_required(self._ema, "ema_decay=...")))

    def load_ema_state(self, state: Mapping[str, Tensor]) -> None:
        """Write averaged weights, as `load_momentum_state` does momentum."""
        self._write(_required(self._ema, "ema_decay=..."), state)

    def _shard(self, full: Tensor) -> Tensor:
        """The part of a flat buffer that this optimiser updates."""
        return full

    def _full(self, shard: Tensor) -> Tensor:
        """The flat buffer that a shard is a part of."""
        return shard

    def _write(self, buffer: Tensor, state: Mapping[str, Tensor]) -> None:
        self._flat.write(buffer, state)

    def state_dict(self) -> dict[str, Any]:
        """The state in torch's form: contiguous copies, and numbers as floats, which also `torch.optim.SGD` can load.

        SGD ignores `sign` and `lr_multiplier`: it descends at `lr`.
        """
        state = super().state_dict()
        state["state"] = {
            i: {key: tensor.clone(memory_format=torch.contiguous_format) for key, tensor in values.items()}
            for i, values in state["state"].items()
        }
        for group in state["param_groups"]:
            group.update({name: float(group[name]) for name in HYPERPARAMETERS}, **_SGD)
        return state

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state of torch's form, also one of `torch.optim.SGD`; memory layout, type and device may differ.

        Raises:
            ValueError: the state is not of these groups and shapes, or of another rule (Nesterov, dampening, maximize).
        """
        # torch's loader matches, converts and moves; the result is then written into the buffers that the kernel knows.
        groups, state = self.param_groups, self.state
        super().load_state_dict(state_dict)
        loaded_groups, loaded = self.param_groups, self.state
        self.param_groups, self.state = groups, state

        for group, other in zip(groups, loaded_groups, strict=True):
            if other.get("name", group["name"]) != group["name"]:
                raise ValueError(f"the state is of a group called {other['name']!r}, here it is {group['name']!r}")
            for rule in _SGD:
                if other.get(rule):
                    raise ValueError(f"the state is of an SGD with {rule}, which AnnealedSGD does not have")
        for key, buffer in self._saved.items():
            # what was not saved starts as in a fresh optimiser
            fresh = torch.zeros_like if key == "momentum_buffer" else torch.clone
            tensors = [loaded.get(p, {}).get(key) for p in self._flat.params]
            tensors = [fresh(p) if t is None else t for t, p in zip(tensors, self._flat.params, strict=True)]
            self._flat.write(buffer, dict(zip(self._flat.names, tensors, strict=True)))
        for group, other, views in zip(groups, loaded_groups, self._groups.values(), strict=True):
            for name, view in views.items():
                view.fill_(other.get(name, view))
            group.update({key: value for key, value in other.items() if key not in group | _SGD})
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
        unwrap(Optimizer.add_param_group)(self, param_group)

    def __reduce__(self) -> tuple[Any, ...]:
        """For `copy` and `pickle`; see `_rebuild`."""
        tensors = (self.hyper, self._momentum, self._ema, self.norms)
        return _rebuild, (type(self), [dict(group) for group in self.param_groups], self._options, tensors)


def _rebuild(kind: type[AnnealedSGD], groups: list[dict[str, Any]], options: dict[str, Any], tensors: Any) -> Any:
    for group in groups:
        if names := group.pop("param_names", None):
            group["params"] = list(zip(names, group["params"], strict=True))
    made = kind(groups, torch.zeros(()), **options)
    for target, value in zip((made.hyper, made._momentum, made._ema, made.norms), tensors, strict=True):
        if target is not None:
            target.copy_(value)
    return made


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


def _required(buffer: Tensor | None, argument: str) -> Tensor:
    if buffer is None:
        raise RuntimeError(f"this optimiser does not keep that: build AnnealedSGD with {argument}")
    return buffer
