"""Max-min over groups of people: the weighted sum of their rewards that treats the worst-off group best."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy.optimize import minimize
from scipy.special import logsumexp, softmax

from alignkit.errors import AlignkitError
from alignkit.policy import Policy
from alignkit.rewards.base import Judgement, Reward, as_reward
from alignkit.taxonomy import RewardCard


def tilted_means(scores: np.ndarray, weights: np.ndarray, beta: float) -> np.ndarray:
    """What each group gets from the optimum of a weighted sum: E under pi_ref * exp(sum_u w_u r_u / beta) / Z; (G,).

    scores (G, prompts, samples): rewards of samples of pi_ref, each group's in units of its own.
    """
    chance = softmax(np.tensordot(weights, scores, 1) / beta, axis=-1)
    return (chance * scores).sum(-1).mean(-1)


def max_min_weights(scores: np.ndarray, beta: float) -> np.ndarray:
    """The weights of the groups, shape (G,), whose weighted sum has the max-min policy as its optimum.

    MaxMin-RLHF's goal (2402.08925, eq. 9) is max_pi min_u E_pi[r_u] - beta KL. Its inner minimum is one over weights on
    the simplex; max and min may be exchanged (concave in pi, linear in the weights), and the maximum is known:

        min_w  beta * E_x log E_ref exp(sum_u w_u r_u / beta)

    a convex problem in a few numbers, solved from samples of the reference; no policy is trained for it. `scores`: as
    in `tilted_means`.
    """
    scores = np.asarray(scores, dtype=float)
    if scores.ndim != 3 or not scores.size or not np.isfinite(scores).all():
        raise AlignkitError(f"need finite scores of shape (groups, prompts, samples), not of shape {scores.shape}")
    if not beta > 0:
        raise AlignkitError(f"max_min_weights: beta must be above 0, not {beta}")
    groups, _, samples = scores.shape

    def dual(w: np.ndarray) -> tuple[float, np.ndarray]:
        value = beta * (logsumexp(np.tensordot(w, scores, 1) / beta, axis=-1) - np.log(samples)).mean()
        return value, tilted_means(scores, w, beta)

    found = minimize(dual, np.full(groups, 1 / groups), jac=True, method="SLSQP", bounds=[(0, 1)] * groups,
                     constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like},
                     options={"ftol": 1e-10, "maxiter": 200})  # fmt: skip
    w = np.clip(found.x, 0, None)
    return w / w.sum()


class WorstGroup(Reward):
    """sum_u w_u (r_u - zero_u) / unit_u, whose optimum at `beta` is the max-min policy if w = `max_min_weights`.

    Groups can only be compared once each reward has a zero and a unit; they are part of the reward, and `fit` takes
    what the untreated policy gives a group, and its spread within prompts. Another choice is another idea of fairness.
    Aspects of the judgement: each group's own standardized reward.
    """

    def __init__(self, rewards: Mapping[str, Reward | Callable], weights: Sequence[float], zero=0.0, unit=1.0):
        self.rewards = {name: as_reward(reward, name) for name, reward in rewards.items()}
        size = len(self.rewards)
        self.weights = np.asarray(weights, dtype=float)
        if not size or self.weights.shape != (size,) or (self.weights < 0).any() or not self.weights.sum() > 0:
            raise AlignkitError(
                f"WorstGroup: needs a reward for each group and as many weights >= 0, not all 0; got {list(rewards)} "
                f"and {weights}"
            )
        self.zero, self.unit = np.broadcast_to(zero, size).astype(float), np.broadcast_to(unit, size).astype(float)
        if (self.unit <= 0).any():
            raise AlignkitError(f"WorstGroup: units must be above 0, not {self.unit.tolist()}")
        basis = {reward.card.construction_basis for reward in self.rewards.values()}
        self.card = RewardCard(name="worst group", construction_basis=basis.pop() if len(basis) == 1 else "hybrid",
                               format="vector", expression="explicit", granularity="response", objective="multi",
                               source="2402.08925")  # fmt: skip

    @classmethod
    def fit(
        cls,
        rewards: Mapping[str, Reward | Callable],
        policy: Policy,
        prompts: list,
        beta: float = 0.5,
        n: int = 64,
        seed: int = 0,
    ) -> WorstGroup:
        """Zero, unit and weights from n samples of the untreated policy for each prompt.

        `beta` is that of the treatment to come, in standard deviations of a reward. Nothing is trained.
        """
        said = policy.rollout(prompts, n, seed=seed)
        raw = np.stack([as_reward(r)(said.prompts, said.completions).scores for r in rewards.values()])
        raw = raw.reshape(len(raw), len(prompts), n)
        zero, unit = raw.mean((1, 2)), raw.std(2).mean(1)
        unit = np.where(unit > 0, unit, 1.0)
        weights = max_min_weights((raw - zero[:, None, None]) / unit[:, None, None], beta)
        return cls(rewards, weights, zero, unit)

    def judge(self, prompts: list, completions: list[str]) -> Judgement:
        raw = np.stack([reward(prompts, completions).scores for reward in self.rewards.values()])
        standard = (raw - self.zero[:, None]) / self.unit[:, None]
        return Judgement(self.weights @ standard, aspects=dict(zip(self.rewards, standard, strict=True)))
