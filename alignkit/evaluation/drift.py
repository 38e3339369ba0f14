"""Has what people want changed? A test that may be looked at after every new label, and is still honest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from datasets import Dataset
from scipy.stats import binom, binomtest

from alignkit.errors import AlignkitError
from alignkit.rewards.base import Reward
from alignkit.rewards.scalar import score_pairs

#: Shares of the capital that are bet, averaged: the larger, the sooner a large change shows and the later a small one.
BETS = np.array([0.1, 0.2, 0.4, 0.8])


@dataclass
class Watch:
    """`evidence` after each label, shape (N,): 1 at the start, small while nothing has changed. `alarm`: the number of
    labels (counted from 1) after which it reached 1 / alpha; None if it never did."""

    evidence: np.ndarray
    alarm: int | None


def agreements(reward: Reward, pairs: Dataset) -> np.ndarray:
    """Whether the reward sides with each label: 1, 0, or one half for a tie; shape (N,)."""
    chosen, rejected = score_pairs(reward, pairs)
    return np.heaviside(chosen - rejected, 0.5)


def usual_rate(agrees: Sequence[float], confidence: float = 0.99) -> float:
    """Exact lower bound of the rate of agreement (Clopper and Pearson 1934), from held-out labels of the old days."""
    agrees = _checked(agrees)
    if not len(agrees):
        raise AlignkitError("usual_rate: no labels; keep some of the old ones apart from the fit")
    test = binomtest(int(np.floor(agrees.sum())), len(agrees), alternative="greater")
    return float(test.proportion_ci(confidence, method="exact").low)


def watch(agrees: Sequence[float], rate: float, alpha: float = 0.01) -> Watch:
    """Bets, label by label, that agreement has fallen below `rate`; an alarm once the bets have won 1 / alpha-fold.

    A share b of the capital is bet on disagreement at odds of rate / (1 - rate): fair at `rate`, a loss on average if
    people agree more. When the change comes is not known, so a little capital is kept for a start at each label:
    1 / (j (j + 1)) for label j. The total is a nonnegative supermartingale that starts at 1, so by Ville's inequality
    the chance that it *ever* reaches 1 / alpha is at most alpha, however often one looks. (Testing by betting: Shafer
    2021; Ramdas et al. 2023)
    """
    agrees = _checked(agrees)
    if not 0 < rate < 1 or not 0 < alpha < 1:
        raise AlignkitError(f"watch: rate and alpha must lie between 0 and 1; got rate={rate}, alpha={alpha}")
    odds = rate / (1 - rate)
    j = np.arange(1, len(agrees) + 1)[:, None]
    won = np.log1p(BETS * ((1 - agrees) * odds - agrees)[:, None]).cumsum(0)  # log of a capital kept in play all along
    start = -np.log(j * (j + 1.0)) - np.vstack([np.zeros((1, len(BETS))), won])[:-1]
    capital = np.exp(np.minimum(won + np.logaddexp.accumulate(start), 700))
    evidence = capital.mean(1) + 1 / (j[:, 0] + 1)  # what was bet, and what is still kept for later starts
    reached = np.flatnonzero(evidence >= 1 / alpha)
    return Watch(evidence, int(reached[0]) + 1 if len(reached) else None)


def peek(agrees: Sequence[float], rate: float, alpha: float = 0.01) -> int | None:
    """The mistake to avoid: an ordinary one-sided binomial test after every label from the tenth on.

    Returns the label at which one is "significant", or None. The chance of a false alarm grows with every look.
    """
    agrees = _checked(agrees)
    n = np.arange(1, len(agrees) + 1)
    cries = np.flatnonzero((binom.cdf(np.ceil(agrees.cumsum()), n, rate) < alpha) & (n >= 10))
    return int(cries[0]) + 1 if len(cries) else None


def _checked(agrees: Sequence[float]) -> np.ndarray:
    agrees = np.asarray(agrees, dtype=float)
    if agrees.ndim != 1 or ((agrees < 0) | (agrees > 1)).any() or np.isnan(agrees).any():
        raise AlignkitError("agreements must be a flat list of numbers between 0 (disagrees) and 1 (agrees)")
    return agrees
