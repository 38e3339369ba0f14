"""Better answers without changing the policy: best-of-n."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from alignkit.errors import AlignkitError
from alignkit.policy import Policy
from alignkit.rewards.base import Reward, as_reward


def best_of_n(policy: Policy, prompts: list, reward: Reward | Callable, n: int, seed: int = 0, **options) -> list[str]:
    """For each prompt, the completion with the highest reward among n samples; ties go to a random one of them."""
    if n < 1:
        raise AlignkitError(f"best_of_n: n must be at least 1, not {n}")
    rollout = policy.rollout(prompts, n, seed=seed, **options)
    scores = as_reward(reward)(rollout.prompts, rollout.completions).scores.reshape(len(prompts), n)
    tie_break = np.random.default_rng([seed, 5]).random(scores.shape)
    best = np.lexsort((tie_break, scores), axis=1)[:, -1]
    return [rollout.completions[i * n + k] for i, k in enumerate(best)]
