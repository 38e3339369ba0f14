"""The measurement core: sequence KL, best-of-n, the frontier of the exact optimum, fronts of several objectives. Proved
against enumeration in tests.

Arrays named `scores`, `proxy`, `gold` have shape (prompts, samples): many samples of the *reference* for each prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy.optimize import brentq
from scipy.special import gammaln, logsumexp

from alignkit.errors import AlignkitError
from alignkit.policy import Policy, micro_batches

MIN_ESS = 50  # below this effective sample size nothing is drawn


@torch.no_grad()
def sequence_kl(
    policy: Policy, reference: Policy, prompts: list, n: int = 16, seed: int = 0, max_new_tokens: int = 48
) -> np.ndarray:
    """KL(policy || reference) of whole completions in nats, one estimate a prompt, shape (prompts,).

    From n temperature-1 samples of the policy: the full-vocabulary KL at each position, summed up to the
    end-of-sequence decision (included) or the cut at max_new_tokens. Lower variance than sampled log-ratios, and exact
    in expectation for the process that stops at max_new_tokens. Each reads the prompts in its own way: the policy may
    see a context (`optimize.InContext`) that the reference does not see.
    """
    rollout = policy.rollout(prompts, n, seed=seed, max_new_tokens=max_new_tokens)
    batch, totals = rollout.batch, []
    for rows in micro_batches(batch.attention.sum(1), policy.vocabulary, rows=256, budget=policy.logit_budget // 4):
        mine = batch.rows(rows)  # a quarter of the budget: four arrays of the logits' size are held
        theirs = reference.encode([rollout.prompts[i] for i in rows], mine.tails)
        logp, logq = (torch.log_softmax(p.logits(b).float(), -1) for p, b in ((policy, mine), (reference, theirs)))
        totals.append(((logp.exp() * (logp - logq)).sum(-1) * mine.mask).sum(1))
    return torch.cat(totals).double().view(len(prompts), n).mean(1).cpu().numpy()


def best_of_n_weights(proxy: np.ndarray, n: int) -> np.ndarray:
    """Probability that each sample is the best of n drawn without replacement; same shape as `proxy`.

    The unbiased estimator of best-of-n from N >= n samples: of rank i (from the worst, 1-based) C(i-1, n-1) / C(N, n);
    tied samples share their probability equally.
    """
    proxy = np.atleast_2d(proxy)
    size = proxy.shape[1]
    if not 1 <= n <= size:
        raise AlignkitError(f"best of {n} can't be estimated from {size} samples a prompt: draw more or lower n")
    by_rank = np.exp(_log_choose(np.arange(size), n - 1) - _log_choose(size, n))
    return np.stack([_share_ties(row, by_rank) for row in proxy])


def _log_choose(n, k):
    """Logarithm of the binomial coefficient; -inf where n < k."""
    return gammaln(n + 1.0) - gammaln(k + 1.0) - gammaln(n - k + 1.0)


def _share_ties(scores: np.ndarray, by_rank: np.ndarray) -> np.ndarray:
    _, level, count = np.unique(scores, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    total = np.add.reduceat(by_rank, last - count)
    return (total / count)[level]


def best_of_n_curve(proxy: np.ndarray, values: np.ndarray, ns) -> np.ndarray:
    """E[value of the best of n by proxy] for each n in `ns`, one row a prompt; shape (prompts, len(ns))."""
    return np.stack([(best_of_n_weights(proxy, n) * values).sum(1) for n in ns], axis=1)


def best_of_n_kl(scores: np.ndarray, ns) -> np.ndarray:
    """KL(best-of-n || reference) in nats, tie-aware, shape (prompts, len(ns)).

    Only the reward levels matter: with P(r <= level) = F, best-of-n draws the level with probability F^n - F_before^n
    and keeps the reference's odds within it. Probabilities are the samples' shares, so take many more samples than n.
    Without ties this is log n - (n-1)/n as samples grow; with ties that is an upper bound (2401.01879).
    """
    shares = [np.unique(row, return_counts=True)[1] / len(row) for row in np.atleast_2d(scores)]
    return np.stack([kl_of_best_of_n(share, ns) for share in shares])


def kl_of_best_of_n(level_probability: np.ndarray, ns) -> np.ndarray:
    """The same for known probabilities of the reward levels, lowest level first; exact."""
    p = np.asarray(level_probability, dtype=float)
    upper = np.cumsum(p)
    lower = upper - p
    n = np.asarray(ns, dtype=float)[:, None]
    q = np.clip(upper, 0, 1) ** n - np.clip(lower, 0, 1) ** n
    return np.where(q > 0, q * np.log(np.maximum(q, 1e-300) / np.where(p > 0, p, 1.0)), 0.0).sum(1)


def kl_bound(ns) -> np.ndarray:
    """log n - (n-1)/n, the upper bound on best-of-n's KL, attained without ties."""
    n = np.asarray(ns, dtype=float)
    return np.log(n) - (n - 1) / n


@dataclass
class Frontier:
    """Points of the exact optimum, one entry for each beta: mean over prompts of KL (nats) and of the reward, and the
    smallest effective sample size of a prompt. `start`: the reward at a KL of 0, the reference's own."""

    beta: np.ndarray
    kl: np.ndarray
    value: np.ndarray
    ess: np.ndarray
    start: float

    def shown(self) -> Frontier:
        """Without the points whose effective sample size is below MIN_ESS."""
        keep = self.ess >= MIN_ESS
        return Frontier(self.beta[keep], self.kl[keep], self.value[keep], self.ess[keep], self.start)

    @property
    def reach(self) -> float:
        """The largest KL (nats) up to which the optimum is known; 0 if there are too few samples for any."""
        return float(self.shown().kl.max(initial=0.0))

    def at(self, kl: float) -> float:
        """The optimum's reward at this KL: linear between points, which errs on the low side, for it is concave;
        before the first one it grows from `start` with the root of the KL; NaN beyond what the samples support."""
        ok = self.shown()
        if not len(ok.kl):
            return float("nan")
        order = np.argsort(ok.kl)
        x, y = ok.kl[order], ok.value[order]
        if kl < x[0]:
            return float(self.start + (y[0] - self.start) * np.sqrt(max(kl, 0.0) / x[0]))
        return float(np.interp(kl, x, y, right=np.nan))


def frontier(reward: np.ndarray, betas=None, values: np.ndarray | None = None,
             log_weight: np.ndarray | None = None) -> Frontier:  # fmt: skip
    """The best reward that any policy reaches at each KL: pi_ref * exp(r / beta) / Z with one beta for all prompts.

    By tilting samples of the reference: weights proportional to exp(r / beta) within each prompt. `values` (default:
    the reward itself) is what is averaged under the tilted distribution. Take 20,000 samples a prompt for KL up to 4.
    Samples of another distribution come with `log_weight` = log pi_ref - log theirs, shape (prompts, samples).
    """
    reward = np.atleast_2d(np.asarray(reward, dtype=float))
    values = reward if values is None else np.atleast_2d(values)
    betas = np.geomspace(20, 0.05, 60) if betas is None else np.asarray(betas, dtype=float)
    points = [_tilt(reward, values, beta, log_weight) for beta in betas]
    kl, value, ess = (np.array(column) for column in zip(*points, strict=True))
    return Frontier(betas, kl, value, ess, float(_tilt(reward, values, np.inf, log_weight)[1]))


def _tilt(reward: np.ndarray, values: np.ndarray, beta: float, log_weight: np.ndarray | None = None):
    """KL, values and effective sample size of one such point. Axes of `values` before (prompts, samples) stay."""
    tilt, known = reward / beta, np.zeros_like(reward) if log_weight is None else log_weight
    log_z = logsumexp(tilt + known, axis=1, keepdims=True)
    w = np.exp(tilt + known - log_z)
    kl = (w * tilt).sum(1) - (log_z[:, 0] - logsumexp(known, axis=1))
    return kl.mean(), (w * values).sum(-1).mean(-1), (1 / (w**2).sum(1)).min()


def beta_for_kl(reward: np.ndarray, kl: float) -> float:
    """The beta whose optimum lies at this KL (nats); AlignkitError if the samples do not reach so far."""
    reward = np.atleast_2d(np.asarray(reward, dtype=float))
    low, high = (_tilt(reward, reward, beta)[0] for beta in (1e3, 1e-3))
    if not low < kl < high:
        raise AlignkitError(
            f"no beta between 0.001 and 1000 puts the optimum at a KL of {kl} nats: these rewards reach "
            f"{low:.2g} to {high:.2g}; ask for less or draw more samples a prompt"
        )
    return float(np.exp(brentq(lambda b: _tilt(reward, reward, np.exp(b))[0] - kl, np.log(1e-3), np.log(1e3))))


# -- several objectives ------------------------------------------------------------------------------------------------
# All are to be made large. The exact optimum of w . r - beta KL is pi_ref * exp(w . r / beta) / Z.


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


def tilted_front(rewards, weights: Sequence[Sequence[float]], kl: float | None = None, beta: float | None = None,
                 names: Sequence[str] | None = None) -> pd.DataFrame:  # fmt: skip
    """The exact front, from the reference's samples: a row for each weight vector, all at one KL (nats) or one beta.

    `rewards`: (K, prompts, samples). Columns: the objectives (`names`, default 0, 1, ...), kl, beta, ess: the least
    effective sample size of a prompt. Take many samples.
    """
    if (kl is None) == (beta is None):
        raise AlignkitError("tilted_front: give either kl (nats) or beta, and not both")
    rewards, weights = np.asarray(rewards, dtype=np.float64), np.atleast_2d(np.asarray(weights, dtype=np.float64))
    if rewards.ndim != 3 or len(rewards) != weights.shape[1]:
        raise AlignkitError(f"rewards have shape {rewards.shape}; {weights.shape[1]} weights need "
                            f"({weights.shape[1]}, prompts, samples)")  # fmt: skip
    rows = []
    for w in weights:
        score = np.tensordot(w, rewards, 1)
        at = beta_for_kl(score, kl) if beta is None else beta
        far, values, ess = _tilt(score, rewards, at)
        rows.append([*values, far, at, ess])
    return pd.DataFrame(rows, columns=[*(names or range(len(rewards))), "kl", "beta", "ess"])


def _points(points) -> np.ndarray:
    points = np.asarray(points, dtype=np.float64)
    if points.ndim != 2 or not np.isfinite(points).all():
        raise AlignkitError(f"points must be finite numbers, a row a policy and a column an objective; {points.shape}")
    return points
