"""How well labels agree, several labelings made into one, and what pooled comparisons of people who differ say."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import permutations

import numpy as np
import pandas as pd
from datasets import Dataset
from scipy.optimize import root
from sklearn.metrics import cohen_kappa_score

from alignkit.errors import AlignkitError, DataError, needs
from alignkit.feedback.answers import COST, further
from alignkit.feedback.compare import SIDES, VERDICT, labeled
from alignkit.intervals import Estimate, wilson
from alignkit.worlds.base import World, judge_rows

#: name -> labels of the same pairs, as `label` gives them; with a column `task`, the row of the pair, if not of all
Labelings = Mapping[str, Dataset]


# -- agreement ---------------------------------------------------------------------------------------------------------


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


# -- several labelings -------------------------------------------------------------------------------------------------


def labelings(pairs: Dataset, table: pd.DataFrame, task: str = "task", worker: str = "worker",
              winner: str = "label") -> dict[str, Dataset]:  # fmt: skip
    """A long table of votes as labelings of the pairs `prompt/first/second`, one a worker, in order of appearance.

    Columns of the table: `task` (row of the pair, from 0), `worker`, `winner` ("first" or "second"). Leave ties out.
    DataError names the row of the table that is none of this.
    """
    for row, (number, side) in enumerate(zip(table[task], table[winner], strict=True)):
        if number not in range(len(pairs)) or side not in SIDES:
            raise DataError(f"row {row} of the votes: {task} {number!r}, {winner} {side!r}; give the row of one of "
                            f"{len(pairs)} pairs and 'first' or 'second' (leave ties out)")  # fmt: skip
    found = {}
    for name, said in table.groupby(table[worker].astype(str), sort=False):
        rows, sure, by = said[task].astype(int).tolist(), np.ones(len(said)), [name] * len(said)
        found[name] = labeled(pairs.select(rows), said[winner] == "first", p_chosen=sure, annotator=by, task=rows)
    return found


def votes(labelings: Labelings) -> pd.DataFrame:
    """One row a label in crowd-kit's columns `task/worker/label`; task: the row of the pair, label: the side chosen."""
    if not labelings:
        raise DataError("votes: give at least one labeling, {name: labels}")
    parts = []
    for name, data in labelings.items():
        if "position" not in data.column_names:
            raise DataError(f"labeling {name!r} has no column 'position' (\"first\" or \"second\"); see `label`")
        for row, side in enumerate(data["position"]):
            if side not in SIDES:
                raise DataError(f"labeling {name!r}, row {row}: position is {side!r}; it must be 'first' or 'second' "
                                "(leave ties out)")  # fmt: skip
        parts.append(pd.DataFrame({"task": _tasks(data), "worker": name, "label": data["position"][:]}))
    return pd.concat(parts, ignore_index=True)


def _tasks(data: Dataset) -> list[int]:
    """The row of the pair that each label is about."""
    return data["task"][:] if "task" in data.column_names else list(range(len(data)))


def alpha(table: pd.DataFrame, interval: bool = False) -> float:
    """Krippendorff's alpha, 1 - observed / expected disagreement, of a table `task/worker/label`.

    `interval`: labels are numbers and disagree by their squared distance; else equal or not. NaN where it is undefined:
    no task has two labels, or all labels are the same.
    """
    labels = table["label"]
    if labels.nunique() < 2 or table["task"].value_counts().max() < 2:
        return float("nan")
    with needs("checkup"):
        from crowdkit.metrics.data import alpha_krippendorff
    if not interval:
        return float(alpha_krippendorff(table))
    span = float(labels.max() - labels.min())
    return float(alpha_krippendorff(table, distance=lambda a, b: ((a - b) / span) ** 2))


def majority(labelings: Labelings, seed: int = 0) -> Dataset:
    """The side most labelers chose; a coin decides ties. Columns as in `combine`; confidence: share of the votes."""
    table = votes(labelings)
    first = (table["label"] == "first").groupby(table["task"]).mean()
    return _decided(labelings, first, seed)


def dawid_skene(labelings: Labelings, seed: int = 0) -> Dataset:
    """Dawid & Skene (1979) by EM: labelers have confusion matrices, pairs a true side; neither is known beforehand.

    Columns as in `combine`; confidence: the posterior.
    """
    with needs("checkup"):
        from crowdkit.aggregation import DawidSkene
    proba = DawidSkene(n_iter=30).fit_predict_proba(votes(labelings))
    first = proba["first"] if "first" in proba else pd.Series(0.0, index=proba.index)
    return _decided(labelings, first, seed)


def skills(labelings: Labelings, truth: Dataset) -> dict[str, float]:
    """Share of each labeler's labels that agree with `truth`: gold labels, or an aggregation.

    Pairs that only one of the two knows don't count; NaN where they share none.
    """
    side = votes({"truth": truth}).set_index("task")["label"]
    table = votes(labelings)
    table = table[table["task"].isin(side.index)]
    right = table["label"] == table["task"].map(side)
    return {name: float(right[table["worker"] == name].mean()) for name in labelings}


def combine(labelings: Labelings, reliability: Mapping[str, float], seed: int = 0) -> Dataset:
    """Labels weighted by reliability: a vote counts log(r / (1 - r)), r being the share of right labels of its source.

    The posterior for independent sources and an even prior (naive Bayes). Pairs that a source did not label (column
    `task`) are decided by the others. Columns `prompt/chosen/rejected/position/confidence/task`, which
    `BradleyTerry.fit(confidence="confidence")` reads. AlignkitError if a source has no reliability in (0, 1).
    """
    for name in labelings:
        if not 0 < reliability.get(name, -1) < 1:
            raise AlignkitError(f"combine: reliability of {name!r} is {reliability.get(name)}; give a share between 0 "
                                "and 1, both excluded (estimate it on a few gold labels with `skills`)")  # fmt: skip
    table = votes(labelings)
    weight = table["worker"].map({name: np.log(r / (1 - r)) for name, r in reliability.items()})
    log_odds = weight.where(table["label"] == "first", -weight).groupby(table["task"]).sum()
    return _decided(labelings, 1 / (1 + np.exp(-log_odds)), seed)


def _decided(labelings: Labelings, p_first: pd.Series, seed: int) -> Dataset:
    """Labels from the probability that the first side is right, by task; ties by coin."""
    known: dict[int, dict] = {}  # by task: the pair as it was shown, and what goes along
    for data in labelings.values():
        rest = [name for name in data.column_names if name not in ("chosen", "rejected", "annotator", *VERDICT, *COST)]
        for task, row in zip(_tasks(data), data, strict=True):
            first, second = (row["chosen"], row["rejected"])[:: 1 if row["position"] == "first" else -1]
            pair = {"prompt": row["prompt"], "first": first, "second": second}
            seen = known.setdefault(task, {**{name: row[name] for name in rest}, **pair, "task": task})
            if any(seen[name] != text for name, text in pair.items()):
                raise DataError(f"task {task}: the labelings are not of the same pairs in the same order")
    tasks = sorted(known)
    names = dict.fromkeys(name for task in tasks for name in known[task])
    p = p_first.reindex(tasks).to_numpy(dtype=float)
    takes_first = np.where(np.isclose(p, 0.5), np.random.default_rng([seed, 11]).random(len(p)) < 0.5, p > 0.5)
    pairs = Dataset.from_dict({name: [known[task].get(name) for task in tasks] for name in names})
    return labeled(pairs, takes_first, confidence=np.maximum(p, 1 - p))


# -- pooled comparisons ------------------------------------------------------------------------------------------------


def win_matrix(utilities: np.ndarray, temperature: float = 1.0, shares: np.ndarray | None = None) -> np.ndarray:
    """P(i beats j) pooled over groups of people, shape (K, K), one half on the diagonal.

    utilities (groups, K): what each outcome is worth to each group; shares: how many they are (default: equal).
    """
    u = np.atleast_2d(np.asarray(utilities, dtype=float))
    shares = np.full(len(u), 1 / len(u)) if shares is None else np.asarray(shares, dtype=float)
    gap = (u[:, :, None] - u[:, None, :]) / temperature
    return np.tensordot(shares / shares.sum(), 0.5 * (1 + np.tanh(gap / 2)), axes=1)


def borda(p: np.ndarray) -> np.ndarray:
    """Borda's count: the mean chance of each outcome to win against another, shape (K,). (2312.08358)"""
    p = _checked(p)
    return (p.sum(1) - p.diagonal()) / (len(p) - 1)


def bradley_terry_limit(p: np.ndarray) -> np.ndarray:
    """The Bradley-Terry scores (mean 0) that endless comparisons of all pairs, equally often, lead to; shape (K,).

    The maximum of sum_ij p_ij log sigmoid(s_i - s_j), whose gradient vanishes where each outcome's modeled wins equal
    its real ones: sum_j sigmoid(s_i - s_j) = sum_j p_ij. Larger Borda counts therefore get larger scores (2312.08358),
    whoever the people are.
    """
    p = _checked(p)

    def gradient(s: np.ndarray) -> np.ndarray:
        modeled = 0.5 * (1 + np.tanh((s[:, None] - s[None, :]) / 2))
        residual = (modeled - p).sum(1)
        residual[-1] = s.sum()  # the constant is free: fix it
        return residual

    found = root(gradient, np.zeros(len(p)), tol=1e-13)
    if np.abs(gradient(found.x)).max() > 1e-8:
        raise AlignkitError("no finite Bradley-Terry scores: some outcome always wins or always loses")
    return found.x


def cycles(p: np.ndarray) -> list[list[int]]:
    """Circles of three in which a majority prefers each outcome to the next (Condorcet), smallest index first.

    p (K, K): chance, or share of labels, in which row beats column; exactly one half is no preference.
    """
    p = _checked(p)
    threes = [[i, j, k] for i, j, k in permutations(range(len(p)), 3) if i < min(j, k)]
    return [[i, j, k] for i, j, k in threes if min(p[i, j], p[j, k], p[k, i]) > 0.5]


def _checked(p: np.ndarray) -> np.ndarray:
    p = np.asarray(p, dtype=float)
    if p.ndim != 2 or p.shape[0] != p.shape[1] or len(p) < 2 or not np.allclose(p + p.T, 1):
        raise AlignkitError(f"need a square matrix with p[i, j] + p[j, i] = 1, at least 2 x 2; got shape {p.shape}")
    return p
