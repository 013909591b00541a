"""`python -m seal_fast layers`: the modules of a network at which it can be cut into early and late layers."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from seal_fast.methods.partition import ForwardOrder, split
from seal_fast.models.order import forward_order
from seal_fast.models.registry import build
from seal_fast.utils.table import table


def main(argv: Sequence[str]) -> int:
    """Print the table, or with --layer-threshold the two groups."""
    parser = argparse.ArgumentParser(
        prog="python -m seal_fast layers",
        description="The modules that --layer-threshold may name, in forward order, with the share of the parameters "
        "before each (early) and from it on (late).",
    )
    add = parser.add_argument
    add("--model", default="resnet18", help="as in training; default: resnet18")
    add("--stem", choices=("imagenet", "small"), default="imagenet", help="as in training; default: imagenet")
    add("--width", type=float, default=1.0, help="as in training; default: 1")
    add("--num-classes", type=int, default=200, help="classes of the data; default: 200")
    add("--image-size", type=int, default=64, help="pixels a side of the images; default: 64")
    add("--layer-threshold", help="print the two groups that this module makes")
    flags = parser.parse_args(list(argv))
    model = build(flags.model, flags.num_classes, flags.stem, width=flags.width)
    order = forward_order(model, flags.image_size, flags.num_classes, f"--model {flags.model}")
    print(f"{flags.model}: {order.count():,} parameters in {len(order.sizes)} tensors; classifier {order.classifier}\n")
    print(split(order, (flags.layer_threshold,)) if flags.layer_threshold else _table(order))
    return 0


def _table(order: ForwardOrder) -> str:
    rows, total = [("module", "parameters", "early %", "late %")], order.count()
    for module in order.modules():
        start = order.position(module, "")
        if 0 < start < len(order.sizes):
            own = sum(size for name, size in order.sizes.items() if name.startswith(module + "."))
            early = order.count(stop=start)
            rows.append((module, f"{own:,}", f"{100 * early / total:.1f}", f"{100 * (total - early) / total:.1f}"))
    return table(rows)
