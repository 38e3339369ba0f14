"""Several objectives at once: which points are beaten by none, how much they cover, and the exact front by tilting.

Objectives are to be made large. The exact optimum of w . r - beta KL is pi_ref * exp(w . r / beta) / Z.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.special import logsumexp

from alignkit.errors import AlignkitError
from alignkit.evaluation.core import beta_for_kl


def non_dominated(points) -> np.ndarray:
    """Which rows no other row dominates: is at least as good in all objectives and better in one; (N, K) to (N,).

    Equal rows keep each other.
    """
    points = _points(points)
    at_least = (points[None] >= points[:, None]).all(2)  # [i, j]: j at least as good as i
    better = (points[None] > points[:, None]).any(2)
    return ~(at_least & better).any(1)


def hypervolume(points, reference: Sequence[float]) -> float:
    """Area that two-objective points dominate, above and to the right of `reference`; points below it add nothing."""
    points, reference = _points(points), np.asarray(reference, dtype=np.float64)
    if points.shape[1] != 2 or reference.shape != (2,):
        raise AlignkitError(f"hypervolume is for two objectives: points {points.shape}, reference {reference.shape}")
    gained = np.maximum(points - reference, 0.0)
    area, height = 0.0, 0.0
    for width, top in sorted(gained.tolist(), reverse=True):
        if top > height:
            area, height = area + width * (top - height), top
    return area


def tilted(rewards, weights: Sequence[float], beta: float) -> dict:
    """The exact optimum for these weights, from the reference's samples: `value` of each objective, `kl` (nats), `ess`.

    `rewards`: (K, prompts, samples); means over prompts, `ess` the least effective sample size of a prompt.
    """
    rewards = _rewards(rewards, weights)
    logw = np.tensordot(np.asarray(weights, dtype=np.float64), rewards, 1) / beta
    logw = logw - logsumexp(logw, axis=1, keepdims=True)
    w = np.exp(logw)
    kl = (w * logw).sum(1) + np.log(w.shape[1])
    return {"value": (w * rewards).sum(2).mean(1), "kl": float(kl.mean()), "ess": float((1 / (w**2).sum(1)).min())}


def tilted_front(rewards, weights: Sequence[Sequence[float]], kl: float | None = None, beta: float | None = None,
                 names: Sequence[str] | None = None) -> pd.DataFrame:  # fmt: skip
    """The exact front: a row for each weight vector, all at one KL (nats) or all at one beta.

    Columns: the objectives (`names`, default 0, 1, ...), kl, beta, ess. Take many samples; look at `ess`.
    """
    if (kl is None) == (beta is None):
        raise AlignkitError("tilted_front: give either kl (nats) or beta, and not both")
    rewards = np.asarray(rewards, dtype=np.float64)
    rows = []
    for w in weights:
        score = np.tensordot(np.asarray(w, dtype=np.float64), _rewards(rewards, w), 1)
        b = beta_for_kl(score, kl) if beta is None else beta
        point = tilted(rewards, w, b)
        rows.append({**dict(zip(names or range(len(rewards)), point["value"], strict=True)), "kl": point["kl"],
                     "beta": b, "ess": point["ess"]})  # fmt: skip
    return pd.DataFrame(rows)


def _points(points) -> np.ndarray:
    points = np.asarray(points, dtype=np.float64)
    if points.ndim != 2 or not np.isfinite(points).all():
        raise AlignkitError(f"points must be finite numbers, a row a policy and a column an objective; {points.shape}")
    return points


def _rewards(rewards, weights: Sequence[float]) -> np.ndarray:
    rewards = np.asarray(rewards, dtype=np.float64)
    if rewards.ndim != 3 or len(rewards) != len(weights):
        raise AlignkitError(
            f"rewards have shape {rewards.shape}; {len(weights)} weights need ({len(weights)}, prompts, samples)"
        )
    return rewards
