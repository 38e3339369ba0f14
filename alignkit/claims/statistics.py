"""The statistics of the ledger: rules, verdicts, p-values and their corrections (intervals: `alignkit.intervals`).

A claim's evidence is one value per seed. For `seeded` claims that is a number, and the interval is Student's
t over seeds; for `population` claims it is a list of (x, y) points, and the interval is that of Spearman's correlation
over all points, by a jackknife over seeds; for `identity` claims it is a maximal error, and there is nothing to
estimate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from alignkit.errors import AlignkitError
from alignkit.intervals import Estimate, fisher, mean_estimate, rank_correlation, spearman, t_half_width

KINDS = ("identity", "demonstration", "seeded", "population")
FINDINGS = ("seeded", "population")


@dataclass(frozen=True)
class Rule:
    """What an interval must satisfy: lie wholly between `low` and `high` (either may be infinite)."""

    key: str
    low: float
    high: float

    @classmethod
    def parse(cls, rule: object, kind: str, where: str) -> Rule:
        """The rule as in `claims.yaml`, e.g. `{above: 0.5}`; `where` names the claim in error messages."""
        allowed = ("max_error",) if kind == "identity" else ("above", "below", "within")
        if not isinstance(rule, dict) or len(rule) != 1 or next(iter(rule)) not in allowed:
            raise AlignkitError(
                f"{where}: rule is {rule!r}; a claim of kind {kind} takes exactly one of {', '.join(allowed)}"
            )
        ((key, bound),) = rule.items()
        where = f"{where}: {key}"
        if key == "within":
            if not isinstance(bound, list) or len(bound) != 2:
                raise AlignkitError(f"{where} is {bound!r}; write two numbers, within: [low, high]")
            low, high = (_number(value, where) for value in bound)
            if low >= high:
                raise AlignkitError(f"{where} is {bound!r}; the first number must be the smaller one")
            return cls(key, low, high)
        bound = _number(bound, where)
        if key == "max_error" and bound <= 0:
            raise AlignkitError(f"{where} is {bound}; it must be above 0 (1.0e-9, say)")
        return cls(key, bound, math.inf) if key == "above" else cls(key, -math.inf, bound)

    def words(self) -> str:
        """The rule as a reader says it."""
        return {
            "above": f"above {self.low:g}",
            "below": f"below {self.high:g}",
            "within": f"within [{self.low:g}, {self.high:g}]",
            "max_error": f"error at most {self.high:g}",
        }[self.key]


def _number(value: object, where: str) -> float:
    # YAML reads 1e-9 (no dot) as text, so text that is a number is taken as the number
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise AlignkitError(f"{where} is {value!r}; it must be a finite number")
    return number


def estimate(kind: str, values: Sequence) -> Estimate:
    """The estimate that belongs to a claim's kind, from one value per seed (at least one)."""
    if kind == "population":
        return rank_correlation(values)
    if kind == "identity":
        return Estimate(float(max(values)), n=len(values))  # the worst run is what counts
    return mean_estimate(values)


def verdict(rule: Rule, found: Estimate) -> str:
    """`reproduced`: the interval is inside the rule; `contradicted`: entirely outside; else `open`."""
    if rule.key == "max_error":
        return "reproduced" if found.value <= rule.high else "contradicted"
    if not found.has_interval:
        return "open"
    if rule.low < found.low and found.high < rule.high:
        return "reproduced"
    if found.high < rule.low or found.low > rule.high:
        return "contradicted"
    return "open"


def p_value(rule: Rule, found: Estimate) -> float | None:
    """Two-sided p-value, below 0.05 exactly when the 95 % interval gives a verdict; None without an interval, or where
    all values are the same: what can't vary is not tested.

    One bound: the two-sided test against it. A band: if the value lies inside, two one-sided tests
    (equivalence), the larger p doubled so that it matches the 95 % interval; if it lies outside, the
    two-sided test against the nearest bound.
    """
    if rule.key == "max_error" or not found.has_interval or found.low == found.high:
        return None
    if rule.key == "within" and rule.low < found.value < rule.high:
        return min(1.0, 2 * max(found.greater(rule.low), found.less(rule.high)))
    bound = min((rule.low, rule.high), key=lambda b: abs(found.value - b))
    return min(1.0, 2 * min(found.greater(bound), found.less(bound)))


def corrected(p_values: Sequence[float], method: str) -> list[float]:
    """p-values corrected for their number, in the given order: "holm" (that none is wrong) or "fdr_bh" (Benjamini and
    Hochberg 1995: that few of those that stand are)."""
    if not p_values:
        return []
    from statsmodels.stats.multitest import multipletests  # half a second to import, needed only here

    return [float(p) for p in multipletests(p_values, method=method)[1]]


def one_run(kind: str, value: Any) -> float:
    """A run's own number: of a population's points their rank correlation."""
    return spearman(np.asarray(value)) if kind == "population" else value


def prediction(kind: str, values: Sequence) -> tuple[float, float] | tuple[None, None]:
    """Where one more seed's value lies with 95 % probability, given those of the recorded ones (correlations on
    Fisher's scale); nothing below two, or for an identity."""
    if kind == "identity" or len(values) < 2:
        return None, None
    numbers = [one_run(kind, value) for value in values]
    found = mean_estimate(fisher(numbers) if kind == "population" else numbers)
    half = (found.high - found.value) * math.sqrt(found.n + 1)
    ends = found.value - half, found.value + half
    return tuple(map(math.tanh, ends)) if kind == "population" else ends


def power(kind: str, rule: Rule, values: Sequence, seeds: int) -> float | None:
    """The probability that so many new seeds decide the claim (reproduce or contradict it), if the true mean and
    spread are those of these values (for correlations: of the runs' own, on Fisher's scale); None below two values or
    without a spread.

    Exact for Student's interval: that of mean +- t s / sqrt(seeds) lying inside or outside the rule, over the law of s.
    """
    if kind not in FINDINGS or len(values) < 2:
        return None
    numbers = np.array([one_run(kind, value) for value in values], dtype=float)
    low, high = rule.low, rule.high
    if kind == "population":
        numbers, low, high = fisher(numbers), float(fisher(low)), float(fisher(high))
    mean, sd = numbers.mean(), numbers.std(ddof=1)
    if sd == 0:
        return None
    grid = (np.arange(2000) + 0.5) / 2000
    error = sd / math.sqrt(seeds)
    half = t_half_width(sd * np.sqrt(stats.chi2.ppf(grid, seeds - 1) / (seeds - 1)), seeds)
    below, above = ((bound - mean) / error for bound in (low, high))
    inside = stats.norm.cdf(above - half / error) - stats.norm.cdf(below + half / error)
    outside = stats.norm.cdf(below - half / error) + stats.norm.sf(above + half / error)
    return float((np.clip(inside, 0, None) + outside).mean())
