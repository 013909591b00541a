"""Loads the native CPU kernels: the extension module of the highest x86-64 level that this CPU runs."""

from __future__ import annotations

import functools
import importlib
import platform
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

CURE = (
    "the native CPU kernels are not installed: install a C++ compiler (g++ or clang++ with OpenMP) and "
    "run `pip install -e .` again, or choose the backend 'reference'"
)


def levels() -> tuple[str, ...]:
    """Names of the extension modules this CPU can run, best first."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return ("_native_baseline",)
    capability = torch.backends.cpu.get_cpu_capability()
    best = {"AVX512": ("_native_x86_64_v4", "_native_x86_64_v3"), "AVX2": ("_native_x86_64_v3",)}
    return (*best.get(capability, ()), "_native_baseline")


@functools.cache
def module() -> ModuleType | None:
    """The extension module, or None where the package was installed without a C++ compiler."""
    for level in levels():
        try:
            return importlib.import_module(f"seal_fast.kernels.{level}")
        except ModuleNotFoundError:
            continue
    return None


def available() -> bool:
    """Whether native kernels can run here."""
    return module() is not None


def require() -> ModuleType:
    """The extension module; RuntimeError, with the cure, where there is none."""
    found = module()
    if found is None:
        raise RuntimeError(CURE)
    return found


def function(name: str, dtype: torch.dtype) -> Callable:
    """A kernel that is compiled once a dtype, such as `norm_act_float32`."""
    return getattr(require(), f"{name}_{str(dtype).removeprefix('torch.')}")


def address(tensor: Tensor | None) -> int:
    """Where a tensor begins; 0 for none."""
    return 0 if tensor is None else tensor.data_ptr()


def channels_last(x: Tensor) -> Tensor:
    """The tensor [N, C, H, W] itself if it lies in memory as [N, H, W, C], else such a copy."""
    return x.contiguous(memory_format=torch.channels_last)
