"""`python -m bench.gpu_report kernels|step`: compile for GPUs that need not be there, and count."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.gpu_report.cards import CARDS
from seal_fast.utils.errors import RunError, UsageError


def kernels(arguments: argparse.Namespace) -> None:
    """Compile every Triton kernel in every variant: registers, spills, access widths, bytes."""
    from bench.gpu_report import kernels_report

    compiled = kernels_report.compile_all([arguments.arch] if arguments.arch else list(CARDS))
    if arguments.dump:
        kernels_report.dump(compiled, arguments.dump)
    rows = [kernels_report.row(kernel) for kernel in compiled]
    print(json.dumps(rows, indent=2) if arguments.json else kernels_report.text(compiled))


def step(arguments: argparse.Namespace) -> None:
    """Compile the training step: graphs, launches, copies, casts, bytes, floating-point operations."""
    from bench.gpu_report import step_report

    request = {name: getattr(arguments, name) for name in ("model", "stem", "batch", "image_size", "classes")}
    for name in ("batch", "image_size", "classes"):
        if request[name] < 2:
            raise UsageError(f"--{name.replace('_', '-')} {request[name]}: must be at least 2")
    amps = (True, False) if arguments.amp is None else (arguments.amp,)
    layouts = ("NHWC", "NCHW") if arguments.layout is None else (arguments.layout,)
    columns = [{"amp": amp, "layout": layout} for layout in layouts for amp in amps]
    result = step_report.run({**request, "arch": arguments.arch or 80, "columns": columns})
    print(json.dumps(result, indent=2) if arguments.json else step_report.text(result))


def main(argv: Sequence[str] | None = None) -> int:
    """Print the report that is asked for; returns the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        if importlib.util.find_spec("triton") is None:
            raise RunError("the report compiles with Triton, which is not installed: run `pip install triton`")
        arguments.run(arguments)
    except (UsageError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_report", description=__doc__)
    commands = parser.add_subparsers(required=True)
    for run in (kernels, step):
        command = commands.add_parser(run.__name__, help=run.__doc__, description=run.__doc__)
        command.set_defaults(run=run)
        command.add_argument("--arch", type=int, choices=CARDS, help="80 (A100) or 90 (H100)")
        command.add_argument("--json", action="store_true", help="print JSON")
        if run is kernels:
            command.add_argument("--dump", type=Path, metavar="DIR", help="write each kernel's ttir, ptx and cubin")
            continue
        command.add_argument("--model", default="resnet18", help="default: resnet18")
        command.add_argument("--stem", choices=("imagenet", "small"), default="imagenet", help="default: imagenet")
        command.add_argument("--batch", type=int, default=32, help="images a step; default: 32")
        command.add_argument("--image-size", type=int, default=64, help="pixels a side; default: 64")
        command.add_argument("--classes", type=int, default=200, help="default: 200")
        command.add_argument("--amp", action=argparse.BooleanOptionalAction, help="bfloat16 autocast; default: both")
        command.add_argument("--layout", choices=("NHWC", "NCHW"), help="channels-last or not; default: both")
    return parser


if __name__ == "__main__":
    sys.exit(main())
