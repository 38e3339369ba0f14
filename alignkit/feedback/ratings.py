"""Rankings of several completions; ratings on a scale, thumbs, ratings by aspect, and how to undo scale use."""

from __future__ import annotations

from collections.abc import Callable
from math import lgamma, log

import numpy as np
from datasets import Dataset

from alignkit.errors import AlignkitError, DataError
from alignkit.feedback.answers import SINGLE, Asked, People, ask, bits, further, one_by_one, spread
from alignkit.worlds.base import World, judge_rows

EULER = 0.5772156649015329  # mean of Gumbel noise
POINTS = 5


def rank(world: World, groups: Dataset, annotator: People, top: int | None = None, seed: int = 0) -> Dataset:
    """Rankings of each group of `prompt/completions`: columns `prompt/ranked/annotator` and cost.

    Sampled from Plackett-Luce, P(ranking) = prod_k exp(w_k) / sum_{j >= k} exp(w_j) with the annotator's `worth` w
    (plus the position bias for the one shown first); with probability 2 error any order (Luce 1959; 2301.11270). Only
    the first `top` places are asked for; the rest stays in the order shown (fit with the same `top`); 1 is best of k.
    """
    singles = spread(groups)
    asked = ask(groups, ("prompt", "completions"), annotator)
    shown = asked.about["completions"]
    sizes = {len(texts) for texts in shown}
    if len(sizes) != 1 or min(sizes) < 2:
        raise DataError(f"every group must hold the same number of completions, at least 2; found {sorted(sizes)}")
    k = sizes.pop()
    if top is not None and not 1 <= top <= k:
        raise AlignkitError(f"rank: top must be between 1 and {k}, not {top}")
    places = min(top or k, k - 1)
    worth = ask(singles, SINGLE, annotator, together=k).numbers("worth", world).reshape(-1, k)
    worth[:, 0] += asked.of("position_bias")
    error = asked.of("error")
    order = _orders(worth, error, np.random.default_rng([seed, 4]))[:, :places]
    rest = [[i for i in range(k) if i not in first] for first in order]
    ranked = [[texts[i] for i in [*first, *last]] for texts, first, last in zip(shown, order, rest, strict=True)]
    log2_answers = (lgamma(k + 1) - lgamma(k - places + 1)) / log(2)
    p = (1 - 2 * error) * _plackett_luce(worth, order) + 2 * error / 2**log2_answers
    columns = {"prompt": asked.about["prompt"], "ranked": ranked}
    return asked.answered(columns, places, k, bits(log2_answers, p))


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


def rate(world: World, answers: Dataset, annotator: People, points: int = POINTS, everyone: bool = False,
         seed: int = 0) -> Dataset:  # fmt: skip
    """Ratings 1 .. points of single completions: columns `prompt/completion/rating/annotator` and cost.

    The impression (worth plus centered Gumbel noise, times temperature: in units of gold) goes on the scale as
    middle + shift + stretch * (impression - center) / unit, rounded and cut at the ends; with probability 2 error any
    rating. The center gets the middle of the scale and a unit makes one point: mean and standard deviation of gold
    over these completions, the same for all. People take turns, or `everyone` rates everything.
    """
    return _rated(world, answers, annotator, points, everyone, seed, lambda given: {"rating": (given + 1).tolist()})


def thumbs(world: World, answers: Dataset, annotator: People, everyone: bool = False, seed: int = 0) -> Dataset:
    """Thumbs up or down: columns `prompt/completion/label` (TRL's unpaired preferences), `annotator` and cost.

    A scale of two points: up if the impression lies above the center of `rate`, moved by shift, so that a lenient
    person gives more of them.
    """
    return _rated(world, answers, annotator, 2, everyone, seed, lambda given: {"label": (given > 0).tolist()})


def _rated(
    world: World, answers: Dataset, annotator: People, points: int, everyone: bool, seed: int, column: Callable
) -> Dataset:
    singles = one_by_one(answers)
    asked = ask(singles, SINGLE, annotator, everyone)
    gold = judge_rows(world.gold, singles["prompt"][:], singles["completion"][:], further(singles, SINGLE))
    given, p = _on_scale(asked, asked.numbers("worth", world), points, gold, np.random.default_rng([seed, 5]))
    return asked.answered({**asked.about, **column(given)}, 1, 1, bits(np.log2(points), p))


def rate_aspects(
    world: World, answers: Dataset, annotator: People, points: int = POINTS, everyone: bool = False, seed: int = 0
) -> Dataset:
    """One rating 1 .. points for each aspect: columns `prompt/completion`, one an aspect, `annotator` and cost.

    As `rate`, with the aspect in place of utility (an annotator's own weights play no part) and a scale of its own.
    """
    singles = one_by_one(answers)
    asked = ask(singles, SINGLE, annotator, everyone)
    truth = judge_rows(world.gold_aspects, singles["prompt"][:], singles["completion"][:], further(singles, SINGLE))
    columns, total = dict(asked.about), np.zeros(len(asked.who))
    for number, (aspect, values) in enumerate(truth.items()):
        worth, rng = values[asked.row] / asked.of("temperature"), np.random.default_rng([seed, 6, number])
        given, p = _on_scale(asked, worth, points, values, rng)
        columns[aspect] = (given + 1).tolist()
        total += bits(np.log2(points), p)
    return asked.answered(columns, len(truth), 1, total)


def _on_scale(
    asked: Asked, worth: np.ndarray, points: int, truth: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The category 0 .. points - 1 of each answer and its probability, each (N,). `truth`: what makes the scale."""
    temperature, error, shift, stretch = (
        asked.of(setting)[:, None] for setting in ("temperature", "error", "shift", "stretch")
    )
    cuts = np.arange(1, points) - points / 2  # where the next category begins, in points from the middle
    # the impression, in logits, that would just reach each cut
    in_gold = float(truth.mean()) + (float(truth.std()) or 1.0) * (cuts - shift) / stretch
    with np.errstate(over="ignore"):  # Gumbel: P(worth + noise - mean noise <= reach)
        below = np.exp(-np.exp(-(in_gold / temperature + EULER - worth[:, None])))
    edges = np.concatenate([np.zeros((len(worth), 1)), below, np.ones((len(worth), 1))], axis=1)
    p = (1 - 2 * error) * np.diff(edges, axis=1) + 2 * error / points
    given = np.minimum((rng.random(len(worth))[:, None] >= p.cumsum(1)).sum(1), points - 1)
    return given, p[np.arange(len(worth)), given]


def standardize(ratings: Dataset, scale: tuple[float, float] = (1, POINTS)) -> Dataset:
    """Undo scale use: each annotator's ratings minus their mean, by their standard deviation (`raw_rating` keeps them).

    Assumes that everyone saw answers of the same kind. Someone who always gives the same rating says nothing and gets
    zeros. DataError names the row of a rating that is no number on the scale.
    """
    if "rating" not in ratings.column_names:
        raise DataError(f"ratings need the column 'rating'; found {ratings.column_names}")
    for row, value in enumerate(ratings["rating"]):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not scale[0] <= value <= scale[1]:
            raise DataError(f"row {row}: rating {value!r} is off the scale from {scale[0]:g} to {scale[1]:g}; drop or "
                            "mend that row, or name the right scale")  # fmt: skip
    values = np.array(ratings["rating"][:], dtype=np.float64)
    names = np.array(ratings["annotator"][:])
    out = np.zeros(len(values))
    for name in np.unique(names):
        own = values[names == name]
        out[names == name] = (own - own.mean()) / (own.std() or 1.0)
    return ratings.remove_columns("rating").add_column("rating", out.tolist()).add_column("raw_rating", values.tolist())
