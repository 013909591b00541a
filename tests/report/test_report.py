import math
import re
from dataclasses import replace

import browser
import pytest
from pretend import pretend_rows, pretend_run

from seal_fast.__main__ import main
from seal_fast.config import Config
from seal_fast.report.content import content
from seal_fast.report.page import page
from seal_fast.report.runs import Run, find

BASE = Config(data="digits", generations=3, epochs=8, ascent_epochs=2, eval_every=1)
LEVELS = {"seal": 60.0, "llf": 57.0, "restart": 50.0}


def runs(methods=LEVELS, scales=(0.01,), seeds=range(3)):
    found = []
    for method in methods:
        for scale in scales if method == "seal" else (0.01,):
            for seed in seeds:
                config = replace(BASE, method=method, ascent_scale=scale, seed=seed)
                rows = pretend_rows(config, LEVELS[method] + 10 * scale + seed)
                found.append(Run(f"{method}-{scale}-{seed}", "finished", config, rows))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "my <runs>"
    for run in runs(scales=(0.001, 0.01, 0.1)):
        pretend_run(path / run.name, run.config, LEVELS[run.config.method] + run.config.seed)
    assert main(["report", str(path)]) == 0
    return path


def best(run):
    return max(row["val_top1"] for row in run.rows)


def test_means_and_intervals_are_those_of_the_seeds():
    found = runs(("seal",))
    (group,) = content(found, "t")["groups"]
    x = [best(run) for run in found]
    mean = sum(x) / 3
    half = 4.302652729911275 * math.sqrt(sum((v - mean) ** 2 for v in x) / 2 / 3)  # t of two degrees of freedom
    assert group["best"]["mean"] == pytest.approx(mean, abs=1e-9)
    assert group["best"]["low"] == pytest.approx(mean - half, abs=1e-6) and group["seeds"] == [0, 1, 2]
    assert group["curve"]["epoch"] == list(range(1, 25)) and group["ascents"] == [(8, 10), (16, 18)]
    last = [run.rows[-1]["val_top1"] for run in found]
    assert group["curve"]["mean"][-1] == pytest.approx(sum(last) / 3, abs=0.006)
    assert group["curve"]["low"][-1] == pytest.approx(min(last), abs=0.006)
    assert group["images_per_s"] == pytest.approx(sum(600 + 2 * g for g in range(3)) / 6)


def test_methods_are_compared_over_the_same_seeds():
    found = runs()
    del found[4]  # llf's seed 1
    said = content(found, "t")["pairs"]
    rows = {(row["first"], row["second"]): row["best"] for row in said["rows"]}
    by = {(run.config.method, run.config.seed): best(run) for run in found}
    assert set(rows) == {("seal", "llf"), ("seal", "restart"), ("llf", "restart")}
    assert rows["seal", "llf"]["count"] == 2 and rows["seal", "restart"]["count"] == 3
    for first, second in (("seal", "llf"), ("llf", "restart")):
        expected = sum(by[first, s] - by[second, s] for s in (0, 2)) / 2
        assert rows[first, second]["mean"] == pytest.approx(expected, abs=1e-9)


def test_a_setting_that_one_method_alone_varies_makes_rows():
    rows = content(runs(("seal", "llf"), scales=(0.01, 0.1)), "t")["pairs"]["rows"]
    assert [(r["first"], r["second"]) for r in rows] == [
        ("seal, ascent scale 0.01", "llf"), ("seal, ascent scale 0.1", "llf"),
    ]  # fmt: skip


def test_of_one_method_the_best_settings_are_compared_with_the_others():
    said = content(runs(("seal",), scales=(0.01, 0.1)), "t")["pairs"]
    assert said["what"] == "groups"
    assert [(r["first"], r["second"]) for r in said["rows"]] == [("ascent scale 0.1", "ascent scale 0.01")]


def test_one_seed_has_no_interval_and_an_unevaluated_run_no_figure():
    found = [*runs(("seal",), seeds=[0]), Run("new", "waiting", replace(BASE, method="llf"), [])]
    first, second = content(found, "t")["groups"]
    assert math.isnan(first["best"]["low"]) and math.isnan(second["best"]["mean"]) and second["seeds"] == []
    assert "NaN" not in page(content(found, "t"))


def test_a_page_has_no_address_in_it_and_no_way_out_of_its_data(folder):
    text = (folder / "report.html").read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!data:)|@import|url\(""", text)
    assert set(re.findall(r"https?://[^\s\"']+", text)) <= {"http://www.w3.org/2000/svg"}
    hostile = [Run("x", "failed", BASE, [], "</script><script>document.title='out'</script>")]
    text = page(content(hostile, "<b>"))
    assert "</script><script>document" not in text and "<title>&lt;b&gt;</title>" in text


def test_a_folder_without_runs_is_refused(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2 and "neither a sweep nor run folders" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "missing")]) == 2


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
    figures = chromium.run("[...document.querySelectorAll('#settings figure')].map(f => f.dataset.setting)")
    assert figures == ["method", "ascent_scale"]
    assert chromium.run("document.querySelectorAll('#settings circle').length") == 10
    said = chromium.run("document.getElementById('setting-methods').innerText").split()
    assert sorted(said) == ["llf", "restart", "seal"]
    assert chromium.run("document.querySelectorAll('#throughput path').length") == 3
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
    assert chromium.run(wide) and chromium.run("document.querySelectorAll('figure svg').length") == 4


def test_the_axis_of_accuracy_holds_what_is_possible(tmp_path, chromium):
    """An interval over two seeds that lie apart reaches far below 0 and above 100."""
    found = []
    for scale in (0.01, 0.1):
        for seed in range(2):
            config = replace(BASE, seed=seed, ascent_scale=scale)
            found.append(Run(f"{scale}-{seed}", "finished", config, pretend_rows(config, 40.0 + 40 * seed)))
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
        found.append(Run(str(seed), "finished", config, pretend_rows(config, 60.0 + seed)))
    (tmp_path / "page.html").write_text(page(content(found, "lengths")))
    chromium.open(tmp_path / "page.html")
    assert chromium.run("document.querySelectorAll('#curves .ascent').length") == 4
    fills = "new Set([...document.querySelectorAll('#curves .ascent')].map(r => getComputedStyle(r).fill)).size"
    assert chromium.run(fills) == 2


def test_one_run_is_counted_as_one(tmp_path, chromium):
    (tmp_path / "page.html").write_text(page(content(runs(("seal",), seeds=[0]), "alone")))
    chromium.open(tmp_path / "page.html")
    assert chromium.run("document.getElementById('counts').textContent").startswith("1 run (")
    assert chromium.run("document.getElementById('counts').textContent").endswith(" in 1 row")


def test_a_thousand_runs_stay_small(tmp_path, chromium):
    config = replace(BASE, generations=10, epochs=40, ascent_epochs=10)
    found = []
    for i in range(334):
        shared = pretend_rows(replace(config, seed=i), 50 + i / 50)  # invented once for three seeds, to be quick
        settings = {"lr": 0.001 * 1.02**i, "method": ("seal", "llf")[i % 2]}
        found += [Run(f"{i}-{s}", "finished", replace(config, seed=s, **settings), shared) for s in range(3)]
    path = tmp_path / "report.html"
    path.write_text(page(content(found, "large")))
    assert path.stat().st_size < 10e6
    chromium.open(path)
    assert chromium.run("document.querySelectorAll('#groups tbody tr').length") == 334


def test_a_sweep_is_found_with_its_states(tmp_path):
    from seal_fast.sweep.folder import SweepFolder
    from seal_fast.sweep.plan import Plan, Trial

    sweep = SweepFolder(tmp_path)
    trials = tuple(Trial(f"{s}", {"seed": s}, replace(BASE, seed=s)) for s in range(3))
    sweep.write_plan(Plan(trials))
    ledger = sweep.open_ledger({t.name: t for t in trials})
    for trial in trials[:2]:
        pretend_run(sweep.trials / trial.name, trial.config, 50)
    ledger.record("1", "running", generation=1, value=3.0)
    ledger.record("1", "stopped")
    ledger.record("2", "failed", failures=3, message="out of memory")
    found = find(tmp_path)
    assert [(run.state, len(run.rows)) for run in found] == [("waiting", 24), ("stopped", 8), ("failed", 0)]
    assert content(found, "t")["failed"] == [{"name": "2", "message": "out of memory"}]
