"""What `--model` may name: a registered network, or a factory in a module of the user's. No torch."""

from __future__ import annotations

import ast
import difflib
import re
from dataclasses import dataclass
from typing import Any

from seal_fast.utils.errors import UsageError

# Blocks of each layer; those with D in their name have (D - 4) / 6 blocks in each of three.
_DEPTHS: dict[str, tuple[int, ...]] = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "wrn-D-K": (),
    "densenet-bc-D-K": (),
    "densenet121": (6, 12, 24, 16),
    "densenet169": (6, 12, 32, 32),
    "vgg16-bn": (2, 2, 3, 3, 3),
    "convnext-tiny": (3, 3, 9, 3),
    "vit-tiny": (3, 3, 3, 3),
}


@dataclass(frozen=True)
class Registered:
    """A network of `seal_fast.models`.

    Attributes:
        family: its key in `seal_fast.models.MODELS`, such as resnet18 or wrn-D-K.
        depths: blocks of each layer: `layer1.0`, `layer1.1`, ...
        factor: K, the widening factor of a wrn or the growth rate of a densenet-bc; 0 for the others.
    """

    family: str
    depths: tuple[int, ...]
    factor: int = 0

    def blocks(self) -> list[str]:
        """The blocks' names in forward order."""
        return [f"layer{layer}.{i}" for layer, depth in enumerate(self.depths, 1) for i in range(depth)]


@dataclass(frozen=True)
class Factory:
    """A callable of the user's that returns a network; it is called as `name(num_classes=N, **options)`."""

    module: str
    name: str
    options: dict[str, Any]


def parse(model: str) -> Registered | Factory:
    """What a model's name means: `wrn-28-10`, or `package.module:factory(depth=12, width=2.0)`. Imports nothing.

    Raises UsageError if it means nothing.
    """
    if ":" in model:
        return _factory(model)
    if model in _DEPTHS and "-D-" not in model:
        return Registered(model, _DEPTHS[model])
    if found := re.fullmatch(r"(wrn|densenet-bc)-(\d+)-(\d+)", model):
        depth, factor = int(found[2]), int(found[3])
        if depth < 10 or depth % 6 != 4 or not factor:
            raise UsageError(f"--model {model}: the depth must be 6 n + 4, such as 28 or 100, and K positive")
        return Registered(f"{found[1]}-D-K", ((depth - 4) // 6,) * 3, factor)
    near = difflib.get_close_matches(model, [*_DEPTHS, "wrn-28-10", "densenet-bc-100-12"], 1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UsageError(
        f"--model {model}: no network has that name; {hint}choose one of {', '.join(_DEPTHS)} (D, K: numbers), or "
        "package.module:factory of your own"
    )


def _factory(model: str) -> Factory:
    module, _, call = model.partition(":")
    try:
        node = ast.parse(call, mode="eval").body
        name, given = (node.func, node.keywords) if isinstance(node, ast.Call) and not node.args else (node, [])
        options = {keyword.arg or "": ast.literal_eval(keyword.value) for keyword in given}
        if not isinstance(name, ast.Name) or "" in options or not all(map(str.isidentifier, module.split("."))):
            raise ValueError
    except (SyntaxError, ValueError):
        raise UsageError(
            f"--model {model}: write package.module:factory, or package.module:factory(depth=12, width=2.0) with plain "
            "values by name"
        ) from None
    if "num_classes" in options:
        raise UsageError(f"--model {model}: num_classes is the data's; leave it out")
    return Factory(module, name.id, options)


def code_flags(model: str) -> list[str]:
    """What a command that reads a run folder must be given: a file alone never names code to import."""
    return ["--model", model] if ":" in model else []


def short(model: str) -> str:
    """A model's name for folders."""
    return re.sub(r"[^\w.+-]", "_", model.partition(":")[2].partition("(")[0] or model)
