"""Advantages: how much better than expected the rest of a completion was, token by token.

Rewards come as (prompts, group, T) with NaN where nothing is paid, and a mask of the same shape; a completion that is
judged as a whole is paid once, at its last token. (prompts, group) is short for that, one number a completion. A
completion with an empty mask is not there: it is nobody's baseline and gets 0.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from alignkit.errors import AlignkitError


def _of_groups(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Let a function of (rewards, mask) also take one reward a completion, shape (prompts, group)."""

    @functools.wraps(function)
    def wrapped(rewards: Tensor, mask: Tensor | None = None, **options) -> Tensor:
        if rewards.ndim not in (2, 3) or rewards.shape[1] < 2:
            raise AlignkitError(
                f"{function.__name__} needs rewards of shape (prompts, group) or (prompts, group, T) with group >= 2, "
                f"got {tuple(rewards.shape)}; sample more completions for each prompt (group_size)"
            )
        if rewards.ndim == 2:
            return wrapped(rewards.unsqueeze(-1), **options).squeeze(-1)
        return function(rewards, torch.ones_like(rewards) if mask is None else mask, **options)

    return wrapped


def _differ(values: Tensor, there: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """Whether those that are there are not all equal: else advantages are exactly 0, not a rounding error."""
    low = values.masked_fill(~there, torch.inf).amin(dim, keepdim=True)
    return values.masked_fill(~there, -torch.inf).amax(dim, keepdim=True) > low


def reward_to_go(rewards: Tensor) -> Tensor:
    """Sum of the rewards from each token on; (..., T) to (..., T). What came before a token is not its doing."""
    return rewards.flip(-1).cumsum(-1).flip(-1)


@_of_groups
def leave_one_out(rewards: Tensor, mask: Tensor) -> Tensor:
    """What a completion earns from here on, minus what the others of its prompt earned after as many rewards.

    With one reward each: r_i minus the mean of the others = k/(k-1) (r_i - mean), an unbiased baseline (RLOO,
    2402.14740). With several, a token before which k rewards were paid is compared with the others' rewards from the
    (k+1)-th on: a step with the same step, wherever it stands. k does not depend on the token itself, nor the others
    on this completion, so the baseline stays unbiased. A completion that has had all its rewards earns 0 from there on.
    """
    paid = ~rewards.isnan() & (mask > 0)
    before = paid.cumsum(-1) - paid.long()  # rewards paid before each token
    most = int(paid.sum(-1).max())
    in_order = rewards.new_zeros(*rewards.shape[:2], most + 1)
    in_order.scatter_add_(2, before, torch.where(paid, rewards, 0.0))
    rest, there = reward_to_go(in_order), (mask > 0).any(-1, keepdim=True)
    others = (rest.sum(1, keepdim=True) - rest) / (there.sum(1, keepdim=True) - 1).clamp(min=1)
    return ((rest - others) * _differ(rest, there, 1)).gather(2, before) * mask


@_of_groups
def group_centered(rewards: Tensor, mask: Tensor) -> Tensor:
    """`leave_one_out` with oneself among the others: (k-1)/k of it, r_i - mean (Dr. GRPO, 2503.20783)."""
    k = (mask > 0).any(-1, keepdim=True).sum(1, keepdim=True).clamp(min=1)
    return leave_one_out(rewards, mask) * (k - 1) / k


@_of_groups
def group_normalized(rewards: Tensor, mask: Tensor, eps: float = 1e-4) -> Tensor:
    """(r - mean) / (std + eps) over all rewards of the group, summed from each token on (GRPO 2402.03300, 4.1.2-4.1.3).

    A group of equal rewards gives zeros.
    """
    known = ~rewards.isnan() & (mask > 0)
    count = known.sum((1, 2), keepdim=True)
    filled = torch.where(known, rewards, 0.0)
    mean = filled.sum((1, 2), keepdim=True) / count.clamp(min=1)
    centered = (filled - mean) * (known & _differ(rewards, known, (1, 2)))
    std = (centered.pow(2).sum((1, 2), keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    return reward_to_go(centered / (std + eps)) * mask


def batch_leave_one_out(rewards: Tensor) -> Tensor:
    """Of one reward a completion, shape (N,): minus the mean of all others in the batch, whatever their prompt.

    REINFORCE's simplest unbiased baseline (Williams 1992): it needs no second completion of the same prompt.
    """
    if len(rewards) < 2:
        raise AlignkitError("a baseline from the batch needs at least two completions; sample more prompts at a time")
    centered = (rewards - rewards.mean()) * (rewards.max() > rewards.min())
    return centered * len(rewards) / (len(rewards) - 1)


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0, lam: float = 0.95) -> Tensor:
    """Generalized advantage estimation, (N, T): A_t = sum_k (gamma lam)^k (r_{t+k} + gamma V_{t+k+1} - V_{t+k}).

    `values`: the critic's before each token; after the last token it is 0. lam = 1 is the return minus the value, lam =
    0 the one-step error (1506.02438, eq. 16).
    """
    values = values * mask
    ahead = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], 1)
    delta = (rewards + gamma * ahead - values) * mask
    out, carried = torch.zeros_like(delta), torch.zeros_like(delta[:, 0])
    for t in reversed(range(delta.shape[1])):
        carried = delta[:, t] + gamma * lam * carried
        out[:, t] = carried
    return out * mask


def whitened(advantages: Tensor, mask: Tensor, eps: float = 1e-8) -> Tensor:
    """Mean 0 and standard deviation 1 over all tokens of the batch, (N, T)."""
    count = mask.sum().clamp(min=2)
    mean = (advantages * mask).sum() / count
    std = (((advantages - mean) * mask).pow(2).sum() / (count - 1)).sqrt()
    return (advantages - mean) * mask / (std + eps)
