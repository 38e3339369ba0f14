"""Estimates with 95% intervals for the check-up of a preference data set.

An estimate is a plain dict, so that it goes into JSON as it is: value, low, high (None where nothing can be
said) and n, the number of pairs behind it.
"""

from __future__ import annotations

import zlib

import numpy as np
from statsmodels.stats.proportion import proportion_confint

RESAMPLES = 1000
LEVEL = 0.95

Estimate = dict[str, float | int | None]


def estimate(value: float, low: float | None, high: float | None, n: int) -> Estimate:
    """Round to six digits: enough for any reader, and the same text on every machine."""
    value, low, high = (None if x is None else round(float(x), 6) for x in (value, low, high))
    return {"value": value, "low": low, "high": high, "n": int(n)}


def wilson(count: int, n: int) -> Estimate:
    """Share count/n with Wilson's score interval (Wilson 1927)."""
    if n == 0:
        return estimate(None, None, None, 0)
    low, high = proportion_confint(count, n, alpha=1 - LEVEL, method="wilson")
    return estimate(count / n, low, high, n)


def generator(seed: int, name: str) -> np.random.Generator:
    """A stream of random numbers of its own for each statistic: adding one leaves the others as they were."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def cluster_bootstrap(
    values: np.ndarray, groups: np.ndarray, rng: np.random.Generator, share: bool = False
) -> Estimate:
    """Mean of `values` with a percentile interval that resamples whole groups (Field & Welsh 2007).

    Pairs on the same prompt are not independent; resampling prompts, not pairs, keeps the interval honest.
    A share (values from 0 to 1) of exactly 0 or 1 has no spread to resample: Wilson's interval over the
    groups takes its place.
    """
    values = np.asarray(values, dtype=float)
    if len(values) == 0:
        return estimate(None, None, None, 0)
    _, group = np.unique(groups, return_inverse=True)
    totals, sizes = np.bincount(group, weights=values), np.bincount(group)
    if len(totals) < 2:
        return estimate(values.mean(), None, None, len(values))
    if share and values.mean() in (0, 1):
        edge = wilson(int(values[0]) * len(totals), len(totals))
        return {**edge, "n": len(values)}
    low, high = np.quantile(_resampled_means(totals, sizes, rng), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return estimate(values.mean(), low, high, len(values))


def _resampled_means(totals: np.ndarray, sizes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    means = np.empty(RESAMPLES)
    for i in range(RESAMPLES):  # one resample at a time: a thousand at once would not fit for large data
        picked = rng.integers(0, len(totals), len(totals))
        means[i] = totals[picked].sum() / sizes[picked].sum()
    return means


def clear_of(number: Estimate, reference: float) -> bool:
    """Does the interval leave out the reference value?"""
    if number["low"] is None:
        return False
    return number["low"] > reference or number["high"] < reference


def as_percent(number: Estimate) -> str:
    """'57% [55%, 59%]', small shares with one decimal, or 'unknown'."""
    digits = 1 if 0 < abs(number["value"] or 0) < 0.1 else 0
    return _worded(number, lambda x: f"{100 * x:.{digits}f}%")


def as_interval(number: Estimate) -> str:
    """'95% interval 55% to 59%'; empty where there is none."""
    if number["low"] is None:
        return ""
    return f"95% interval {100 * number['low']:.0f}% to {100 * number['high']:.0f}%"


def as_points(number: Estimate) -> str:
    """A difference of shares in percentage points: '+5.5 [+2.9, +8.0]', or 'unknown'."""
    return _worded(number, lambda x: f"{100 * x:+.1f}")


def as_number(number: Estimate) -> str:
    """'+3.1 [+1.0, +5.2]', or 'unknown'."""
    return _worded(number, lambda x: f"{x:+.1f}")


def counted(count: int, one: str, many: str | None = None) -> str:
    """'1 pair', '2,312 pairs'."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def _worded(number: Estimate, show) -> str:
    if number["value"] is None:
        return "unknown"
    if number["low"] is None:
        return show(number["value"])
    return f"{show(number['value'])} [{show(number['low'])}, {show(number['high'])}]"
