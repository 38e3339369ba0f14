"""Losses that turn labels into a reward. Each takes scores and returns one loss a row."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def bradley_terry_loss(chosen: Tensor, rejected: Tensor, margin: Tensor | float = 0.0) -> Tensor:
    """-log sigmoid(r_chosen - r_rejected - margin); inputs and output of shape (N,).

    P(chosen > rejected) = sigmoid(r_chosen - r_rejected) (Bradley & Terry 1952; 2203.02155). The margin, larger for
    clearer preferences, is Llama 2's (2307.09288, eq. 2).
    """
    return -F.logsigmoid(chosen - rejected - margin)


def plackett_luce_loss(scores: Tensor, top: int | None = None) -> Tensor:
    """Negative log-likelihood of rankings; scores (N, K) in ranked order, best first; output (N,).

    P(ranking) = prod_k exp(r_k) / sum_{j >= k} exp(r_j), over the first `top` places (default: all). With K = 2 this is
    Bradley-Terry; with top = 1 it is the softmax of a choice among K. (2301.11270)
    """
    remaining = torch.logcumsumexp(scores.flip(-1), dim=-1).flip(-1)
    return (remaining - scores)[..., :-1][..., :top].sum(-1)


def ordinal_loss(gap: Tensor, grade: Tensor, thresholds: Tensor) -> Tensor:
    """Negative log-likelihood of graded preferences under a cumulative-logit model (McCullagh 1980).

    gap (N,): r_first - r_second. grade (N,) integers 0..G-1, 0 = second much better, G-1 = first much better.
    thresholds (G-1,) increasing: P(grade > g) = sigmoid(gap - thresholds[g]). With G = 2 and threshold 0 this is
    Bradley-Terry.
    """
    end = torch.full_like(thresholds[:1], torch.inf)
    edges = torch.cat([-end, thresholds, end])
    low, high = edges[grade], edges[grade + 1]
    # P(grade) = sigmoid(gap - low) - sigmoid(gap - high), factored so that it does not round to 0
    return -(F.logsigmoid(gap - low) + F.logsigmoid(high - gap) + torch.log1p(-torch.exp(low - high)))


def normal_preference_loss(chosen: Tensor, rejected: Tensor, spread_chosen: Tensor, spread_rejected: Tensor) -> Tensor:
    """-log Phi((m_c - m_r) / sqrt(s_c^2 + s_r^2)); inputs and output of shape (N,). (2312.08358)"""
    return -torch.special.log_ndtr((chosen - rejected) / (spread_chosen**2 + spread_rejected**2).sqrt())
