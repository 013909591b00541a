from dataclasses import replace
from pathlib import Path

from seal_fast.analysis.common.groups import by_seed
from seal_fast.analysis.common.network import TrainedNetwork
from seal_fast.config import Config


def subject(name, stage="last", **settings):
    config = Config(data="/a/images.tar", **settings) if settings else None
    full = name if stage == "last" else f"{name} {stage}"
    return TrainedNetwork(full, Path(name), "resnet18", "imagenet", 5, 64, config, stage)


def test_runs_that_differ_in_their_seed_belong_together():
    runs = [subject(f"{m}-{s}", method=m, seed=s) for s in (0, 1) for m in ("seal", "llf")]
    assert by_seed(runs) == {"seal": [0, 2], "llf": [1, 3]}


def test_where_a_run_lies_makes_no_difference_and_what_it_learns_from_does():
    one = subject("one", method="seal", seed=0)
    elsewhere = subject("two", method="seal", seed=1)
    elsewhere = replace(elsewhere, config=replace(elsewhere.config, data="/b/images.tar", out=Path("x"), threads=1))
    others = replace(one, name="three", config=replace(one.config, data="/a/others.tar"))
    assert by_seed([one, elsewhere]) == {"seal": [0, 1]}
    assert by_seed([one, others]) == {"one": [0], "three": [1]}


def test_stages_stay_with_their_run_and_bare_files_alone():
    runs = [subject("r", stage, method="seal") for stage in ("generation-0", "generation-1-ascent")]
    assert by_seed([*runs, subject("w"), subject("v")]) == {"seal": [0, 1], "w": [2], "v": [3]}
