"""Several reward models for one: their scores combined (an ensemble), or their weights averaged (one model)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import numpy as np
import torch

from alignkit.errors import RewardError
from alignkit.policy import Policy
from alignkit.rewards.base import Judgement, Reward, as_reward
from alignkit.rewards.bradley_terry import BradleyTerry
from alignkit.rewards.model import RewardModel
from alignkit.taxonomy import RewardCard

HOW = ("mean", "worst", "uncertainty")


def combined_scores(scores: np.ndarray, how: str = "mean", weight: float = 0.5) -> np.ndarray:
    """One score from those of the members, first axis; shape (members, ...) to (...). (2310.02743, section 3)

    "mean"; "worst": the lowest (worst-case optimization, WCO); "uncertainty": mean - weight * variance over members
    (uncertainty-weighted optimization, UWO). The last two compare members with one another, so they must be on one
    scale. RewardError if there are no members or `how` is none of these.
    """
    scores = np.asarray(scores, dtype=float)
    if how not in HOW:
        raise RewardError(f"an ensemble's how must be one of {', '.join(HOW)}, not {how!r}")
    if scores.ndim < 1 or not len(scores):
        raise RewardError("an ensemble needs at least one member")
    if not 0 <= weight < float("inf"):
        raise RewardError(f"an ensemble's weight of the variance must be 0 or more, not {weight}")
    if how == "worst":
        return scores.min(0)
    return scores.mean(0) - (weight * scores.var(0) if how == "uncertainty" else 0.0)


class Ensemble(Reward):
    """Members that judge the same answers, combined as in `combined_scores`; aspects: each member's own score.

    `units`: mean and standard deviation to take from each member's scores first. Bradley-Terry scores have no zero of
    their own, so members are comparable only after that; `on_one_scale` reads the units off some answers.
    """

    def __init__(
        self,
        members: Sequence[Reward | Callable],
        how: str = "mean",
        weight: float = 0.5,
        units: Sequence[tuple[float, float]] | None = None,
        name: str | None = None,
    ):
        self.members = [as_reward(member) for member in members]
        combined_scores(np.zeros(len(self.members)), how, weight)  # says what is wrong with them
        self.how, self.weight = how, weight
        self.units = [(0.0, 1.0)] * len(self.members) if units is None else [tuple(unit) for unit in units]
        if len(self.units) != len(self.members):
            raise RewardError(f"Ensemble: {len(self.members)} members but {len(self.units)} units; give one pair each")
        for place, (_, spread) in enumerate(self.units):
            if not 0 < spread < float("inf"):
                raise RewardError(
                    f"Ensemble: member {place} has a standard deviation of {spread}; it must be above 0 (a member that "
                    "gives every answer the same score says nothing: leave it out)"
                )
        cards = [member.card for member in self.members]
        basis = {card.construction_basis for card in cards}
        self.card = RewardCard(name=name or f"{how} of {len(cards)}", format="scalar", source="2310.02743",
                               construction_basis=basis.pop() if len(basis) == 1 else "hybrid",
                               granularity="response", expression=cards[0].expression)  # fmt: skip

    @classmethod
    def on_one_scale(cls, members: Sequence[Reward | Callable], prompts: list, completions: list[str], **options):
        """With units such that each member's scores of these answers have mean 0 and standard deviation 1."""
        said = [as_reward(member)(prompts, completions).scores for member in members]
        return cls(members, units=[(float(s.mean()), float(s.std())) for s in said], **options)

    def judge(self, prompts: list, completions: list[str]) -> Judgement:
        said = [(member(prompts, completions).scores - mean) / spread
                for member, (mean, spread) in zip(self.members, self.units, strict=True)]  # fmt: skip
        return Judgement(combined_scores(np.stack(said), self.how, self.weight),
                         aspects={f"member {k}": scores for k, scores in enumerate(said)})  # fmt: skip


def averaged_weights(models: Sequence[RewardModel], name: str = "warm") -> RewardModel:
    """One reward model whose weights are the mean of these models' weights, at the cost of one (WARM, 2401.12187).

    Works for fits that started from one pretrained backbone and so ended in one valley of the loss. RewardError if
    backbone, kind or pooling differ, as far as the models tell (one that was loaded from disk doesn't say what it
    started from).
    """
    if not models:
        raise RewardError("averaged_weights: give at least one reward model")
    first, states = models[0], [model.model.state_dict() for model in models]
    for place, (model, state) in enumerate(zip(models, states, strict=True)):
        shapes = {key: value.shape for key, value in state.items()}
        alike = shapes == {key: value.shape for key, value in states[0].items()}
        if type(model) is not type(first) or model.pooling != first.pooling or not alike:
            raise RewardError(f"averaged_weights: model {place} has another kind, pooling or size than model 0; "
                              "average models of one kind")  # fmt: skip
        if not _one_start(model, first):
            raise RewardError(
                f"averaged_weights: model {place} started from another pretrained backbone ({model.codec.name!r}) than "
                f"model 0 ({first.codec.name!r}); their weights don't lie in one valley. Use an Ensemble of them"
            )
    mean = copy.copy(first)
    mean.model = copy.deepcopy(first.model)
    mean.model.load_state_dict({key: torch.stack([s[key] for s in states]).mean(0) for key in states[0]})
    mean.card = RewardCard(name=name, construction_basis=first.card.construction_basis, format=first.card.format,
                           expression="explicit", granularity=first.card.granularity,
                           objective=first.card.objective, source="2401.12187")  # fmt: skip
    return mean


def _one_start(model: RewardModel, other: RewardModel) -> bool:
    """Whether both were fit from the same pretrained weights; True if one of them doesn't say."""
    starts = [reward.codec.model for reward in (model, other)]
    if starts[0] is starts[1] or starts[0] is model.model or starts[1] is other.model:
        return True
    mine, theirs = (start.base_model.state_dict() for start in starts)
    return mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


class SameHead(BradleyTerry):
    """Bradley-Terry fits whose heads all start alike, as WARM's do: `seed` then sets the order of the data only."""

    @classmethod
    def new(cls, backbone: Policy | str, seed: int = 0, pooling: str = "mean", outputs: int = 1):
        return super().new(backbone, 0, pooling, outputs)
