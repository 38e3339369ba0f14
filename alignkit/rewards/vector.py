"""Rewards of several numbers: one head an aspect, weights that can be changed later, a gate that sets them; and how
good an answer is on average, beside how much people differ about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from scipy.stats import norm
from torch import Tensor, nn

from alignkit.errors import AlignkitError, DataError, check_choice
from alignkit.policy import Policy
from alignkit.rewards.base import Judgement, Reward
from alignkit.rewards.data import check_pairs, check_ratings
from alignkit.rewards.losses import bradley_terry_loss, normal_preference_loss
from alignkit.rewards.model import RewardModel, read_each, seeded, squared

HIDDEN = 32  # units of the gate's inner layer


class MultiAspect(RewardModel):
    """Attribute regression (HelpSteer, 2311.09528): one output of the head for each rated aspect.

    Aspects are in the units of their ratings, and the score is their weighted sum. The weights are no part of the fit:
    `with_weights` changes them without a new label.
    """

    kind = {"name": "multi-aspect", "format": "vector", "granularity": "multi-aspect", "objective": "multi",
            "source": "2311.09528"}  # fmt: skip
    kept = {"aspects": None, "mean": 0.0, "spread": 1.0, "weights": None}

    def __init__(self, model, backbone: Policy, pooling: str = "mean"):
        super().__init__(model, backbone, pooling)
        self.aspects: list[str] = self.aspects or [f"aspect {k}" for k in range(model.config.num_labels)]
        self.mean, self.spread = np.array(self.mean), np.array(self.spread)
        self.weights: dict[str, float] = self.weights or dict.fromkeys(self.aspects, 1.0)

    @classmethod
    def fit(
        cls, ratings: Dataset, backbone: Policy | str, aspects: Sequence[str],
        weights: Mapping[str, float] | None = None, pooling: str = "mean", seed: int = 0, **options,
    ) -> MultiAspect:  # fmt: skip
        """Fit to `prompt/completion` and one column of numbers for each of `aspects`, by least squares on standardized
        aspects. `weights` (default: 1 each) only serve the score."""
        if isinstance(aspects, str) or not aspects:
            raise DataError(f"aspects is {aspects!r}; name at least one column of ratings, in a list")
        values, mean, spread = check_ratings(ratings, aspects)
        reward = cls.new(backbone, seed, pooling, outputs=len(aspects))
        reward = reward.but(aspects=list(aspects), mean=mean, spread=spread, weights=dict.fromkeys(aspects, 1.0))
        reward = reward.with_weights(weights or {})
        return reward.fit_rows(ratings, values, squared, seed=seed, **options)

    def rate(self, prompts: list, completions: list[str]) -> np.ndarray:
        """Every aspect in the units of its ratings, shape (N, K)."""
        return self.mean + self.spread * self.predict(prompts, completions)

    def judge(self, prompts: list, completions: list[str]) -> Judgement:
        rated = self.rate(prompts, completions)
        weights = np.array([self.weights[name] for name in self.aspects])
        return Judgement(rated @ weights, aspects=dict(zip(self.aspects, rated.T, strict=True)))

    def with_weights(self, weights: Mapping[str, float]) -> MultiAspect:
        """The same heads under other weights; aspects not named keep theirs."""
        for name in weights:
            check_choice("with_weights", "an aspect", name, self.aspects)
        return self.but(weights={name: float(weights.get(name, w)) for name, w in self.weights.items()})


class Gated(Reward):
    """Weights that depend on the prompt (ArmoRM, 2406.12845, eq. 3): score = g(x) . a(x, y).

    g is a small network from the prompt's last hidden state, softmax over aspects; a are the aspects of a `MultiAspect`
    in standard deviations of their ratings. Fit on preference pairs; the heads stay as they are.
    """

    def __init__(self, heads: MultiAspect, network: nn.Module, scale: float):
        self.heads, self.network, self.scale = heads, network, scale
        self.card = replace(heads.card, name="gated multi-aspect", source="2406.12845")

    @classmethod
    def fit(cls, pairs: Dataset, heads: MultiAspect, steps: int = 300, seed: int = 0) -> Gated:
        """Fit the gate to `prompt/chosen/rejected` by the Bradley-Terry likelihood, on all pairs at once."""
        pairs = check_pairs(pairs)
        prompts = pairs["prompt"][:]
        gap = heads.predict(prompts, pairs["chosen"][:]) - heads.predict(prompts, pairs["rejected"][:])
        gap, states = torch.tensor(gap).float(), prompt_states(heads, prompts)
        with seeded(seed):
            network = nn.Sequential(nn.LayerNorm(states.shape[1]), nn.Linear(states.shape[1], HIDDEN), nn.ReLU(),
                                    nn.Linear(HIDDEN, gap.shape[1]))  # fmt: skip
        for weights in network[-1].parameters():  # equal weights, whatever the prompt, are where it starts
            nn.init.zeros_(weights)
        log_scale = torch.zeros((), requires_grad=True)
        groups = [{"params": network.parameters(), "weight_decay": 0.1}, {"params": [log_scale], "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=1e-2)
        for _ in range(steps):
            score = log_scale.exp() * (network(states).softmax(-1) * gap).sum(-1)
            loss = bradley_terry_loss(score, torch.zeros_like(score)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return cls(heads, network.eval(), log_scale.exp().item())

    @torch.no_grad()
    def gate(self, prompts: list) -> np.ndarray:
        """The weights g(x), shape (N, K); each row sums to 1."""
        return self.network(prompt_states(self.heads, prompts)).softmax(-1).double().numpy()

    def judge(self, prompts: list, completions: list[str]) -> Judgement:
        outputs = self.heads.predict(prompts, completions)
        rated = self.heads.mean + self.heads.spread * outputs
        return Judgement(self.scale * (self.gate(prompts) * outputs).sum(1) if len(prompts) else np.zeros(0),
                         aspects=dict(zip(self.heads.aspects, rated.T, strict=True)))  # fmt: skip


def prompt_states(reward: RewardModel, prompts: list) -> Tensor:
    """The backbone's hidden state at the end of each prompt, before any answer; shape (N, hidden)."""
    states = read_each(
        reward.backbone, lambda rows, _: reward.states(rows)[:, -1].float().cpu(), prompts, [""] * len(prompts),
        ended=False,
    )  # fmt: skip
    return torch.stack(states)


class Distributional(RewardModel):
    """Distributional preference learning, the mean-and-variance model (2312.08358, section 4).

    An answer's utility is normal over people (or whatever else the labels hide): N(mean, spread^2). Then

        P(y1 > y2) = Phi((mean_1 - mean_2) / sqrt(spread_1^2 + spread_2^2))

    The unit of both is not identified, only their ratio is. The score is the `quantile` of the utility: 0.5 is the
    mean, less is averse to the risk that some will dislike the answer. Aspects of the judgement: `mean`, `spread`.
    """

    kind = {"name": "distributional", "format": "vector", "objective": "multi", "source": "2312.08358"}
    kept = {"quantile": 0.5}

    @classmethod
    def fit(cls, pairs: Dataset, backbone: Policy | str, pooling: str = "mean", seed: int = 0, **options):
        """Fit to `prompt/chosen/rejected` by maximum likelihood."""
        pairs = check_pairs(pairs)

        def loss(chosen: Tensor, rejected: Tensor, index: Tensor) -> Tensor:
            spreads = spread_of(chosen[:, 1]), spread_of(rejected[:, 1])
            return normal_preference_loss(chosen[:, 0], rejected[:, 0], *spreads)

        return cls.new(backbone, seed, pooling, outputs=2).fit_pairs(pairs, loss, seed=seed, **options)

    def distribution(self, prompts: list, completions: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Mean and spread of each completion's utility, each of shape (N,)."""
        mean, raw = self.predict(prompts, completions).T
        return mean, spread_of(torch.tensor(raw)).numpy()

    def judge(self, prompts: list, completions: list[str]) -> Judgement:
        mean, spread = self.distribution(prompts, completions)
        return Judgement(mean + norm.ppf(self.quantile) * spread, aspects={"mean": mean, "spread": spread})

    def with_quantile(self, quantile: float) -> Distributional:
        """The same model, scored by another quantile of its utility."""
        if not 0 < quantile < 1:
            raise AlignkitError(f"quantile must lie between 0 and 1, not {quantile}; 0.5 is the mean, less is averse")
        return self.but(quantile=float(quantile))


def spread_of(raw: Tensor) -> Tensor:
    """A positive spread from a head's output."""
    return F.softplus(raw) + 0.05


def explained(mean: np.ndarray, spread: np.ndarray) -> float:
    """r^2 = Var(mean) / (Var(mean) + E[spread^2]) over completions: 1 if a single utility explains all labels. Low
    values say that labels hide something, or are noisy; compare with a pool that is known to agree. (2312.08358)"""
    between, within = np.var(mean), np.mean(np.square(spread))
    return float(between / (between + within))
