"""From a judgement to one reward a token: where in the completion a reward says what is good."""

from __future__ import annotations

import torch
from torch import Tensor

from alignkit.errors import RewardError
from alignkit.policy import Policy, Rollout
from alignkit.rewards.base import Judgement
from alignkit.rewards.process import step_tokens

CREDITS = ("finest", "response")


def token_rewards(judgement: Judgement, policy: Policy, rollout: Rollout) -> Tensor | None:
    """The finest credit the judgement holds, laid on the rollout's tokens, shape (N, T); None if it has only scores.

    The reward of a step (or segment) goes to its last token; NaN where there is none. RewardError if the numbers don't
    match the completions.
    """
    finest = judgement.tokens or judgement.steps
    if finest is None:
        return None
    if len(finest) != len(rollout.completions):
        raise RewardError(f"finer rewards for {len(finest)} completions, but there are {len(rollout.completions)}")
    rewards = torch.full(rollout.batch.mask.shape, torch.nan)
    length = rollout.batch.mask.sum(1).tolist()
    if judgement.tokens:  # a reward that reads text closes what was cut off, but no end of sequence was sampled there
        cut_off = [not e and len(v) == n + 1 for v, n, e in zip(finest, length, rollout.ended.tolist(), strict=True)]
        finest = [values[:-1] if cut else values for values, cut in zip(finest, cut_off, strict=True)]
    places = [range(len(values)) for values in finest]
    if not judgement.tokens:
        if judgement.ends is None:
            raise RewardError("a judgement with steps must say where they end: set `ends`, in characters")
        places = step_tokens(policy, rollout.completions, judgement.ends)
    for row, (values, where) in enumerate(zip(finest, places, strict=True)):
        if len(where) != len(values) or (len(where) and max(where) >= length[row]):
            what, room = ("token", length[row]) if judgement.tokens else ("step", len(where))
            raise RewardError(
                f"row {row}: {len(values)} {what} rewards do not fit the completion's {room} places; give one for each"
            )
        for place, value in zip(where, values, strict=True):
            rewards[row, place] = float(value)
    return rewards.to(rollout.batch.ids.device)
