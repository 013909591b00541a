"""nearest: native and reference against float64 sorting, with bounds as tight as they may be and hostile values."""

import importlib

import pytest
import torch

from seal_fast.kernels import native, nearest

BACKENDS = ["reference", pytest.param("native", marks=pytest.mark.skipif(not native.available(), reason="no compiler"))]
FILTERS = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", FILTERS, ids=str)
@pytest.mark.parametrize("size", [1, 17, 64, 100, 513])
def test_prepare_shifts_rounds_and_measures(size, dtype, backend):
    x = torch.randn(37, size, generator=torch.Generator().manual_seed(size)) * 3 + 5
    centre = x.mean(0)
    small, norms, lost = nearest.prepare(x, centre, 0.25, dtype, backend)
    shifted = (x - centre) * 0.25
    assert torch.equal(small, shifted.to(dtype))
    torch.testing.assert_close(norms, shifted.double().norm(dim=1), rtol=1e-12, atol=1e-12)
    away = (shifted.double() - small.double()).norm(dim=1) / shifted.double().norm(dim=1).clamp_min(1e-300)
    assert lost == pytest.approx(float(away.max()), rel=1e-9, abs=1e-12)


def updated(backend, queries, block, first, k, exclude=None, off=0.0, error=1e-5):
    """Lists after one block, with products that are wrong by `off` of |q| |b|, whichever way hurts."""
    norms = [x.double().norm(dim=1) for x in (queries, block)]
    products = queries.double() @ block.double().T
    away = torch.outer(*norms) * off
    wrong = products + away * (torch.randint(0, 2, away.shape) * 2 - 1)
    distances = torch.full((len(queries), k), torch.inf, dtype=torch.float64)
    rows = torch.full((len(queries), k), -1)
    arguments = distances, rows, queries, norms[0], block, norms[1], wrong.float(), first, exclude
    nearest.update_(*arguments, scale=1.0, error=error, rounding=0.0, slack=2.0**-19, backend=backend)
    return distances, rows


def sorted_truth(queries, block, first, k):
    distances = (queries.double()[:, None] - block.double()).square().sum(2)
    found, order = distances.sort(dim=1, stable=True)
    return found[:, :k], order[:, :k] + first


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows", [3, 16, 37, 1000, 2500])
def test_no_neighbour_is_missed_while_products_keep_their_promise(rows, backend):
    random = torch.Generator().manual_seed(rows)
    queries, block = torch.randn(23, 40, generator=random), torch.randn(rows, 40, generator=random)
    k = min(rows, 7)
    expected, expected_rows = sorted_truth(queries, block, 100, k)
    distances, found = updated(backend, queries, block, 100, k, off=0.03, error=0.0301)
    torch.testing.assert_close(distances, expected, rtol=1e-12, atol=0)
    assert torch.equal(found, expected_rows)
    if rows == 1000:  # and the promise is needed: products as wrong as these mislead who does not know it
        assert not torch.equal(updated(backend, queries, block, 100, k, off=0.03)[1], expected_rows)


@pytest.mark.parametrize("backend", BACKENDS)
def test_few_rows_leave_places_open_and_an_excluded_row_stays_out(backend):
    queries = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    exclude = torch.tensor([10, 11, -1, 12, 99])
    distances, rows = updated(backend, queries, queries[:3].contiguous(), 10, 4, exclude)
    assert [10 in rows[0], 11 in rows[1], 12 in rows[2], 12 in rows[3]] == [False, False, True, False]
    assert (rows >= 0).sum(1).tolist() == [2, 2, 3, 2, 3]
    assert torch.equal(distances.isinf(), rows < 0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_of_equals_the_first_row_stays(backend):
    queries = torch.zeros(4, 6)
    block = torch.ones(50, 6)
    block[20] = 0.5
    _, rows = updated(backend, queries, block, 0, 5)
    assert rows.tolist() == [[20, 0, 1, 2, 3]] * 4


@pytest.mark.skipif(not native.available(), reason="no compiler")
@pytest.mark.parametrize("dtype", FILTERS, ids=str)
@pytest.mark.parametrize("level", native.levels())
def test_every_level_of_the_cpu_finds_the_same(level, dtype, monkeypatch):
    module = importlib.import_module(f"seal_fast.kernels.{level}")
    monkeypatch.setattr(native, "require", lambda: module)
    random = torch.Generator().manual_seed(1)
    queries, bank = (torch.randn(count, 48, generator=random).mul(3).round() for count in (21, 2011))
    small, norms, _ = nearest.prepare(bank, torch.zeros(48), 1.0, dtype, "native")
    asked, asked_norms, _ = nearest.prepare(queries, torch.zeros(48), 1.0, dtype, "native")
    distances, rows = torch.full((21, 30), torch.inf, dtype=torch.float64), torch.full((21, 30), -1)
    rounding = 2.0**-7 if dtype == torch.bfloat16 else 2.0**-20  # of the product; whole numbers round in nothing else
    for start in range(0, 2011, 700):
        part = slice(start, start + 700)
        lists = distances, rows, queries, asked_norms, bank[part], norms[part]
        shared = {"scale": 1.0, "error": 1e-6, "rounding": rounding, "slack": 2.0**-19, "backend": "native"}
        nearest.update_(*lists, asked @ small[part].T, start, torch.full((21,), 1400), **shared)
    expected, order = (queries.double()[:, None] - bank.double()).square().sum(2).sort(dim=1, stable=True)
    kept = order != 1400
    assert torch.equal(rows, torch.stack([o[k][:30] for o, k in zip(order, kept, strict=True)]))
    assert torch.equal(distances, torch.stack([e[k][:30] for e, k in zip(expected, kept, strict=True)]))


@pytest.mark.skipif(not native.available(), reason="no compiler")
def test_lists_must_be_contiguous():
    x = torch.randn(4, 6)
    norms = x.double().norm(dim=1)
    lists = torch.full((3, 4), torch.inf, dtype=torch.float64).T, torch.full((3, 4), -1).T
    with pytest.raises(ValueError, match="contiguous"):
        nearest.update_(*lists, x, norms, x, norms, x @ x.T, 0, None, 1.0, 1e-5, 0.0, 1e-6, backend="native")
