"""Accuracies and differences of the few-shot table, from invented accuracies."""

import numpy as np
import pytest

from seal_fast.analysis.fewshot.command import FewShot
from seal_fast.runs.stats import holm, paired, paired_p, student


def tabled(networks):
    """The command with results of (subject, group, seed, mean accuracy): the same 40 episodes, shifted."""
    command, episodes = FewShot(), np.random.default_rng(0).normal(0, 5, 40)
    results = []
    protocol = {"ways": 5, "episodes": 40, "queries": 15}
    for number, (subject, group, seed, mean, *excluded) in enumerate(networks):
        command.percent[subject] = {("far", 5, "linear"): episodes + mean + 0.1 * np.cos(np.arange(40) * number)}
        figures = {"far": {"5": {"linear": {}}}}
        network = {"subject": subject, "group": group, "seed": seed, "stage": "last", "weights_sha256": subject}
        results.append(network | {"excluded": "".join(excluded), "protocol": protocol, "targets": figures})
    return command, results


def row(text, *start):
    (found,) = [line for line in text.splitlines() if line.split()[: len(start)] == list(start)]
    return found


SEAL = [("s0", "seal", 0, 50.0), ("s1", "seal", 1, 60.0), ("s2", "seal", 2, 70.0)]
LLF = {seed: (f"l{seed}", "llf", seed, mean - 2) for seed, mean in enumerate((50, 60, 70, 20))}


def mean(command, subject):
    return command.percent[subject]["far", 5, "linear"].mean()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_runs_are_paired_by_seed_whatever_their_order(order):
    command, results = tabled([*SEAL, *(LLF[seed] for seed in order)])
    text = command.table(results)
    pairs = [[mean(command, f"{name}{seed}") for seed in range(3)] for name in "ls"]
    assert paired(*pairs).mean == pytest.approx(-2, abs=0.1)
    assert f"{paired(*pairs).show()} p {paired_p(*pairs):.2g}" in row(text, "far", "5", "linear", "runs")


def test_seeds_without_a_partner_are_left_out_and_named():
    command, results = tabled([*SEAL, LLF[1], LLF[2], LLF[3]])
    text = command.table(results)
    pairs = [[mean(command, f"{name}{seed}") for seed in (1, 2)] for name in "ls"]
    assert paired(*pairs).show() in row(text, "far", "5", "linear", "runs")
    assert "seal: seeds 0 have no partner in llf" in text and "llf: seeds 3 have no partner in seal" in text
    assert student([mean(command, f"l{seed}") for seed in (1, 2, 3)]).show() in text


def test_what_does_not_count_is_shown_alone_and_never_paired():
    command, results = tabled([*SEAL[:2], LLF[0], LLF[1], ("l2", "half", 2, 10.0, "its run is unfinished")])
    text = command.table(results)
    assert "half" not in text[text.index("difference to") :] and f"{mean(command, 'l2'):.2f}" in text
    assert text.index("difference to seal")


def test_p_values_are_adjusted_for_all_comparisons_of_the_table():
    others = [
        (f"{name}{seed}", name, seed, 52 + 3 * seed + shift) for name, shift in (("a", 1), ("b", 3)) for seed in (0, 1)
    ]
    command, results = tabled([*SEAL[:2], *others])
    samples = [[[mean(command, f"{n}{seed}") for seed in (0, 1)] for n in (name, "s")] for name in "ab"]
    adjusted = holm([paired_p(*sample) for sample in samples])
    shown = row(command.table(results), "far", "5", "linear", "runs")
    assert [part.split()[0] for part in shown.split(" p ")[1:]] == [f"{p:.2g}" for p in adjusted]


def test_weights_files_without_a_seed_are_compared_by_their_episodes():
    command, results = tabled([("a", "a", None, 50.0), ("b", "b", None, 47.0)])
    text = command.table(results)
    pair = [command.percent[name]["far", 5, "linear"] for name in "ba"]
    assert (
        paired(*pair).show() in row(text, "far", "5", "linear", "episodes") and " runs " not in text.split("\n\n")[-1]
    )
