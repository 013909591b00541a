"""Which parameters belong to a block of the Hessian."""

from __future__ import annotations

from torch import nn

from seal_fast.methods.partition import split
from seal_fast.models import forward_order
from seal_fast.utils.errors import UsageError


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
