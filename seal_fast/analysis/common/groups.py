"""Runs that differ by their seed alone belong together: their results have a mean and an interval."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

from seal_fast.analysis.common.network import TrainedNetwork
from seal_fast.config import EXECUTION, Config


def by_seed(subjects: Sequence[TrainedNetwork]) -> dict[str, list[int]]:
    """Places of subjects whose runs have all settings but the seed in common, under a name for tables.

    The name is the method; where several groups have the same, or the run says none, the first member's own name.
    Stages of one run fall into one group. Bare weights files stand alone.
    """
    members: dict[object, list[int]] = {}
    for i, subject in enumerate(subjects):
        members.setdefault(_settings(subject.config) if subject.config else i, []).append(i)
    firsts = [subjects[places[0]] for places in members.values()]
    methods = Counter(first.config.method for first in firsts if first.config)
    names: dict[str, list[int]] = {}
    for first, places in zip(firsts, members.values(), strict=True):
        unique = first.config is not None and methods[first.config.method] == 1
        name = first.config.method if first.config and unique else run_name(first)
        while name in names:
            name += "'"
        names[name] = places
    return names


def run_name(subject: TrainedNetwork) -> str:
    """The subject's name without its stage."""
    return subject.name.removesuffix(f" {subject.stage}") if subject.stage else subject.name


def _settings(config: Config) -> tuple[object, ...]:
    same = replace(config, seed=0)
    named = [field.name for field in fields(Config) if field.name not in EXECUTION]
    return (Path(config.data).name, *(getattr(same, name) for name in named))
