import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from seal_fast.analysis.depth import compute as depth
from seal_fast.analysis.depth.compute import Prober, Votes, prediction_depths, probe_votes, summarise
from seal_fast.analysis.depth.probes import flatten, parse_pooling, run_probes
from seal_fast.data import Split, open_images
from seal_fast.data.batches import batches, choose
from seal_fast.models import initialise_
from seal_fast.models.resnet import BasicBlock, ResNet
from seal_fast.runs.stats import wilson
from seal_fast.utils.errors import UsageError


def literal_depth(votes, reference):
    """The definition, word for word: the first probe from which it and all later ones agree."""
    for first in range(len(votes)):
        if all(vote == reference for vote in votes[first:]):
            return first
    return -1


def test_depths_are_those_of_the_definition():
    random = torch.Generator().manual_seed(0)
    votes = torch.randint(0, 2, (6, 500), generator=random)
    reference = torch.randint(0, 2, (500,), generator=random)
    found = prediction_depths(votes, reference).tolist()
    assert found == [literal_depth(votes[:, i].tolist(), int(reference[i])) for i in range(500)]
    assert set(found) == {-1, 0, 1, 2, 3, 4, 5}


@pytest.fixture(scope="module")
def prober(image_folder):
    network = ResNet(BasicBlock, (2, 2, 2, 2), 4, "small", width=8).eval().requires_grad_(False)
    initialise_(network, seed=1)
    return Prober(network, open_images(image_folder), image_size=16, batch_size=7)


@pytest.mark.parametrize("pooling", [None, 1, 2])
def test_votes_at_every_probe_are_scikit_learns_on_the_same_activations(prober, pooling, monkeypatch):
    prober = Prober(prober.network, prober.images, image_size=16, pooling=pooling, batch_size=7)
    images, network = prober.images, prober.network
    queries = {"val": images.val, "train": choose(images, "train", 9, spread=True)}
    # Room for twelve queries at a time: groups cut through the splits.
    monkeypatch.setattr(depth, "QUERY_BYTES", 12 * 4 * sum(prober.sizes().values()))
    found = probe_votes(prober, images.train, queries, k=3)

    def all_at_once(split):
        x = torch.cat([x for x, _ in batches(images, split, image_size=16, batch_size=64)])
        maps = [x, network.stem(x)]
        for _, block in network.blocks():
            maps.append(block(maps[-1]))
        if pooling == 1:
            points = [m.mean((2, 3)) for m in maps]
        elif pooling == 2:
            points = [
                m.unfold(2, m.shape[2] // 2, m.shape[2] // 2).unfold(3, m.shape[3] // 2, m.shape[3] // 2) for m in maps
            ]
            points = [p.mean((4, 5)).flatten(1) for p in points]
        else:
            points = [m.flatten(1) for m in maps]
        return [p.double().numpy() for p in [*points, network(x).softmax(1)]]

    bank = all_at_once(images.train)
    for name, split in queries.items():
        for probe, (known, asked) in enumerate(zip(bank, all_at_once(split), strict=True)):
            peer = KNeighborsClassifier(3, algorithm="brute").fit(known, images.train.labels)
            assert found[name].votes[probe].tolist() == peer.predict(asked).tolist(), found[name].names[probe]
        assert found[name].labels.tolist() == split.labels.tolist()
        assert found[name].predictions.tolist() == all_at_once(split)[-1].argmax(1).tolist()
    assert found["val"].names[:3] == ("input", "stem", "layer1.0") and len(found["val"].names) == 11


def test_depths_are_those_of_the_definition_written_out_on_activations_with_ties(prober):
    """Every image is in the bank twice, under two labels: distances and votes tie."""
    train, k, classes = prober.images.train, 3, 4
    twice = train.take([*range(20), *range(20)])
    bank = Split(twice.names, np.concatenate([train.labels, (train.labels + 1) % classes]), twice.source)
    found = probe_votes(prober, bank, {"train": train, "val": prober.images.val}, k=k)
    _, known = prober.vectors([bank])
    tied = 0
    for name, split in {"train": train, "val": prober.images.val}.items():
        _, asked = prober.vectors([split])
        predictions = asked["softmax"].argmax(1).tolist()
        votes = []
        for probe, points in asked.items():
            votes.append([])
            for query in points.double():
                distances = (known[probe].double() - query).square().sum(1).tolist()
                nearest = sorted(range(40), key=lambda row: (distances[row], row))
                tied += distances[nearest[k - 1]] == distances[nearest[k]]
                labels = [int(bank.labels[row]) for row in nearest[:k]]
                votes[-1].append(min(set(labels), key=lambda label: (-labels.count(label), label)))
        assert found[name].votes.tolist() == votes
        expected = [literal_depth([v[i] for v in votes], predictions[i]) for i in range(len(split))]
        assert prediction_depths(found[name].votes, found[name].predictions).tolist() == expected
    assert tied > 300


def test_an_image_may_be_kept_from_voting_on_itself(prober):
    train = prober.images.train
    alone = probe_votes(prober, train, {"train": train}, k=1, own_rows={"train": np.arange(len(train))})["train"]
    itself = probe_votes(prober, train, {"train": train}, k=1)["train"]
    assert (itself.votes == itself.labels).all()
    assert not (alone.votes == alone.labels).all()


def test_the_last_point_is_the_networks_softmax_and_autocast_ends_with_the_network(prober):
    x = torch.randn(3, 3, 16, 16)
    found = {}

    def take(name, point):
        assert not torch.is_autocast_enabled("cpu") and point.dtype == torch.float32
        found[name] = point

    run_probes(prober.network, x, take, 1, lambda: torch.autocast("cpu", torch.bfloat16))
    assert found["layer1.0"].shape == (3, 8)
    run_probes(prober.network, x, take)
    name, softmax = list(found.items())[-1]
    assert name == "softmax"
    torch.testing.assert_close(softmax, prober.network(x).softmax(1), rtol=1e-5, atol=1e-7)


def test_pooling_is_what_the_flag_says():
    maps = torch.arange(32.0).view(1, 2, 4, 4)
    assert flatten(maps, 1).tolist() == [[7.5, 23.5]]
    assert flatten(maps, 2).tolist() == [[2.5, 18.5, 4.5, 20.5, 10.5, 26.5, 12.5, 28.5]]
    assert sorted(flatten(maps, None)[0].tolist()) == list(range(32)) == sorted(flatten(maps, 9)[0].tolist())
    assert [parse_pooling(text) for text in ("none", "avg", "4")] == [None, 1, 4]
    for text in ("0", "max", "-1"):
        with pytest.raises(UsageError, match=f"--pool {text}: choose none, avg"):
            parse_pooling(text)


def test_the_summary_counts_what_it_says():
    votes = torch.tensor([[0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 1, 1]])
    found = Votes(("input", "stem", "softmax"), votes, torch.tensor([0, 0, 0, 1]), torch.tensor([0, 1, 0, 1]))
    by_prediction = summarise(found, "prediction")  # depths 0, 1, none, 2
    assert by_prediction["histogram"] == [1, 1, 1]
    assert by_prediction["mean_depth"]["mean"] == 1 and by_prediction["mean_depth"]["count"] == 3
    share = wilson(1, 4)
    assert by_prediction["without_depth"] == {"mean": 25, "low": 100 * share.low, "high": 100 * share.high, "count": 4}
    assert by_prediction["top1"] == 75 and by_prediction["top1_by_depth"] == [100, 0, 100]
    assert by_prediction["top1_without_depth"] == 100
    assert by_prediction["probe_top1"] == [50, 25, 50]
    by_truth = summarise(found, "truth")  # depths 0, none, none, 2
    assert by_truth["histogram"] == [1, 0, 1] and by_truth["without_depth"]["mean"] == 50
    never = Votes(found.names, 1 - found.predictions.repeat(3, 1), found.predictions, found.labels)
    assert np.isnan(summarise(never, "prediction")["mean_depth"]["mean"])


def test_a_bank_smaller_than_k_ends_in_a_sentence(prober):
    train = prober.images.train
    with pytest.raises(UsageError, match="--k 21: the bank has 20 images"):
        probe_votes(prober, train, {"val": prober.images.val}, k=21)
    with pytest.raises(UsageError, match="--k 20: the bank has 20 images"):
        probe_votes(prober, train, {"train": train}, k=20, own_rows={"train": np.arange(20)})
