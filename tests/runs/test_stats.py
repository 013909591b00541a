import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from seal_fast.runs.stats import bootstrap, holm, paired, paired_p, student, wilson
from seal_fast.utils.errors import UsageError


def test_student_is_the_textbook_interval():
    values = [3.1, 2.7, 4.0, 3.3]
    found = student(values)
    low, high = scipy_stats.t.interval(0.95, 3, np.mean(values), scipy_stats.sem(values))
    assert (found.mean, found.low, found.high) == pytest.approx((np.mean(values), low, high), rel=1e-12)
    assert found.half == pytest.approx((high - low) / 2, rel=1e-12)
    assert found.show() == "3.28 [2.41, 4.14]"


def test_one_value_has_a_mean_and_no_interval():
    for interval in (student([2.5]), bootstrap([2.5])):
        assert interval.mean == 2.5 and math.isnan(interval.low) and interval.show(1) == "2.5"
    with pytest.raises(UsageError, match="at least one value"):
        student([])


def test_pairs_cancel_what_they_share():
    random = np.random.default_rng(0)
    episode = random.normal(50, 10, 200)
    found = paired(episode + 1 + random.normal(0, 0.1, 200), episode)
    assert found.mean == pytest.approx(1, abs=0.05) and found.half < 0.02
    with pytest.raises(UsageError, match="not 2 and 3"):
        paired([1, 2], [1, 2, 3])


@pytest.mark.parametrize("distinct", [2, 1000])
def test_bootstrap_agrees_with_the_normal_approximation(distinct):
    values = np.random.default_rng(1).integers(0, distinct, 4000) / distinct
    found = bootstrap(values, draws=4000)
    error = values.std() / math.sqrt(len(values))
    assert found.mean == pytest.approx(values.mean(), rel=1e-12)
    assert (found.low, found.high) == pytest.approx(
        (found.mean - 1.96 * error, found.mean + 1.96 * error), abs=error / 8
    )
    assert bootstrap(values, seed=3) == bootstrap(values, seed=3) != bootstrap(values, seed=4)


@pytest.mark.parametrize("interval", [bootstrap, student])
def test_coverage_of_a_known_binomial(interval):
    """95 % intervals of a mean of 200 draws with chance 0.3 hold 0.3 in 95 % of 1000 trials, give or take 3 errors."""
    random = np.random.default_rng(2)
    held = 0
    for trial in range(1000):
        found = interval(random.random(200) < 0.3, **({"seed": trial, "draws": 500} if interval is bootstrap else {}))
        held += found.low <= 0.3 <= found.high
    assert 0.95 - 3 * 0.0069 < held / 1000 < 0.95 + 3 * 0.0069


def test_paired_p_is_the_textbook_t_test():
    first, second = [59.2, 58.1, 60.4, 59.9], [57.0, 57.7, 58.6, 59.1]
    assert paired_p(first, second) == pytest.approx(scipy_stats.ttest_rel(first, second).pvalue, rel=1e-10)
    assert paired_p([2, 3], [1, 2]) == 0 and paired_p([1, 2], [1, 2]) == 1 and math.isnan(paired_p([1], [2]))


def test_holm_rejects_what_the_step_down_procedure_rejects():
    """Literally: compare the smallest p with a/m, the next with a/(m-1), ... and stop at the first that is larger."""
    random = np.random.default_rng(3)
    for _ in range(200):
        p = random.random(7) ** 4
        rejected = set()
        for rank, i in enumerate(np.argsort(p)):
            if p[i] > 0.05 / (7 - rank):
                break
            rejected.add(i)
        assert {i for i, adjusted in enumerate(holm(p)) if adjusted <= 0.05} == rejected
    assert holm([0.01, math.nan, 0.04, 0.03]) == pytest.approx([0.03, math.nan, 0.06, 0.06], nan_ok=True)
    assert holm([0.9, 0.8]) == [1, 1] and holm([]) == []


def test_wilson_is_the_root_of_the_score_equation_and_covers_small_shares():
    z = scipy_stats.norm.ppf(0.975)
    found = wilson(3, 50)
    for end in (found.low, found.high):
        assert abs(0.06 - end) == pytest.approx(z * math.sqrt(end * (1 - end) / 50), rel=1e-10)
    assert wilson(0, 20).low == 0 and wilson(0, 20).high > 0.1 and wilson(20, 20).high == 1
    chances = scipy_stats.binom.pmf(range(501), 500, 0.01)
    covered = sum(c for k, c in enumerate(chances) if wilson(k, 500).low <= 0.01 <= wilson(k, 500).high)
    assert covered > 0.92
    with pytest.raises(UsageError, match="at least one trial"):
        wilson(0, 0)
