"""Means with intervals: Student's t over seeds or episodes, paired differences, the bootstrap over examples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from seal_fast.utils.errors import UsageError

Values = Sequence[float] | np.ndarray


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % confidence interval.

    Attributes:
        mean: of the values.
        low: lower end; NaN where one value alone cannot give an interval.
        high: upper end.
        count: how many values.
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


def student(values: Values, level: float = 0.95) -> Interval:
    """Mean of independent values, such as seeds or episodes, with Student's t interval (n - 1 degrees of freedom).

    Raises:
        UsageError: there is no value.
    """
    x = _checked(values)
    if len(x) == 1:
        return Interval(float(x[0]), math.nan, math.nan, 1)
    from scipy.stats import t

    half = float(t.ppf((1 + level) / 2, len(x) - 1)) * x.std(ddof=1) / math.sqrt(len(x))
    return Interval(float(x.mean()), float(x.mean() - half), float(x.mean() + half), len(x))


def paired(first: Values, second: Values, level: float = 0.95) -> Interval:
    """Mean of `first - second`, which share their seeds or episodes one by one, with Student's t interval.

    Raises:
        UsageError: they are not equally many.
    """
    if len(first) != len(second):
        raise UsageError(f"paired values must be equally many, not {len(first)} and {len(second)}")
    return student(_checked(first) - _checked(second), level)


def bootstrap(values: Values, level: float = 0.95, draws: int = 2000, seed: int = 0) -> Interval:
    """Mean of examples with its percentile bootstrap interval (Efron and Tibshirani, 1993, chapter 13).

    A resample draws as many examples with replacement. The draws are a function of the seed, in blocks, so that memory
    holds 2^22 of them at most.

    Raises:
        UsageError: there is no value.
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
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(x.mean()), float(low), float(high), len(x))


def _checked(values: Values) -> np.ndarray:
    x = np.asarray(values, np.float64)
    if x.ndim != 1 or not len(x):
        raise UsageError("a mean needs at least one value")
    return x
