"""`python -m seal_fast depth`: prediction depth of several networks, as a table, pictures and JSON."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from seal_fast.analysis.common.flags import add_flags, check
from seal_fast.analysis.common.flags import subjects as named_subjects
from seal_fast.analysis.common.groups import members
from seal_fast.analysis.common.images import choose, own_images, readable
from seal_fast.analysis.common.network import TrainedNetwork
from seal_fast.analysis.common.processes import check_alike, joined
from seal_fast.analysis.common.results import identity, left_out, write_results
from seal_fast.analysis.depth import plots as depth_pictures
from seal_fast.analysis.depth.compute import Prober, probe_votes, summarise
from seal_fast.analysis.depth.probes import parse_pooling
from seal_fast.config import Config
from seal_fast.data import ImageSet, Split
from seal_fast.distributed.world import World
from seal_fast.runs.stats import Interval, student
from seal_fast.training import runtime
from seal_fast.utils.errors import UsageError
from seal_fast.utils.files import to_json
from seal_fast.utils.table import table


def main(argv: Sequence[str]) -> int:
    """Measure, print, and write what --out asks for; returns the exit code.

    Raises:
        UsageError: a flag, a run or a weights file is wrong.
        RunError: an image cannot be decoded, an activation is not finite, or a file cannot be written.
    """
    flags = _parse(argv)
    pooling = parse_pooling(flags.pool)
    check(flags, {"k": 1, "bank": 1, "queries": 1})
    results = []
    config = Config(device=flags.device, amp=flags.amp, threads=flags.threads, dist_timeout=flags.dist_timeout)
    with joined(flags, config) as (world, machine):
        subjects = world.run_on_all(lambda: _subjects(flags))
        group_of = [member.group for member in members(subjects)]
        for number, subject in enumerate(subjects, 1):
            say = f"{subject.name} ({number} of {len(subjects)})" if world.is_main and sys.stderr.isatty() else None
            images = world.run_on_all(lambda: own_images(subject, flags.data, flags.on_bad_image))  # noqa: B023
            check_alike(world, subject, images)
            measured = _measure(subject, images, machine, flags, pooling, say, world)
            results.append(measured | {"group": group_of[number - 1]})
    if not world.is_main:
        return 0
    if flags.out:
        write_results(flags.out, "depth", results)
        depth_pictures.draw(results, flags.out)
    if flags.json:
        print(json.dumps(to_json(results), indent=2))
    else:
        print(text(results))
        if flags.out:
            print(f"\nwritten to {flags.out}")
    return 0


def _subjects(flags: argparse.Namespace) -> list[TrainedNetwork]:
    subjects = named_subjects(flags)
    for subject in subjects:
        if not subject.num_classes:
            raise UsageError(f"{subject.weights} has no fc, so no prediction whose depth could be told")
    return subjects


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m seal_fast depth",
        description="Prediction depth (Baldock et al., NeurIPS 2021): the first probe from which a k-NN vote on the "
        "training set's activations, and every later one, agrees with the network's prediction. "
        "Probes sit at the input, after the stem, after each residual block and on the softmax.",
        allow_abbrev=False,
    )
    add_flags(parser, batch_size=512)
    add = parser.add_argument
    add("--data", help="data set of the network's own classes; default: the run's")
    add("--k", type=int, default=30, help="neighbours that vote; default: 30")
    add("--pool", default="none", help="feature maps: none (whole), avg, or a side to average to; default: none")
    add("--reference", choices=("prediction", "truth"), default="prediction", help="the label to agree with")
    add("--bank", type=int, help="training images that vote, evenly spaced; default: all the run was trained on")
    add("--queries", type=int, default=2000, help="images asked about, of train and of val each; default: 2000")
    add(
        "--leave-one-out", action="store_true", help="a training image has no vote on itself (as published, it has one)"
    )
    add("--amp", action="store_true", help="run the network under bfloat16 autocast")
    return parser.parse_args(list(argv))


def _measure(
    subject: TrainedNetwork,
    images: ImageSet,
    machine: runtime.Runtime,
    flags: argparse.Namespace,
    pooling: int | None,
    say: str | None,
    world: World,
) -> dict[str, Any]:
    began = time.perf_counter()
    fingerprint = images.fingerprint  # of the whole, for runs on different parts of it may be compared
    images = replace(images, train=images.train.spread(subject.config.limit_train if subject.config else None))
    if flags.on_bad_image == "skip":
        images = readable(images)
    bank = choose(images, "train", flags.bank, spread=True)
    # Training images are asked about out of the bank, so that each of them is one that votes.
    rows = np.arange(min(flags.queries, len(bank))) * len(bank) // min(flags.queries, len(bank))
    queries: dict[str, Split] = {"val": images.val.spread(flags.queries), "train": bank.take(rows)}
    prober = Prober(
        subject.network(machine.device, machine.dtype),
        images,
        subject.image_size,
        pooling,
        flags.batch_size,
        machine.dtype,
        machine.autocast,
    )

    def progress(done: int, total: int) -> None:
        if say:
            print(f"\r{say}: {done:,} of {total:,} images of the bank", end="\n" * (done == total), file=sys.stderr)

    own = {"train": rows} if flags.leave_one_out else None
    votes = probe_votes(prober, bank, queries, flags.k, own, progress, world)
    return identity(subject) | {
        "k": flags.k,
        "pooling": flags.pool,
        "reference": flags.reference,
        "leave_one_out": flags.leave_one_out,
        "data": images.name,
        "data_sha256": fingerprint,
        "skipped_images": list(images.skipped),
        "bank": len(bank),
        "compute": str(machine.compute).removeprefix("torch."),
        "probes": list(prober.sizes()),
        "splits": {name: summarise(found, flags.reference) for name, found in votes.items()},
        "processes": world.size,
        "seconds": time.perf_counter() - began,
    }


def text(results: Sequence[dict[str, Any]]) -> str:
    """Results as a table, the protocol above it."""
    first = results[0]
    own = "a training image has no vote on itself" if first["leave_one_out"] else "a training image votes on itself too"
    protocol = (
        f"prediction depth of {first['data']}: {len(first['probes'])} probes ({first['probes'][0]} is depth 0, "
        f"{first['probes'][-1]} the last), {first['k']} nearest of {first['bank']:,} training images, {own}\n"
        f"reference label: {_REFERENCE[first['reference']]}; pooling of feature maps: {first['pooling']}; "
        "intervals: 95 %, bootstrap over examples; over seeds Student's t"
    )
    rows = [("network", "split", "images", "top-1 %", "mean depth", "without depth %")]
    for split in first["splits"]:
        for result in results:
            found = result["splits"][split]
            mean, without = Interval(**found["mean_depth"]), Interval(**found["without_depth"])
            shown = f"{found['top1']:.2f}", mean.show(), without.show(1)
            rows.append((result["subject"], split, str(found["examples"]), *shown))
        rows += _over_seeds(results, split)
    return f"{protocol}\n\n{table(rows, left=2)}{left_out({r['data']: r['skipped_images'] for r in results})}"


def _over_seeds(results: Sequence[dict[str, Any]], split: str) -> list[tuple[str, ...]]:
    """A row for each stage of a group with several seeds: means and Student's t over the runs."""
    rows = []
    for group, stage in dict.fromkeys((result["group"], result["stage"]) for result in results):
        found = [r["splits"][split] for r in results if (r["group"], r["stage"]) == (group, stage)]
        if len(found) < 2:
            continue
        name = f"{group}, {len(found)} seeds" + ("" if stage == "last" else f", {stage}")
        depths = [f["mean_depth"]["mean"] for f in found if f["mean_depth"]["count"]]
        shown = student([f["top1"] for f in found]).show(), student(depths).show() if depths else "none"
        rows.append((name, split, "", *shown, student([f["without_depth"]["mean"] for f in found]).show(1)))
    return rows


_REFERENCE = {"prediction": "the network's own prediction", "truth": "the true class"}
