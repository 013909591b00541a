"""Philox4x32-10: random words that are a pure function of (seed, purpose, generation, epoch, position).

A counter-based generator has no state: the words of position 7 are the same whether it is drawn alone, in a batch, on
another device or by another process, and resuming costs nothing. Source: Salmon, Moraes, Dror, Shaw, "Parallel Random
Numbers: As Easy as 1, 2, 3" (SC 2011), section 3.3.

Key and counter, as 32-bit words:

    key     = (seed mod 2**32, seed div 2**32)
    counter = (position mod 2**32, epoch, generation, purpose * 2**16 + position div 2**32)

so a position may reach 2**48 and streams of different purpose never meet.
"""

from __future__ import annotations

import torch
from torch import Tensor

AUGMENT, ORDER, CROP, FORWARD, MIXUP, PAIRS = 0, 1, 2, 12, 13, 14
"""Purposes: crop offset and flip of an image, order of an epoch, random resized crop (2 to 11, one a try), the
network's own draws in a step, mixup's share and pairs."""

_MASK = 0xFFFFFFFF
_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_KEY_STEPS = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10

Word = Tensor | int


def _multiply(constant: int, word: Word) -> tuple[Word, Word]:
    # High and low half of a 32 x 32 bit product from two 16 x 32 bit ones: a whole product overflows a signed int64.
    low = word * (constant & 0xFFFF)
    high = word * (constant >> 16) + (low >> 16)
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)


def philox4x32(counter: tuple[Word, Word, Word, Word], key: tuple[int, int]) -> tuple[Word, Word, Word, Word]:
    """The bijection itself, ten rounds: four counter words and two key words to four random words.

    Args:
        counter: ints, or int64 tensors that broadcast, with values in [0, 2**32).
        key: two ints in [0, 2**32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(_MULTIPLIERS[0], c0)
        high1, low1 = _multiply(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _KEY_STEPS[0]) & _MASK, (k1 + _KEY_STEPS[1]) & _MASK
    return c0, c1, c2, c3


def check_stream(seed: int, generation: int, epoch: int) -> None:
    """Raise ValueError, naming the value, for what would not fit in the key and counter words."""
    for name, value, bits in (("seed", seed, 63), ("generation", generation, 32), ("epoch", epoch, 32)):
        if not 0 <= value < 1 << bits:
            raise ValueError(f"{name} is {value}: a random stream needs 0 <= {name} < 2**{bits}")


def words(seed: int, generation: int, epoch: int, positions: Tensor, purpose: int = AUGMENT, blocks: int = 1) -> Tensor:
    """The four 32-bit random words of every position, or four for each of several purposes.

    The arithmetic is int64 without overflow, hence identical to the last bit on every device.

    Args:
        seed: of the run, in [0, 2**63).
        generation: in [0, 2**32).
        epoch: of the generation, in [0, 2**32).
        positions: int64 [n], place of the sample in its epoch, in [0, 2**48) (unchecked: that would wait for a GPU).
        purpose: which stream; AUGMENT, ORDER, CROP or another int in [0, 2**16).
        blocks: number of consecutive purposes, from `purpose` on.

    Returns:
        int64 [n, 4 * blocks] with values in [0, 2**32), on the device of `positions`.

    Raises:
        ValueError: a scalar is out of range, or `positions` is not a vector of int64.
    """
    check_stream(seed, generation, epoch)
    if not 0 <= purpose <= (1 << 16) - blocks:
        raise ValueError(f"purpose is {purpose}: a random stream needs 0 <= purpose < 2**16")
    if positions.dtype != torch.int64 or positions.dim() != 1:
        raise ValueError(
            f"positions must be a vector of int64, not {positions.dtype} of shape {tuple(positions.shape)}"
        )
    positions = positions[:, None]
    purposes = torch.arange(purpose, purpose + blocks, device=positions.device)
    counter = positions & _MASK, epoch, generation, (positions >> 32) | (purposes << 16)
    return torch.stack(philox4x32(counter, (seed & _MASK, seed >> 32)), dim=2).flatten(1)  # type: ignore[arg-type]


def number(seed: int, generation: int, epoch: int, position: int, purpose: int) -> int:
    """A seed for another generator: 63 random bits on the host; arguments as for `words`."""
    counter = position & _MASK, epoch, generation, purpose << 16 | position >> 32
    first, second, _, _ = philox4x32(counter, (seed & _MASK, seed >> 32))
    return int(first) << 31 | int(second) >> 1


def permutation(n: int, seed: int, generation: int, epoch: int, device: torch.device | str = "cpu") -> Tensor:
    """A uniformly random order of 0 .. n-1, int64 [n]: the stable argsort of n random 63-bit keys.

    It does not depend on the device where it is made; the other arguments, and errors, are those of `words`.
    """
    if n < 0:
        raise ValueError(f"n is {n}: a permutation needs n >= 0")
    random = words(seed, generation, epoch, torch.arange(n, device=device), purpose=ORDER)
    return torch.argsort((random[:, 0] << 31) | (random[:, 1] >> 1), stable=True)
