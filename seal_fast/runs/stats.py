"""Means with intervals, paired differences with p-values, and shares with Wilson's interval. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from seal_fast.utils.errors import UsageError

Values = Sequence[float] | np.ndarray
_UPPER = 0.975  # all intervals hold 95 %


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % confidence interval.

    Attributes:
        mean: of the values.
        low: lower end; NaN for a single value.
        high: upper end.
        count: number of values.
    """

    mean: float
    low: float
    high: float
    count: int

    @property
    def half(self) -> float:
        """Half the interval's width, for `mean +- half`."""
        return (self.high - self.low) / 2

    def show(self, digits: int = 2) -> str:
        """Such as `59.22 [58.90, 59.54]`; the mean alone where there is no interval."""
        mean = f"{self.mean:.{digits}f}"
        return mean if math.isnan(self.low) else f"{mean} [{self.low:.{digits}f}, {self.high:.{digits}f}]"

    def json(self) -> dict[str, float]:
        """As result files hold it."""
        return asdict(self)


def decimals(values: Iterable[float], significant: int) -> int:
    """Decimal places that show so many significant digits of the largest value, at least 2."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    return max(2, significant - 1 - math.floor(math.log10(largest))) if largest else 2


def student(values: Values) -> Interval:
    """Mean of independent values (seeds, episodes) with Student's t interval of n - 1 degrees; UsageError for none."""
    x = _checked(values)
    if len(x) == 1:
        return Interval(float(x[0]), math.nan, math.nan, 1)
    from scipy.special import stdtrit

    half = float(stdtrit(len(x) - 1, _UPPER)) * x.std(ddof=1) / math.sqrt(len(x))
    return Interval(float(x.mean()), float(x.mean() - half), float(x.mean() + half), len(x))


def paired(first: Values, second: Values) -> Interval:
    """Mean of `first - second`, pair by pair, with Student's t interval; UsageError if they are not equally many."""
    return student(_differences(first, second))


def paired_p(first: Values, second: Values) -> float:
    """p-value of the two-sided paired t-test of mean difference 0, NaN for one pair; UsageError as of `paired`."""
    x = _differences(first, second)
    if len(x) == 1:
        return math.nan
    from scipy.special import stdtr

    error = x.std(ddof=1) / math.sqrt(len(x))
    if error == 0:
        return 1.0 if x.mean() == 0 else 0.0
    return float(2 * stdtr(len(x) - 1, -abs(x.mean()) / error))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for the number of tests by Holm's step-down method (Holm, 1979); NaN stays and does not count.

    Rejecting where the adjusted value is at most 0.05 keeps the chance of any false rejection at 5 %.
    """
    adjusted = [math.nan] * len(p_values)
    ranked = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    largest = 0.0
    for rank, (p, i) in enumerate(ranked):
        largest = max(largest, min(1.0, (len(ranked) - rank) * p))
        adjusted[i] = largest
    return adjusted


def wilson(hits: int, count: int) -> Interval:
    """A share with Wilson's score interval (Wilson, 1927), which covers near 0 and 1 too; UsageError if count < 1."""
    if count < 1:
        raise UsageError("a share needs at least one trial")
    from scipy.special import ndtri

    z2, share = float(ndtri(_UPPER)) ** 2, hits / count
    middle = (hits + z2 / 2) / (count + z2)
    half = math.sqrt(z2 * (count * share * (1 - share) + z2 / 4)) / (count + z2)
    return Interval(share, max(0.0, middle - half), min(1.0, middle + half), count)


def bootstrap(values: Values, draws: int = 2000, seed: int = 0) -> Interval:
    """Mean of examples with its percentile bootstrap interval (Efron and Tibshirani, 1993, chapter 13).

    A resample draws as many examples with replacement. The draws are a function of the seed, in blocks, so that memory
    holds 2^22 of them at most. UsageError if there is no value.
    """
    x = _checked(values)
    if len(x) == 1:
        return Interval(float(x[0]), math.nan, math.nan, 1)
    random = np.random.default_rng(seed)
    # Equal values are drawn together: how often each one comes up is multinomial, and depths are few.
    distinct, counts = np.unique(x, return_counts=True)
    if len(distinct) <= 256:
        means = random.multinomial(len(x), counts / len(x), size=draws) @ distinct / len(x)
    else:
        means = np.empty(draws)
        step = max(1, (1 << 22) // len(x))
        for start in range(0, draws, step):
            part = means[start : start + step]
            part[:] = x[random.integers(0, len(x), (len(part), len(x)))].mean(1)
    low, high = np.quantile(means, [1 - _UPPER, _UPPER])
    return Interval(float(x.mean()), float(low), float(high), len(x))


def _differences(first: Values, second: Values) -> np.ndarray:
    if len(first) != len(second):
        raise UsageError(f"paired values must be equally many, not {len(first)} and {len(second)}")
    return _checked(first) - _checked(second)


def _checked(values: Values) -> np.ndarray:
    x = np.asarray(values, np.float64)
    if x.ndim != 1 or not len(x):
        raise UsageError("a mean needs at least one value")
    return x
