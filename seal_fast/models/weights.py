"""Public weights (safetensors with torchvision's names) for a model."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from seal_fast.utils.errors import UsageError
from seal_fast.utils.files import read_tensors


@torch.no_grad()
def load_weights(model: nn.Module, path: str | Path, fc: bool = True, classifier: str = "fc") -> None:
    """Copy a safetensors file into `model`; every parameter and buffer must be there, and nothing else.

    There are two exceptions. A file without any tensor of the classifier (a backbone) leaves the model's own as it is,
    and the BatchNorm counters `num_batches_tracked`, which old files lack, may be absent. The model keeps its dtype,
    device and memory format.

    Args:
        model: a network such as `models.build` makes; ResNets have torchvision's names.
        fc: False leaves the model's fc as it is even where the file has one (for another set of classes).
        classifier: the name of the last linear layer.

    Raises:
        UsageError: the file is missing or not safetensors, holds another architecture, or another number of classes.
    """
    tensors, head = _read(Path(path)), f"{classifier}."
    if not fc:
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(head)}
    wanted = model.state_dict()
    if not any(name.startswith(head) for name in tensors):
        wanted = {name: tensor for name, tensor in wanted.items() if not name.startswith(head)}
    _check(wanted, tensors, path, head)
    for name, tensor in tensors.items():
        wanted[name].copy_(tensor)


def _read(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError

    if not path.is_file():
        raise UsageError(f"{path}: no such file; name a .safetensors file of weights with torchvision's names")
    try:
        return read_tensors(path)[0]
    except (OSError, SafetensorError) as error:
        raise UsageError(
            f"{path} is not a readable safetensors file ({error}); "
            "save the weights with safetensors.torch.save_file(model.state_dict(), path)"
        ) from error


def _check(wanted: dict[str, Tensor], tensors: dict[str, Tensor], path: str | Path, head: str) -> None:
    missing = [n for n in wanted if n not in tensors and not n.endswith(".num_batches_tracked")]
    extra = [n for n in tensors if n not in wanted]
    differing = [n for n in wanted if n in tensors and wanted[n].shape != tensors[n].shape]
    if not (missing or extra or differing):
        return
    if not missing and not extra and all(n.startswith(head) for n in differing):
        raise UsageError(
            f"{path} was trained on {len(tensors[differing[0]])} classes, the model has {len(wanted[differing[0]])}: "
            "choose data with as many classes, or --no-init-fc to start with a fresh last layer"
        )
    if not missing and not extra and differing == ["conv1.weight"]:
        raise UsageError(
            f"{path} has another stem: its conv1.weight is {_shape(tensors['conv1.weight'])}, the model's "
            f"{_shape(wanted['conv1.weight'])}; choose the other --stem"
        )
    reasons = []
    if missing:
        reasons.append(f"{len(missing)} tensors are missing, {missing[0]} first")
    if extra:
        reasons.append(f"{len(extra)} are unknown, {extra[0]} first")
    if differing:
        name = differing[0]
        reasons.append(f"{name} is {_shape(tensors[name])} instead of {_shape(wanted[name])}")
    raise UsageError(
        f"{path} holds weights of another architecture ({'; '.join(reasons)}): choose the --model they are for"
    )


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape))
