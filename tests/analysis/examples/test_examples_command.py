import csv
import json
import shutil

import numpy as np
import pytest
from safetensors.torch import load_file

from seal_fast import train
from seal_fast.__main__ import main
from seal_fast.analysis.examples.compute import across, find_wrong, per_example, profile, summarise
from seal_fast.config import Config
from seal_fast.runs.stats import student, wilson


def drawn(count, seed=0):
    """Records of so many examples shown 8 times each, one of them never learnt."""
    draw = np.random.default_rng(seed)
    learnt = draw.integers(0, 4, count).astype(np.int32)
    learnt[1] = -1
    found = {"learnt": learnt, "forgotten": draw.integers(0, 4, count), "seen": np.full(count, 8)}
    found |= {"agreed": np.maximum(learnt, draw.integers(4, 8, count)), "margin_sum": draw.normal(size=count)}
    found["agreed"][1], found["forgotten"][1] = -1, 0
    return found | {"right": found["agreed"] == 7, "ends": draw.random((3, count)) < 0.5}


def literal_auroc(scores, wrong):
    """The share of pairs in which the wrong label scores higher; equal ones count half."""
    pairs = [(a > b) + (a == b) / 2 for a, w in zip(scores, wrong, strict=True) if w
             for b, v in zip(scores, wrong, strict=True) if not v]  # fmt: skip
    return sum(pairs) / len(pairs)


def test_figures_are_those_of_loops():
    records = drawn(30)
    rows = np.arange(30) < 20
    figures = summarise(records, rows)
    learnt = [int(x) for x in records["learnt"][:20] if x >= 0]
    assert figures["learnt (%)"]["mean"] == pytest.approx(100 * 19 / 20)
    assert figures["learnt in epoch"] == pytest.approx(student(learnt).json())
    events = [int(records["forgotten"][i]) for i in range(20) if i != 1]
    assert figures["forgetting events"]["mean"] == pytest.approx(sum(events) / 19)
    assert figures["never forgotten (%)"]["low"] == pytest.approx(100 * wilson(events.count(0), 19).low)
    assert figures["area under the margin"]["mean"] == pytest.approx(records["margin_sum"][:20].sum() / 20 / 8)
    assert figures["right the last time (%)"]["mean"] == pytest.approx(100 * records["right"][:20].mean())
    before, ascended, end = records["ends"].tolist()
    gone = [i for i in range(30) if before[i] and not ascended[i]]
    found = {name: value["mean"] for name, value in across(records, ["ascent", "descent"]).items()}
    assert found == pytest.approx({
        "forgotten by the ascent (%)": 100 * len(gone) / sum(before),
        "of these right again (%)": 100 * sum(end[i] for i in gone) / len(gone),
        "wrong at the end (%)": 100 * sum(b and not e for b, e in zip(before, end, strict=True)) / sum(before),
    })  # fmt: skip
    shown = profile(records, 8, np.ones(30, bool))
    assert shown["learnt"][-1] == pytest.approx(29 / 30) and sum(shown["forgotten"]) == pytest.approx(1)
    assert shown["margins"][50] == pytest.approx(np.median(records["margin_sum"]) / 8)


def test_auroc_is_the_share_of_pairs_in_the_right_order():
    records, wrong = drawn(30), np.random.default_rng(1).random(30) < 0.3
    found = {name.removeprefix("AUROC, "): value["mean"] for name, value in find_wrong(records, wrong).items()}
    late = [99 if x < 0 else x for x in records["learnt"]]
    events = [99 if never < 0 else x for x, never in zip(records["forgotten"], records["learnt"], strict=True)]
    assert found == pytest.approx({
        "learnt in epoch": literal_auroc(late, wrong),
        "forgetting events": literal_auroc(events, wrong),
        "area under the margin": literal_auroc(-records["margin_sum"], wrong),
        "last agreement in epoch": literal_auroc(-records["agreed"], wrong),
    })  # fmt: skip
    records["margin_sum"] = np.where(wrong, -1.0, 1.0)
    assert find_wrong(records, wrong)["AUROC, area under the margin"]["mean"] == 1
    assert find_wrong(records, np.zeros(30, bool)) == find_wrong(records, np.ones(30, bool)) == {}


def test_one_example_and_a_dead_network():
    one = {name: value[..., :1] for name, value in drawn(2).items()}
    assert summarise(one, np.array([True]))["learnt (%)"]["mean"] == 100
    dead = {name: np.zeros(3, int) for name in ("forgotten", "seen")} | {"margin_sum": np.zeros(3)}
    dead |= {name: np.full(3, -1) for name in ("learnt", "agreed")}
    dead |= {"right": np.zeros(3, bool), "ends": np.zeros((3, 3), bool)}
    assert np.isnan(list(per_example(dead).values())).all()
    figures = summarise(dead, np.ones(3, bool))
    assert {name: value["mean"] for name, value in figures.items()} == {"learnt (%)": 0, "right the last time (%)": 0}
    assert across(dead, ["ascent", "descent"]) == {} and find_wrong(dead, np.arange(3) < 1) == {}
    assert profile(dead, 2, np.ones(3, bool)) == {"learnt": [0, 0], "forgotten": [0], "margins": []}


def test_runs_at_every_stage(runs, folder, tmp_path, capsys):
    out = tmp_path / "results"
    assert main(["examples", *map(str, runs[:2]), "--per-generation", "--list", "--out", str(out)]) == 0
    assert "12 training examples" in capsys.readouterr().out
    results = json.loads((out / "examples.json").read_text())
    assert [r["stage"] for r in results] == ["generation-0", "generation-1-ascent", "generation-1"] * 2
    assert {p.name for p in out.glob("*.png")} == {"examples.png", "examples_generations.png"}
    first, ascent, last = results[:3]
    records = load_file(folder / "examples" / "generation-1.safetensors")
    assert last["epochs"] == 4 and last["figures"]["all examples"]["learnt (%)"]["mean"] == pytest.approx(
        100 * float((records["learnt"] >= 0).double().mean())
    )
    assert "across the generation" not in first["figures"]  # nothing was known before it
    assert set(ascent["figures"]) <= {"across the generation"}
    files = sorted(out.glob("examples-*.csv"))
    rows = list(csv.DictReader(files[0].open()))
    assert len(files) == 4 and len(rows) == 12 and rows[0]["image"].endswith(".png")


def test_wrong_labels_are_looked_for_and_other_data_refused(folder, image_folder, tmp_path, capsys):
    config = Config(data=str(image_folder), out=tmp_path / "noisy", stem="small", generations=1, epochs=2, batch_size=5)
    train.run(Config(**vars(config) | dict(label_noise=0.25, record_examples=True, ascent_epochs=0, warmup_epochs=0)))
    capsys.readouterr()
    assert main(["examples", str(tmp_path / "noisy"), "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)
    assert result["protocol"]["wrong_labels"] == 5 and result["stage"] == "last"
    assert len(result["figures"]["wrong labels found"]) == 4
    counts = [
        result["figures"][name]["learnt (%)"]["count"] for name in ("all examples", "right labels", "wrong labels")
    ]
    assert counts == [20, 15, 5]
    run = shutil.copytree(folder, tmp_path / "run")
    shutil.copy(tmp_path / "noisy/examples/generation-0.safetensors", run / "examples/generation-1.safetensors")
    assert main(["examples", str(run)]) == 1
    assert "has records of 20 examples" in capsys.readouterr().err
    (run / "examples/generation-1.safetensors").write_bytes(b"x")
    assert main(["examples", str(run)]) == 1
    assert "is damaged" in capsys.readouterr().err
    shutil.rmtree(run / "examples")
    for flags, sentence in (
        ([], "train with --record-examples"),
        (["--stage", "best"], "choose one of those"),
        (["--list"], "with --out"),
    ):
        assert main(["examples", str(run), *flags]) == 2
        assert sentence in capsys.readouterr().err
