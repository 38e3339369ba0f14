"""A reward that changes as the policy learns: first things first."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from alignkit.errors import AlignkitError
from alignkit.rewards.base import Judgement, Reward, as_reward
from alignkit.taxonomy import RewardCard


class Stages(Reward):
    """Rewards in order, say format, correctness, style: the score is the sum of those up to the active one.

    The active stage is over when its mean over a batch of training passes its threshold; from the next batch on one
    more stage counts. `update` does this, scoring doesn't. `stage` is the number of the active stage (from 0), `log`
    its value in each batch, `reset()` starts over. A batch of fewer than `least` completions is too noisy to end a
    stage. What was learned in an earlier stage stays part of the score, so it can't be unlearned for free. The
    judgement's aspects are the scores of all stages, whether they count already or not.
    """

    reads = "as given"
    moves = ("stage", "log")
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

    def made_of(self) -> Mapping[str, Reward]:
        return self.stages

    def judge(self, prompts: list, completions: list, **columns) -> Judgement:
        parts = {name: reward(prompts, completions, **columns) for name, reward in self.stages.items()}
        counted = list(parts.values())[: self.stage + 1]
        total = np.sum([part.scores for part in counted], axis=0)
        return Judgement(total, aspects={name: part.scores for name, part in parts.items()}, parts=parts,
                         present=np.all([part.present for part in counted], axis=0))  # fmt: skip

    def update(self, judgement: Judgement) -> None:
        """Note the active stage, and end it if its mean passes the threshold."""
        super().update(judgement)
        if len(judgement.scores) < self.least:
            return
        self.log.append(self.stage)
        active = list(self.stages)[self.stage]
        if active in self.thresholds and np.nanmean(judgement.aspects[active]) >= self.thresholds[active]:
            self.stage += 1
