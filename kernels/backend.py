"""Which implementation of an op runs: the plain-torch reference, the native C++ kernel or the Triton kernel."""

from __future__ import annotations

import functools
import importlib.util
import logging
from typing import Literal, get_args

import torch

from seal_fast.kernels import native
from seal_fast.kernels.torch_private import constant

Backend = Literal["auto", "reference", "native", "triton"]

_BOTH = {"cpu": "native", "cuda": "triton"}
_KERNELS: dict[str, dict[str, str]] = {
    "augment": {"cuda": "triton"},
    **dict.fromkeys(("nearest", "norm_act"), {"cpu": "native"}),
}
"""Kernels by device type, of the ops that lack one of the two; elsewhere they run their reference."""

_log = logging.getLogger("seal_fast")


class BackendUnavailable(RuntimeError):
    """A backend was asked for by name, and it cannot run here. The message says what would cure that."""


def resolve(op: str, requested: str, device: torch.device) -> str:
    """The backend that runs `op` on tensors of `device`: "reference", "native" or "triton".

    `auto` means native on the CPU and triton on CUDA if the op has such a kernel, else the reference. Where a kernel is
    not installed, `auto` falls back to the reference and says so once per op and device type, through the logger
    `seal_fast`.

    Raises:
        ValueError: `requested` is no `Backend`.
        BackendUnavailable: `requested` was named and cannot run on `device`; the message carries the cure.
    """
    return _resolve(op, requested, device.type)


# Cached, so that a step pays one dictionary lookup, and so that a fallback is reported once. Exceptions are not cached.
@functools.cache
def _resolve(op: str, requested: str, device: str) -> str:
    if requested not in get_args(Backend):
        raise ValueError(f"{op}: backend must be one of {', '.join(get_args(Backend))}, not {requested!r}")
    if requested != "auto":
        if reason := _unavailable(op, requested, device):
            raise BackendUnavailable(f"{op}: {reason}")
        return requested
    best = _KERNELS.get(op, _BOTH).get(device, "reference")
    if reason := _unavailable(op, best, device):
        _log.warning("%s runs its slow reference on %s: %s", op, device, reason)
        return "reference"
    return best


@constant
def is_native(op: str, requested: str, device: str) -> bool:
    """Whether `resolve` chooses the native kernel; for graphs under torch.compile, where it is a constant."""
    return _resolve(op, requested, device) == "native"


def _unavailable(op: str, backend: str, device: str) -> str | None:
    """Why `backend` cannot run on tensors of that device type, with the cure; None where it can."""
    if backend != "reference" and backend not in _KERNELS.get(op, _BOTH).values():
        return f"there is no {backend} kernel of it; choose backend 'auto'"
    if backend == "native":
        if device != "cpu":
            return f"the native kernel runs on CPU tensors, not on {device}; choose backend 'auto' or move the tensors"
        if not native.available():
            return native.CURE
    if backend == "triton":
        if importlib.util.find_spec("triton") is None:
            return "triton is not installed; run `pip install triton` or choose backend 'auto'"
        if device != "cuda" and not _interpreting():
            return (
                f"the Triton kernel runs on CUDA tensors, not on {device}; choose backend 'auto', or set "
                "TRITON_INTERPRET=1 before the first import of triton to run it slowly in Python"
            )
    return None


def _interpreting() -> bool:
    from triton import knobs

    return knobs.runtime.interpret
