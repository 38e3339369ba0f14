"""A reward with a spread: how good an answer is on average, and how much people differ about it."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from scipy.stats import norm
from torch import Tensor

from alignkit.errors import AlignkitError
from alignkit.policy import Policy
from alignkit.rewards.base import Judgement
from alignkit.rewards.data import check_pairs, encode_pairs, pair_lengths
from alignkit.rewards.model import RewardModel


class Distributional(RewardModel):
    """Distributional preference learning, the mean-and-variance model (2312.08358, section 4).

    An answer's utility is normal over people (or whatever else the labels hide): N(mean, spread^2). Then

        P(y1 > y2) = Phi((mean_1 - mean_2) / sqrt(spread_1^2 + spread_2^2))

    The unit of both is not identified, only their ratio is. The score is the `quantile` of the utility: 0.5 is the
    mean, less is averse to the risk that some will dislike the answer. Aspects of the judgement: `mean`, `spread`.
    """

    kind = {"name": "distributional", "format": "vector", "granularity": "response", "objective": "multi",
            "source": "2312.08358"}  # fmt: skip

    def __init__(self, model, codec: Policy, pooling: str = "mean", name: str | None = None):
        super().__init__(model, codec, pooling, name)
        self.quantile = float(getattr(model.config, "alignkit_quantile", 0.5))

    @classmethod
    def fit(cls, pairs: Dataset, backbone: Policy | str, pooling: str = "mean", seed: int = 0, **options):
        """Fit to `prompt/chosen/rejected` by maximum likelihood. Further options as in `RewardModel.train`."""
        check_pairs(pairs)
        reward = cls.new(backbone, seed, pooling, outputs=2)
        both = encode_pairs(reward.codec, pairs)

        def loss(index: Tensor) -> tuple[Tensor, dict]:
            out = reward.outputs(both.rows(torch.cat([index, index + len(pairs)])))
            (chosen, rejected), (s1, s2) = out[:, 0].chunk(2), spread_of(out[:, 1]).chunk(2)
            losses = normal_preference_loss(chosen, rejected, s1, s2)
            return losses.mean(), {"accuracy": (chosen > rejected).float().mean().item()}

        return reward.train(loss, pair_lengths(both), seed=seed, **options)

    def distribution(self, prompts: list, completions: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Mean and spread of each completion's utility, each of shape (N,)."""
        out = torch.tensor(self.predict(prompts, completions))
        return out[:, 0].numpy(), spread_of(out[:, 1]).numpy()

    def judge(self, prompts: list, completions: list[str]) -> Judgement:
        mean, spread = self.distribution(prompts, completions)
        return Judgement(mean + norm.ppf(self.quantile) * spread, aspects={"mean": mean, "spread": spread})

    def with_quantile(self, quantile: float) -> Distributional:
        """The same model, scored by another quantile of its utility. Nothing is fit, nothing is copied."""
        if not 0 < quantile < 1:
            raise AlignkitError(f"quantile must lie between 0 and 1, not {quantile}; 0.5 is the mean, less is averse")
        other = copy.copy(self)
        other.quantile = float(quantile)
        return other

    def save(self, folder: str | Path) -> Path:
        """As `RewardModel.save`; the quantile goes into the config."""
        self.model.config.alignkit_quantile = self.quantile
        return super().save(folder)


def spread_of(raw: Tensor) -> Tensor:
    """A positive spread from a head's output."""
    return F.softplus(raw) + 0.05


def normal_preference_loss(chosen: Tensor, rejected: Tensor, spread_chosen: Tensor, spread_rejected: Tensor) -> Tensor:
    """-log Phi((m_c - m_r) / sqrt(s_c^2 + s_r^2)); inputs and output of shape (N,). (2312.08358)"""
    return -torch.special.log_ndtr((chosen - rejected) / (spread_chosen**2 + spread_rejected**2).sqrt())


def explained(mean: np.ndarray, spread: np.ndarray) -> float:
    """r^2 = Var(mean) / (Var(mean) + E[spread^2]) over completions: 1 if a single utility explains all labels.

    Low values say that labels hide something, or are noisy; compare with a pool that is known to agree. (2312.08358)
    """
    between, within = np.var(mean), np.mean(np.square(spread))
    return float(between / (between + within))
