"""Treatments for several objectives: MODPO on pairs, GDPO on rewards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor

from alignkit.errors import AlignkitError
from alignkit.optimize.methods import METHODS
from alignkit.optimize.rl import policy_gradient
from alignkit.optimize.training import summed_logprobs, train
from alignkit.policy import Policy
from alignkit.rewards.base import Reward, as_reward
from alignkit.rewards.data import check_pairs, encode_pairs, pair_lengths
from alignkit.rewards.objectives import Decoupled, Parts


def modpo_loss(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float, weight: float, gap: Tensor
) -> Tensor:
    """-log sigmoid((beta m - gap) / w), m = (chosen - ref_chosen) - (rejected - ref_rejected) (MODPO 2310.03708).

    w: `weight` of the objective that the labels speak about; `gap`: sum over the other objectives of weight times
    (reward of the chosen side - reward of the rejected side). Its optimum has beta log pi / ref = w r + others, up to
    a constant a prompt. At w = 1 and gap 0 this is DPO. Log-probabilities summed over tokens; shape (N,) in and out.
    """
    if not 0 < weight < float("inf"):
        raise AlignkitError(f"modpo_loss: weight is the labels' own and must be above 0, not {weight}")
    return -F.logsigmoid((beta * ((chosen - ref_chosen) - (rejected - ref_rejected)) - gap) / weight)


def modpo(
    policy: Policy,
    pairs: Dataset,
    others: Sequence[tuple[float, Reward | Callable]],
    weight: float,
    beta: float = 0.2,
    epochs: float = 2,
    batch_size: int = 32,
    learning_rate: float | None = None,
    **options,
) -> Policy:
    """DPO on pairs that speak of one objective, steered by rewards for the others (2310.03708); returns a new policy.

    `weight`: of the labels' objective; `others`: [(weight, reward), ...], rewards in the labels' units (log-odds: those
    of a Bradley-Terry model, or the implicit reward of a policy from DPO, as in the authors' code). The reference is
    `policy`. The history holds loss, accuracy and margin (times beta). Further options: see `training.train`.
    """
    if not 0 < beta < float("inf"):
        raise AlignkitError(f"modpo: beta must be > 0, not {beta}")
    check_pairs(pairs)
    gap = _gap(pairs, others).to(policy.device)
    treated = policy.copy(f"{policy.name} + modpo")
    both = encode_pairs(treated, pairs)
    ref = summed_logprobs(policy, both)

    def loss_of(index: Tensor, minibatch: Tensor) -> tuple[Tensor, dict]:
        rows = torch.cat([index, index + len(pairs)])
        logp = treated.token_logprobs(both.rows(rows)).sum(1)
        (chosen, rejected), (ref_chosen, ref_rejected) = logp.chunk(2), ref[rows].chunk(2)
        margin = (chosen - ref_chosen) - (rejected - ref_rejected)
        loss = modpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta, weight, gap[index])
        return loss.sum() / len(minibatch), {"accuracy": margin > 0, "margin": beta * margin}

    return train(treated, loss_of, pair_lengths(both), epochs, batch_size, learning_rate, **options)


def _gap(pairs: Dataset, others: Sequence[tuple[float, Reward | Callable]]) -> Tensor:
    """What the other objectives say for the chosen side, weighted, shape (pairs,)."""
    total = np.zeros(len(pairs))
    prompts = pairs["prompt"][:]
    for weight, reward in others:
        judge = as_reward(reward)
        total += weight * (judge(prompts, pairs["chosen"][:]).scores - judge(prompts, pairs["rejected"][:]).scores)
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
    method = replace(METHODS["dr_grpo"], name="gdpo", unit="completion")  # GRPO, but its advantages only centered
    return policy_gradient(policy, prompts, Decoupled(parts, weights, whiten), method, beta, **options)
