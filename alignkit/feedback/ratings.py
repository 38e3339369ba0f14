"""Rankings of several completions; ratings on a scale, thumbs, ratings by aspect, and how to undo scale use."""

from __future__ import annotations

from math import lgamma, log

import numpy as np
from datasets import Dataset

from alignkit.errors import AlignkitError, DataError
from alignkit.feedback.annotator import Annotator
from alignkit.feedback.answers import People, assign, bits, further, one_by_one, with_cost
from alignkit.worlds.base import World, judge_rows

EULER = 0.5772156649015329  # mean of Gumbel noise
POINTS = 5
SINGLE = ("prompt", "completion")


def rank(world: World, groups: Dataset, annotator: People, top: int | None = None, seed: int = 0) -> Dataset:
    """Rankings of each group of `prompt/completions`: columns `prompt/ranked/annotator` and cost.

    Sampled from Plackett-Luce, P(ranking) = prod_k exp(w_k) / sum_{j >= k} exp(w_j) with the annotator's `worth` w
    (plus the position bias for the one shown first); with probability 2 error any order (Luce 1959; 2301.11270). Only
    the first `top` places are asked for; the rest stays in the order shown (fit with the same `top`); 1 is best of k.
    """
    if not {"prompt", "completions"} <= set(groups.column_names):
        raise DataError(f"rankings need the columns prompt and completions; found {groups.column_names}")
    asked, shown, known = groups["prompt"][:], groups["completions"][:], further(groups, ("prompt", "completions"))
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
        prompts = [asked[i] for i in rows for _ in range(k)]
        own = {name: [values[i] for i in rows for _ in range(k)] for name, values in known.items()}
        worth[rows] = person.worth(world, prompts, [text for i in rows for text in shown[i]], **own).reshape(-1, k)
        worth[rows, 0] += person.position_bias
    error = np.array([person.error for person in people])[who]
    order = _orders(worth, error, np.random.default_rng([seed, 4]))[:, :places]
    rest = [[i for i in range(k) if i not in first] for first in order]
    ranked = [[shown[r][i] for i in [*first, *last]] for r, first, last in zip(row, order, rest, strict=True)]
    log2_answers = (lgamma(k + 1) - lgamma(k - places + 1)) / log(2)
    p = (1 - 2 * error) * _plackett_luce(worth, order) + 2 * error / 2**log2_answers
    columns = {"prompt": asked, "ranked": ranked, "annotator": [people[i].name for i in who]}
    return with_cost(columns, places, k, bits(log2_answers, p), known)


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
         center: float | None = None, unit: float | None = None, seed: int = 0) -> Dataset:  # fmt: skip
    """Ratings 1 .. points of single completions: columns `prompt/completion/rating/annotator` and cost.

    The impression (worth plus centered Gumbel noise, times temperature: in units of gold) goes on the scale as
    middle + shift + stretch * (impression - center) / unit, rounded and cut at the ends; with probability 2 error any
    rating. `center`, `unit`: which impression gets the middle, and how much makes one point (default: mean and standard
    deviation of gold over these completions, the same for all). People take turns, or `everyone` rates everything.
    """
    return _singles(world, answers, annotator, everyone, center, unit, seed, np.arange(points - 1) + 1.5,
                    (points + 1) / 2, lambda k: {"rating": (k + 1).tolist()})  # fmt: skip


def thumbs(world: World, answers: Dataset, annotator: People, everyone: bool = False,
           center: float | None = None, unit: float | None = None, seed: int = 0) -> Dataset:  # fmt: skip
    """Thumbs up or down: columns `prompt/completion/label` (TRL's unpaired preferences), `annotator` and cost.

    Up if the impression lies above `center`; shift and stretch as in `rate`, so a lenient person gives more of them.
    """
    return _singles(world, answers, annotator, everyone, center, unit, seed, np.zeros(1), 0.0,
                    lambda k: {"label": (k > 0).tolist()})  # fmt: skip


def rate_aspects(
    world: World, answers: Dataset, annotator: People, points: int = POINTS, everyone: bool = False, seed: int = 0
) -> Dataset:
    """One rating 1 .. points for each aspect: columns `prompt/completion`, one an aspect, `annotator` and cost.

    As `rate`, with the aspect in place of utility (an annotator's own weights play no part) and a scale of its own.
    """
    singles = one_by_one(answers)
    known = further(singles, SINGLE)
    truth = judge_rows(world.gold_aspects, singles["prompt"][:], singles["completion"][:], known)
    people, row, who = assign(annotator, len(singles), everyone)
    cuts, columns, total = np.arange(points - 1) + 1.5, {}, np.zeros(len(row))
    for number, (aspect, values) in enumerate(truth.items()):
        center, unit = float(values.mean()), float(values.std()) or 1.0
        worth = values[row] / np.array([person.temperature for person in people])[who]
        rng = np.random.default_rng([seed, 6, number])
        given, p = _on_scale(people, who, worth, cuts, (points + 1) / 2, center, unit, rng)
        columns[aspect] = (given + 1).tolist()
        total += bits(np.log2(points), p)
    shown = {name: [singles[name][i] for i in row] for name in SINGLE}
    names = {"annotator": [people[i].name for i in who]}
    return with_cost({**shown, **columns, **names}, len(truth), 1, total, further(singles, SINGLE, row))


def standardize(ratings: Dataset, scale: tuple[float, float] = (1, POINTS)) -> Dataset:
    """Undo scale use: each annotator's ratings minus their mean, by their standard deviation (`raw_rating` keeps them).

    Assumes that everyone saw answers of the same kind. Someone who always gives the same rating says nothing and gets
    zeros. DataError names a rating off the scale.
    """
    values = check_ratings(ratings, scale)
    names = np.array(ratings["annotator"][:])
    out = np.zeros(len(values))
    for name in np.unique(names):
        own = values[names == name]
        out[names == name] = (own - own.mean()) / (own.std() or 1.0)
    return ratings.remove_columns("rating").add_column("rating", out.tolist()).add_column("raw_rating", values.tolist())


def check_ratings(ratings: Dataset, scale: tuple[float, float] = (1, POINTS)) -> np.ndarray:
    """The ratings as float64, shape (N,). DataError naming the row if one is no number on the scale."""
    if "rating" not in ratings.column_names:
        raise DataError(f"ratings need the column 'rating'; found {ratings.column_names}")
    for row, value in enumerate(ratings["rating"]):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not scale[0] <= value <= scale[1]:
            raise DataError(
                f"row {row}: rating {value!r} is off the scale from {scale[0]:g} to {scale[1]:g}; drop or mend that "
                "row, or name the right scale"
            )
    return np.array(ratings["rating"][:], dtype=np.float64)


def _singles(world, answers, annotator, everyone, center, unit, seed, cuts, middle, column) -> Dataset:
    """Every form that puts one completion on a scale: impressions, cut at `cuts`, as a column."""
    singles = one_by_one(answers)
    prompts, texts, known = singles["prompt"][:], singles["completion"][:], further(singles, SINGLE)
    gold = judge_rows(world.gold, prompts, texts, known)
    center = float(gold.mean()) if center is None else center
    unit = (float(gold.std()) or 1.0) if unit is None else unit
    people, row, who = assign(annotator, len(singles), everyone)
    worth = np.zeros(len(row))
    for number, person in enumerate(people):
        mine = np.flatnonzero(who == number)
        own = {name: [values[i] for i in row[mine]] for name, values in known.items()}
        worth[mine] = person.worth(world, [prompts[i] for i in row[mine]], [texts[i] for i in row[mine]], **own)
    given, p = _on_scale(people, who, worth, cuts, middle, center, unit, np.random.default_rng([seed, 5]))
    columns = {"prompt": [prompts[i] for i in row], "completion": [texts[i] for i in row], **column(given)}
    columns["annotator"] = [people[i].name for i in who]
    return with_cost(columns, 1, 1, bits(np.log2(len(cuts) + 1), p), further(singles, SINGLE, row))


def _on_scale(
    people: list[Annotator], who: np.ndarray, worth: np.ndarray, cuts: np.ndarray, middle: float, center: float,
    unit: float, rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """The category 0 .. len(cuts) of each answer and its probability, each (N,)."""
    of = {name: np.array([getattr(person, name) for person in people])[who]
          for name in ("temperature", "error", "shift", "stretch")}  # fmt: skip
    # the impression, in logits, that would just reach each cut
    in_gold = center + unit * (cuts - middle - of["shift"][:, None]) / of["stretch"][:, None]
    reach = in_gold / of["temperature"][:, None]
    with np.errstate(over="ignore"):
        below = np.exp(-np.exp(-(reach + EULER - worth[:, None])))  # Gumbel: P(worth + noise - mean noise <= reach)
    k = len(cuts) + 1
    edges = np.concatenate([np.zeros((len(worth), 1)), below, np.ones((len(worth), 1))], axis=1)
    p = (1 - 2 * of["error"][:, None]) * np.diff(edges, axis=1) + 2 * of["error"][:, None] / k
    given = np.minimum((rng.random(len(worth))[:, None] >= p.cumsum(1)).sum(1), k - 1)
    return given, p[np.arange(len(worth)), given]
