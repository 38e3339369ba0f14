"""Treatments for several objectives: MODPO on pairs, GDPO on rewards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from alignkit.errors import check_positive
from alignkit.optimize.losses import modpo_loss
from alignkit.optimize.methods import METHODS
from alignkit.optimize.preference import from_pairs
from alignkit.optimize.rl import policy_gradient
from alignkit.policy import Policy
from alignkit.rewards.base import Reward, as_reward
from alignkit.rewards.data import check_pairs
from alignkit.rewards.objectives import Decoupled, Parts
from alignkit.rewards.scalar import score_pairs


def modpo(
    policy: Policy,
    pairs: Dataset,
    others: Sequence[tuple[float, Reward | Callable]],
    weight: float,
    beta: float = 0.2,
    **options,
) -> Policy:
    """DPO on pairs that speak of one objective, steered by rewards for the others (2310.03708); returns a new policy.

    `weight`: of the labels' objective; `others`: [(weight, reward), ...], rewards in the labels' units (log-odds: those
    of a Bradley-Terry model, or the implicit reward of a policy from DPO, as in the authors' code). Options: see
    `from_pairs`.
    """
    check_positive("modpo", beta=beta, weight=weight)
    pairs = check_pairs(pairs)
    extra = {"gap": _gap(pairs, others)}
    return from_pairs(policy, pairs, modpo_loss, "modpo", extra=extra, beta=beta, weight=weight, **options)


def _gap(pairs: Dataset, others: Sequence[tuple[float, Reward | Callable]]) -> Tensor:
    """What the other objectives say for the chosen side, weighted, shape (pairs,)."""
    total = np.zeros(len(pairs))
    for weight, reward in others:
        chosen, rejected = score_pairs(as_reward(reward), pairs)
        total += weight * (chosen - rejected)
    return torch.from_numpy(total).float()


def gdpo(
    policy: Policy,
    prompts: list,
    parts: Parts,
    weights: Mapping[str, float] | None = None,
    beta: float = 0.2,
    whiten: bool = True,
    **options,
) -> Policy:
    """GRPO for several rewards, each normalized in its group before they are summed (2601.05242).

    `parts`: a reward with aspects, or {name: reward}; `weights`: default 1 each; `whiten`: divide by the batch's
    standard deviation. With one reward and no `whiten` it is `grpo`. Options: see `policy_gradient`.
    """
    method = replace(METHODS["dr_grpo"], name="gdpo", loss_type="completion")  # GRPO, but its advantages only centered
    return policy_gradient(policy, prompts, Decoupled(parts, weights, whiten), method, beta=beta, **options)
