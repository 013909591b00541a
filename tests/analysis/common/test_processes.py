"""Analyses under torchrun: the same figures from any number of processes, printed and written once."""

import contextlib
import io
import json

import numpy as np
import pytest
import torch
from image_folders import write_images
from processes import together
from safetensors.torch import save_file
from small_resnet import build_by_name as build

from seal_fast.__main__ import main
from seal_fast.analysis.common import network as networks
from seal_fast.analysis.common.knn import Search, merged
from seal_fast.analysis.common.processes import rows_of
from seal_fast.analysis.fewshot import episodes
from seal_fast.training import assembly


@pytest.fixture(scope="module")
def network(image_folder, tmp_path_factory):
    """A network for four classes, and the images that it is asked about: flags."""
    file = tmp_path_factory.mktemp("networks") / "network.safetensors"
    save_file(build("resnet18", 4, "small", seed=0).state_dict(), file)
    return [str(file), "--stem", "small", "--image-size", "16"]


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    """Three other classes."""
    root = tmp_path_factory.mktemp("targets") / "stripes"
    write_images(root / "train", 3, 8, 16, seed=5)
    write_images(root / "test", 3, 4, 16, seed=6)
    return str(root)


def said(argv):
    """Exit code, and what is printed to stdout and stderr."""
    assembly.build = networks.build = build  # in a process of its own too
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([*argv, "--threads", "1"])
    return code, out.getvalue(), err.getvalue()


def same(argv, size=2):
    """The results of one process, after those of several have been found the same and printed by the first alone."""
    first, *others = together(size, said, argv)
    assert [first[0], *others] == [0, *[(0, "", "")] * (size - 1)], first
    alone = said(argv)
    assert alone[0] == 0
    many, one = ([drop_seconds(r) for r in json.loads(answer[1])] for answer in (first, alone))
    assert [r.pop("processes") for r in many] == [size] * len(many) and {r.pop("processes") for r in one} == {1}
    assert many == one
    return one


def drop_seconds(result):
    assert result.pop("seconds") > 0
    return result


@pytest.mark.long
def test_depth(network, image_folder, tmp_path):
    """Batches of 3: the bank of 20 does not divide into them, nor they among the processes, which hold fewer than k."""
    argv = ["depth", *network, "--data", str(image_folder), "--k", "11", "--pool", "avg", "--batch-size", "3", "--json"]
    (result,) = same([*argv, "--leave-one-out", "--out", str(tmp_path)])
    assert result["protocol"]["bank"] == 20 and (tmp_path / "depth.png").exists()


def test_transfer_without_a_cache(network, target):
    flags = "--batch-size 5 --k 1 3 --l2 1 0.1 --no-cache --json".split()
    same(["transfer", *network, "--data", target, *flags])


def test_hessian(folder, tmp_path):
    """Sums over other parts of the images are rounded otherwise; in float64 that is all."""
    flags = "--images 11 --batch-size 3 --top 2 --bottom 0 --trace --probes 4 --group layer4 --dtype float64 --json"
    argv = ["hessian", str(folder), *flags.split()]
    first, second = together(2, said, argv)
    ((many,), (one,)) = (json.loads(answer[1]) for answer in (first, said(argv)))
    assert second == (0, "", "") and (many["processes"], one["processes"]) == (2, 1)
    assert many["images"] == one["images"] == 11 and many["hvps"] == one["hvps"]
    for figure in ("top", "trace", "trace_half", "loss_value", "gradient_norm"):
        assert many[figure] == pytest.approx(one[figure], rel=1e-8), figure


FEW = "--ways 2 --shots 1 --queries 2 --episodes 2 --json".split()


def test_fewshot_with_a_cache(network, target, tmp_path):
    few = ["fewshot", *network, "--data", target, *FEW, "--batch-size", "5", "--cache", str(tmp_path)]
    before = same(few)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2  # the first process's; the one process found them
    assert same(few) == before


def test_more_processes_than_batches_and_episodes(network, target):
    same(["fewshot", *network, "--data", target, *FEW, "--no-cache"], 3)


@pytest.mark.long
def test_fine_tuning(network, target):
    flags = "--fine-tune --fine-tune-epochs 1 --no-cache --json".split()
    argv = ["transfer", *network, "--data", target, *flags]
    first, second = together(2, said, argv)
    many, one = (json.loads(answer[1])[0]["targets"]["stripes"]["fine_tune"] for answer in (first, said(argv)))
    assert second == (0, "", "")
    assert many == one | {"top1": pytest.approx(one["top1"], abs=100 / 12)}  # an image more or less, after roundings
    assert "cannot share equally" in together(5, said, argv)[0][2]  # 24 images a step


def elsewhere(flags, by_rank):
    import os

    return said([*flags, *by_rank[int(os.environ["RANK"])]])


@pytest.mark.parametrize(
    ("by_rank", "code", "sentence"),
    [
        ([[], ["--k", "3"]], 2, "process 1 differs from process 0 in its flags (k 3 instead of 2): start all of them"),
        ([[], ["--data", "/nowhere"]], 2, "process 1 differs from process 0 in its flags (data /nowhere instead of"),
        ([["--dist-timeout", "0"]] * 2, 2, "--dist-timeout 0.0: must be a finite number of seconds above 0"),
        ([["--data", "/nowhere"]] * 2, 2, "/nowhere: no such file or folder"),
        ([["--k", "21"]] * 2, 2, "--k 21: the bank has 20 images"),
    ],
    ids=["flags", "data", "timeout", "no data", "k"],
)
def test_bad_use_is_one_sentence(by_rank, code, sentence, network, image_folder):
    answers = together(2, elsewhere, ["depth", *network, "--data", str(image_folder), "--k", "2"], by_rank)
    assert [answer[0] for answer in answers] == [code] * 2
    lines = [line for answer in answers for line in answer[2].splitlines()]
    assert len(lines) == 1 and lines[0].startswith(f"error: {sentence}")


def test_an_image_that_one_process_cannot_decode_is_named_by_all(network, tmp_path):
    """It is in the second batch of the bank, which the second process decodes."""
    data = tmp_path / "broken"
    write_images(data / "train", 4, 5, 16, seed=1)
    write_images(data / "val", 4, 2, 16, seed=2)
    damaged = sorted((data / "train").rglob("*.*"))[4]
    damaged.write_bytes(damaged.read_bytes()[:40])
    argv = ["depth", *network, "--data", str(data), "--k", "2", "--batch-size", "4", "--queries", "2"]
    answers = together(2, said, argv)
    assert [answer[0] for answer in answers] == [1, 1]
    lines = [line for answer in answers for line in answer[2].splitlines()]
    assert len(lines) == 1 and lines[0].startswith("error: process 1: ") and damaged.name in lines[0]


def test_a_part_of_episodes_is_what_it_is_among_all():
    labels = np.repeat([0, 1, 2], 6)
    whole = episodes.draw(labels, ["a", "b", "c"], ways=2, shots=2, queries=2, episodes=7, seed=3)
    part = whole.part(1, 6).part(1, 4)  # episodes 2 to 5
    assert np.array_equal(part.support, whole.support[2:5]) and np.array_equal(part.query, whole.query[2:5])
    assert np.array_equal(part.orders(0, 3, 4), whole.orders(2, 5, 4))
    assert np.array_equal(part.heads(1, 3, 8), whole.heads(3, 5, 8))


def test_parts_of_a_bank_give_the_nearest_of_the_whole():
    """Whole numbers, so that many distances are equal: among them the lower row counts."""
    drawn = np.random.default_rng(0)
    bank, queries = (torch.from_numpy(drawn.integers(0, 3, (n, 3))).float() for n in (40, 9))
    whole = Search(queries, 7)
    whole.add(bank)
    parts = []
    for rank in range(3):
        rows = rows_of(40, 6, rank, 3)
        part = Search(queries, 7)
        part.add(bank[rows])
        found, distances = part.result(complete=False)
        parts.append((torch.tensor([*rows, -1])[found], distances))
    for ours, truth in zip(merged(parts), whole.result(), strict=True):
        assert torch.equal(ours, truth)


def test_evaluate_and_plasticity(network, image_folder):
    data = ["--data", str(image_folder), "--json"]
    same(["evaluate", *network, *data, "--batch-size", "5"])
    same(["plasticity", *network, *data, "--images", "5", "--batch-size", "5"])  # the second process has no image


@pytest.mark.parametrize(
    "argv",
    [
        "similarity --images 12 --batch-size 4",
        pytest.param(
            "sharpness --images 7 --batch-size 3 --rho 0.1 --adaptive-rho 0.5 --noise 0.01 --adaptive-noise 0.1 "
            "--draws 2 --ascent-steps 1 --top 1 --tol 0.5 --max-hvps 4 --probes 2 --dtype float64",
            marks=pytest.mark.long,
        ),
    ],
    ids=["similarity", "sharpness"],
)
def test_sums_over_processes(argv, network, image_folder):
    """Of unequal parts: three batches for two processes."""
    argv = [*argv.split(), *network, "--data", str(image_folder), "--json"]
    first, second = together(2, said, argv)
    alone = said(argv)
    assert second[1:] == ("", "") and first[0] == second[0] == alone[0]
    (many,), (one,) = (json.loads(answer[1]) for answer in (first, alone))
    assert many["figures"].keys() == one["figures"].keys() and many["processes"] == 2
    for section, found in one["figures"].items():
        values, expected = ({name: v["mean"] for name, v in x.items()} for x in (many["figures"][section], found))
        assert values == pytest.approx(expected, rel=1e-7, abs=1e-10)
