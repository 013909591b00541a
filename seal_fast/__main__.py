"""`python -m seal_fast COMMAND`: every command."""

from __future__ import annotations

import argparse
import gc
import importlib
import sys
from collections.abc import Callable, Sequence

from seal_fast.utils import openmp  # noqa: F401 (before a command imports torch)
from seal_fast.utils.errors import system_error
from seal_fast.utils.terminal import prepare_streams


def timeline(argv: Sequence[str]) -> int:
    """Print what a method is, its options and the timeline of a configuration."""
    from seal_fast.arguments import parse
    from seal_fast.methods import METHODS, timeline
    from seal_fast.methods.method import explain
    from seal_fast.methods.text import describe

    config = parse(argv, "python -m seal_fast timeline", COMMANDS["timeline"][1])
    if config.timeline is None:
        print(explain(METHODS[config.method]))
    print(describe(timeline(config)))
    return 0


def presets(argv: Sequence[str]) -> int:
    """Print the presets."""
    from seal_fast.presets import PRESETS

    argparse.ArgumentParser(prog="python -m seal_fast presets", description=COMMANDS["presets"][1]).parse_args(argv)
    for name, settings in PRESETS.items():
        print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in settings.items()))
    return 0


# What runs a command (a function, a module's `main`, or module:Analysis) and what it is for.
COMMANDS: dict[str, tuple[str | Callable[[Sequence[str]], int], str]] = {
    "train": ("train", "Train a network (the same as python -m seal_fast.train)."),
    "sweep": (
        "sweep.command",
        "Many runs over a space of settings: packed, stopped early, resumed (needs the sweep extra).",
    ),
    "report": (
        "report.command",
        "One HTML page: runs, seeds, paired differences, curves and the analyses' figures.",
    ),
    "timeline": (timeline, "Print what a configuration does to which layers in which epochs, without training."),
    "layers": ("models.command", "List the modules of a network that --layer-threshold may name."),
    "presets": (presets, "List the presets and their settings."),
    "prepare": ("data.prepare", "Make a checked .tar of a data set from its official archives."),
    "depth": ("analysis.depth.command:Depth", "Prediction depth of trained networks."),
    "transfer": (
        "analysis.transfer.command:Transfer",
        "Accuracy of the features on other data sets: linear probe, k-NN, fine-tuning.",
    ),
    "fewshot": ("analysis.fewshot.command:FewShot", "Few-shot accuracy of the features on other data sets."),
    "hessian": (
        "analysis.hessian.command:Hessian",
        "Curvature of the training loss: eigenvalues, trace and spectral density.",
    ),
    "evaluate": ("analysis.evaluate.command:Evaluate", "Accuracy and calibration of trained networks, by class too."),
    "similarity": (
        "analysis.similarity.command:Similarity",
        "CKA between layers, generations, seeds and methods.",
    ),
    "sharpness": (
        "analysis.sharpness.command:Sharpness",
        "How fast the training loss rises around the weights, and the curvature of each block.",
    ),
    "drift": ("analysis.drift.command:Drift", "How far the weights of runs travel, by layer and generation."),
    "barrier": ("analysis.barrier.command:Barrier", "Loss and accuracy on the straight lines between networks."),
    "plasticity": ("analysis.plasticity.command:Plasticity", "Dormant units, effective rank and gradients by layer."),
    "examples": ("analysis.examples.command:Examples", "When training examples are learnt and forgotten."),
    "robustness": (
        "analysis.robustness.command:Robustness",
        "Accuracy on corrupted images; detection of images of other data sets.",
    ),
    "study": ("analysis.study.command", "Every analysis of some runs, one after the other, and the report."),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    prepare_streams()
    argv = sys.argv[1:] if argv is None else list(argv)
    listing = "\n".join(f"  {name:<10} {purpose}" for name, (_, purpose) in COMMANDS.items())
    if not argv or argv[0] in ("-h", "--help"):
        print(f"usage: python -m seal_fast COMMAND [FLAGS]\n\n{listing}\n\nEvery command explains itself with --help.")
        return 0 if argv else 2
    if argv[0] not in COMMANDS:
        print(f"error: {argv[0]} is not a command; choose one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    try:
        run, _ = COMMANDS[argv[0]]
        if isinstance(run, str):
            module, _, analysis = run.partition(":")
            found = importlib.import_module(f"seal_fast.{module}")
            run = getattr(found, analysis)().run if analysis else found.main
        return run(argv[1:])
    except Exception as error:
        if not (sentence := system_error(error)):
            raise
        from seal_fast.distributed.world import report_error

        report_error(sentence)
        return sentence.exit_code


if __name__ == "__main__":
    code = main()
    gc.freeze()  # as at the end of train.py
    sys.exit(code)
