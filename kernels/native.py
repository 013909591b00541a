"""Loads the native CPU kernels: the extension module of the highest x86-64 level that this CPU runs."""

from __future__ import annotations

import functools
import importlib
import platform
from types import ModuleType

import torch

CURE = (
    "the native CPU kernels are not installed: install a C++ compiler (g++ or clang++ with OpenMP) and "
    "run `pip install -e .` again, or choose the backend 'reference'"
)


class NativeKernelsMissing(RuntimeError):
    """The native kernels were asked for, and this installation has none that this CPU can run."""


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
    """The extension module.

    Raises:
        NativeKernelsMissing: with the cure, where there is none.
    """
    found = module()
    if found is None:
        raise NativeKernelsMissing(CURE)
    return found
