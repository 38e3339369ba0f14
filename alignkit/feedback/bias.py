"""Do labels lean to one place or to longer answers? Exact binomial tests."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from datasets import Dataset
from scipy.stats import binomtest


@dataclass(frozen=True)
class Leaning:
    """Share of n labels that lean one way, its 95 % interval (Wilson), and the p-value of an even share."""

    share: float
    low: float
    high: float
    p_value: float
    n: int


def position_leaning(labels: Dataset) -> Leaning:
    """Share of labels (column `position`) that chose the side shown first. Even if sides are placed at random."""
    return _leaning(np.array(labels["position"][:]) == "first")


def length_leaning(labels: Dataset) -> Leaning:
    """Share of the pairs of unequal length in which the longer side, in words, was chosen.

    Not even need not mean bias: where longer answers are better, or worse, honest labels lean too.
    """
    pairs = zip(labels["chosen"], labels["rejected"], strict=True)
    gap = np.array([len(chosen.split()) - len(rejected.split()) for chosen, rejected in pairs])
    return _leaning(gap[gap != 0] > 0)


def _leaning(hits: np.ndarray) -> Leaning:
    if not len(hits):
        return Leaning(float("nan"), 0.0, 1.0, 1.0, 0)
    test = binomtest(int(hits.sum()), len(hits))
    low, high = test.proportion_ci(method="wilson")
    return Leaning(test.statistic, float(low), float(high), float(test.pvalue), len(hits))
