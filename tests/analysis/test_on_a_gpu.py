"""Analyses that take another way on a GPU find there what they find on the CPU."""

import numpy as np
import pytest
import torch
from literal import features, literal, pool

from seal_fast.analysis.common.knn import neighbours
from seal_fast.analysis.fewshot.compute import HeadSettings, centroid, linear
from seal_fast.analysis.fewshot.episodes import draw

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("size", [16, 33, 512, 12288])
@pytest.mark.parametrize("kind", ["normal", "relu", "far", "clusters", "doubled"])
def test_no_neighbour_is_missed(kind, size):
    """Long vectors, too, whose products a tensor core sums in parts."""
    queries, bank = features(kind, size=size)
    rows, distances = neighbours(queries.cuda(), bank.cuda(), 30, bank_block=128)
    expected_rows, expected = literal(queries, bank, 30)
    np.testing.assert_allclose(distances.cpu().numpy(), expected, rtol=1e-12)
    assert (rows.cpu().numpy() != expected_rows).mean() < 0.01


def test_few_shot_heads():
    values, labels = pool()
    shown = draw(labels, list("abcdef"), ways=3, shots=5, queries=5, episodes=40)
    for head in (lambda x: linear(x, shown, HeadSettings(epochs=5)), lambda x: centroid(x, shown)):
        assert torch.equal(head(values.double().cuda()).cpu(), head(values.double()))
