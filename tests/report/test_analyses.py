"""Results of analyses beside runs, written as the commands write them."""

import csv
import json
from dataclasses import replace

import browser
import numpy as np
import pytest
from pretend import pretend_run
from safetensors.numpy import save_file

from seal_fast.__main__ import main
from seal_fast.config import Config
from seal_fast.runs.identity import weights_sha256
from seal_fast.runs.stats import paired, student

BASE = Config(data="digits", generations=2, epochs=2, ascent_epochs=1, eval_every=1)
DEPTH = {"analysis": "depth", "seal_fast": "1", "k": 3, "data_sha256": "d"}


@pytest.fixture
def runs(tmp_path):
    """Two seeds of llf and two of seal, with weights of two generations and of the end."""
    for method in ("llf", "seal"):
        for seed in range(2):
            path = tmp_path / f"{method}-{seed}"
            pretend_run(path, replace(BASE, method=method, seed=seed), 50)
            (path / "weights").mkdir()
            for stage, number in (("generation-0", 0), ("generation-1", 1), ("last", 1)):
                tensors = {"w": np.array([seed, number, len(method)], np.float32)}
                save_file(tensors, path / "weights" / f"{stage}.safetensors")
    return tmp_path


def result(run, stage="last", protocol=None, **content):
    digest = weights_sha256(run / "weights" / f"{stage}.safetensors")
    return {"subject": run.name, "stage": stage, "weights_sha256": digest, "protocol": protocol} | content


def depth(run, mean, stage="last", **protocol):
    interval = {"mean": mean, "low": mean - 1, "high": mean + 1, "count": 12}
    split = {"mean_depth": interval, "without_depth": interval | {"mean": None}}
    return result(run, stage, DEPTH | protocol, splits={"val": split})


def write(folder, **results):
    folder.mkdir(exist_ok=True)
    for command, found in results.items():
        (folder / f"{command}.json").write_text(json.dumps(found))


def report(folder, *flags):
    assert main(["report", str(folder), *flags]) == 0
    shown = json.loads((folder / "report.json").read_text())
    return shown, [group["label"] for group in shown["groups"]]


def test_means_pairs_and_curves_go_by_group_and_seed(runs):
    means = {"llf-1": 4.0, "llf-0": 2.0, "seal-0": 5.5, "seal-1": 6.0}  # not in the order of the seeds
    found = [depth(runs / name, mean) for name, mean in means.items()]
    write(runs / "results", depth=[*found, depth(runs / "seal-0", 1.0, "generation-0")])
    shown, labels = report(runs)
    (section,) = shown["analyses"]
    (figure,) = section["figures"]
    assert labels == ["llf", "seal"] and figure["name"] == "mean depth, val" and section["differ"] == []
    cells = {labels[cell["group"]]: cell for cell in figure["cells"]}
    assert cells["llf"]["mean"] == 3 and cells["llf"]["low"] == pytest.approx(student([2.0, 4.0]).low)
    (pair,) = section["pairs"]
    expected = paired([2.0, 4.0], [5.5, 6.0])
    assert (pair["mean"], pair["low"], pair["count"]) == pytest.approx((expected.mean, expected.low, 2))
    # of seal-0 the last weights are those of generation 1
    (curve,) = (curve for curve in figure["curves"] if labels[curve["group"]] == "seal")
    assert curve["at"] == [0, 1] and [p["mean"] for p in curve["points"]] == [1.0, 5.75]
    rows = list(csv.DictReader((runs / "report.csv").open()))
    assert {(r["run"], r["stage"], r["value"]) for r in rows if r["analysis"] == "depth"} >= {
        ("llf-1", "last", "4.0"), ("seal-0", "generation-0", "1.0"), ("seal-1", "generation-1", "6.0"),
    }  # fmt: skip


def test_a_single_seed_has_its_own_interval_and_stages_can_be_chosen(runs, capsys):
    write(runs / "results", depth=[depth(runs / "seal-0", 1.0, "generation-0")])
    shown, labels = report(runs, "--stage", "generation-0")
    ((cell,),) = (figure["cells"] for figure in shown["analyses"][0]["figures"])
    assert (labels[cell["group"]], cell["mean"], cell["low"], cell["high"]) == ("seal", 1, 0, 2)
    assert report(runs)[0]["analyses"][0]["figures"][0]["cells"] == []
    assert main(["report", str(runs), "--stage", "generation-7"]) == 2
    assert "--stage generation-7: the results are of generation-0" in capsys.readouterr().err


def test_figures_of_other_protocols_stand_in_sections_of_their_own(runs):
    llf, seal = runs / "llf-0", runs / "seal-0"
    protocol = {"analysis": "transfer", "l2": [1.0], "targets": {"far": "1" * 64}, "compute": "float32"}
    changes = ({}, {"l2": [10.0]}, {"targets": {"far": "2" * 64}}, {"compute": "bfloat16"})
    top1 = (74.92, 16.50, 30.0, 40.0)
    for i, (change, value) in enumerate(zip(changes, top1, strict=True)):
        found = [
            result(r, "last", protocol | change, targets={"far": {"linear": {"top1": value}}}) for r in (llf, seal)
        ]
        write(runs / f"results-{i}", transfer=found[: 1 + (i == 0)])
    sections = report(runs)[0]["analyses"]
    values = [[cell["mean"] for cell in section["figures"][0]["cells"]] for section in sections]
    assert sorted(map(tuple, values)) == [(16.50,), (30.0,), (40.0,), (74.92, 74.92)]
    assert all(section["differ"] == ["l2", "targets", "compute"] for section in sections)
    assert {section["title"] for section in sections} == {f"Transfer, protocol {i}" for i in (1, 2, 3, 4)}


def test_every_analysis_is_read(runs):
    run = runs / "llf-0"
    episodes = {"far": {"5": {"linear": {"mean": 70.0, "low": 69.0, "high": 71.0, "count": 600}}}}
    hessian = {"top": [31.5, 20.0], "bottom": [-2.5], "trace": 400.0}
    targets = {"far": {"linear": {"top1": 61.5}, "knn": {"top1": 50.0}}}
    write(
        runs / "results",
        transfer=[result(run, protocol={"analysis": "transfer"}, targets=targets)],
        fewshot=[result(run, protocol={"analysis": "fewshot"}, targets=episodes)],
        hessian=result(run, protocol={"analysis": "hessian"}, **hessian),  # one object standing alone
    )
    figures = {
        figure["name"]: figure["cells"][0]["mean"]
        for section in report(runs)[0]["analyses"]
        for figure in section["figures"]
    }
    assert figures == {
        "far, linear probe (%)": 61.5, "far, k-NN (%)": 50.0, "far, 5-shot, linear head (%)": 70.0,
        "largest eigenvalue": 31.5, "most negative eigenvalue": -2.5, "trace": 400.0,
    }  # fmt: skip


def test_the_figure_to_look_at_first_comes_first(runs):
    interval = {"mean": 50.0, "low": None, "high": None, "count": 1}
    figures = {section: {"top-1 (%)": interval} for section in ("clean", "all corruptions", "noise")}
    write(runs / "results", robustness=[result(runs / "llf-0", protocol={"analysis": "robustness"}, figures=figures)])
    names = [figure["name"] for figure in report(runs)[0]["analyses"][0]["figures"]]
    assert names == ["top-1 (%), all corruptions", "top-1 (%), clean", "top-1 (%), noise"]


def test_what_cannot_stand_on_the_page_is_named(runs, capsys):
    good = depth(runs / "seal-0", 5.0)
    (runs / "seal-1" / "metrics.jsonl").write_text("")  # unfinished now
    old = {key: value for key, value in depth(runs / "llf-0", 4.0).items() if key != "protocol"}
    found = [
        good,
        good | {"subject": "again"},
        depth(runs / "seal-1", 9.0),
        old,
        depth(runs / "llf-1", 1.0) | {"splits": {"val": {}}},
    ]
    write(runs / "results", depth=found, transfer=[{"protocol": {"analysis": "transfer"}}])
    (runs / "results" / "hessian.json").write_text("{")
    left_out = [f"{name}: {why}" for name, why in report(runs)[0]["left_out"]]
    for start, why in (
        ("again in", "measured again in"), ("seal-1 in", "of no weights of the finished runs"),
        ("", "does not say its whole protocol"), ("llf-1 in", "damaged"), ("", "does not say subject"),
        ("", "not readable JSON"),
    ):  # fmt: skip
        assert any(line.startswith(start) and why in line for line in left_out), why
    assert main(["report", str(runs), "--results", str(runs / "seal-0")]) == 2
    assert "holds none of depth.json, transfer.json" in capsys.readouterr().err


def test_results_elsewhere_are_named_by_a_flag(runs, tmp_path_factory):
    place = tmp_path_factory.mktemp("elsewhere")
    write(place, depth=[depth(runs / "seal-0", 5.0)])
    assert report(runs)[0]["analyses"] == []
    assert len(report(runs, "--results", str(place))[0]["analyses"]) == 1


def test_a_colour_stands_for_one_group_on_the_whole_page(runs):
    if browser.find() is None:
        pytest.skip("no Chromium on this machine")
    found = [
        depth(runs / f"{m}-{s}", 3.0 + s + len(m), st)
        for m in ("llf", "seal")
        for s in (0, 1)
        for st in ("generation-0", "last")
    ]
    alike = {"name": "to llf", "rows": ["a", "b"], "columns": ["a", "b", "c"], "values": [[1, 0.5, 0], [None, 0, 1]]}
    two = [result(runs / f"seal-{s}", protocol={"analysis": "similarity"}, maps=[alike]) for s in (0, 1)]
    two[1]["maps"] = [alike | {"values": [[0.5, 0.5, 0.2], [0, 0, 1]]}]
    interval = {"mean": 50.0, "low": None, "high": None, "count": 1}
    figures = {section: {"top-1 (%)": interval} for section in ("clean", "all corruptions", "noise")}
    robust = [result(runs / "seal-0", protocol={"analysis": "robustness"}, figures=figures)]
    write(runs / "results", depth=found, similarity=two, robustness=robust)
    shown, _ = report(runs)
    (drawn,) = (one for section in shown["analyses"] for one in section["maps"])
    assert drawn["values"] == [[0.75, 0.5, 0.1], [None, 0, 1]]
    with browser.page() as driver:
        driver.open(runs / "report.html", width=360)
        assert driver.of("Runtime.exceptionThrown") == []
        shown = (
            "[...document.querySelectorAll('svg :not(.cell) > title')].map(t => t.textContent.split(':')[0] + ' ' + "
            "getComputedStyle(t.parentNode)[t.parentNode.tagName == 'path' ? 'stroke' : 'fill'])",
            "[...document.querySelectorAll('.mark')].map(m => m.nextSibling.textContent + ' ' + "
            "getComputedStyle(m).backgroundColor)",
        )
        drawn = {name for script in shown for name in driver.run(script)}
        assert len(drawn) == 2 and {name.split()[0] for name in drawn} == {"llf", "seal"}
        cells = driver.run(
            "[...document.querySelectorAll('.cell')].map(c => [c.getAttribute('fill-opacity'), c.textContent])"
        )
        assert [cells[0], cells[3]] == [["0.75", "a, a: 0.75"], ["0", "b, a: not defined"]] and len(cells) == 6
        assert driver.run("document.querySelector('figcaption').innerText") == "seal: to llf"
        plots = "[...document.querySelectorAll('#analyses section')].map(s => s.querySelectorAll('svg').length)"
        unfolded = "[...document.querySelectorAll('#analyses section > .grid')].map(g => g.childElementCount)"
        assert driver.run(unfolded) == [2, 1, 1]
        driver.run("document.querySelectorAll('details').forEach(d => d.open = true)")
        driver.run("new Promise(done => requestAnimationFrame(() => setTimeout(done)))")
        assert driver.run(plots) == [2, 1, 3]
        states = driver.run(
            "[...document.querySelectorAll('.scroll')]"
            ".map(b => [b.scrollWidth > b.clientWidth + 1, 'more' in b.dataset])"
        )
        assert any(more for more, _ in states) and all(more == said for more, said in states)
        assert driver.run("document.documentElement.scrollWidth") <= 360
