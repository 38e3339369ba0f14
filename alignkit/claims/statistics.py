"""The statistics of the ledger: rules, 95 % intervals, verdicts, p-values, and Holm's correction.

A claim's evidence is one value per seed. For `seeded` claims that is a number, and the interval is Student's
t over seeds; for `population` claims it is a list of (x, y) points, and the interval is a cluster bootstrap
over seeds of Spearman's correlation over all points; for `identity` claims it is a maximal error, and there
is nothing to estimate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from alignkit.errors import AlignkitError

LEVEL = 0.95
BOOTSTRAP_RESAMPLES = 4000
BOOTSTRAP_SEED = 0

KINDS = ("identity", "demonstration", "seeded", "population")
FINDINGS = ("seeded", "population")
RULE_KEYS = {
    "identity": ("max_error",),
    "demonstration": ("above", "below", "within"),
    "seeded": ("above", "below", "within"),
    "population": ("above", "below", "within"),
}


@dataclass(frozen=True)
class Rule:
    """What an interval must satisfy: lie wholly between `low` and `high` (either may be infinite)."""

    key: str
    low: float
    high: float

    @classmethod
    def parse(cls, rule: object, kind: str, where: str) -> Rule:
        """The rule as in `claims.yaml`, e.g. `{above: 0.5}`; `where` names the claim in error messages."""
        allowed = RULE_KEYS[kind]
        if not isinstance(rule, dict) or len(rule) != 1 or next(iter(rule)) not in allowed:
            raise AlignkitError(
                f"{where}: rule is {rule!r}; a claim of kind {kind} takes exactly one of {', '.join(allowed)}"
            )
        key, bound = next(iter(rule.items()))
        if key == "within":
            if not isinstance(bound, list) or len(bound) != 2:
                raise AlignkitError(f"{where}: within is {bound!r}; write two numbers, within: [low, high]")
            low, high = (_number(value, f"{where}: within") for value in bound)
            if low >= high:
                raise AlignkitError(f"{where}: within is {bound!r}; the first number must be the smaller one")
            return cls(key, low, high)
        bound = _number(bound, f"{where}: {key}")
        if key == "max_error" and bound <= 0:
            raise AlignkitError(f"{where}: max_error is {bound}; it must be above 0 (1.0e-9, say)")
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


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval over seeds, and one-sided p-values against any bound.

    `greater(m)` is the p-value of "the true value is above m", `less(m)` of "it is below m". With a single
    seed there is no interval: `low`, `high`, `greater` and `less` are None.
    """

    n: int
    value: float
    low: float | None = None
    high: float | None = None
    greater: Callable[[float], float] | None = None
    less: Callable[[float], float] | None = None

    @property
    def has_interval(self) -> bool:
        return self.low is not None


def mean_over_seeds(values: Sequence[float]) -> Estimate:
    """Mean and two-sided 95 % t-interval over seeds. Identical values give an interval of width zero."""
    x = np.asarray(values, dtype=float)
    n, mean = len(x), float(np.mean(x))
    if n < 2:
        return Estimate(n, mean)
    error = float(np.std(x, ddof=1)) / math.sqrt(n)
    half = float(stats.t.ppf(0.5 + LEVEL / 2, n - 1)) * error

    def greater(bound: float) -> float:
        if error == 0:
            return 0.0 if mean > bound else 1.0
        return float(stats.t.sf((mean - bound) / error, n - 1))

    def less(bound: float) -> float:
        if error == 0:
            return 0.0 if mean < bound else 1.0
        return float(stats.t.cdf((mean - bound) / error, n - 1))

    return Estimate(n, mean, mean - half, mean + half, greater, less)


def spearman(points: np.ndarray) -> float:
    """Spearman's rank correlation of (x, y) points; 0 if x or y is constant (no order to agree on)."""
    # Pearson's correlation of the ranks: four times faster than scipy's spearmanr, which the bootstrap feels
    ranks = stats.rankdata(points, axis=0)
    ranks = ranks - ranks.mean(axis=0)
    norm = math.sqrt(float((ranks[:, 0] ** 2).sum() * (ranks[:, 1] ** 2).sum()))
    return float(ranks[:, 0] @ ranks[:, 1]) / norm if norm else 0.0


def correlation_over_seeds(points: Sequence[Sequence[Sequence[float]]]) -> Estimate:
    """Spearman's correlation over the points of all seeds; 95 % percentile interval, resampling whole seeds.

    Points of one seed share a patient and are not independent, so seeds are the unit that is resampled. With
    few seeds a percentile bootstrap is somewhat too narrow. The bootstrap's own seed is fixed: same evidence,
    same interval.
    """
    clusters = [np.asarray(p, dtype=float).reshape(-1, 2) for p in points]
    rho = spearman(np.concatenate(clusters))
    if len(clusters) < 2:
        return Estimate(len(clusters), rho)
    result = stats.bootstrap(
        (np.arange(len(clusters)),),
        lambda picked: spearman(np.concatenate([clusters[i] for i in picked])),
        n_resamples=BOOTSTRAP_RESAMPLES,
        vectorized=False,
        method="percentile",
        confidence_level=LEVEL,
        rng=np.random.default_rng(BOOTSTRAP_SEED),
    )
    draws = result.bootstrap_distribution

    def share(hits: np.ndarray) -> float:
        return float((hits.sum() + 1) / (len(hits) + 1))  # never exactly 0: the resamples are finite

    low, high = map(float, result.confidence_interval)
    return Estimate(
        n=len(clusters),
        value=rho,
        low=low,
        high=high,
        greater=lambda bound: share(draws <= bound),
        less=lambda bound: share(draws >= bound),
    )


def estimate(kind: str, values: Sequence) -> Estimate:
    """The estimate that belongs to a claim's kind, from one value per seed (at least one)."""
    if kind == "population":
        return correlation_over_seeds(values)
    if kind == "identity":
        return Estimate(len(values), float(max(values)))  # the worst run is what counts
    return mean_over_seeds(values)


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
    """Two-sided p-value, below 0.05 exactly when the 95 % interval gives a verdict; None without an interval.

    One bound: the two-sided test against it. A band: if the value lies inside, two one-sided tests
    (equivalence), the larger p doubled so that it matches the 95 % interval; if it lies outside, the
    two-sided test against the nearest bound.
    """
    if rule.key == "max_error" or not found.has_interval:
        return None
    if rule.key == "within" and rule.low < found.value < rule.high:
        return min(1.0, 2 * max(found.greater(rule.low), found.less(rule.high)))
    bound = min((rule.low, rule.high), key=lambda b: abs(found.value - b))
    return min(1.0, 2 * min(found.greater(bound), found.less(bound)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm-corrected p-values, in the given order."""
    if not p_values:
        return []
    from statsmodels.stats.multitest import multipletests  # half a second to import, needed only here

    return [float(p) for p in multipletests(p_values, method="holm")[1]]
