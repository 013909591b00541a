"""`python -m seal_fast fewshot`: accuracy of several networks in the same few-shot episodes on far data."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from seal_fast.analysis.common import target_plots as target_pictures
from seal_fast.analysis.common.features import Extractor
from seal_fast.analysis.common.groups import members
from seal_fast.analysis.common.network import TrainedNetwork
from seal_fast.analysis.common.processes import check_alike, joined
from seal_fast.analysis.common.results import identity, write_results
from seal_fast.analysis.common.targets import add_flags, cache_of, closing, open_targets, subjects_of
from seal_fast.analysis.fewshot import compute as few_shot
from seal_fast.analysis.fewshot import episodes
from seal_fast.analysis.fewshot.episodes import Episodes
from seal_fast.config import Config
from seal_fast.data import ImageSet
from seal_fast.distributed.world import World
from seal_fast.runs.stats import Interval, paired, student
from seal_fast.utils.files import to_json
from seal_fast.utils.table import table

Head = Callable[[torch.Tensor, Episodes], torch.Tensor]
HEADS: dict[str, Head] = {"linear": few_shot.linear, "centroid": few_shot.centroid}


@dataclass(frozen=True)
class Outcome:
    """Accuracies of one network in percent, [episodes], under (target, shots, head)."""

    subject: TrainedNetwork
    group: str
    percent: dict[tuple[str, int, str], np.ndarray]


def main(argv: Sequence[str]) -> int:
    """Measure, print, and write what --out asks for; returns the exit code.

    Raises:
        UsageError: a flag, a run, a weights file or a target is wrong, or a class has too few images.
        RunError: an image cannot be decoded, features are not finite, or a file cannot be written.
    """
    flags = _parse(argv)
    config = Config(device=flags.device, amp=flags.amp, threads=flags.threads, dist_timeout=flags.dist_timeout)
    with joined(flags, config) as (world, machine):
        subjects = world.run_on_all(lambda: subjects_of(flags))
        size = flags.image_size or subjects[0].image_size
        targets = world.run_on_all(lambda: open_targets(flags.data, size, flags.on_bad_image))
        extract = Extractor(machine, cache_of(flags), flags.image_size, flags.batch_size, world)
        outcomes, results = _measure_all(subjects, targets, extract, flags)
    if not world.is_main:
        return 0
    if flags.out:
        write_results(flags.out, "fewshot", results)
        target_pictures.draw_fewshot(results, flags.out)
    if flags.json:
        print(json.dumps(to_json(results), indent=2))
    else:
        print(text(outcomes, flags.ways, flags.queries))
        print(closing(extract, targets, flags.out))
    return 0


def _measure_all(
    subjects: Sequence[TrainedNetwork], targets: Mapping[str, ImageSet], extract: Extractor, flags: argparse.Namespace
) -> tuple[list[Outcome], list[dict[str, Any]]]:
    world = extract.world
    drawn = {
        (name, shots): episodes.draw(
            _labels(images),
            images.classes,
            ways=flags.ways,
            shots=shots,
            queries=flags.queries,
            episodes=flags.episodes,
            seed=flags.seed,
        )
        for name, images in targets.items()
        for shots in dict.fromkeys(flags.shots)
    }
    group_of = [member.group for member in members(subjects)]
    outcomes, seconds = [], []
    for place, subject in enumerate(subjects):
        began = time.perf_counter()
        if world.is_main and sys.stderr.isatty():
            print(f"{subject.name} ({place + 1} of {len(subjects)})", file=sys.stderr)
        for images in targets.values():
            check_alike(world, subject, images)
        pools = {name: _pool(extract, subject, images) for name, images in targets.items()}
        percent = {
            (name, shots, head): 100 * _shared(accuracy, pools[name], shown, world).cpu().numpy()
            for (name, shots), shown in drawn.items()
            for head, accuracy in HEADS.items()
        }
        outcomes.append(Outcome(subject, group_of[place], percent))
        seconds.append(time.perf_counter() - began)
    common = {
        "protocol": {key: getattr(flags, key) for key in ("ways", "queries", "episodes", "seed")},
        "compute": str(extract.machine.compute).removeprefix("torch."),
        "image_size": flags.image_size or subjects[0].image_size,
        "skipped_images": {name: list(images.skipped) for name, images in targets.items()},
        "processes": world.size,
    }
    results = [
        _result(outcome, outcomes) | common | {"seconds": spent}
        for outcome, spent in zip(outcomes, seconds, strict=True)
    ]
    return outcomes, results


def _shared(accuracy: Head, pool: torch.Tensor, shown: Episodes, world: World) -> torch.Tensor:
    """The accuracy on every episode, of which each process asks its part."""
    start, stop = (len(shown) * rank // world.size for rank in (world.rank, world.rank + 1))
    own = accuracy(pool, shown.part(start, stop)) if stop > start else pool.new_empty(0, dtype=torch.float64)
    return torch.cat(world.all_gather(own))


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m seal_fast fewshot",
        description="Few-shot accuracy under distribution shift (Guo et al., ECCV 2020): episodes drawn from all "
        "images of a target; on the frozen pooled features a linear head trained by SGD, and the nearest class mean. "
        "Every RUN is asked the same episodes.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add_flags(parser, data="target data sets; all their images are one pool")
    add("--ways", type=int, default=5, help="classes an episode; default: 5")
    add("--shots", type=int, nargs="+", default=[5, 20, 50], help="images a class to learn from; default: 5 20 50")
    add("--queries", type=int, default=15, help="images a class to be asked; default: 15")
    add("--episodes", type=int, default=600, help="default: 600")
    return parser.parse_args(list(argv))


def _labels(images: ImageSet) -> np.ndarray:
    return np.concatenate([images.train.labels, images.val.labels])


def _pool(extract: Extractor, subject: TrainedNetwork, images: ImageSet) -> torch.Tensor:
    return torch.cat([extract(subject, images, "train").values, extract(subject, images, "val").values])


def _result(outcome: Outcome, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What fewshot.json holds of a network; differences are to the first group's network of the same seed and stage."""
    same = [other for other in outcomes if other.group == outcomes[0].group]
    alike = [other for other in same if _place(other) == _place(outcome)] or same
    reference = alike[0]
    targets: dict[str, Any] = {}
    for (target, shots, head), percent in outcome.percent.items():
        entry: dict[str, Any] = student(percent).json()
        if reference is not outcome:
            difference = paired(percent, reference.percent[target, shots, head]).json()
            entry |= {"difference": difference | {"to": reference.subject.name}}
        targets.setdefault(target, {}).setdefault(str(shots), {})[head] = entry
    return identity(outcome.subject) | {"group": outcome.group, "targets": targets}


def _place(outcome: Outcome) -> tuple[int | None, str]:
    config = outcome.subject.config
    return (config.seed if config else None), outcome.subject.stage


def text(outcomes: Sequence[Outcome], ways: int, queries: int) -> str:
    """Outcomes as tables: accuracies, and differences to the first group in the same episodes."""
    groups = list(dict.fromkeys(outcome.group for outcome in outcomes))
    stages = list(dict.fromkeys(outcome.subject.stage for outcome in outcomes))
    several = len(stages) > 1

    def members(group: str, stage: str) -> list[Outcome]:
        return [o for o in outcomes if o.group == group and o.subject.stage == stage]

    head_row = ("target", "shots", "head", *["stage"] * several)
    accuracies: list[Sequence[str]] = [(*head_row, *groups)]
    differences: list[Sequence[str]] = [(*head_row, "over", *groups[1:])]
    for key in outcomes[0].percent:
        for stage in stages:
            first = [str(part) for part in key] + [stage] * several
            found = [[o.percent[key] for o in members(group, stage)] for group in groups]
            accuracies.append((*first, *(_mean(values).show() if values else "" for values in found)))
            if len(groups) > 1 and all(found):
                episode_means = [np.mean(values, axis=0) for values in found]
                cells = [paired(values, episode_means[0]).show() for values in episode_means[1:]]
                differences.append((*first, "episodes", *cells))
                if all(len(values) == len(found[0]) > 1 for values in found):
                    over = [[float(v.mean()) for v in values] for values in found]
                    differences.append((*first, "runs", *(paired(v, over[0]).show() for v in over[1:])))
    count = len(next(iter(outcomes[0].percent.values())))
    runs = ", ".join(f"{group} {len(members(group, stages[-1]))}" for group in groups)
    title = (
        f"{ways}-way accuracy % in {count} episodes of {queries} queries a class; runs: {runs}\n"
        "intervals: 95 %, Student's t; of a single run over its episodes, of several over the runs (seeds)"
    )
    parts = [title, table(accuracies, left=3 + several)]
    if len(differences) > 1:
        parts += [f"difference to {groups[0]}, episode by episode and run by run", table(differences, left=4 + several)]
    return "\n\n".join(parts)


def _mean(values: Sequence[np.ndarray]) -> Interval:
    """Over the runs where there are several, else over the episodes."""
    return student([float(v.mean()) for v in values]) if len(values) > 1 else student(values[0])
