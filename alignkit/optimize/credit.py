"""From a judgement to one reward a token: where in the completion a reward says what is good."""

from __future__ import annotations

import torch
from torch import Tensor

from alignkit.errors import RewardError
from alignkit.policy import Policy, Rollout
from alignkit.rewards.base import Judgement

CREDITS = ("finest", "response")


def token_rewards(judgement: Judgement, policy: Policy, rollout: Rollout) -> Tensor | None:
    """The finest credit the judgement holds, laid on the rollout's tokens, shape (N, T); None if it has only scores.

    The reward of a step (or segment) goes to its last token; NaN where there is none. RewardError if the numbers don't
    match the completions.
    """
    finest = judgement.tokens or judgement.steps
    if finest is None:
        return None
    rewards = torch.full(rollout.batch.mask.shape, torch.nan)
    length = rollout.batch.mask.sum(1).tolist()
    for row, values in enumerate(finest):
        if judgement.tokens:
            places = range(len(values))
        else:
            places = _last_tokens(judgement.ends[row] if judgement.ends else [], policy, rollout.completions[row])
        if len(places) != len(values) or (len(places) and max(places) >= length[row]):
            raise RewardError(
                f"row {row}: {len(values)} {'token' if judgement.tokens else 'step'} rewards do not fit the "
                f"completion's {length[row] if judgement.tokens else len(places)} places; give one for each"
            )
        for place, value in zip(places, values, strict=True):
            rewards[row, place] = float(value)
    return rewards.to(rollout.batch.ids.device)


def _last_tokens(ends: list[int], policy: Policy, completion: str) -> list[int]:
    """Index of the token that ends each step."""
    return [len(policy.completion_ids(completion[:end], ended=False)) - 1 for end in ends]
