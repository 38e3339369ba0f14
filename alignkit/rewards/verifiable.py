"""A reward that is the verdict of a program: the answer is right or it is not (RLVR, 2411.15124)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from alignkit.rewards.base import Judgement, Reward
from alignkit.rewards.calling import CallError, call_function, row_numbers
from alignkit.rewards.rules import Check
from alignkit.taxonomy import RewardCard

Verifier = Callable[..., object]


class Verifiable(Reward):
    """1 where the verifier accepts the completion, 0 where it doesn't; partial credit between them is allowed.

    `verifier(prompts, completions)` compares with a known answer, runs tests, or solves the task itself, as
    `world.correct` does. It looks at the outcome and at nothing else. It is called as reward functions are, so it may
    take columns of the data set (`answer`, say) by name, and say None about rows that are not its own.
    """

    reads = "as given"

    def __init__(self, verifier: Verifier, name: str = "verifiable"):
        self.verifier = verifier
        self.card = RewardCard(name=name, construction_basis="rule-based", format="scalar", expression="explicit",
                               granularity="response", source="2411.15124")  # fmt: skip

    def judge(self, prompts: list, completions: list, **columns) -> Judgement:
        scores, present = row_numbers(call_function(self.verifier, prompts, completions, columns), len(completions))
        outside = np.flatnonzero(present & ~((scores >= 0) & (scores <= 1)))
        if len(outside):
            raise CallError(f"got {scores[outside[0]]} from its verifier about row {outside[0]}",
                            "a verdict lies between 0 (wrong) and 1 (right)", outside[0])  # fmt: skip
        return Judgement(scores, present=present)


def verified(verifier: Verifier, says: str = "verified") -> Check:
    """The verifier as a check, to be used in rules and rubrics; equal checks need equal `says`."""
    return Check(says, lambda prompt, completion: float(np.asarray(verifier([prompt], [completion]))[0]))
