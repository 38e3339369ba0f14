"""Several rewards for one: scores combined (an ensemble), weights averaged (one model), the worst-off group served."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import logsumexp, softmax

from alignkit.errors import AlignkitError, RewardError, check_at_least, check_choice, check_positive
from alignkit.policy import Policy
from alignkit.rewards.base import Combined, Judgement, Reward, as_reward
from alignkit.rewards.model import RewardModel


def combined_scores(scores: np.ndarray, how: str = "mean", weight: float = 0.5) -> np.ndarray:
    """One score from those of the members, first axis; shape (members, ...) to (...). (2310.02743, section 3)

    "mean"; "worst": the lowest (worst-case optimization, WCO); "uncertainty": mean - weight * variance over members
    (uncertainty-weighted optimization, UWO). The last two compare members with one another, so they must be on one
    scale; Bradley-Terry scores are so only after their mean is taken off and their standard deviation divided out.
    """
    scores = np.asarray(scores, dtype=float)
    check_choice("ensemble", "how", how, ("mean", "worst", "uncertainty"))
    check_at_least("ensemble", 0, weight=weight)
    if scores.ndim < 1 or not len(scores):
        raise AlignkitError("an ensemble needs at least one member")
    if how == "worst":
        return scores.min(0)
    return scores.mean(0) - (weight * scores.var(0) if how == "uncertainty" else 0.0)


class Ensemble(Combined):
    """Members that judge the same answers, combined as in `combined_scores`; aspects: each member's own score."""

    def __init__(self, members: Sequence[Reward | Callable], how: str = "mean", weight: float = 0.5):
        combined_scores(np.zeros(len(members)), how, weight)  # says what is wrong with them
        self.how, self.weight = how, weight
        members = [as_reward(member) for member in members]
        super().__init__({f"member {k}": member for k, member in enumerate(members)}, name=f"{how} of {len(members)}",
                         expression=members[0].card.expression, source="2310.02743")  # fmt: skip

    def combine(self, parts: dict[str, Judgement], prompts: list, completions: list) -> Judgement:
        scores = {name: part.scores for name, part in parts.items()}
        return Judgement(combined_scores(list(scores.values()), self.how, self.weight), aspects=scores)


def averaged_weights(models: Sequence[RewardModel]) -> RewardModel:
    """One reward model whose weights are the mean of these models' weights, at the cost of one (WARM, 2401.12187).

    Works for fits that started from one pretrained backbone and so ended in one valley of the loss. RewardError if
    backbone, kind or pooling differ, as far as the models tell (one loaded from disk doesn't say what it started from).
    """
    if not models:
        raise RewardError("averaged_weights: give at least one reward model")
    first, states = models[0], [model.model.state_dict() for model in models]
    shapes = [{key: value.shape for key, value in state.items()} for state in states]
    for place, model in enumerate(models):
        if type(model) is not type(first) or model.pooling != first.pooling or shapes[place] != shapes[0]:
            raise RewardError(f"averaged_weights: model {place} has another kind, pooling or size than model 0; "
                              "average models of one kind")  # fmt: skip
        if not _one_start(model, first):
            raise RewardError(
                f"averaged_weights: model {place} started from another pretrained backbone ({model.backbone.name!r})"
                f" than model 0 ({first.backbone.name!r}); their weights lie in no one valley. Use an Ensemble of them"
            )
    mean = copy.copy(first)
    mean.model = copy.deepcopy(first.model)
    mean.model.load_state_dict({key: torch.stack([s[key] for s in states]).mean(0) for key in states[0]})
    mean.card = replace(first.card, name="warm", source="2401.12187")
    return mean


def _one_start(model: RewardModel, other: RewardModel) -> bool:
    """Whether both were fit from the same pretrained weights; True if one of them doesn't say."""
    starts = [reward.backbone.model for reward in (model, other)]
    if starts[0] is starts[1] or starts[0] is model.model or starts[1] is other.model:
        return True
    mine, theirs = (start.base_model.state_dict() for start in starts)
    return mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


# -- groups of people ------------------------------------------------------------------------------------------------


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
    check_positive("max_min_weights", beta=beta)
    groups, _, samples = scores.shape

    def dual(w: np.ndarray) -> tuple[float, np.ndarray]:
        value = beta * (logsumexp(np.tensordot(w, scores, 1) / beta, axis=-1) - np.log(samples)).mean()
        return value, tilted_means(scores, w, beta)

    found = minimize(dual, np.full(groups, 1 / groups), jac=True, method="SLSQP", bounds=[(0, 1)] * groups,
                     constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like},
                     options={"ftol": 1e-10, "maxiter": 200})  # fmt: skip
    w = np.clip(found.x, 0, None)
    return w / w.sum()


class WorstGroup(Combined):
    """sum_u w_u (r_u - zero_u) / unit_u, whose optimum at `beta` is the max-min policy if w = `max_min_weights`.

    Groups can only be compared once each reward has a zero and a unit; they are part of the reward, and `fit` takes
    what the untreated policy gives a group, and its spread within prompts. Another choice is another idea of fairness.
    Aspects of the judgement: each group's own standardized reward.
    """

    def __init__(self, rewards: Mapping[str, Reward | Callable], weights: Sequence[float], zero=0.0, unit=1.0):
        self.weights = np.asarray(weights, dtype=float)
        if self.weights.shape != (len(rewards),) or (self.weights < 0).any() or not self.weights.sum() > 0:
            raise AlignkitError(
                f"WorstGroup: needs a reward for each group and as many weights >= 0, not all 0; got {list(rewards)} "
                f"and {weights}"
            )
        self.zero, self.unit = np.reshape(zero, (-1, 1)), np.reshape(unit, (-1, 1))
        check_positive("WorstGroup", unit=self.unit.min())
        super().__init__(rewards, name="worst group", format="vector", objective="multi", source="2402.08925")

    @classmethod
    def fit(
        cls, rewards: Mapping[str, Reward | Callable], policy: Policy, prompts: list, beta: float = 0.5, n: int = 64,
        seed: int = 0, **sampling,
    ) -> WorstGroup:  # fmt: skip
        """Zero, unit and weights from n samples of the untreated policy for each prompt; `sampling` as in `rollout`.

        `beta` is that of the treatment to come, in standard deviations of a reward. Nothing is trained.
        """
        said = policy.rollout(prompts, n, seed=seed, **sampling)
        judged = [as_reward(r)(said.prompts, said.completions) for r in rewards.values()]
        raw = np.stack([judgement.all_scores("WorstGroup") for judgement in judged])
        raw = raw.reshape(len(raw), len(prompts), n)
        zero, unit = raw.mean((1, 2)), raw.std(2).mean(1)
        unit = np.where(unit > 0, unit, 1.0)
        weights = max_min_weights((raw - zero[:, None, None]) / unit[:, None, None], beta)
        return cls(rewards, weights, zero, unit)

    def combine(self, parts: dict[str, Judgement], prompts: list, completions: list) -> Judgement:
        raw = np.stack([part.scores for part in parts.values()])
        standard = (raw - self.zero) / self.unit
        return Judgement(self.weights @ standard, aspects=dict(zip(parts, standard, strict=True)))
