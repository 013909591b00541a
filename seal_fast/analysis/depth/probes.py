"""The probe points of a network: its input, what the first block reads, the outputs of blocks, and its softmax."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seal_fast.models import Network
from seal_fast.utils.errors import UsageError


def parse_pooling(text: str) -> int | None:
    """`none`, `avg` or a number as the side that feature maps are averaged to: None, 1 or that number.

    Raises:
        UsageError: it is none of these.
    """
    sides = {"none": None, "avg": 1}
    if text in sides:
        return sides[text]
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"--pool {text}: choose none, avg, or the side of the pooled maps such as 4")
    return int(text)


def flatten(x: Tensor, pooling: int | None) -> Tensor:
    """Activations as float32 vectors [N, D]; maps [N, C, H, W] averaged to at most `pooling` x `pooling` places.

    Of tokens [N, T, C] at most pooling^2 averages are left. What is no larger stays as it is. The entries' order is
    that of channels-last memory.
    """
    x = x.float()
    if x.ndim == 4:
        if pooling is not None:
            x = F.adaptive_avg_pool2d(x, (min(pooling, x.shape[2]), min(pooling, x.shape[3])))
        x = x.permute(0, 2, 3, 1)
    elif x.ndim == 3 and pooling is not None:
        x = F.adaptive_avg_pool1d(x.mT, min(pooling**2, x.shape[1])).mT
    return x.flatten(1)


def probe_modules(network: nn.Module, names: str | None = None) -> dict[str, nn.Module]:
    """The modules after which there is a probe, by name.

    Args:
        network: the network.
        names: of modules, with commas between them. None stands for the blocks: of a registered network its own; of
            another one the modules that lie in an nn.Sequential or nn.ModuleList and hold modules themselves, or else
            all the network's direct parts.

    Raises:
        UsageError: one of the names is no module.
    """
    modules = dict(network.named_modules())
    if names:
        if unknown := [name for name in names.split(",") if name not in modules]:
            raise UsageError(f"--probes {names}: the network has no module called {unknown[0]!r}")
        return {name: modules[name] for name in names.split(",")}
    if isinstance(network, Network):
        return dict(network.blocks())
    lists = nn.Sequential, nn.ModuleList
    inside = {
        name: module
        for name, module in modules.items()
        if "." in name and isinstance(modules[name.rpartition(".")[0]], lists) and not isinstance(module, lists)
    }
    blocks = {name: m for name, m in inside.items() if any(m.children())}
    outer = {name: m for name, m in blocks.items() if not any(name.startswith(other + ".") for other in blocks)}
    return outer or dict(network.named_children())


def parameters_by_block(network: nn.Module, modules: Mapping[str, nn.Module]) -> dict[str, list[str]]:
    """The names of the parameters of each of these modules, of what precedes them (`stem`), and of the rest (`head`).

    Before and after are in the order of registration; a part without parameters is left out.
    """
    found: dict[str, list[str]] = {"stem": [], **{name: [] for name in modules}, "head": []}
    rest = "stem"
    for name, _ in network.named_parameters():
        block = next((block for block in modules if name.startswith(block + ".")), None)
        rest = "head" if block else rest
        found[block or rest].append(name)
    return {name: names for name, names in found.items() if names}


def run_probes(
    network: nn.Module,
    images: Tensor,
    take: Callable[[str, Tensor], None],
    pooling: int | None = None,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    modules: Mapping[str, nn.Module] | None = None,
) -> None:
    """One forward pass over images [N, 3, S, S]; `take` is called with name and float32 [N, D] of every probe.

    In forward order: `input`, of a registered network `stem` (what the first block reads), each module (its first
    call), and `softmax` (never pooled). Memory holds one of them at a time if `take` keeps none. `autocast` makes the
    context in which the network computes; `take` runs outside it.

    Raises:
        UsageError: a module is not called, or returns no tensor.
    """
    modules = probe_modules(network) if modules is None else modules
    seen: set[str] = set()

    def at(name: str, x: Any) -> None:
        if name in seen:
            return
        seen.add(name)
        x = x[0] if isinstance(x, tuple) and x else x
        if not isinstance(x, Tensor):
            raise UsageError(f"--probes {name}: returns a {type(x).__name__} and no tensor")
        with torch.autocast(x.device.type, enabled=False):
            take(name, flatten(x, pooling))

    with ExitStack() as stack, torch.no_grad():
        at("input", images)
        if isinstance(network, Network):
            first = next(module for _, module in network.blocks())
            stack.enter_context(first.register_forward_pre_hook(lambda _, args: at("stem", args[0])))
        for name, module in modules.items():
            stack.enter_context(module.register_forward_hook(lambda _, args, output, name=name: at(name, output)))
        with autocast():
            logits = network(images)
    if missing := [name for name in modules if name not in seen]:
        raise UsageError(f"--probes {missing[0]}: the network does not call this module")
    take("softmax", logits.float().softmax(1))
