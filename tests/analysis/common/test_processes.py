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
from seal_fast.distributed import world
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


def said_all(commands):
    with pytest.MonkeyPatch.context() as patch:  # else the next command's processes may meet at the last one's store
        patch.setattr(world, "leave", lambda: None)
        answers = [said(argv) for argv in commands]
    world.leave()
    return answers


FEW = "--ways 2 --shots 1 --queries 2 --episodes 2 --json".split()  # fewer batches and episodes than processes


@pytest.fixture(scope="module")
def answers(network, folder, target, image_folder, tmp_path_factory):
    """By command, what each of three processes says and then one alone; started once for all commands."""
    data, cache = ["--data", str(image_folder), "--json"], tmp_path_factory.mktemp("cache")
    few = ["fewshot", *network, "--data", target, *FEW]
    hessian = "--images 11 --batch-size 3 --top 2 --bottom 0 --trace --probes 4 --group layer4 --dtype float64 --json"
    robustness = "--corruptions gaussian-noise fog --strengths 3 --batch-size 3"
    transfer = "--batch-size 5 --k 1 3 --l2 1 0.1 --no-cache --json"
    commands = {
        "transfer": ["transfer", *network, "--data", target, *transfer.split()],
        "hessian": ["hessian", str(folder), *hessian.split()],
        "fewshot": [*few, "--no-cache"],
        "cached": [*few, "--batch-size", "5", "--cache", str(cache)],
        "cached again": [*few, "--batch-size", "5", "--cache", str(cache)],
        "evaluate": ["evaluate", *network, *data, "--batch-size", "5"],
        "plasticity": ["plasticity", *network, *data, "--images", "5", "--batch-size", "5"],  # an image for one only
        "robustness": ["robustness", *network, *data, "--ood", target, *robustness.split()],
        "similarity": ["similarity", *network, *data, "--images", "12", "--batch-size", "4"],
    }
    many, threads = zip(*together(3, said_all, [*commands.values()]), strict=True), torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assembly, "build", build)
        patch.setattr(networks, "build", build)
        alone = said_all(commands.values())
    torch.set_num_threads(threads)
    assert len(list(cache.rglob("*.safetensors"))) == 2  # the first process's; the one process found them
    return dict(zip(commands, zip(many, alone, strict=True), strict=True))


def same(many, alone):
    """The results of one process, after those of several have been found the same and printed by the first alone."""
    first, *others = many
    assert [first[0], *others] == [0, *[(0, "", "")] * len(others)], first
    assert alone[0] == 0
    several, one = ([drop_seconds(r) for r in json.loads(answer[1])] for answer in (first, alone))
    assert [r.pop("processes") for r in several] == [len(many)] * len(one) and {r.pop("processes") for r in one} == {1}
    assert several == one
    return one


def drop_seconds(result):
    assert result.pop("seconds") > 0
    return result


@pytest.mark.long
def test_depth(network, image_folder, tmp_path):
    """Batches of 3: the bank of 20 does not divide into them, nor they among the processes, which hold fewer than k."""
    argv = ["depth", *network, "--data", str(image_folder), "--k", "11", "--pool", "avg", "--batch-size", "3", "--json"]
    argv += ["--leave-one-out", "--out", str(tmp_path)]
    (result,) = same(together(2, said, argv), said(argv))
    assert result["protocol"]["bank"] == 20 and (tmp_path / "depth.png").exists()


@pytest.mark.parametrize("command", ["transfer", "fewshot", "evaluate", "plasticity", "robustness"])
def test_figures_are_those_of_one_process(command, answers):
    same(*answers[command])


def test_fewshot_with_a_cache(answers):
    assert same(*answers["cached"]) == same(*answers["cached again"])


def test_hessian(answers):
    """Sums over other parts of the images are rounded otherwise; in float64 that is all."""
    (first, *others), alone = answers["hessian"]
    ((many,), (one,)) = (json.loads(answer[1]) for answer in (first, alone))
    assert others == [(0, "", "")] * 2 and (many["processes"], one["processes"]) == (3, 1)
    assert many["images"] == one["images"] == 11 and many["hvps"] == one["hvps"]
    for figure in ("top", "trace", "trace_half", "loss_value", "gradient_norm"):
        assert many[figure] == pytest.approx(one[figure], rel=1e-8), figure


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


def test_similarity(answers):
    same_sums(*answers["similarity"])


@pytest.mark.long
def test_sharpness(network, image_folder):
    """Of unequal parts: three batches for two processes."""
    argv = (
        "sharpness --images 7 --batch-size 3 --rho 0.1 --adaptive-rho 0.5 --noise 0.01 --adaptive-noise 0.1 "
        "--draws 2 --ascent-steps 1 --top 1 --tol 0.5 --max-hvps 4 --probes 2 --dtype float64"
    )
    argv = [*argv.split(), *network, "--data", str(image_folder), "--json"]
    same_sums(together(2, said, argv), said(argv))


def same_sums(several, alone):
    first, *others = several
    assert {answer[1:] for answer in others} == {("", "")} and {answer[0] for answer in several} == {alone[0]}
    (many,), (one,) = (json.loads(answer[1]) for answer in (first, alone))
    assert many["figures"].keys() == one["figures"].keys() and many["processes"] == len(several)
    for section, found in one["figures"].items():
        values, expected = ({name: v["mean"] for name, v in x.items()} for x in (many["figures"][section], found))
        assert values == pytest.approx(expected, rel=1e-7, abs=1e-10)
