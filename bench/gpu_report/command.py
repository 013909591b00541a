"""`python -m bench.gpu_report`: the flags, and which of the two reports they ask for."""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.gpu_report.datasheet import CARDS
from seal_fast.utils.errors import RunError, UsageError

_STEP_FLAGS = ("model", "stem", "batch", "image_size", "classes", "amp", "layout")


def main(argv: Sequence[str]) -> int:
    """Print the report that the flags ask for; returns the exit code.

    Raises:
        UsageError: flags of the two reports are mixed, or a number is out of range.
        RunError: this torch or Triton cannot compile for a GPU that is not there.
    """
    arguments = _parse(argv)
    if importlib.util.find_spec("triton") is None:
        raise RunError("kernels compiles with Triton, which is not installed: run `pip install triton` (on Linux)")
    if arguments.step:
        from bench.gpu_report import step_report

        result = step_report.run(_request(arguments))
        print(json.dumps(result, indent=2) if arguments.json else step_report.text(result))
        return 0
    if given := [f"--{name.replace('_', '-')}" for name in _STEP_FLAGS if getattr(arguments, name) is not None]:
        raise UsageError(f"{given[0]} describes the training step: add --step, or drop it")

    import torch

    from bench.gpu_report import kernels_report, measure

    kernels = kernels_report.compile_all([arguments.arch] if arguments.arch else list(CARDS))
    if arguments.dump:
        kernels_report.dump(kernels, arguments.dump)
    measured = measure.updates(torch.device("cuda"), measure.gpu_seconds) if torch.cuda.is_available() else []
    if arguments.json:
        rows = [kernels_report.row(k) for k in kernels]
        print(json.dumps({"compiled": rows, "measured": measured}, indent=2))
    else:
        print(kernels_report.text(kernels))
        print("\n" + measure.text(measured))
    return 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu_report",
        description="Compile the Triton kernels for GPUs that need not be there, and judge the result.",
    )
    parser.add_argument("--arch", type=int, choices=CARDS, help="80 (A100) or 90 (H100); default: both, --step: 80")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--dump", type=Path, metavar="DIR", help="write each kernel's ttir, ptx and cubin into DIR")
    step = parser.add_argument_group("the whole training step")
    step.add_argument("--step", action="store_true", help="compile forward, loss and backward, and count launches")
    step.add_argument("--model", choices=("resnet18", "resnet34", "resnet50"), help="default: resnet18")
    step.add_argument("--stem", choices=("imagenet", "small"), help="default: imagenet")
    step.add_argument("--batch", type=int, help="images a step; default: 32")
    step.add_argument("--image-size", type=int, help="pixels a side; default: 64")
    step.add_argument("--classes", type=int, help="default: 200")
    step.add_argument("--amp", action=argparse.BooleanOptionalAction, help="bfloat16 autocast; default: both, compared")
    step.add_argument("--layout", choices=("NHWC", "NCHW"), help="channels-last or not; default: both, compared")
    return parser.parse_args(list(argv))


def _request(arguments: argparse.Namespace) -> dict[str, Any]:
    request: dict[str, Any] = {
        "model": arguments.model or "resnet18",
        "stem": arguments.stem or "imagenet",
        "batch": 32 if arguments.batch is None else arguments.batch,
        "image_size": 64 if arguments.image_size is None else arguments.image_size,
        "classes": 200 if arguments.classes is None else arguments.classes,
        "arch": arguments.arch or 80,
    }
    if arguments.dump:
        raise UsageError("--dump writes the custom kernels, not the step: drop it or --step")
    for name in ("batch", "image_size", "classes"):
        if request[name] < 2:
            raise UsageError(f"--{name.replace('_', '-')} {request[name]}: must be at least 2")
    amps = (True, False) if arguments.amp is None else (arguments.amp,)
    layouts = ("NHWC", "NCHW") if arguments.layout is None else (arguments.layout,)
    return {**request, "columns": [{"amp": amp, "layout": layout} for layout in layouts for amp in amps]}
