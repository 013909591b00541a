import argparse

import pytest

from seal_fast.analysis.common.flags import add_flags, check, subjects
from seal_fast.config import Config
from seal_fast.train import run
from seal_fast.utils.errors import UsageError


def parsed(*argv):
    parser = argparse.ArgumentParser(prog="python -m seal_fast thing", allow_abbrev=False)
    add_flags(parser, batch_size=7)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shots", type=int, nargs="+", default=[1])
    return parser, parser.parse_args(list(argv))


def test_defaults_and_help():
    parser, flags = parsed("a", "b")
    assert [str(run) for run in flags.runs] == ["a", "b"]
    assert (flags.batch_size, flags.stage, flags.on_bad_image, flags.per_generation) == (7, "last", "error", False)
    assert "write thing.json and pictures there" in parser.format_help()


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--batch-size", "0"], "--batch-size 0: must be at least 1"),
        (["--image-size", "-3"], "--image-size -3: must be at least 1"),
        (["--threads", "0"], "--threads 0: must be at least 1"),
        (["--seed", "-1"], "--seed -1: must be at least 0"),
        (["--shots", "5", "0"], "--shots 0: must be at least 1"),
    ],
)
def test_a_number_below_its_least_ends_in_a_sentence(argv, sentence):
    _, flags = parsed("a", *argv)
    with pytest.raises(UsageError, match=sentence):
        check(flags, {"seed": 0, "shots": 1})


def test_flags_name_one_stage_or_all_of_them(image_folder, small_network, tmp_path):
    settings = {"generations": 2, "epochs": 2, "ascent_epochs": 1, "batch_size": 10, "keep": "ascents"}
    run(Config(data=str(image_folder), stem="small", out=tmp_path / "mine", **settings))
    folder = str(tmp_path / "mine")
    assert [s.stage for s in subjects(parsed(folder)[1])] == ["last"]
    assert [s.stage for s in subjects(parsed(folder, "--stage", "generation-0")[1])] == ["generation-0"]
    every = subjects(parsed(folder, "--per-generation", "--image-size", "24")[1])
    assert [s.stage for s in every] == ["generation-0", "generation-1-ascent", "generation-1"]
    assert {s.image_size for s in every} == {24}
    with pytest.raises(UsageError, match="--model resnet50: .* of resnet18"):
        subjects(parsed(folder, "--per-generation", "--model", "resnet50")[1])
