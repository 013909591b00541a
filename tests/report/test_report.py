import csv
import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import browser
import pytest
from pretend import pretend_rows, pretend_run

from seal_fast.__main__ import main
from seal_fast.config import Config
from seal_fast.report import command, plots
from seal_fast.report.analyses import Analyses
from seal_fast.report.content import content as content_of
from seal_fast.report.content import page
from seal_fast.runs.collection import Run, Runs, group_by_training
from seal_fast.runs.stats import holm, paired, paired_p
from seal_fast.utils.errors import UsageError

BASE = Config(data="digits", generations=3, epochs=8, ascent_epochs=2, eval_every=1)
LEVELS = {"seal": 60.0, "llf": 57.0, "restart": 50.0}
NONE = Analyses([], {}, [])


def run(name, config, rows, state="finished"):
    return Run(config, {}, (), Path(name), rows, state)


def runs(methods=LEVELS, scales=(0.01,), seeds=range(3)):
    found = []
    for method in methods:
        for scale in scales if method == "seal" else (0.01,):
            for seed in seeds:
                config = replace(BASE, method=method, ascent_scale=scale, seed=seed)
                rows = pretend_rows(config, LEVELS[method] + 10 * scale + seed)
                found.append(run(f"{method}-{scale}-{seed}", config, rows))
    return found


def content(found, title="t"):
    return content_of(Runs(found, []), group_by_training(found), NONE, title)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "my <runs>"
    for one in runs(scales=(0.001, 0.01, 0.1)):
        pretend_run(path / one.name, one.config, LEVELS[one.config.method] + one.config.seed)
    assert main(["report", str(path)]) == 0
    assert (path / "report.png").read_bytes().startswith(b"\x89PNG")
    return path


def best(found):
    return max(row["val_top1"] for row in found.rows)


def test_means_and_intervals_are_those_of_the_seeds():
    found = runs(("seal",))
    (group,) = content(found)["groups"]
    x = [best(one) for one in found]
    mean = sum(x) / 3
    half = 4.302652729911275 * math.sqrt(sum((v - mean) ** 2 for v in x) / 2 / 3)  # t of two degrees of freedom
    assert group["best"]["mean"] == pytest.approx(mean, abs=1e-9)
    assert group["best"]["low"] == pytest.approx(mean - half, abs=1e-6) and group["seeds"] == [0, 1, 2]
    assert group["curve"]["epoch"] == list(range(1, 25)) and group["ascents"] == [(8, 10), (16, 18)]
    last = [one.rows[-1]["val_top1"] for one in found]
    assert group["curve"]["mean"][-1] == pytest.approx(sum(last) / 3, abs=0.006)
    assert group["curve"]["low"][-1] == pytest.approx(min(last), abs=0.006)
    assert group["images_per_s"] == pytest.approx(sum(600 + 2 * g for g in range(3)) / 6)
    assert group["throughput"] == {"generation": [0, 1, 2], "images_per_s": [300.0, 301.0, 302.0]}


def test_methods_are_compared_over_the_same_seeds_with_holm_beside_them():
    found = runs()
    del found[4]  # llf's seed 1
    shown = content(found)
    labels = [group["label"] for group in shown["groups"]]
    rows = {(labels[row["first"]], labels[row["second"]]): row["best"] for row in shown["pairs"]}
    by = {(one.config.method, one.seed): best(one) for one in found}
    seeds = {("seal", "llf"): (0, 2), ("seal", "restart"): (0, 1, 2), ("llf", "restart"): (0, 2)}
    assert set(rows) == set(seeds)
    p_values = []
    for pair, shared in seeds.items():
        first, second = ([by[method, seed] for seed in shared] for method in pair)
        expected = paired(first, second)
        assert rows[pair]["count"] == len(shared)
        assert (rows[pair]["mean"], rows[pair]["low"]) == pytest.approx((expected.mean, expected.low), abs=1e-9)
        p_values.append(paired_p(first, second))
    assert [rows[pair]["holm"] for pair in seeds] == pytest.approx(holm(p_values))


def test_generations_have_their_ends_gain_and_slope(capsys):
    found = [run(f"{m}-{s}", replace(BASE, method=m, seed=s, generations=4), []) for m in LEVELS for s in range(3)]
    found = [replace(one, rows=pretend_rows(one.config, LEVELS[one.config.method])) for one in found]
    shown = content(found)
    ends = {one: [row["val_top1"] for row in one.rows if row["epoch"] == 7] for one in found}
    slopes = {one: (v[3] - v[1]) / 2 for one, v in ends.items()}  # least squares over three equally spaced points
    for group in shown["groups"]:
        mine = [one for one in found if one.config.method == group["method"]]
        assert group["ends"]["at"] == [0, 1, 2, 3]
        means = [sum(ends[one][g] for one in mine) / 3 for g in range(4)]
        assert [point["mean"] for point in group["ends"]["points"]] == pytest.approx(means)
        assert group["gain"]["mean"] == pytest.approx(means[3] - means[0])
        assert group["slope"]["mean"] == pytest.approx(sum(slopes[one] for one in mine) / 3)
        assert group["fit"] == pytest.approx(sum(one.rows[7]["train_top1"] for one in mine) / 3)
    of = {(one.config.method, one.seed): slope for one, slope in slopes.items()}
    for row in shown["pairs"]:
        first, second = (shown["groups"][row[side]]["method"] for side in ("first", "second"))
        expected = paired(*([of[method, seed] for seed in range(3)] for method in (first, second)))
        assert (row["slope"]["mean"], row["slope"]["low"]) == pytest.approx((expected.mean, expected.low), abs=1e-9)
    command._print(shown)
    table = capsys.readouterr().out.split("first minus second")[1].splitlines()
    assert table[0].split()[-3:] == ["slope", "p", "(Holm)"]
    for line, row in zip(table[2:], shown["pairs"], strict=False):
        numbers = [f"{row['slope'][key]:.2f}" for key in ("mean", "low", "high")]
        assert re.split(r" {2,}", line)[-2] == "{} [{}, {}]".format(*numbers)
    assert shown["same_start"] == "The end of generation 0 is not equal between groups (seeds 0, 1, 2)."
    for one in found:
        one.rows[7].update(val_top1=40.0 + one.seed)
    assert content(found)["same_start"] == "The end of generation 0 is equal in all groups, seed by seed."
    single = run("long", replace(BASE, method="long"), pretend_rows(replace(BASE, method="long"), 50.0))
    assert content([single])["groups"][0]["ends"] is None


def labelled(shown):
    labels = [group["label"] for group in shown["groups"]]
    return {(labels[row["first"]], labels[row["second"]]) for row in shown["pairs"]}


def test_methods_are_compared_where_they_agree_in_what_acts_on_both():
    scales = content(runs(("seal", "llf"), scales=(0.01, 0.1)))
    assert labelled(scales) == {("seal, ascent scale 0.01", "llf"), ("seal, ascent scale 0.1", "llf")}
    assert "ascent_scale" not in scales["groups"][2]["settings"]
    found = [
        run(f"{m}{lr}", replace(BASE, method=m, lr=lr), pretend_rows(BASE, 50))
        for m in ("seal", "llf")
        for lr in (1, 2)
    ]
    assert labelled(content(found)) == {("seal, lr 1", "llf, lr 1"), ("seal, lr 2", "llf, lr 2")}


def test_of_one_method_the_best_settings_are_compared_with_the_others():
    assert labelled(content(runs(("seal",), scales=(0.01, 0.1)))) == {("ascent scale 0.1", "ascent scale 0.01")}


def test_a_baseline_is_what_all_others_are_compared_with():
    found = runs(scales=(0.01, 0.1))
    groups = group_by_training(found)
    shown = content_of(Runs(found, []), groups, NONE, "t", "restart")
    others = {"seal, ascent scale 0.01", "seal, ascent scale 0.1", "llf"}
    assert labelled(shown) == {(other, "restart") for other in others}
    by = {(one.config.method, one.config.ascent_scale, one.seed): one.rows[-1]["val_top1"] for one in found}
    row = next(row["last"] for row in shown["pairs"] if groups[row["first"]].label == "seal, ascent scale 0.1")
    differences = [by["seal", 0.1, seed] - by["restart", 0.01, seed] for seed in range(3)]
    assert row["mean"] == pytest.approx(sum(differences) / 3)
    p_values = [row["last"]["p"] for row in shown["pairs"]]
    assert [row["last"]["holm"] for row in shown["pairs"]] == pytest.approx(holm(p_values))  # of three differences
    assert labelled(content_of(Runs(found, []), groups, NONE, "t", "seal, ascent scale 0.1")) == {
        (other, "seal, ascent scale 0.1") for other in ("seal, ascent scale 0.01", "llf", "restart")
    }
    for name, sentence in (("seal", "is one of: seal, ascent scale 0.01; seal,"), ("dnr", "no group is one of: seal,")):
        with pytest.raises(UsageError, match=f"--baseline {name}: {sentence}"):
            content_of(Runs(found, []), groups, NONE, "t", name)


def test_one_seed_has_no_interval_and_what_is_unfinished_counts_nowhere():
    half = run("half", replace(BASE, seed=1), pretend_rows(BASE, 90, generations=1), "stopped early")
    found = [*runs(("seal",), seeds=[0]), half, run("new", replace(BASE, method="llf"), [], "unfinished")]
    shown = content(found)
    first, second = shown["groups"]
    assert first["best"]["mean"] == best(found[0]) and math.isnan(first["best"]["low"]) and first["left_out"] == 1
    assert math.isnan(second["best"]["mean"]) and second["seeds"] == [] and second["curve"]["epoch"] == []
    assert len(first["curve"]["epoch"]) == 24 and "high" not in first["curve"]
    assert shown["left_out"] == [
        ("half", "stopped early after 8 of 24 epochs"), ("new", "unfinished after 0 of 24 epochs"),
    ]  # fmt: skip
    assert shown["runs"] == 1 and "NaN" not in page(shown)


def test_a_page_has_no_address_in_it_and_no_way_out_of_its_data(folder):
    text = (folder / "report.html").read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!data:)|@import|url\(""", text)
    assert set(re.findall(r"https?://[^\s\"']+", text)) <= {"http://www.w3.org/2000/svg"}
    shown = content([run("</script><script>document.title='out'</script>", BASE, [], "failed")], "<b>")
    text = page(shown)
    assert "</script><script>document" not in text and "<title>&lt;b&gt;</title>" in text


def test_figures_are_written_as_csv_and_json_too(folder):
    rows = list(csv.DictReader((folder / "report.csv").open()))
    assert len(rows) == 15 * 4 and {row["group"] for row in rows} >= {"llf", "seal, ascent scale 0.001"}
    shown = json.loads((folder / "report.json").read_text())
    values = [float(r["value"]) for r in rows if r["group"] == "llf" and r["name"] == "top-1 of the best epoch (%)"]
    (llf,) = (group for group in shown["groups"] if group["label"] == "llf")
    assert llf["best"]["mean"] == pytest.approx(sum(values) / 3) and len(values) == 3


def test_runs_may_be_named_one_by_one_and_a_damaged_one_is_named(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bad = Path(os.fsdecode(b"ba\xefd"))
    shutil.copytree(folder / "llf-0.01-0", bad)
    text = (bad / "metrics.jsonl").read_text()
    (bad / "metrics.jsonl").write_text(text.replace('"val_top1"', '"val_top2"', 1))
    assert main(["report", *(str(folder / f"llf-0.01-{seed}") for seed in range(3)), str(bad)]) == 0
    said = capsys.readouterr().out
    assert "left out: ba\\xefd: line 1 of metrics.jsonl is damaged (no val_top1)" in said
    shown = json.loads(Path("report.json").read_text())
    assert [group["seeds"] for group in shown["groups"]] == [[0, 1, 2]]
    assert "ba\\\\xefd" in Path("report.html").read_text()


def test_a_pair_of_single_seeds_has_no_p(folder, tmp_path, capsys):
    single = [str(folder / f"{method}-0.01-0") for method in ("seal", "llf", "restart")]
    assert main(["report", *single, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "first minus second" in printed and "Holm" not in printed and "nan" not in printed
    assert (
        main(["report", *single, str(folder / "llf-0.01-1"), str(folder / "seal-0.01-1"), "--out", str(tmp_path)]) == 0
    )
    (row,) = (line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("seal - restart"))
    assert row[3] == "1" and row[5] == row[7] == "-"


def test_the_picture_has_the_pages_numbers_and_colours():
    found = [run(f"{m}-{s}", replace(BASE, method=m, seed=s), []) for m in LEVELS for s in range(3)]
    found = [replace(one, rows=pretend_rows(one.config, LEVELS[one.config.method] + one.config.seed)) for one in found]
    shown = content_of(Runs(found, []), group_by_training(found), NONE, "t", "restart")
    over, against = plots.figure(shown).axes
    labels = [group["label"] for group in shown["groups"]]
    ranked = sorted(labels, key=lambda label: -LEVELS[label])
    for line, label, colour in zip(over.lines, ranked, plots.COLOURS, strict=False):
        points = shown["groups"][labels.index(label)]["ends"]["points"]
        assert (line.get_label(), line.get_color()) == (label, colour)
        assert list(line.get_ydata()) == [point["mean"] for point in points]
    assert [tick.get_text() for tick in against.get_yticklabels()] == ["llf", "seal"]
    assert "minus that of restart" in against.get_xlabel()
    for place, bar in enumerate(against.containers):
        (row,) = (r for r in shown["pairs"] if labels[r["first"]] == ["llf", "seal"][place])
        (ends,) = bar[2][0].get_segments()
        assert bar[0].get_xdata()[0] == row["last"]["mean"]
        assert ends[:, 0].tolist() == pytest.approx([row["last"]["low"], row["last"]["high"]])
    alone = content(runs(("seal",), seeds=(0,)))
    assert len(plots.figure(alone).axes) == 1 and plots.figure(alone | {"groups": [], "pairs": []}) is None
    page_colours = re.findall(r"--c\d:(#\w+)", (Path(plots.__file__).parent / "page.css").read_text())
    assert page_colours[: len(plots.COLOURS)] == [*plots.COLOURS]


def test_a_folder_without_runs_is_refused(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2 and "neither a sweep nor run folders" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "missing")]) == 2


def test_a_sweep_is_found_with_what_became_of_its_trials(tmp_path):
    from seal_fast.sweep.folder import SweepFolder
    from seal_fast.sweep.ledger import Ledger
    from seal_fast.sweep.plan import Plan, Trial

    sweep = SweepFolder(tmp_path)
    trials = tuple(Trial(f"{s}", {"seed": s}, replace(BASE, seed=s)) for s in range(4))
    sweep.write_plan(Plan(trials))
    ledger = Ledger.open(sweep.ledger, [t.name for t in trials])
    pretend_run(sweep.trials / "0", trials[0].config, 50)
    pretend_run(sweep.trials / "1", trials[1].config, 50, generations=1)
    ledger.record("1", "running", generation=1, value=3.0)
    ledger.record("1", "stopped")
    ledger.record("2", "failed", failures=3, message="out of memory")
    assert main(["report", str(tmp_path)]) == 0
    shown = json.loads((tmp_path / "report.json").read_text())
    assert shown["groups"][0]["seeds"] == [0]
    assert {Path(name).name: why for name, why in shown["left_out"]} == {
        "1": "stopped early after 8 of 24 epochs", "2": "failed: out of memory", "3": "not started",
    }  # fmt: skip


def test_a_report_imports_no_torch():
    code = "import sys, seal_fast.report.command; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.fixture(scope="module")
def chromium():
    if browser.find() is None:
        pytest.skip("no Chromium on this machine")
    with browser.page() as driver:
        yield driver


def first_column(driver, table, column):
    script = f"[...document.querySelectorAll('#{table} tbody tr')].map(r => r.children[{column}].textContent)"
    return driver.run(script)


def test_in_a_browser_it_sorts_draws_and_asks_for_nothing(folder, chromium):
    chromium.open(folder / "report.html")
    assert chromium.of("Runtime.exceptionThrown") == [] and chromium.of("Log.entryAdded") == []
    asked = [event["request"]["url"] for event in chromium.of("Network.requestWillBeSent")]
    assert [url for url in asked if not url.startswith("data:")] == [(folder / "report.html").as_uri()]
    assert chromium.run("document.querySelector('h1').textContent") == "my <runs>"
    heads = chromium.run("[...document.querySelectorAll('#groups th')].map(h => h.textContent)")
    at = heads.index("best epoch")
    means = [float(text.split()[0]) for text in first_column(chromium, "groups", at)]
    assert len(means) == 5 and means == sorted(means, reverse=True)
    assert re.fullmatch(r"\d+\.\d\d \[\d+\.\d\d, \d+\.\d\d\]", first_column(chromium, "groups", at)[0])
    chromium.run(f"document.querySelectorAll('#groups th button')[{at}].click()")
    assert [float(text.split()[0]) for text in first_column(chromium, "groups", at)] == sorted(means)
    chromium.run("document.querySelectorAll('#groups th button')[0].click()")
    assert first_column(chromium, "groups", 0) == ["llf", "restart", "seal", "seal", "seal"]

    curves = "document.querySelectorAll('#curves path[fill=none]').length"
    assert chromium.run(curves) == 5 and chromium.run("document.querySelectorAll('#curves .ascent').length") == 2
    chromium.run("document.querySelector('#groups tbody tr').click()")
    assert chromium.run(curves) == 4
    assert chromium.run("document.querySelectorAll('#ends path[fill=none]').length") == 4
    assert chromium.run("document.querySelectorAll('#ends circle').length") == 12
    assert len(first_column(chromium, "ends-table", 0)) == 5
    figures = chromium.run("[...document.querySelectorAll('#settings figure')].map(f => f.dataset.setting)")
    assert figures == ["method", "ascent_scale"]
    assert chromium.run("document.querySelectorAll('#settings circle').length") == 8
    said = chromium.run("document.getElementById('setting-groups').innerText").splitlines()
    assert sorted(said)[:3] == ["llf", "restart", "seal, ascent scale 0.001"] and len(said) == 5
    assert chromium.run("document.querySelectorAll('#throughput path').length") == 4  # of the chosen groups
    assert len(first_column(chromium, "pairs", 0)) == 7
    bad = "[...document.querySelectorAll('svg *')].filter(n => /NaN|Infinity|undefined/.test(n.outerHTML)).length"
    assert chromium.run(bad) == 0


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1600])
def test_it_fits_narrow_and_wide_screens_light_and_dark(folder, chromium, width, dark):
    chromium.open(folder / "report.html", width=width, dark=dark)
    assert chromium.of("Runtime.exceptionThrown") == []
    assert chromium.run("document.documentElement.scrollWidth") <= width
    colours = chromium.run("['backgroundColor', 'color'].map(k => getComputedStyle(document.body)[k])")
    back, ink = (sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in colours)
    assert (back < 150 and ink > 600) if dark else (back > 600 and ink < 200)
    wide = "[...document.querySelectorAll('figure svg')].every(s => s.getBoundingClientRect().right <= innerWidth)"
    assert chromium.run(wide) and chromium.run("document.querySelectorAll('figure svg').length") == 5


def test_the_axis_of_accuracy_holds_what_is_possible(tmp_path, chromium):
    """An interval over two seeds that lie apart reaches far below 0 and above 100."""
    found = []
    for scale in (0.01, 0.1):
        for seed in range(2):
            config = replace(BASE, seed=seed, ascent_scale=scale)
            found.append(run(f"{scale}-{seed}", config, pretend_rows(config, 40.0 + 40 * seed)))
    best = content(found, "wide")["groups"][0]["best"]
    assert best["low"] < 0 and best["high"] > 100
    (tmp_path / "page.html").write_text(page(content(found, "wide")))
    chromium.open(tmp_path / "page.html")
    axis = "[...document.querySelectorAll('#settings svg text[text-anchor=end]')].map(t => Number(t.textContent))"
    marks = chromium.run(axis)
    assert min(marks) >= 0 and max(marks) == 100 and len(marks) >= 3
    ends = (
        "[...document.querySelectorAll('#settings line:not(.axis)')].map(l => [l.y1, l.y2].map(y => y.baseVal.value))"
    )
    assert all(0 <= y <= 230 for line in chromium.run(ends) for y in line)


def test_each_rows_ascents_are_shaded(tmp_path, chromium):
    lengths = (2, 3, 3)
    found = []
    for seed, length in enumerate(lengths):
        config = replace(BASE, seed=seed, ascent_epochs=length)
        found.append(run(str(seed), config, pretend_rows(config, 60.0 + seed)))
    (tmp_path / "page.html").write_text(page(content(found, "lengths")))
    chromium.open(tmp_path / "page.html")
    assert chromium.run("document.querySelectorAll('#curves .ascent').length") == 4
    fills = "new Set([...document.querySelectorAll('#curves .ascent')].map(r => getComputedStyle(r).fill)).size"
    assert chromium.run(fills) == 2


def test_one_run_is_counted_as_one(tmp_path, chromium):
    (tmp_path / "page.html").write_text(page(content(runs(("seal",), seeds=[0]), "alone")))
    chromium.open(tmp_path / "page.html")
    assert chromium.run("document.getElementById('counts').textContent") == "1 finished run in 1 group; 0 left out"


def test_a_thousand_runs_stay_small(tmp_path, chromium):
    config = replace(BASE, generations=10, epochs=40, ascent_epochs=10)
    found = []
    for i in range(334):
        shared = pretend_rows(replace(config, seed=i), 50 + i / 50)  # invented once for three seeds, to be quick
        settings = {"lr": 0.001 * 1.02**i, "method": ("seal", "llf")[i % 2]}
        found += [run(f"{i}-{s}", replace(config, seed=s, **settings), shared) for s in range(3)]
    path = tmp_path / "report.html"
    path.write_text(page(content(found, "large")))
    assert path.stat().st_size < 10e6
    chromium.open(path)
    assert chromium.run("document.querySelectorAll('#groups tbody tr').length") == 334


def test_tables_say_where_the_best_epoch_was_chosen_and_show_the_test():
    HELD = replace(BASE, holdout=0.1)

    def held(seed):
        config = replace(HELD, seed=seed)
        rows = [row | {"test_top1": 40.0 + seed, "test_top5": 90.0} for row in pretend_rows(config, 50.0)]
        return run(f"held-{seed}", config, rows)

    plain = runs(("seal",), seeds=[0, 1])
    assert content(plain)["chosen_on"] == "Best epochs are chosen on the test set, as in the papers."
    both = content([*plain, held(0), held(1)])
    assert both["chosen_on"].endswith("as in the papers, but on held-out training images in holdout 0.1.")
    assert [group["test"]["count"] for group in both["groups"]] == [0, 2] and both["groups"][1]["test"]["mean"] == 40.5
    assert content([held(0)])["chosen_on"] == "Best epochs are chosen on held-out training images."
