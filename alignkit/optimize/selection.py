"""Choosing among samples so that the choice has a known distribution: soft best-of-n, and rejection sampling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp, softmax

from alignkit.errors import AlignkitError
from alignkit.policy import Policy
from alignkit.rewards.base import Reward, as_reward


def soft_best_of_n(
    policy: Policy, prompts: list, reward: Reward | Callable, n: int, tau: float, seed: int = 0, **options
) -> list[str]:
    """For each prompt, one of n samples, chosen with probability softmax(r / tau) among them (2505.03156).

    tau -> 0 is best-of-n, tau -> infinity is one sample, n -> infinity is pi_ref * exp(r / tau) / Z.
    """
    _positive("soft_best_of_n", n=n, tau=tau)
    rollout = policy.rollout(prompts, n, seed=seed, **options)
    scores = as_reward(reward)(rollout.prompts, rollout.completions).scores.reshape(len(prompts), n)
    chance = softmax(scores / tau, axis=1).cumsum(axis=1)
    uniform = np.random.default_rng([seed, 6]).random((len(prompts), 1))
    chosen = (uniform > chance).sum(axis=1).clip(max=n - 1)
    return [rollout.completions[i * n + k] for i, k in enumerate(chosen)]


def soft_best_of_n_ratio(reward: np.ndarray, n: int, tau: float, probability: np.ndarray | None = None) -> np.ndarray:
    """How much likelier soft best-of-n makes each outcome: pi_n(y) / pi_ref(y), shape of `reward` (prompts, outcomes).

    Exact for n independent draws from `probability` (default: all outcomes equally likely, as for samples). With
    weights w = exp(r / tau) and phi(t) = E[exp(-t w)], since 1 / S is the integral of exp(-t S) over t > 0:

        pi_n(y) / pi_ref(y) = n * E[w(y) / (w(y) + n-1 other weights)] = n * integral of w(y) exp(-t w(y)) phi(t)^(n-1)

    which is one-dimensional and smooth in log t, so that the trapezoid rule settles it.
    """
    _positive("soft_best_of_n_ratio", n=n, tau=tau)
    reward = np.atleast_2d(np.asarray(reward, dtype=float))
    p = np.full(reward.shape, 1 / reward.shape[1]) if probability is None else np.atleast_2d(probability)
    return np.stack([_ratio(row / tau, mass, n) for row, mass in zip(reward, p, strict=True)])


def _ratio(log_w: np.ndarray, p: np.ndarray, n: int, step: float = 0.1) -> np.ndarray:
    log_w, level = np.unique(log_w, return_inverse=True)  # outcomes of equal reward are equally favored
    mass = np.bincount(level, weights=p)
    gaps = np.diff(log_w).clip(max=40 + np.log(n))  # a larger gap makes no difference in double precision
    log_w = np.concatenate([[0.0], gaps.cumsum()]) - gaps.sum()
    log_t = np.arange(-np.log(n) - 40, 5 - log_w[0], step)
    log_tw = log_t[None, :] + log_w[:, None]
    tw = np.exp(log_tw.clip(max=700))
    log_phi = logsumexp(-tw, axis=0, b=mass[:, None])
    terms = log_tw - tw + (n - 1) * log_phi[None, :]
    return (n * step * np.exp(logsumexp(terms, axis=1)))[level]


def ratio_kl(ratio: np.ndarray, probability: np.ndarray | None = None) -> np.ndarray:
    """KL(q || p) in nats from q / p, one for each row: sum of p * (q/p) * log(q/p)."""
    ratio = np.atleast_2d(ratio)
    p = np.full(ratio.shape, 1 / ratio.shape[1]) if probability is None else np.atleast_2d(probability)
    q = p * ratio
    return np.where(q > 0, q * np.log(np.maximum(ratio, 1e-300)), 0.0).sum(1)


@dataclass
class Accepted:
    """What rejection sampling brought: for each prompt the accepted completion, or None where all tries were rejected,
    and how many tries it took."""

    completions: list[str | None]
    tries: np.ndarray


def sample_optimum(
    policy: Policy,
    prompts: list,
    reward: Reward | Callable,
    beta: float,
    bound: float,
    most: int = 256,
    at_once: int = 16,
    seed: int = 0,
    **options,
) -> Accepted:
    """Samples of the optimum pi_ref * exp(r / beta) / Z: accept a sample with probability exp((r - bound) / beta).

    Exact, and without training or the normalizer Z, if no reward exceeds `bound` (AlignkitError if one does); the price
    is 1 / acceptance_rate samples for each answer, and at most `most` are tried, `at_once` at a time. Statistical
    rejection sampling (2309.06657) puts the largest reward seen in the place of the bound.
    """
    _positive("sample_optimum", beta=beta, most=most, at_once=at_once)
    scorer, uniform = as_reward(reward), np.random.default_rng([seed, 7])
    found: list[str | None] = [None] * len(prompts)
    tries, open_ = np.zeros(len(prompts), dtype=int), np.arange(len(prompts))
    for round_ in range(-(-most // at_once)):
        n = min(at_once, most - round_ * at_once)
        rollout = policy.rollout([prompts[i] for i in open_], n, seed=seed + 7919 * round_, **options)
        scores = scorer(rollout.prompts, rollout.completions).scores
        if scores.max() > bound + 1e-9:
            raise AlignkitError(f"sample_optimum: a reward of {scores.max():.4g} exceeds the bound of {bound:.4g}, "
                                "so the samples would not be exact; give a bound that no reward exceeds")  # fmt: skip
        accepted = (uniform.random(len(scores)) < np.exp((scores - bound) / beta)).reshape(-1, n)
        tries[open_] += np.where(accepted.any(1), accepted.argmax(1) + 1, n)
        for row in np.flatnonzero(accepted.any(1)):
            found[open_[row]] = rollout.completions[row * n + accepted[row].argmax()]
        open_ = open_[~accepted.any(1)]
        if not len(open_):
            break
    return Accepted(found, tries)


def acceptance_rate(reward: np.ndarray, beta: float, bound: float, probability: np.ndarray | None = None) -> np.ndarray:
    """E[exp((r - bound) / beta)] under the reference, one for each row: the share of samples that is accepted."""
    _positive("acceptance_rate", beta=beta)
    reward = np.atleast_2d(np.asarray(reward, dtype=float))
    p = np.full(reward.shape, 1 / reward.shape[1]) if probability is None else np.atleast_2d(probability)
    return (p * np.exp((reward - bound) / beta)).sum(1)


def _positive(where: str, **numbers: float) -> None:
    """AlignkitError naming the first argument that is not a finite number above 0 (for counts: at least 1)."""
    for name, value in numbers.items():
        if not (np.isfinite(value) and value > 0):
            raise AlignkitError(f"{where}: {name} must be a finite number above 0, not {value}")
