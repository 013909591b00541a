"""Make torch's compiler believe that a GPU is there. The change is permanent: use it in a process of its own.

It replaces private names of the torch version in `TORCH`; `unsupported` refuses any other.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from bench.gpu_report.cards import Card

TORCH = "2.13"


def unsupported() -> str | None:
    """Why this torch cannot do it, with the cure; None if it can."""
    if torch.__version__.startswith(f"{TORCH}."):
        return None
    return (
        f"the step report uses private names of torch {TORCH} and this is torch {torch.__version__}: "
        f"use it with torch {TORCH}"
    )


def card(card: Card) -> None:
    """Answer the questions that torch.compile asks about the device as this card would."""
    capability = divmod(card.arch, 10)
    properties = SimpleNamespace(
        name=card.name,
        major=capability[0],
        minor=capability[1],
        multi_processor_count=card.processors,
        regs_per_multiprocessor=card.registers,
        max_threads_per_multi_processor=card.warps * 32,
        max_threads_per_block=1024,
        warp_size=32,
        shared_memory_per_block=48 << 10,
        shared_memory_per_block_optin=card.shared_memory_per_block,
        shared_memory_per_multiprocessor=card.shared_memory,
        L2_cache_size=card.l2_cache,
        total_memory=80 << 30,
        gcnArchName="",  # read on every card, AMD or not
    )
    answers = {
        "is_available": True,
        "is_bf16_supported": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_capability": capability,
        "get_device_properties": properties,
        "get_rng_state": torch.empty(0),
        "set_rng_state": None,
        "_exchange_device": 0,
        "_maybe_exchange_device": 0,
    }
    # Before torch._dynamo is imported, which copies some of these functions.
    for name, value in answers.items():
        setattr(torch.cuda, name, _always(value))
    # What cuDNN answers: channels-last if either operand is. A CPU build knows no cuDNN, would have each convolution
    # return NCHW, and Inductor would convert every activation back and forth.
    torch._C._conv_determine_backend_memory_format = _cudnn_memory_format

    import triton
    from triton.backends.compiler import GPUTarget

    driver: Any = SimpleNamespace(get_current_target=_always(GPUTarget("cuda", card.arch, 32)))
    triton.runtime.driver.set_active(driver)


def _always(value: object) -> Callable[..., object]:
    return lambda *args, **kwargs: value


def _cudnn_memory_format(images: Tensor, weight: Tensor, backend: object) -> torch.memory_format:
    from torch._prims_common import suggest_memory_format

    last = torch.channels_last
    return last if last in (suggest_memory_format(images), suggest_memory_format(weight)) else torch.contiguous_format
