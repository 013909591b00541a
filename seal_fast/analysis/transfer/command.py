"""`python -m seal_fast transfer`: what several networks' features are worth on several other sets of images."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from seal_fast.analysis.common import target_plots as target_pictures
from seal_fast.analysis.common.features import Extractor
from seal_fast.analysis.common.groups import members
from seal_fast.analysis.common.network import TrainedNetwork
from seal_fast.analysis.common.processes import check_alike, joined
from seal_fast.analysis.common.results import identity, write_results
from seal_fast.analysis.common.targets import add_flags, cache_of, closing, open_targets, subjects_of
from seal_fast.analysis.transfer.compute import L2, FineTuning, K, fine_tune, hold_out, knn_probe, linear_probe
from seal_fast.config import Config
from seal_fast.data import ImageSet
from seal_fast.runs.stats import student
from seal_fast.utils.errors import UsageError
from seal_fast.utils.files import to_json
from seal_fast.utils.table import table

PROBES = {"linear": "linear probe", "knn": "k-NN", "fine_tune": "fine-tuned"}


def main(argv: Sequence[str]) -> int:
    """Measure, print, and write what --out asks for; returns the exit code.

    Raises:
        UsageError: a flag, a run, a weights file or a target is wrong.
        RunError: an image cannot be decoded, features are not finite, or a file cannot be written.
    """
    flags = _parse(argv)
    for value in (*flags.k, flags.fine_tune_epochs):
        if value < 1:
            raise UsageError(f"--k and --fine-tune-epochs must be at least 1, not {value}")
    for penalty in flags.l2:
        if not 0 < penalty < float("inf"):
            raise UsageError(f"--l2 {penalty:g}: must be a finite number above 0")
    config = Config(device=flags.device, amp=flags.amp, threads=flags.threads, dist_timeout=flags.dist_timeout)
    with joined(flags, config) as (world, machine):
        subjects = world.run_on_all(lambda: subjects_of(flags))
        size = flags.image_size or subjects[0].image_size
        targets = world.run_on_all(lambda: open_targets(flags.data, size, flags.on_bad_image))
        extract = Extractor(machine, cache_of(flags), flags.image_size, flags.batch_size, world)
        results = _measure_all(subjects, targets, extract, flags)
    if not world.is_main:
        return 0
    if flags.out:
        write_results(flags.out, "transfer", results)
        target_pictures.draw_transfer(results, flags.out)
    if flags.json:
        print(json.dumps(to_json(results), indent=2))
    else:
        print(text(results))
        print(closing(extract, targets, flags.out))
    return 0


def _measure_all(
    subjects: Sequence[TrainedNetwork], targets: Mapping[str, ImageSet], extract: Extractor, flags: argparse.Namespace
) -> list[dict[str, Any]]:
    held = {
        name: hold_out(images.train.labels, images.classes, flags.validation, flags.seed)
        for name, images in targets.items()
    }
    group_of = [member.group for member in members(subjects)]
    results = []
    for place, subject in enumerate(subjects):
        began = time.perf_counter()
        measured = {}
        for name, images in targets.items():
            check_alike(extract.world, subject, images)
            if extract.world.is_main and sys.stderr.isatty():
                print(f"{subject.name} ({place + 1} of {len(subjects)}) on {name}", file=sys.stderr)
            measured[name] = _measure(subject, images, extract, held[name], flags)
        results.append(
            identity(subject)
            | {
                "group": group_of[place],
                "image_size": flags.image_size or subject.image_size,
                "compute": str(extract.machine.compute).removeprefix("torch."),
                "split_seed": flags.seed,
                "skipped_images": {name: list(images.skipped) for name, images in targets.items()},
                "targets": measured,
                "processes": extract.world.size,
                "seconds": time.perf_counter() - began,
            }
        )
    return results


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m seal_fast transfer",
        description="Transfer: accuracy on other images of a linear probe and of k-NN on the frozen pooled features, "
        "settings chosen on held-out training images, and with --fine-tune of the whole network trained on them.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add_flags(parser, data="target data sets, each with a training and a validation or test split")
    add("--l2", nargs="+", type=float, default=L2, help=f"penalties to choose from; default: {_list(L2)}")
    add("--k", nargs="+", type=int, default=K, help=f"numbers of neighbours to choose from; default: {_list(K)}")
    add("--validation", type=float, default=0.2, help="share of the training split to choose them on; default: 0.2")
    add("--fine-tune", action="store_true", help="also train the whole network on each target")
    add("--fine-tune-epochs", type=int, default=20, help="default: 20")
    add("--fine-tune-lr", type=float, default=0.01, help="peak learning rate, one cosine; default: 0.01")
    return parser.parse_args(list(argv))


def _list(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


def _measure(
    subject: TrainedNetwork, images: ImageSet, extract: Extractor, held: Any, flags: argparse.Namespace
) -> dict[str, Any]:
    classes = len(images.classes)
    train, test = extract(subject, images, "train"), extract(subject, images, "val")
    measured = {
        "classes": classes,
        "train": len(images.train),
        "test": len(images.val),
        "data_sha256": images.fingerprint,
        "linear": linear_probe(train, test, classes, held, flags.l2),
        "knn": knn_probe(train, test, classes, held, flags.k),
    }
    if flags.fine_tune:
        settings = FineTuning(
            epochs=flags.fine_tune_epochs,
            lr=flags.fine_tune_lr,
            seed=flags.seed,
            image_size=flags.image_size,
            amp=flags.amp,
            device=flags.device,
            threads=flags.threads,
            on_bad_image=flags.on_bad_image,
        )
        measured["fine_tune"] = fine_tune(
            subject, images, settings, flags.out and flags.out / "fine-tune", extract.world
        )
    return measured


def text(results: Sequence[dict[str, Any]]) -> str:
    """Results as a table: a row per target, probe and stage, a column per group of runs."""
    stages = list(dict.fromkeys(result["stage"] for result in results))
    groups = list(dict.fromkeys(result["group"] for result in results))
    several = len(stages) > 1
    rows = [("target", "probe", *["stage"] * several, *groups)]
    for target in results[0]["targets"]:
        for probe, title in PROBES.items():
            if probe not in results[0]["targets"][target]:
                continue
            for stage in stages:
                cells = []
                for group in groups:
                    members = [r for r in results if r["group"] == group and r["stage"] == stage]
                    values = [member["targets"][target][probe]["top1"] for member in members]
                    cells.append(student(values).show() if values else "")
                rows.append((target, title, *[stage] * several, *cells))
    counts = {
        group: len({r["weights_sha256"] for r in results if r["group"] == group and r["stage"] == s})
        for group in groups
        for s in stages[-1:]
    }
    runs = ", ".join(f"{group} {count}" for group, count in counts.items())
    return (
        f"top-1 % on the target's test images; runs: {runs}; "
        f"intervals: 95 %, Student's t over runs (seeds)\n\n{table(rows, left=2 + several)}"
    )
