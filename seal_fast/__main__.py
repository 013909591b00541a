"""`python -m seal_fast COMMAND`: one door to every command."""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable, Sequence

from seal_fast.utils import openmp  # noqa: F401 (before a command imports torch)
from seal_fast.utils.errors import RunError, UsageError


def train(argv: Sequence[str]) -> int:
    """Train a network (the same as python -m seal_fast.train)."""
    from seal_fast.train import main

    return main(argv)


def timeline(argv: Sequence[str]) -> int:
    """Print what a configuration does to which layers in which epochs, without training."""
    from seal_fast.arguments import parse
    from seal_fast.methods import timeline

    print(timeline(parse(argv)))
    return 0


def presets(argv: Sequence[str]) -> int:
    """List the presets and their settings."""
    from seal_fast.presets import PRESETS

    argparse.ArgumentParser(prog="python -m seal_fast presets", description=presets.__doc__).parse_args(list(argv))
    for name, settings in PRESETS.items():
        print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in settings.items()))
    return 0


def prepare(argv: Sequence[str]) -> int:
    """Download and check a data set (tiny-imagenet)."""
    from seal_fast.data.prepare import main

    return main(argv)


def depth(argv: Sequence[str]) -> int:
    """Prediction depth of trained networks, compared."""
    from seal_fast.analysis.depth.command import main

    return main(argv)


def transfer(argv: Sequence[str]) -> int:
    """Carry the features of trained networks to other images: linear probe, k-NN, fine-tuning."""
    from seal_fast.analysis.transfer.command import main

    return main(argv)


def fewshot(argv: Sequence[str]) -> int:
    """Ask trained networks few-shot episodes from other images."""
    from seal_fast.analysis.fewshot.command import main

    return main(argv)


def hessian(argv: Sequence[str]) -> int:
    """Curvature of the training loss: eigenvalues, trace and spectral density."""
    from seal_fast.analysis.hessian.command import main

    return main(argv)


def sweep(argv: Sequence[str]) -> int:
    """Many runs over a space of settings: packed, stopped early, resumed (needs the sweep extra)."""
    from seal_fast.sweep.command import main

    return main(argv)


def report(argv: Sequence[str]) -> int:
    """Runs, their seeds and differences, and what the analyses found about them, on one HTML page."""
    from seal_fast.report.command import main

    return main(argv)


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": train,
    "sweep": sweep,
    "report": report,
    "timeline": timeline,
    "presets": presets,
    "prepare": prepare,
    "depth": depth,
    "transfer": transfer,
    "fewshot": fewshot,
    "hessian": hessian,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    listing = "\n".join(f"  {name:<10} {function.__doc__}" for name, function in COMMANDS.items())
    if not argv or argv[0] in ("-h", "--help"):
        print(f"usage: python -m seal_fast COMMAND [FLAGS]\n\n{listing}\n\nEvery command explains itself with --help.")
        return 0 if argv else 2
    if argv[0] not in COMMANDS:
        print(f"error: {argv[0]} is not a command; choose one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    try:
        return COMMANDS[argv[0]](argv[1:])
    except (UsageError, RunError) as error:
        from seal_fast.distributed.errors import report_error

        report_error(error)
        return error.exit_code


if __name__ == "__main__":
    code = main()
    gc.freeze()  # as at the end of train.py
    sys.exit(code)
