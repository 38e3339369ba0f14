"""A reward that is the verdict of a program: the answer is right or it is not (RLVR, 2411.15124)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from alignkit.errors import RewardError
from alignkit.rewards.base import Judgement, Reward
from alignkit.rewards.rules import Check
from alignkit.taxonomy import RewardCard

Verifier = Callable[[list[str], list[str]], np.ndarray]


class Verifiable(Reward):
    """1 where the verifier accepts the completion, 0 where it doesn't; partial credit between them is allowed.

    `verifier(prompts, completions)` compares with a known answer, runs tests, or solves the task itself, as
    `world.correct` does. It looks at the outcome and at nothing else.
    """

    def __init__(self, verifier: Verifier, name: str = "verifiable"):
        self.verifier = verifier
        self.card = RewardCard(name=name, construction_basis="rule-based", format="scalar", expression="explicit",
                               granularity="response", source="2411.15124")  # fmt: skip

    def judge(self, prompts: list[str], completions: list[str]) -> Judgement:
        scores = np.asarray(self.verifier(prompts, completions), dtype=np.float64)
        outside = np.flatnonzero(~((scores >= 0) & (scores <= 1)).reshape(-1))
        if len(outside):
            raise RewardError(
                f"{self.card.name!r}: the verifier says {scores.reshape(-1)[outside[0]]} about row {outside[0]}: "
                "a verdict lies between 0 (wrong) and 1 (right)"
            )
        return Judgement(scores)


def verified(verifier: Verifier, says: str = "verified") -> Check:
    """The verifier as a check, to be used in rules and rubrics; equal checks need equal `says`."""
    return Check(says, lambda prompt, completion: float(np.asarray(verifier([prompt], [completion]))[0]))
