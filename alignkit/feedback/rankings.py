"""Rankings of several completions, or the choice of the best among them."""

from __future__ import annotations

from math import lgamma, log

import numpy as np
from datasets import Dataset

from alignkit.errors import AlignkitError, DataError
from alignkit.feedback.answers import People, assign
from alignkit.feedback.cost import bits, with_cost
from alignkit.worlds.base import World


def rank(world: World, groups: Dataset, annotator: People, top: int | None = None, seed: int = 0) -> Dataset:
    """Rankings of each group of `prompt/completions`: columns `prompt/ranked/annotator` and cost.

    Sampled from Plackett-Luce, P(ranking) = prod_k exp(w_k) / sum_{j >= k} exp(w_j) with the annotator's `worth` w
    (plus the position bias for the one shown first); with probability 2 error any order (Luce 1959; 2301.11270). Only
    the first `top` places are asked for; the rest stays in the order shown (fit with the same `top`); 1 is best of k.
    """
    if not {"prompt", "completions"} <= set(groups.column_names):
        raise DataError(f"rankings need the columns prompt and completions; found {groups.column_names}")
    shown = groups["completions"][:]
    sizes = {len(texts) for texts in shown}
    if len(sizes) != 1 or min(sizes) < 2:
        raise DataError(f"every group must hold the same number of completions, at least 2; found {sorted(sizes)}")
    k = sizes.pop()
    if top is not None and not 1 <= top <= k:
        raise AlignkitError(f"rank: top must be between 1 and {k}, not {top}")
    places = min(top or k, k - 1)
    people, row, who = assign(annotator, len(groups))
    worth = np.zeros((len(row), k))
    for number, person in enumerate(people):
        rows = np.flatnonzero(who == number)
        prompts = [groups["prompt"][i] for i in rows for _ in range(k)]
        worth[rows] = person.worth(world, prompts, [text for i in rows for text in shown[i]]).reshape(-1, k)
        worth[rows, 0] += person.position_bias
    error = np.array([person.error for person in people])[who]
    order = _orders(worth, error, np.random.default_rng([seed, 4]))[:, :places]
    rest = [[i for i in range(k) if i not in first] for first in order]
    ranked = [[shown[r][i] for i in [*first, *last]] for r, first, last in zip(row, order, rest, strict=True)]
    log2_answers = (lgamma(k + 1) - lgamma(k - places + 1)) / log(2)
    p = (1 - 2 * error) * _plackett_luce(worth, order) + 2 * error / 2**log2_answers
    columns = {"prompt": groups["prompt"][:], "ranked": ranked, "annotator": [people[i].name for i in who]}
    return with_cost(columns, places, k, bits(log2_answers, p))


def _orders(worth: np.ndarray, error: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Orders best first, shape (N, k): sorting worth plus Gumbel noise draws from Plackett-Luce (Yellott 1977)."""
    noise, slips = rng.gumbel(size=worth.shape), rng.random(len(worth)) < 2 * error
    return np.argsort(-(np.where(slips[:, None], 0.0, worth) + noise), axis=1, kind="stable")


def _plackett_luce(worth: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Probability of the first places of each order, shape (N,)."""
    worth = worth - worth.max(1, keepdims=True)
    remaining, p, rows = np.ones_like(worth, dtype=bool), np.ones(len(worth)), np.arange(len(worth))
    for chosen in order.T:
        left = np.where(remaining, worth, -np.inf)
        left = np.exp(left - left.max(1, keepdims=True))
        p *= left[rows, chosen] / left.sum(1)
        remaining[rows, chosen] = False
    return p
