"""Results of the analyses that lie beside runs; figures stand together only where their protocols are equal."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from seal_fast.report.pairs import Pairs, adjusted, differences
from seal_fast.runs.collection import Group, Run
from seal_fast.runs.identity import weights_sha256
from seal_fast.runs.plots import stage_place
from seal_fast.runs.stats import Interval, student
from seal_fast.utils.errors import UsageError
from seal_fast.utils.terminal import shown

TITLES = {"depth": "Prediction depth", "transfer": "Transfer", "fewshot": "Few-shot"}
TITLES |= {"hessian": "Hessian of the training loss", "evaluate": "Accuracy and calibration"}
TITLES |= {"similarity": "Similarity of features", "sharpness": "Sharpness of the training loss"}
TITLES |= {"drift": "Travel of the weights", "barrier": "Barriers between networks", "plasticity": "Plasticity"}
TITLES |= {"examples": "Single training examples", "robustness": "Robustness"}
# The figure that the page shows first, where it is not the first of the result file.
_LEADS = {"robustness": "top-1 (%), all corruptions", "sharpness": "largest eigenvalue, all layers"}
_LEADS |= {"drift": "relative distance, from the start, early", "plasticity": "dormant units (%), all layers"}
_PROBES = {"linear": "linear probe", "knn": "k-NN", "fine_tune": "fine-tuned"}
_HEADS = {"linear": "linear head", "centroid": "nearest centroid"}
_EIGENVALUES = {"top": "largest eigenvalue", "bottom": "most negative eigenvalue", "trace": "trace"}


@dataclass(frozen=True)
class Figure:
    """One number of one network, with its own 95 % interval over examples or episodes where it has one.

    `analysis` is a key of `TITLES`; `protocol` numbers the protocols of an analysis from 1; `group` is the place of the
    run's group; `stage` names the weights, such as "last" or "generation-0".
    """

    analysis: str
    protocol: int
    group: int
    run: str
    seed: int
    stage: str
    name: str
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Analyses:
    """The figures of finished runs, the protocols by analysis, and the files and results left out with the reason.

    `maps` holds heat maps by (analysis, protocol, group, seed).
    """

    figures: list[Figure]
    protocols: dict[str, list[dict[str, Any]]]
    left_out: list[tuple[str, str]]
    stage: str = "last"
    maps: dict[tuple[str, int, int, int], list[dict[str, Any]]] = field(default_factory=dict)

    def content(self, groups: int, pairs: Pairs) -> list[dict[str, Any]]:
        """One section for each protocol, as plain values."""
        sections = []
        for analysis, protocols in self.protocols.items():
            keys = dict.fromkeys(key for protocol in protocols for key in protocol)
            differ = [key for key in keys if any(p.get(key) != protocols[0].get(key) for p in protocols)]
            for number, protocol in enumerate(protocols, 1):
                mine = [f for f in self.figures if (f.analysis, f.protocol) == (analysis, number)]
                figures, compared = [], []
                for name in dict.fromkeys(f.name for f in mine):
                    same = [f for f in mine if f.name == name]
                    found = [_by_seed(same, group, self.stage) for group in range(groups)]
                    cells = [{"group": i} | _mean(by_seed).json() for i, by_seed in enumerate(found) if by_seed]
                    figures.append({"name": name, "cells": cells, "curves": _curves(same, groups)})
                    values = [{seed: f.value for seed, f in by_seed.items()} for by_seed in found]
                    compared += [{"name": name} | row for row in differences(pairs, values)]
                figures.sort(key=lambda figure: figure["name"] != _LEADS.get(analysis))
                title = TITLES[analysis] + (f", protocol {number}" if len(protocols) > 1 else "")
                section = {"title": title, "protocol": protocol, "differ": differ, "figures": figures}
                maps = [(at[2], found) for at, found in self.maps.items() if at[:2] == (analysis, number)]
                sections.append(section | {"pairs": adjusted(compared), "maps": _mean_maps(maps)})
        return sections


def read_analyses(places: Iterable[Path], named: Sequence[Path], groups: Sequence[Group], stage: str) -> Analyses:
    """The results in folders, and in the folders directly inside them, that are of the groups' weights.

    `places` may hold results, `named` must; tables and pairs are about the weights of `stage`.

    Raises:
        UsageError: a named folder holds no result file, or none is of the weights of a `stage` other than "last".
    """
    files = {file.resolve() for place in places for file in _files(place)}
    for place in named:
        if not (inside := _files(place)):
            expected = ", ".join(f"{command}.json" for command in TITLES)
            raise UsageError(f"--results {shown(place)}: holds none of {expected}; name the --out of an analysis")
        files.update(file.resolve() for file in inside)
    results: list[tuple[str, str, dict[str, Any]]] = []
    left_out: list[tuple[str, str]] = []
    for file in sorted(files, key=lambda file: (list(TITLES).index(file.stem), -file.stat().st_mtime)):  # newest first
        where = shown(file)
        try:
            content = json.loads(file.read_bytes())
        except (OSError, ValueError) as error:
            left_out.append((where, f"not readable JSON ({error}); run the analysis again"))
            continue
        for result in content if isinstance(content, list) else [content]:
            if why := _fault(file.stem, result):
                left_out.append((where, why))
            else:
                results.append((where, file.stem, result))
    places_of = _places(groups, {stage, "last", *(result["stage"] for *_, result in results)}) if results else {}
    figures: list[Figure] = []
    maps: dict[tuple[str, int, int, int], list[dict[str, Any]]] = {}
    protocols: dict[str, list[dict[str, Any]]] = {}
    taken: dict[tuple[Any, ...], str] = {}
    for where, analysis, result in results:
        name, digest = f"{result['subject']} in {where}", result["weights_sha256"]
        if not (mine := places_of.get(digest)):
            left_out.append((name, "of no weights of the finished runs"))
            continue
        known = protocols.setdefault(analysis, [])
        if result["protocol"] not in known:
            known.append(result["protocol"])
        number = known.index(result["protocol"]) + 1
        if first := taken.get(key := (analysis, number, digest)):
            left_out.append((name, f"measured again in {first}"))
            continue
        taken[key] = where
        try:
            values, drawn = list(_figures(analysis, result)), _maps(result)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            left_out.append((name, f"damaged ({type(error).__name__}: {error}); run the analysis again"))
            continue
        for group, run, at in mine:
            figures += [Figure(analysis, number, group, run.name, run.seed, at, *value) for value in values]
            if at == stage:
                maps[analysis, number, group, run.seed] = drawn
    if stage not in ("last", *(stages := dict.fromkeys(f.stage for f in figures))) and stages:
        raise UsageError(f"--stage {stage}: the results are of {', '.join(sorted(stages, key=stage_place))}")
    return Analyses(figures, protocols, left_out, stage, maps)


def _files(place: Path) -> list[Path]:
    try:
        folders = [place, *sorted(inside for inside in place.iterdir() if inside.is_dir())]
    except OSError:
        return []
    return [file for folder in folders for command in TITLES if (file := folder / f"{command}.json").is_file()]


def _fault(analysis: str, result: Any) -> str:
    """Why a result cannot be used."""
    if not isinstance(result, dict):
        return "holds something else than results"
    protocol = result.get("protocol")
    if not isinstance(protocol, dict) or protocol.get("analysis") != analysis:
        return "does not say its whole protocol, as older versions did not; run the analysis again"
    for key in ("subject", "stage", "weights_sha256"):
        if not isinstance(result.get(key), str):
            return f"does not say {key} of each network; run the analysis again"
    return f"{result['subject']} was interrupted" if result.get("interrupted") else ""


def _places(groups: Sequence[Group], stages: set[str]) -> dict[str, list[tuple[int, Run, str]]]:
    """By hash of weights: (place of the group, run, stage)."""
    found: dict[str, list[tuple[int, Run, str]]] = {}
    for place, group in enumerate(groups):
        for run in group.runs.values():
            for stage in sorted(stages | {f"generation-{run.rows[-1]['generation']}"}):  # the last weights' other name
                file = run.path / "weights" / f"{stage}.safetensors"
                if stage and file.is_file():
                    found.setdefault(weights_sha256(file), []).append((place, run, stage))
    return found


def _figures(analysis: str, result: dict[str, Any]) -> Iterator[tuple[str, float, float | None, float | None]]:
    """Name, value and own interval of each number of a result."""
    if analysis == "depth":
        for split, found in result["splits"].items():
            for key, name in (("mean_depth", f"mean depth, {split}"), ("without_depth", f"without depth, {split} (%)")):
                if found[key]["mean"] is not None:
                    yield name, found[key]["mean"], found[key]["low"], found[key]["high"]
    if analysis == "transfer":
        for target, probes in result["targets"].items():
            for probe, title in _PROBES.items():
                if probe in probes:
                    yield f"{target}, {title} (%)", probes[probe]["top1"], None, None
    if analysis == "fewshot":
        for target, by_shots in result["targets"].items():
            for shots, heads in by_shots.items():
                for head, found in heads.items():
                    name = f"{target}, {shots}-shot, {_HEADS.get(head, head)} (%)"
                    yield name, found["mean"], found["low"], found["high"]
    if analysis == "hessian":
        for key, name in _EIGENVALUES.items():
            values = result.get(key)
            for value in values[:1] if isinstance(values, list) else [values] if values is not None else []:
                yield name, float(value), None, None
    for section, found in result.get("figures", {}).items():  # of the analyses that name their figures themselves
        for name, value in found.items():
            yield f"{name}, {section}", float(value["mean"]), value["low"], value["high"]


def _by_seed(figures: Sequence[Figure], group: int, stage: str) -> dict[int, Figure]:
    return {f.seed: f for f in figures if (f.group, f.stage) == (group, stage)}


def _mean(by_seed: dict[int, Figure]) -> Interval:
    """Mean over seeds with Student's interval; of one seed the figure's own interval where it has one."""
    first = next(iter(by_seed.values()))
    if len(by_seed) == 1 and first.low is not None and first.high is not None:
        return Interval(first.value, first.low, first.high, 1)
    return student([f.value for f in by_seed.values()])


def _maps(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The heat maps of a result, their values as float arrays [rows, columns] with NaN for None."""
    maps = []
    for one in result.get("maps", []):
        values = np.array(one["values"], float)
        if values.shape != (len(one["rows"]), len(one["columns"])):
            raise ValueError(f"the map {one['name']} has not a value for each row and column")
        maps.append({key: one[key] for key in ("name", "rows", "columns")} | {"values": values})
    return maps


def _mean_maps(maps: Iterable[tuple[int, list[dict[str, Any]]]]) -> list[dict[str, Any]]:
    """Maps of a group with equal names, rows and columns as their mean over seeds, NaN where one is; by group."""
    same: dict[str, list[dict[str, Any]]] = {}
    for group, found in sorted(maps, key=lambda pair: pair[0]):
        for one in found:
            key = json.dumps([group, one["name"], one["rows"], one["columns"]])
            same.setdefault(key, []).append(one | {"group": group})
    means = {key: np.mean([one["values"] for one in found], 0).round(4).tolist() for key, found in same.items()}
    return [found[0] | {"values": means[key]} for key, found in same.items()]


def _curves(figures: Sequence[Figure], groups: int) -> list[dict[str, Any]]:
    """Each group's means at the ends of ascents and generations, where there are several."""
    stages = sorted({f.stage for f in figures if f.stage.startswith("generation-")}, key=stage_place)
    curves = []
    for group in range(groups):
        found = [(stage_place(stage), _mean(v).json()) for stage in stages if (v := _by_seed(figures, group, stage))]
        if len(found) > 1:
            curves.append({"group": group, "at": [at for at, _ in found], "points": [point for _, point in found]})
    return curves
