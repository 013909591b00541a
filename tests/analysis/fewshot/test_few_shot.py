import numpy as np
import pytest
import torch
from literal import pool
from torch import nn

from seal_fast.analysis.fewshot import compute as few_shot
from seal_fast.analysis.fewshot.compute import HeadSettings, centroid, linear, train_heads
from seal_fast.analysis.fewshot.episodes import draw


def one_after_the_other(features, shown, settings, first=0, last=None):
    """The protocol as it is written: an nn.Linear and a torch.optim.SGD for every episode."""
    last = len(shown) if last is None else last
    ways, dimension = shown.ways, features.shape[1]
    orders, starts = shown.orders(first, last, settings.epochs), shown.heads(first, last, dimension)
    labels = torch.from_numpy(shown.support_labels)
    heads, accuracies = [], []
    for i in range(last - first):
        head = nn.Linear(dimension, ways, dtype=features.dtype)
        with torch.no_grad():
            head.weight.copy_(torch.from_numpy(starts[i, :, :-1]))
            head.bias.copy_(torch.from_numpy(starts[i, :, -1]))
        optimizer = torch.optim.SGD(
            head.parameters(),
            lr=settings.lr,
            momentum=settings.momentum,
            dampening=settings.dampening,
            weight_decay=settings.weight_decay,
        )
        support = features[torch.from_numpy(shown.support[first + i])]
        for order in torch.from_numpy(orders[i]):
            for batch in order.split(settings.batch_size):
                optimizer.zero_grad()
                nn.functional.cross_entropy(head(support[batch]), labels[batch]).backward()
                optimizer.step()
        with torch.no_grad():
            predicted = head(features[torch.from_numpy(shown.query[first + i])]).argmax(1)
            heads.append(torch.cat([head.weight, head.bias[:, None]], 1))
        accuracies.append(np.mean(predicted.numpy() == shown.query_labels))
    return torch.stack(heads), np.array(accuracies)


@pytest.mark.parametrize(
    ("shots", "settings"),
    [
        (5, HeadSettings(epochs=10)),
        (3, HeadSettings(epochs=7, batch_size=4, lr=0.5)),  # 9 examples: the last batch has one
        (4, HeadSettings(epochs=5, batch_size=50, momentum=0.5, dampening=0.0)),  # one batch, larger than the support
        (20, HeadSettings(epochs=2, weight_decay=0.3, lr=0.1)),  # more examples than dimensions
    ],
)
def test_heads_are_those_trained_one_after_the_other(shots, settings):
    features, labels = pool()
    shown = draw(labels, list("abcdef"), ways=3, shots=shots, queries=5, episodes=6)
    size = shown.support.shape[1]
    expected, _ = one_after_the_other(features, shown, settings)
    heads = train_heads(
        features[torch.from_numpy(shown.support)],
        torch.from_numpy(shown.support_labels),
        torch.from_numpy(shown.heads(0, 6, 40)),
        torch.from_numpy(shown.orders(0, 6, settings.epochs)),
        settings,
    )
    assert heads.shape == (6, 3, 41) and size == 3 * shots
    torch.testing.assert_close(heads, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_protocol_gives_the_same_answers_episode_by_episode(dtype):
    features, labels = pool(dimension=64, dtype=dtype)
    shown = draw(labels, list("abcdef"), ways=5, shots=5, queries=15, episodes=4, seed=1)
    _, expected = one_after_the_other(features, shown, HeadSettings())
    found = linear(features, shown)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-12)
    assert expected.std() > 0 and 0.3 < expected.mean() < 0.99  # the episodes tell answers apart


def test_chunks_and_threads_change_nothing(monkeypatch):
    features, labels = pool()
    shown = draw(labels, list("abcdef"), ways=3, shots=5, queries=5, episodes=11)
    whole = linear(features, shown, HeadSettings(epochs=3))
    threads = torch.get_num_threads()
    monkeypatch.setitem(few_shot.CHUNK_BYTES, "cpu", 3 * 15 * 18 * 8)
    torch.set_num_threads(3)
    try:
        parts = linear(features, shown, HeadSettings(epochs=3))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(whole, parts)


def test_the_nearest_centroid_is_scikit_learns():
    from sklearn.neighbors import NearestCentroid

    features, labels = pool()
    shown = draw(labels, list("abcdef"), ways=4, shots=5, queries=9, episodes=70)
    expected = []
    for support, query in zip(shown.support, shown.query, strict=True):
        model = NearestCentroid().fit(features[torch.from_numpy(support)].numpy(), shown.support_labels)
        expected.append(model.score(features[torch.from_numpy(query)].numpy(), shown.query_labels))
    np.testing.assert_allclose(centroid(features, shown).numpy(), expected, rtol=0, atol=1e-12)
