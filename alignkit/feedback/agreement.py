"""How well labels agree: with each other, with the truth, with themselves in the other order; and do they lean?"""

from __future__ import annotations

import numpy as np
from datasets import Dataset
from sklearn.metrics import cohen_kappa_score

from alignkit.feedback.answers import further
from alignkit.intervals import Estimate, wilson
from alignkit.worlds.base import World, judge_rows


def bayes_ceiling(p_chosen: np.ndarray) -> float:
    """Highest expected accuracy on these noisy labels: mean of max(p, 1 - p)."""
    p = np.asarray(p_chosen, dtype=float)
    return float(np.maximum(p, 1 - p).mean())


def pair_accuracy(scores_chosen: np.ndarray, scores_rejected: np.ndarray) -> float:
    """Share of pairs in which the chosen side scores higher; a tie counts one half."""
    gap = np.asarray(scores_chosen, dtype=float) - np.asarray(scores_rejected, dtype=float)
    return float(np.mean((gap > 0) + 0.5 * (gap == 0)))


def gold_agreement(world: World, pairs: Dataset) -> float:
    """Share of labels that gold shares (ties count one half)."""
    prompts, along = pairs["prompt"][:], further(pairs, ("prompt",))
    return pair_accuracy(*(judge_rows(world.gold, prompts, pairs[side][:], along) for side in ("chosen", "rejected")))


def kappa(first: Dataset, second: Dataset) -> float:
    """Cohen's kappa between two labelings of the same pairs in the same order (column `position`).

    NaN if both always choose the same one side: there is no disagreement to expect by chance, so nothing to compare.
    """
    one, other = first["position"][:], second["position"][:]
    return float("nan") if len({*one, *other}) < 2 else float(cohen_kappa_score(one, other))


def raw_agreement(first: Dataset, second: Dataset) -> float:
    """Share of pairs on which two labelings choose the same side."""
    return float(np.mean(np.array(first["position"][:]) == np.array(second["position"][:])))


def swap(pairs: Dataset) -> Dataset:
    """The same unlabeled pairs shown in the other order."""
    return pairs.rename_columns({"first": "second", "second": "first"})


def position_leaning(labels: Dataset) -> Estimate:
    """Share of labels (column `position`) that chose the side shown first. Even if sides are placed at random."""
    return wilson(list(labels["position"]).count("first"), len(labels))


def length_leaning(labels: Dataset) -> Estimate:
    """Share of the pairs of unequal length in which the longer side, in words, was chosen.

    Not even need not mean bias: where longer answers are better, or worse, honest labels lean too.
    """
    pairs = zip(labels["chosen"], labels["rejected"], strict=True)
    gap = np.array([len(chosen.split()) - len(rejected.split()) for chosen, rejected in pairs])
    return wilson(np.sum(gap > 0), np.sum(gap != 0))
