"""A reward bent before it is optimized: clipped, or flattened above a level that is good enough."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from alignkit.errors import RewardError
from alignkit.rewards.base import Judgement, Reward, as_reward
from alignkit.taxonomy import RewardCard

HOW = ("clip", "sigmoid", "log-sigmoid")


def bent(scores: np.ndarray, how: str, center: np.ndarray | float = 0.0, unit: float = 1.0) -> np.ndarray:
    """Scores after a monotone map of z = (score - center) / unit; any shape.

    "clip": z cut at -1 and 1; "sigmoid": 1 / (1 + exp(-z)), the chance to beat an answer at the level of `center`
    (2502.18770); "log-sigmoid": its logarithm, flat above the center and a straight line far below it (2402.00742).
    None of them changes which of two answers is better (clip: it may make them equal), so best-of-n doesn't notice
    the smooth two; what a policy trades against KL does change.
    """
    if how not in HOW:
        raise RewardError(f"shaping must be one of {', '.join(HOW)}, not {how!r}")
    if not 0 < unit < float("inf"):
        raise RewardError(f"shaping: unit must be above 0, not {unit}; take the reward's standard deviation")
    z = (np.asarray(scores, dtype=float) - center) / unit
    if how == "clip":
        return np.clip(z, -1.0, 1.0)
    with np.errstate(invalid="ignore"):  # rows without a score stay NaN
        log_sigmoid = -np.logaddexp(0.0, -z)
    return np.exp(log_sigmoid) if how == "sigmoid" else log_sigmoid


class Shaped(Reward):
    """`reward` after `bent`. `center`: one level for all prompts, or one for each, {prompt: level}."""

    reads = "as given"

    def __init__(
        self, reward: Reward | Callable, how: str = "sigmoid", center: Mapping | float = 0.0, unit: float = 1.0
    ):
        bent(np.zeros(1), how, 0.0, unit)  # says what is wrong with them
        self.reward, self.how, self.center, self.unit = as_reward(reward), how, center, unit
        card, sources = self.reward.card, {"sigmoid": "2502.18770", "log-sigmoid": "2402.00742"}
        self.card = RewardCard(name=f"{how} of {card.name}", construction_basis=card.construction_basis,
                               format="scalar", expression=card.expression, granularity="response",
                               source=sources.get(how, ""), notes=f"unit {unit:.3g}")  # fmt: skip

    def made_of(self) -> Mapping[str, Reward]:
        return {"reward": self.reward}

    def judge(self, prompts: list, completions: list, **columns) -> Judgement:
        level = self.center
        if isinstance(level, Mapping):
            for row, prompt in enumerate(prompts):
                if prompt not in level:
                    raise RewardError(f"{self.card.name!r}: row {row}: no level for prompt {str(prompt)[:60]!r}; give "
                                      "one for every prompt (see `levels`), or one number for all")  # fmt: skip
            level = np.array([level[prompt] for prompt in prompts], dtype=float)
        judgement = self.reward(prompts, completions, **columns)
        scores = bent(judgement.scores, self.how, level, self.unit)
        return Judgement(scores, present=judgement.present, parts={"reward": judgement})


def levels(prompts: list, scores: np.ndarray, share: float = 0.5) -> dict:
    """{prompt: the score that this share of its answers stays below}; scores of shape (prompts, answers)."""
    scores = np.atleast_2d(scores)
    if len(scores) != len(prompts) or not 0 <= share <= 1:
        raise RewardError(f"levels: needs one row of scores for each prompt and a share in [0, 1]; got {len(prompts)} "
                          f"prompts, scores of shape {scores.shape}, share {share}")  # fmt: skip
    return dict(zip(prompts, np.quantile(scores, share, axis=1).tolist(), strict=True))
