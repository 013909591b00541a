"""Networks by name: registered ones, and those that a factory of the user's returns."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from seal_fast.models.convnext import ConvNeXt
from seal_fast.models.densenet import DenseNet
from seal_fast.models.init import initialise_
from seal_fast.models.layers import Network, Stem, check_stem, scaled
from seal_fast.models.resnet import resnet18, resnet34, resnet50
from seal_fast.models.vgg import VGG
from seal_fast.models.vit import VisionTransformer
from seal_fast.models.wide_resnet import WideResNet
from seal_fast.networks import Factory, Registered, parse
from seal_fast.utils.errors import UsageError
from seal_fast.utils.memory import free_bytes

# (name, classes, stem, width); wrn, densenet-bc and vgg16-bn have one stem, their papers'.
MODELS: dict[str, Callable[[Registered, int, Stem, float], Network]] = {
    "resnet18": lambda _, classes, stem, width: resnet18(classes, stem, scaled(64, width)),
    "resnet34": lambda _, classes, stem, width: resnet34(classes, stem, scaled(64, width)),
    "resnet50": lambda _, classes, stem, width: resnet50(classes, stem, scaled(64, width)),
    "wrn-D-K": lambda name, classes, _, width: WideResNet(name.depths, name.factor, classes, width),
    "densenet-bc-D-K": lambda name, classes, _, width: DenseNet(name.depths, name.factor, classes, None, width),
    "densenet121": lambda name, *rest: DenseNet(name.depths, 32, *rest),
    "densenet169": lambda name, *rest: DenseNet(name.depths, 32, *rest),
    "vgg16-bn": lambda name, classes, _, width: VGG(name.depths, classes, width),
    "convnext-tiny": lambda name, *rest: ConvNeXt(name.depths, *rest),
    "vit-tiny": lambda name, *rest: VisionTransformer(name.depths, 192, *rest),
}


def build(name: str, num_classes: int, stem: Stem = "imagenet", seed: int = 0, width: float = 1.0) -> Any:
    """A float32 model on the CPU whose initial weights depend on `seed`; the global random state stays as it is.

    Those of a registered network depend on its parameters' names and the seed alone. A factory's network draws its own,
    from torch's global generator seeded with `seed`.

    Args:
        name: of a registered network such as resnet18 or wrn-28-10, or `package.module:factory(option=value)`; the
            module is imported. See `seal_fast.networks.parse`.
        stem: `imagenet` (for large images) or `small`; see the networks.
        width: factor on the channels of a registered network.

    Raises:
        UsageError: unknown name or stem; a registered network does not fit into memory; or the factory cannot be
            imported or returns no module.
    """
    what = parse(name)
    if not 0 < width < float("inf"):
        raise UsageError(f"--width {width:g}: must be a finite number above 0")
    if isinstance(what, Factory):
        if width != 1:
            raise UsageError(f"--width {width:g}: is for registered networks; give --model {name} options of its own")
        return _made(what, num_classes, seed, f"--model {name}")
    # Built on the meta device, the layers skip their own random initialisation.
    with torch.device("meta"):
        model = architecture(name, num_classes, stem, width)
    parameters = sum(p.numel() for p in model.parameters())
    needed, free = 3 * 4 * parameters, free_bytes(torch.device("cpu"))
    if needed > free:
        wide = f" --width {width:g}" if width != 1 else ""
        raise UsageError(
            f"--model {name}{wide} has {parameters:,} parameters, whose weights, gradients and momentum take "
            f"{needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free: choose a smaller network"
        )
    # As to_empty, which imports sympy for it: a second of every start.
    empty = {name: torch.empty(t.shape, dtype=t.dtype, device="cpu") for name, t in model.state_dict().items()}
    model.load_state_dict(empty, assign=True)
    initialise_(model, seed)
    return model


def architecture(name: str, num_classes: int, stem: Stem = "imagenet", width: float = 1.0) -> Any:
    """A registered network whose layers have drawn their own weights; arguments as in `build`."""
    check_stem(stem)
    what = parse(name)
    assert isinstance(what, Registered)
    return MODELS[what.family](what, num_classes, stem, width)


def _made(what: Factory, num_classes: int, seed: int, flag: str) -> nn.Module:
    try:
        factory = getattr(importlib.import_module(what.module), what.name)
    except Exception as error:
        raise UsageError(f"{flag}: cannot be imported ({type(error).__name__}: {error})") from error
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        try:
            model = factory(num_classes=num_classes, **what.options)
        except Exception as error:
            raise UsageError(f"{flag}: the call fails ({type(error).__name__}: {error})") from error
    if not isinstance(model, nn.Module):
        raise UsageError(f"{flag}: returns {type(model).__name__}, no torch.nn.Module")
    model.to(device="cpu", dtype=torch.float32)
    if any(p.is_meta for p in model.parameters()):
        raise UsageError(f"{flag}: leaves parameters on the meta device, without values")
    if not any(p.requires_grad for p in model.parameters()):
        raise UsageError(f"{flag}: has no parameter to train")
    return model
