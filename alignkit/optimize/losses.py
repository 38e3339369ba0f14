"""Preference losses and KL estimators as pure functions of log-probabilities."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def dpo_loss(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float) -> Tensor:
    """-log sigmoid(beta * [(log pi - log ref)(chosen) - (log pi - log ref)(rejected)]); DPO 2305.18290, eq. 7.

    Inputs: log-probabilities of whole completions, *summed* over tokens, shape (N,). Output: shape (N,).
    """
    margin = (chosen - ref_chosen) - (rejected - ref_rejected)
    return -F.logsigmoid(beta * margin)


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
    raise ValueError(f"no KL estimator {kind!r}; there are k1, k2, k3")


def clipped_surrogate(logp: Tensor, old_logp: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """PPO's objective to be maximized, elementwise: min(rho A, clip(rho, 1 - clip, 1 + clip) A), rho = pi / pi_old.

    (1707.06347, eq. 7)
    """
    ratio = torch.exp(logp - old_logp)
    return torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
