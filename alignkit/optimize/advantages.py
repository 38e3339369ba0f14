"""Advantages of completions within their prompt's group; rewards and advantages have shape (prompts, group)."""

from __future__ import annotations

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
