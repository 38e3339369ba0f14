"""The losses of policy gradients, and KL estimators, as pure functions of log-probabilities."""

from __future__ import annotations

import torch
from torch import Tensor

from alignkit.errors import AlignkitError

KL_ESTIMATORS = ("k1", "k2", "k3")
RATIOS = ("token", "sequence", "completion")


def kl_estimate(logp: Tensor, ref_logp: Tensor, kind: str = "k3") -> Tensor:
    """Estimates of KL(pi || ref) from samples of pi, elementwise on log-probabilities (Schulman 2020; 2510.01555).

    With d = log pi - log ref: k1 = d is unbiased; k2 = d^2 / 2 is biased and low in variance; k3 = exp(-d) - 1 + d is
    unbiased and never negative.
    """
    d = logp - ref_logp
    if kind == "k1":
        return d
    if kind == "k2":
        return 0.5 * d**2
    if kind == "k3":
        return torch.expm1(-d) + d
    raise AlignkitError(f"no KL estimator {kind!r}; there are {', '.join(KL_ESTIMATORS)}")


def clipped_surrogate(
    logp: Tensor, old_logp: Tensor, advantage: Tensor, clip: float, clip_high: float | None = None
) -> Tensor:
    """min(rho A, clip(rho, 1 - clip, 1 + clip_high) A), rho = pi / pi_old: what PPO maximizes, elementwise.

    (1707.06347, eq. 7; a `clip_high` of its own: DAPO 2503.14476, eq. 10)
    """
    ratio = torch.exp(logp - old_logp)
    high = clip if clip_high is None else clip_high
    return torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + high) * advantage)


def log_ratio(logp: Tensor, old: Tensor, mask: Tensor, level: str = "token") -> Tensor:
    """log(pi / pi_old) of what counts as one action; (n, T) for "token", else (n, 1).

    "token": each token (PPO, GRPO). "completion": the whole completion, the sum over tokens (RLOO 2402.14740).
    "sequence": that sum divided by the length (GSPO 2507.18071, eq. 7).
    """
    ratio = (logp - old) * mask
    if level == "token":
        return ratio
    if level == "completion":
        return ratio.sum(1, keepdim=True)
    if level == "sequence":
        return ratio.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
    raise AlignkitError(f"ratio must be one of {', '.join(RATIOS)}, not {level!r}")


def policy_loss(
    logp: Tensor,
    old: Tensor,
    ref: Tensor,
    mask: Tensor,
    advantage: Tensor,
    unit: Tensor | float,
    ratio: str = "token",
    clip: float = 0.2,
    clip_high: float | None = None,
    beta: float = 0.0,
    estimator: str = "k3",
) -> Tensor:
    """-sum_t (clipped surrogate - beta * KL estimate) / unit for each completion, shape (n,).

    All other tensors have shape (n, T). What the methods' names stand for is `unit`, by which the sum over tokens is
    divided: the completion's own length (GRPO 2402.03300, eq. 3), the mean length of the batch (DAPO 2503.14476, eq. 8:
    every token counts the same), a constant (Dr. GRPO 2503.20783), or 1.
    """
    rho = log_ratio(logp, old, mask, ratio)
    gain = clipped_surrogate(rho, torch.zeros_like(rho), advantage, clip, clip_high)
    if beta:
        gain = gain - beta * kl_estimate(logp, ref, estimator)
    return -(gain * mask).sum(1) / unit
