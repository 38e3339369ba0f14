"""A reward that changes as the policy learns: first things first."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from alignkit.errors import AlignkitError
from alignkit.rewards.base import Judgement, Reward, as_reward
from alignkit.taxonomy import RewardCard


class Stages(Reward):
    """Rewards in order, say format, correctness, style: the score is the sum of those up to the active one.

    The active stage is over when its mean over a batch passes its threshold; the next call then counts one more. So
    the reward has a state, and is not the same function before and after: `reset()` starts over, `stage` is the number
    of the active stage (from 0), `log` its value at each call. Calls of fewer than `least` completions (someone looking
    at an example) don't move it. What was learned in an earlier stage stays part of the score, so it can't be unlearned
    for free. The judgement's aspects are the scores of all stages, whether they count already or not.
    """

    least = 32

    def __init__(self, stages: Mapping[str, Reward | Callable], thresholds: Mapping[str, float], name: str = "stages"):
        """`thresholds`: the batch mean that ends each stage but the last, in that stage's own units."""
        names = list(stages)
        missing = [stage for stage in names[:-1] if stage not in thresholds]
        unknown = [stage for stage in thresholds if stage not in names[:-1]]
        if len(names) < 2 or missing or unknown:
            raise AlignkitError(
                f"Stages {name!r}: needs two or more stages and a threshold for each but the last; stages {names}, "
                f"thresholds for {list(thresholds)}"
            )
        self.stages = {stage: as_reward(reward, stage) for stage, reward in stages.items()}
        self.thresholds = dict(thresholds)
        basis = {reward.card.construction_basis for reward in self.stages.values()}
        self.card = RewardCard(
            name=name,
            construction_basis=basis.pop() if len(basis) == 1 else "hybrid",
            format="scalar",
            expression="explicit",
            granularity="multi-stage",
            objective="multi",
            notes="has a state: the active stage",
        )
        self.reset()

    def reset(self) -> None:
        """Back to the first stage."""
        self.stage, self.log = 0, []

    def judge(self, prompts: list, completions: list[str]) -> Judgement:
        scores = {name: reward(prompts, completions).scores for name, reward in self.stages.items()}
        names = list(scores)
        total = np.sum([scores[name] for name in names[: self.stage + 1]], axis=0)
        if len(completions) >= self.least:
            self.log.append(self.stage)
            active = names[self.stage]
            if active in self.thresholds and scores[active].mean() >= self.thresholds[active]:
                self.stage += 1
        return Judgement(total, aspects=scores)
