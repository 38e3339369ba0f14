"""Many samples, one answer: they vote (self-consistency, 2203.11171), each with the weight a reward gives it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from alignkit.errors import AlignkitError
from alignkit.policy import Policy
from alignkit.rewards.base import Reward, as_reward


def vote(answers: Sequence[str | None], weights: Sequence[float] | None = None) -> str | None:
    """The answer with the largest total weight (default: one each); ties go to the one first given.

    None among the answers is an abstention: a sample that states no answer. If all abstain, so does the vote (None).
    """
    weights = np.ones(len(answers)) if weights is None else np.asarray(weights, dtype=float)
    if weights.shape != (len(answers),) or not np.isfinite(weights).all() or (weights < 0).any():
        raise AlignkitError(
            f"vote: {len(answers)} answers need as many finite weights, none below 0; pass rewards through exp or a "
            "sigmoid first if they can be negative"
        )
    total: dict[str, float] = defaultdict(float)
    for answer, weight in zip(answers, weights, strict=True):
        if answer is not None:
            total[answer] += float(weight)
    return max(total, key=total.__getitem__) if total else None


def self_consistent(
    policy: Policy,
    prompts: list,
    answer_of: Callable[[str], str | None],
    n: int,
    reward: Reward | Callable | None = None,
    seed: int = 0,
    **options,
) -> list[str | None]:
    """For each prompt the answer that n samples vote for; `answer_of` reads it off a completion (None: not there).

    With `reward`, whose scores must not be negative, the votes are weighted. AlignkitError if no sample of any prompt
    states an answer: then `answer_of` doesn't fit what the policy writes.
    """
    if n < 1:
        raise AlignkitError(f"self_consistent: n must be at least 1, not {n}")
    rollout = policy.rollout(prompts, n, seed=seed, **options)
    answers = [answer_of(text) for text in rollout.completions]
    if all(answer is None for answer in answers):
        raise AlignkitError(
            f"none of {len(answers)} samples states an answer that answer_of can read, such as "
            f"{rollout.completions[0][:60]!r}: voting needs completions that end in an answer"
        )
    weights = None if reward is None else as_reward(reward)(rollout.prompts, rollout.completions).scores
    parts = [slice(i * n, (i + 1) * n) for i in range(len(prompts))]
    return [vote(answers[part], None if weights is None else weights[part]) for part in parts]
