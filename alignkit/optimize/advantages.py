"""Advantages of completions within their prompt's group; rewards and advantages have shape (prompts, group)."""

from __future__ import annotations

import torch
from torch import Tensor

from alignkit.errors import AlignkitError


def _centered(rewards: Tensor) -> Tensor:
    """Rewards minus their group's mean; exactly 0 in a group of equal rewards, whose mean may round off."""
    if rewards.ndim != 2 or rewards.shape[1] < 2:
        raise AlignkitError(
            f"group advantages need rewards of shape (prompts, group) with group >= 2, got {tuple(rewards.shape)}; "
            "sample at least two completions for each prompt (group_size)"
        )
    differ = rewards.amax(1, keepdim=True) > rewards.amin(1, keepdim=True)
    return (rewards - rewards.mean(1, keepdim=True)) * differ


def leave_one_out(rewards: Tensor) -> Tensor:
    """r_i minus the mean of the others = k/(k-1) (r_i - mean): an unbiased baseline (RLOO, 2402.14740)."""
    centered = _centered(rewards)
    k = rewards.shape[1]
    return k / (k - 1) * centered


def group_normalized(rewards: Tensor, eps: float = 1e-4) -> Tensor:
    """(r_i - mean) / (std + eps) within the group (GRPO, 2402.03300); a group of equal rewards gives zeros."""
    return _centered(rewards) / (rewards.std(1, keepdim=True) + eps)


def reward_to_go(rewards: Tensor) -> Tensor:
    """Sum of the rewards from each token on; (..., T) to (..., T). What came before a token is not its doing."""
    return rewards.flip(-1).cumsum(-1).flip(-1)


def dense_leave_one_out(rewards: Tensor, mask: Tensor) -> Tensor:
    """What a completion earns from here on, minus what the others earned after as many rewards; (prompts, group, T).

    A token before which k rewards were paid is compared with the others' rewards from the (k+1)-th on: so a step is
    compared with the same step, wherever it stands. k does not depend on the token itself, nor the others on this
    completion, so the baseline is unbiased (2402.14740, for rewards along the way). With a reward for every token,
    that is the reward-to-go against the others' at the same token; with one reward each, it is `leave_one_out`.
    NaN is a token without a reward; a completion that has had all of its rewards earns 0 from there on.
    """
    if rewards.shape[1] < 2:
        raise AlignkitError("dense_leave_one_out needs at least two completions for each prompt (group_size)")
    paid = ~rewards.isnan() & (mask > 0)
    before = paid.cumsum(-1) - paid.long()  # rewards paid before each token
    most = int(paid.sum(-1).max())
    in_order = rewards.new_zeros(*rewards.shape[:2], most + 1)
    in_order.scatter_add_(2, before, torch.where(paid, rewards, 0.0))
    rest = reward_to_go(in_order)
    others = (rest.sum(1, keepdim=True) - rest) / (rewards.shape[1] - 1)
    return (rest - others).gather(2, before) * mask


def dense_group_normalized(rewards: Tensor, mask: Tensor, eps: float = 1e-4) -> Tensor:
    """GRPO with process supervision (2402.03300, section 4.1.3): rewards are normalized over all rewarded tokens of the
    group, then summed from each token on; shapes and NaN as in `dense_leave_one_out`.
    """
    if rewards.shape[1] < 2:
        raise AlignkitError("dense_group_normalized needs at least two completions for each prompt (group_size)")
    rewards = rewards.masked_fill(mask == 0, torch.nan)
    mean = rewards.nanmean((1, 2), keepdim=True)
    # equal rewards teach nothing, but their mean may round off
    known = ~rewards.isnan()
    low = rewards.masked_fill(~known, torch.inf).amin((1, 2), keepdim=True)
    high = rewards.masked_fill(~known, -torch.inf).amax((1, 2), keepdim=True)
    mean = torch.where(low == high, rewards, mean)
    spread = (rewards - mean).pow(2).nanmean((1, 2), keepdim=True).sqrt()
    return reward_to_go(((rewards - mean) / (spread + eps)).nan_to_num()) * mask
