"""The forward order of a network's parameters and modules, found by running it once; what hangs on the classifier."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from seal_fast.methods.partition import ForwardOrder, split
from seal_fast.utils.errors import UsageError


def forward_order(model: nn.Module, image_size: int, num_classes: int | None = None, flag: str = "") -> ForwardOrder:
    """The forward order of a network of images, by `order_of_use` on two black ones.

    Args:
        model: reads images [N, 3, S, S] and returns logits [N, num_classes].
        num_classes: None does not check the output.
        flag: that names the network, for errors.

    Raises:
        UsageError: the pass fails, or its result is not [2, num_classes].
    """
    like = next(model.parameters())
    images = torch.zeros(2, 3, image_size, image_size, dtype=like.dtype, device=like.device)
    flag = flag or "the network"
    order, logits = order_of_use(model, (images,), f"{flag}: fails on images of {image_size} px")
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else None
    if num_classes is not None and shape != (2, num_classes):
        given = f"a tensor of shape {shape}" if shape else f"a {type(logits).__name__}"
        raise UsageError(
            f"{flag}: returns {given} for 2 images and {num_classes} classes, not logits of shape (2, {num_classes})"
        )
    return order


def order_of_use(model: nn.Module, inputs: tuple[Any, ...], failure: str) -> tuple[ForwardOrder, Any]:
    """Run a network in eval mode and note when each parameter is first used; the order, and what the network returns.

    The global random state, the network's mode and its buffers are left as they are. Parameters that the pass does not
    use come last. `failure` begins the sentence of an error.

    Raises:
        UsageError: the pass fails.
    """
    parameters = dict(model.named_parameters())
    names = {id(p): name for name, p in parameters.items()}
    seen: dict[str, int] = {}
    starts: dict[str, int] = {}

    class Uses(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            for p in _tensors((args, kwargs or {})):
                if (name := names.get(id(p))) is not None:
                    seen.setdefault(name, p.numel())
            return func(*args, **(kwargs or {}))

    def note(name: str, *_: Any) -> None:
        starts.setdefault(name, len(seen))

    modes = {module: module.training for module in model.modules()}
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    like = next(iter(parameters.values()))
    with ExitStack() as stack:
        for name, module in model.named_modules():
            stack.enter_context(module.register_forward_pre_hook(partial(note, name)))
        stack.enter_context(torch.random.fork_rng(devices=[like.device] if like.is_cuda else []))
        stack.enter_context(torch.no_grad())
        model.eval()
        try:
            with Uses():
                result = model(*inputs)
        except Exception as error:
            sentence = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UsageError(f"{failure} ({sentence})") from error
        finally:
            for module, training in modes.items():
                module.training = training
            for name, b in model.named_buffers():
                b.copy_(buffers[name])
    sizes = seen | {name: p.numel() for name, p in parameters.items() if name not in seen}
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    used = [name.removesuffix(".weight") for name in seen if name.removesuffix(".weight") in linear]
    starts.pop("", None)
    return ForwardOrder(sizes, starts, used[-1] if used else ""), result


def registration_order(model: nn.Module) -> ForwardOrder:
    """The order in which the parameters are registered: for a model that cannot be run here."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return ForwardOrder({name: p.numel() for name, p in model.named_parameters()}, classifier=[*linear, ""][-1])


def group_names(model: nn.Module, group: str, threshold: str = "layer3", image_size: int = 64) -> list[str]:
    """Parameter names of a group: "all", "early", "late", or a layer such as layer4.1 or fc.

    `image_size` is of the image that finds the forward order.

    Raises:
        UsageError: there is no such layer, or it has no parameters.
    """
    parameters = [name for name, _ in model.named_parameters()]
    if group == "all":
        return parameters
    if group in ("early", "late"):
        chosen = split(forward_order(model, image_size), (threshold,)).groups[group]
        return [name for name in parameters if name in chosen]
    names = [name for name in parameters if name == group or name.startswith(group + ".")]
    if not names:
        exists = group in dict(model.named_modules())
        why = "that layer has no parameters" if exists else "the model has no such layer"
        layers = ", ".join(dict.fromkeys(name.split(".")[0] for name in parameters))
        raise UsageError(f"--group {group}: {why}; choose all, early, late, one of {layers}, or a block of one")
    return names


def features(model: nn.Module, images: Tensor, classifier: str) -> Tensor:
    """What the classifier, a linear layer, reads for images [N, 3, S, S]: [N, D]."""
    found: list[Tensor] = []
    with model.get_submodule(classifier).register_forward_pre_hook(lambda _, args: found.append(args[0])):
        model(images)
    return found[-1].flatten(1)


def _tensors(values: Any) -> Any:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from _tensors(value)
    elif isinstance(values, dict):
        yield from _tensors(list(values.values()))
