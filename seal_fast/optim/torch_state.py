"""An optimiser's state in torch's form: what `torch.optim.SGD`, `copy` and `pickle` understand."""

from __future__ import annotations

import math
from inspect import unwrap
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from seal_fast.kernels.annealed_sgd import HYPERPARAMETERS
from seal_fast.optim.flat_state import FlatState

# What torch.optim.SGD reads from a state's groups beside the numbers.
_SGD = dict(dampening=0, nesterov=False, maximize=False)


class TorchState(FlatState):
    """`state_dict`, `load_state_dict`, `copy` and `pickle`."""

    hyper: Tensor
    norms: Tensor | None
    _options: dict[str, Any]
    _groups: dict[str, dict[str, Tensor]]
    _saved: dict[str, Tensor]

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
        if hasattr(self, "_flat"):
            raise RuntimeError("AnnealedSGD's groups are fixed for life: give them all at construction")
        numbers = {name: param_group.get(name, self.defaults[name]) for name in HYPERPARAMETERS}
        if not isinstance(numbers["lr"], Tensor):
            raise TypeError(
                f"lr must be a tensor, which graphs read anew each step: pass torch.tensor({numbers['lr']})"
            )
        for name, value in numbers.items():
            check_number(name, value)
        unwrap(Optimizer.add_param_group)(self, param_group)

    def __reduce__(self) -> tuple[Any, ...]:
        """For `copy` and `pickle`; see `_rebuild`."""
        tensors = (self.hyper, self._momentum, self._ema, self.norms, self._held)
        return _rebuild, (type(self), [dict(group) for group in self.param_groups], self._options, tensors)


def _rebuild(kind: type[Any], groups: list[dict[str, Any]], options: dict[str, Any], tensors: Any) -> Any:
    for group in groups:
        if names := group.pop("param_names", None):
            group["params"] = list(zip(names, group["params"], strict=True))
    made = kind(groups, torch.zeros(()), **options)
    for target, value in zip((made.hyper, made._momentum, made._ema, made.norms, made._held), tensors, strict=True):
        if target is not None:
            target.copy_(value)
    return made


def check_number(name: str, value: float | Tensor) -> None:
    """Raise ValueError unless a group can have this number."""
    if name not in HYPERPARAMETERS:
        raise ValueError(f"{name} is no number of a group; these are: {', '.join(HYPERPARAMETERS)}")
    if isinstance(value, Tensor):
        if value.dim() != 0:
            raise ValueError(f"{name} must be a 0-dimensional tensor, not one of shape {list(value.shape)}")
    elif name == "sign":
        if value not in (1, -1):
            raise ValueError(f"sign must be 1 (descent) or -1 (ascent), not {value}")
    elif name == "weight_decay":
        if not math.isfinite(value):
            raise ValueError(f"weight_decay must be a finite number, not {value}")
    elif not (0 <= value < math.inf):
        raise ValueError(f"{name} must be a finite number of at least 0, not {value}")
