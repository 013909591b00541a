import numpy as np
import pytest
import torch
from literal import features, literal
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from seal_fast.analysis.common import knn
from seal_fast.analysis.common.knn import Search, neighbours, vote
from seal_fast.kernels import native, nearest
from seal_fast.utils.errors import RunError, UsageError

KINDS = ["normal", "relu", "far", "huge", "tiny", "ties", "dead", "doubled", "clusters", "float64"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block", [900, 128])
@pytest.mark.parametrize("filter_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", ["reference", "native"])
def test_neighbours_are_those_of_float64_and_sorted_by_distance_then_row(
    kind, block, filter_dtype, backend, monkeypatch
):
    if backend == "native" and not native.available():
        pytest.skip("the native kernels are not installed")
    monkeypatch.setattr(knn, "_filter_dtype", lambda *_: filter_dtype)
    monkeypatch.setattr(nearest, "_is_native", lambda _, x: backend == "native" and x.dtype == torch.float32)
    queries, bank = features(kind)
    rows, distances = neighbours(queries, bank, 30, query_block=32, bank_block=block)
    expected_rows, expected = literal(queries, bank, 30)
    np.testing.assert_allclose(distances.numpy(), expected, rtol=1e-12)
    # Sums in another order differ by rounding, so rows may differ where distances agree to that.
    differ = rows.numpy() != expected_rows
    if kind in ("ties", "dead", "doubled"):
        assert not differ.any()
    assert differ.mean() < 0.01


@pytest.mark.parametrize("kind", ["normal", "relu", "clusters", "doubled"])
def test_votes_are_scikit_learns(kind):
    queries, bank = features(kind)
    labels = torch.randint(0, 4, (len(bank),), generator=torch.Generator().manual_seed(0))
    if kind == "doubled":  # which of two equals is thirtieth is theirs to choose: equals share their label
        labels[len(bank) // 2 :] = labels[: len(bank) // 2]
    for k in (1, 10, 30):
        peer = KNeighborsClassifier(k, algorithm="brute").fit(bank.double().numpy(), labels.numpy())
        rows, _ = neighbours(queries, bank, 30)
        assert vote(labels[rows[:, :k]], 4).tolist() == peer.predict(queries.double().numpy()).tolist()
    found = NearestNeighbors(n_neighbors=30, algorithm="brute").fit(bank.double().numpy())
    theirs = np.sort(found.kneighbors(queries.double().numpy(), return_distance=False), 1)
    if kind not in ("doubled", "clusters"):  # theirs loses the distances within a cluster in |q|^2 - 2 q b + |b|^2
        assert (np.sort(rows.numpy(), 1) == theirs).all()


def test_a_tied_vote_goes_to_the_smallest_class():
    labels = torch.tensor([[3, 1, 3, 1], [2, 0, 1, 3], [3, 3, 3, 0]])
    assert vote(labels, 5).tolist() == [1, 0, 3]
    peer = KNeighborsClassifier(4).fit(np.zeros((4, 1)), [3, 1, 3, 1])
    assert peer.predict([[0.0]]).tolist() == [1]
    assert vote(labels[:0], 5).tolist() == []


def test_a_query_may_be_left_out_of_its_own_neighbours():
    _, bank = features("normal")
    own = torch.arange(50) + 100
    search = Search(bank[own], 5, exclude=own)
    for block in bank.split(128):
        search.add(block)
    rows, _ = search.result()
    expected, _ = literal(bank[own], bank, 6)
    assert (expected[:, 0] == own.numpy()).all()
    assert (rows.numpy() == expected[:, 1:]).all()


@pytest.mark.parametrize("backend", ["reference", "native"])
def test_blocks_of_any_size_and_memory_limits_change_nothing(backend, monkeypatch):
    if backend == "reference":
        monkeypatch.setattr(nearest, "_is_native", lambda *_: False)
    queries, bank = features("ties")
    whole = neighbours(queries, bank, 30)
    monkeypatch.setattr(knn, "_PRODUCTS", 70 * 50)
    monkeypatch.setattr(knn, "_COUNTED", 500)
    monkeypatch.setattr(nearest.reference, "_GATHERED", 500)
    small = neighbours(queries, bank, 30, query_block=70, bank_block=333)  # in parts of 50
    assert torch.equal(whole[0], small[0]) and torch.equal(whole[1], small[1])


def test_bad_input_ends_in_a_sentence():
    queries, bank = features("normal")
    with pytest.raises(UsageError, match="k 30: the bank holds only 29 examples"):
        neighbours(queries, bank[:29], 30)
    with pytest.raises(UsageError, match="at least 1"):
        neighbours(queries, bank, 0)
    bank[7, 3] = torch.nan
    with pytest.raises(RunError, match="NaN or infinite"):
        neighbours(queries, bank, 30)
    queries[0, 0] = torch.inf
    with pytest.raises(RunError, match="NaN or infinite"):
        neighbours(queries, bank[:0], 30)
