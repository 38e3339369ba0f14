"""Several labelings of the same pairs made into one, and what they say about who is right how often."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from crowdkit.aggregation import DawidSkene
from crowdkit.metrics.data import alpha_krippendorff
from datasets import Dataset

from alignkit.errors import AlignkitError, DataError

#: name -> labels of the same pairs, as `label` gives them; with a column `task`, the row of the pair, if not of all
Labelings = Mapping[str, Dataset]


def votes(labelings: Labelings) -> pd.DataFrame:
    """One row a label in crowd-kit's columns `task/worker/label`; task: the row of the pair, label: the side chosen."""
    if not labelings:
        raise DataError("votes: give at least one labeling, {name: labels}")
    parts = []
    for name, data in labelings.items():
        task = data["task"][:] if "task" in data.column_names else range(len(data))
        parts.append(pd.DataFrame({"task": task, "worker": name, "label": data["position"][:]}))
    return pd.concat(parts, ignore_index=True)


def alpha(table: pd.DataFrame, interval: bool = False) -> float:
    """Krippendorff's alpha, 1 - observed / expected disagreement, of a table `task/worker/label`.

    `interval`: labels are numbers and disagree by their squared distance; else equal or not. NaN where it is undefined:
    no task has two labels, or all labels are the same.
    """
    labels = table["label"]
    if labels.nunique() < 2 or table["task"].value_counts().max() < 2:
        return float("nan")
    if not interval:
        return float(alpha_krippendorff(table))
    span = float(labels.max() - labels.min())
    return float(alpha_krippendorff(table, distance=lambda a, b: ((a - b) / span) ** 2))


def majority(labelings: Labelings, seed: int = 0) -> Dataset:
    """The side most labelers chose; a coin decides ties. Columns as in `combine`; confidence: share of the votes."""
    table = votes(labelings)
    first = (table["label"] == "first").groupby(table["task"]).mean()
    return _decided(labelings, first, seed)


def dawid_skene(labelings: Labelings, seed: int = 0, iterations: int = 30) -> Dataset:
    """Dawid & Skene (1979) by EM: labelers have confusion matrices, pairs a true side; neither is known beforehand.

    Columns as in `combine`; confidence: the posterior.
    """
    proba = DawidSkene(n_iter=iterations).fit_predict_proba(votes(labelings))
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
    `task`) are decided by the others. Columns `task/prompt/chosen/rejected/position/confidence`, which
    `BradleyTerry.fit(confidence="confidence")` reads. AlignkitError if a source has no reliability in (0, 1).
    """
    for name in labelings:
        if not 0 < reliability.get(name, -1) < 1:
            raise AlignkitError(
                f"combine: reliability of {name!r} is {reliability.get(name)}; give a share between 0 and 1, both "
                "excluded (estimate it on a few gold labels with `skills`)"
            )
    table = votes(labelings)
    weight = table["worker"].map({name: np.log(r / (1 - r)) for name, r in reliability.items()})
    log_odds = weight.where(table["label"] == "first", -weight).groupby(table["task"]).sum()
    return _decided(labelings, 1 / (1 + np.exp(-log_odds)), seed)


def _decided(labelings: Labelings, p_first: pd.Series, seed: int) -> Dataset:
    """Labels from the probability that the first side is right, by task; ties by coin."""
    shown = {}
    for data in labelings.values():
        task = data["task"][:] if "task" in data.column_names else range(len(data))
        rows = zip(task, data["prompt"], data["chosen"], data["rejected"], data["position"], strict=True)
        for t, prompt, chosen, rejected, position in rows:
            pair = (prompt, chosen, rejected) if position == "first" else (prompt, rejected, chosen)
            if shown.setdefault(t, pair) != pair:
                raise DataError(f"task {t}: the labelings are not of the same pairs in the same order")
    tasks = sorted(shown)
    p = p_first.reindex(tasks).to_numpy(dtype=float)
    takes_first = np.where(np.isclose(p, 0.5), np.random.default_rng([seed, 11]).random(len(p)) < 0.5, p > 0.5)
    sides = [shown[t][1:] if took else shown[t][:0:-1] for t, took in zip(tasks, takes_first, strict=True)]
    return Dataset.from_dict(
        {
            "task": tasks,
            "prompt": [shown[t][0] for t in tasks],
            "chosen": [chosen for chosen, _ in sides],
            "rejected": [rejected for _, rejected in sides],
            "position": ["first" if took else "second" for took in takes_first],
            "confidence": np.maximum(p, 1 - p),
        }
    )
