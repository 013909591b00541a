"""Philox against the published vectors, an independent implementation, and the statistics of its orders."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from literal import literal_philox
from scipy import stats

from seal_fast.kernels import philox

ONES = 0xFFFFFFFF

# Random123's kat_vectors for philox4x32-10: counter, key, result.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
@pytest.mark.parametrize("as_tensor", [False, True])
def test_known_answers(counter, key, expected, as_tensor):
    given_counter = tuple(torch.tensor([c]) for c in counter) if as_tensor else counter
    assert tuple(int(w) for w in philox.philox4x32(given_counter, key)) == expected
    assert literal_philox(counter, key) == expected


@given(
    seed=st.integers(0, 2**63 - 1),
    generation=st.integers(0, ONES),
    epoch=st.integers(0, ONES),
    start=st.integers(0, 2**48 - 3),
    purpose=st.integers(0, 2**16 - 1),
)
def test_words_follow_the_documented_counter(seed, generation, epoch, start, purpose):
    positions = torch.arange(start, start + 3)
    words = philox.words(seed, generation, epoch, positions, purpose)
    assert words.dtype == torch.int64 and words.shape == (3, 4)
    for position, row in zip(positions.tolist(), words.tolist(), strict=True):
        counter = (position & ONES, epoch, generation, (purpose << 16) + (position >> 32))
        assert tuple(row) == literal_philox(counter, (seed & ONES, seed >> 32))


def test_blocks_are_those_of_consecutive_purposes():
    positions = torch.tensor([3, 2**40])
    words = philox.words(5, 1, 2, positions, philox.CROP, blocks=10)
    assert torch.equal(words, torch.cat([philox.words(5, 1, 2, positions, philox.CROP + k) for k in range(10)], dim=1))


def test_bits_are_balanced_and_streams_do_not_meet():
    n = 20_000
    positions = torch.arange(n)
    streams = [philox.words(*s, positions, p) for s in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)) for p in (0, 1, 2)]
    for words in streams:
        ones = ((words[..., None] >> torch.arange(32)) & 1).double().mean(dim=0)
        assert (ones - 0.5).abs().max() < 5 * 0.5 / n**0.5
    values = torch.cat([(w[:, 0] << 31) | (w[:, 1] >> 1) for w in streams])
    assert values.unique().numel() == values.numel()


@pytest.mark.parametrize("n", [0, 1, 2, 17, 4097])
def test_permutation_holds_every_row_once(n):
    order = philox.permutation(n, seed=3, generation=1, epoch=2)
    assert order.dtype == torch.int64
    assert torch.equal(order.sort().values, torch.arange(n))


def test_permutation_sorts_the_order_stream():
    words = philox.words(5, 1, 2, torch.arange(100), philox.ORDER).tolist()
    keys = [(w[0] << 31) + (w[1] >> 1) for w in words]
    assert philox.permutation(100, 5, 1, 2).tolist() == sorted(range(100), key=keys.__getitem__)


def test_permutations_are_uniform():
    counts = np.zeros(24)
    ranks = {}
    for epoch in range(2400):
        order = tuple(philox.permutation(4, seed=7, generation=0, epoch=epoch).tolist())
        counts[ranks.setdefault(order, len(ranks))] += 1
    assert stats.chisquare(counts).pvalue > 1e-4


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((-1, 0, 0), "seed is -1"),
        ((2**63, 0, 0), "seed is"),
        ((0, 2**32, 0), "generation is 4294967296"),
        ((0, 0, -1), "epoch is -1"),
    ],
)
def test_scalars_out_of_range_are_named(arguments, named):
    with pytest.raises(ValueError, match=named):
        philox.words(*arguments, torch.arange(2))
    with pytest.raises(ValueError, match=named):
        philox.permutation(2, *arguments)


def test_bad_positions_purpose_and_length_are_named():
    with pytest.raises(ValueError, match="positions must be a vector of int64, not torch.float32"):
        philox.words(0, 0, 0, torch.zeros(3))
    with pytest.raises(ValueError, match="purpose is 65536"):
        philox.words(0, 0, 0, torch.arange(2), purpose=1 << 16)
    with pytest.raises(ValueError, match="n is -1"):
        philox.permutation(-1, 0, 0, 0)
