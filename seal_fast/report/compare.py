"""Puts side by side what is known of several runs: their accuracy, and the figures of analyses already made."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from seal_fast.analysis.common.groups import by_seed
from seal_fast.analysis.common.network import TrainedNetwork, open_network, stages
from seal_fast.analysis.common.results import identity
from seal_fast.analysis.common.stats import Interval, student
from seal_fast.runs.folder import RunFolder
from seal_fast.utils.errors import UsageError

# What must agree between results for their figures to stand side by side.
PROTOCOL = {
    "depth": ("data_sha256", "bank", "k", "pooling", "reference", "leave_one_out"),
    "transfer": ("image_size", "split_seed"),
    "fewshot": ("image_size", "protocol"),
    "hessian": ("data_sha256", "order", "images", "batchnorm", "group", "label_smoothing", "weight_decay"),
}

TITLES = {
    "accuracy": "Accuracy on the validation set",
    "depth": "Prediction depth",
    "transfer": "Transfer",
    "fewshot": "Few-shot",
    "hessian": "Hessian of the training loss",
}

_PROBES = {"linear": "linear probe", "knn": "k-NN", "fine_tune": "fine-tuned"}
_HEADS = {"linear": "linear head", "centroid": "nearest centroid"}


@dataclass(frozen=True)
class Figure:
    """One number of one network.

    Attributes:
        group: the runs it belongs to, which differ by their seed alone.
        run: the run folder's name.
        seed: of the run.
        stage: of the weights; that of `compare --stage` for what tables show.
        weights_sha256: of the weights file.
        analysis: a key of `TITLES`.
        name: what the number is, its unit included.
        value: itself.
        low: lower end of its own interval (over examples or episodes), None where it has none.
        high: upper end.
    """

    group: str
    run: str
    seed: int
    stage: str
    weights_sha256: str
    analysis: str
    name: str
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Runs and all figures of them.

    Attributes:
        runs: the compared networks by group.
        stage: the weights that tables speak of.
        figures: of that stage and of all others that results speak of.
        protocols: by analysis, what its results have in common.
        rows: the metrics of every run, by the run's name.
        strangers: names in the results that are of none of these runs.
    """

    runs: dict[str, list[TrainedNetwork]]
    stage: str
    figures: list[Figure]
    protocols: dict[str, dict[str, Any]]
    rows: dict[str, list[dict[str, Any]]]
    strangers: list[str]

    def shown(self, analysis: str) -> list[Figure]:
        """The figures that tables show."""
        return [f for f in self.figures if f.analysis == analysis and f.stage == self.stage]

    def names(self, analysis: str) -> list[str]:
        """Names of an analysis's figures, in order."""
        return list(dict.fromkeys(f.name for f in self.figures if f.analysis == analysis))

    def cell(self, analysis: str, name: str, group: str) -> tuple[Interval, list[Figure]] | None:
        """A figure's mean over a group's seeds; of one seed its own interval. None where nothing is known."""
        members = [f for f in self.shown(analysis) if f.name == name and f.group == group]
        if not members:
            return None
        if len(members) == 1 and members[0].low is not None and members[0].high is not None:
            return Interval(members[0].value, members[0].low, members[0].high, 1), members
        return student([f.value for f in members]), members

    def json(self) -> dict[str, Any]:
        """As compare.json holds it."""
        table = [
            {"analysis": analysis, "name": name, "group": group} | found[0].json()
            for analysis in TITLES
            for name in self.names(analysis)
            for group in self.runs
            if (found := self.cell(analysis, name, group))
        ]
        return {
            "groups": {group: [subject.name for subject in members] for group, members in self.runs.items()},
            "stage": self.stage,
            "protocols": self.protocols,
            "table": table,
            "figures": [asdict(figure) for figure in self.figures],
        }


def compare(runs: Sequence[Path], results: dict[str, list[dict[str, Any]]], stage: str = "last") -> Comparison:
    """Runs beside each other, with those of the results that are of their weights.

    Raises:
        UsageError: a run is none or is named twice, or results were made in ways that cannot be compared.
    """
    subjects = [open_network(run, stage=stage) for run in runs]
    for run, subject in zip(runs, subjects, strict=True):
        if subject.config is None:
            raise UsageError(f"compare {run}: not a run folder; runs are compared by their settings and metrics")
    groups = {group: [subjects[i] for i in places] for group, places in by_seed(subjects).items()}
    folders = dict(zip((id(subject) for subject in subjects), map(Path, runs), strict=True))
    known: dict[str, list[dict[str, Any]]] = {}  # by weights: the places that a figure of them belongs to
    figures: list[Figure] = []
    rows: dict[str, list[dict[str, Any]]] = {}
    for group, members in groups.items():
        for subject in members:
            folder = folders[id(subject)]
            name = folder.resolve().name
            if name in rows:
                raise UsageError(f"compare: two of the runs are called {name}; rename one of them")
            rows[name] = RunFolder(folder).rows()
            assert subject.config is not None
            place = {"group": group, "run": name, "seed": subject.config.seed}
            held = [stage, *(kept for kept, _ in stages(folder))]
            for kept in held:
                digest = identity(open_network(folder, stage=kept))["weights_sha256"]
                known.setdefault(digest, []).append(place | {"stage": kept, "weights_sha256": digest})
            own = next(p for places in known.values() for p in places if p["run"] == name and p["stage"] == stage)
            figures += [Figure(**own, analysis="accuracy", **found) for found in _accuracy(folder)]
    protocols, strangers = {}, []
    for analysis, found in results.items():
        ours = [result for result in found if result["weights_sha256"] in known]
        strangers += [f"{r['subject']} ({analysis})" for r in found if r["weights_sha256"] not in known]
        if ours:
            protocols[analysis] = _protocol(analysis, ours)
        measured: dict[tuple[str, ...], Figure] = {}
        for result in ours:
            for place in known[result["weights_sha256"]]:
                for figure in _figures(analysis, result):
                    # A later result of the same weights replaces an earlier one.
                    key = (place["run"], place["stage"], figure["name"])
                    measured[key] = Figure(**place, analysis=analysis, **figure)
        figures += measured.values()
    return Comparison(groups, stage, figures, protocols, rows, strangers)


def _accuracy(folder: Path) -> Iterator[dict[str, Any]]:
    path = RunFolder(folder).summary
    try:
        summary = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read ({error}); let the run finish, or leave it out") from None
    for which in ("best", "last"):
        for key, title in (("val_top1", "top-1"), ("val_top5", "top-5")):
            if summary.get(which) and summary[which].get(key) is not None:
                yield {"name": f"{title} of the {which} epoch (%)", "value": summary[which][key]}


def _protocol(analysis: str, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    said = {}
    for key in PROTOCOL[analysis]:
        values = {json.dumps(result.get(key), sort_keys=True): result["subject"] for result in results}
        if len(values) > 1:
            (one, first), (other, second) = list(values.items())[:2]
            raise UsageError(
                f"{analysis} results cannot be compared: {key} is {one} for {first} and {other} for {second}; "
                "run the analysis anew on all of them with the same flags"
            )
        if (value := json.loads(next(iter(values)))) is not None:
            said[key] = value
    return said


def _figures(analysis: str, result: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The numbers of a result, with their names."""
    if analysis == "depth":
        for split, found in result["splits"].items():
            yield from _mean(f"mean depth, {split}", found["mean_depth"])
            yield from _mean(f"without depth, {split} (%)", found["without_depth"])
    if analysis == "transfer":
        for target, probes in result["targets"].items():
            for probe, title in _PROBES.items():
                if probe in probes:
                    yield {"name": f"{target}, {title} (%)", "value": probes[probe]["top1"]}
    if analysis == "fewshot":
        for target, by_shots in result["targets"].items():
            for shots, heads in by_shots.items():
                for head, found in heads.items():
                    yield from _mean(f"{target}, {shots}-shot, {_HEADS.get(head, head)} (%)", found)
    if analysis == "hessian":
        for key, name in (("top", "largest eigenvalue"), ("bottom", "most negative eigenvalue"), ("trace", "trace")):
            value = result.get(key)
            value = (value[0] if value else None) if isinstance(value, list) else value
            if value is not None:
                yield {"name": name, "value": float(value)}


def _mean(name: str, found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if found["mean"] is not None:
        yield {"name": name, "value": found["mean"], "low": found["low"], "high": found["high"]}
