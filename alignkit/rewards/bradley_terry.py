"""A Bradley-Terry reward model, fit to comparisons; and how well its differences are calibrated."""

from __future__ import annotations

import numpy as np
import torch
from datasets import Dataset
from scipy.optimize import minimize_scalar
from torch import Tensor

from alignkit.errors import AlignkitError
from alignkit.policy import Policy
from alignkit.rewards.base import Reward
from alignkit.rewards.data import check_numbers, check_pairs, encode_pairs, pair_lengths
from alignkit.rewards.losses import bradley_terry_loss
from alignkit.rewards.model import RewardModel


class BradleyTerry(RewardModel):
    """Fit to pairs: a data-driven, scalar, explicit, response-level reward.

    Scores are log-odds: sigmoid(r(x, y1) - r(x, y2)) is the modeled probability that y1 is preferred; they are
    identified only up to a constant for each prompt.
    """

    kind = {"name": "bradley-terry", "format": "scalar", "granularity": "response", "source": "2203.02155"}

    @classmethod
    def fit(
        cls,
        pairs: Dataset,
        backbone: Policy | str,
        margin: str | None = None,
        confidence: str | None = None,
        pooling: str = "mean",
        seed: int = 0,
        **options,
    ) -> BradleyTerry:
        """Fit to `prompt/chosen/rejected`. `margin` names a column of margins (larger = clearer preference);
        `confidence` one of probabilities that the label is right, say from an aggregation of several labelers: the loss
        is then the expected one. Further options as in `RewardModel.train`.
        """
        check_pairs(pairs, margin, confidence)
        reward = cls.new(backbone, seed, pooling)
        both = encode_pairs(reward.codec, pairs)

        def column(name: str | None, default: float, *limits: float) -> Tensor:
            values = check_numbers(pairs, name, *limits) if name else np.full(len(pairs), default)
            return torch.tensor(values, device=reward.model.device).float()

        margins, sure = column(margin, 0.0), column(confidence, 1.0, 0.0, 1.0)

        def loss(index: Tensor) -> tuple[Tensor, dict]:
            chosen, rejected = reward.forward(both.rows(torch.cat([index, index + len(pairs)]))).chunk(2)
            losses = sure[index] * bradley_terry_loss(chosen, rejected, margins[index])
            if confidence:
                losses = losses + (1 - sure[index]) * bradley_terry_loss(rejected, chosen, margins[index])
            return losses.mean(), {"accuracy": (chosen > rejected).float().mean().item()}

        return reward.train(loss, pair_lengths(both), seed=seed, **options)


def score_pairs(reward: Reward, pairs: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the chosen and of the rejected sides, each of shape (N,)."""
    prompts = pairs["prompt"][:]
    return reward(prompts, pairs["chosen"][:]).scores, reward(prompts, pairs["rejected"][:]).scores


def fit_temperature(reward: Reward, pairs: Dataset) -> float:
    """The T that makes sigmoid(gap / T) fit these held-out labels best (temperature scaling; Guo et al. 2017)."""
    chosen, rejected = score_pairs(reward, pairs)
    gap = chosen - rejected
    if np.all(gap == 0):
        raise AlignkitError(f"reward {reward.card.name!r} gives equal scores to every pair: there is nothing to scale")
    fit = minimize_scalar(lambda log_t: np.logaddexp(0, -gap / np.exp(log_t)).mean(), bounds=(-5, 5), method="bounded")
    return float(np.exp(fit.x))


def calibration_error(gap: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error of sigmoid(|gap|) as the probability that the sign of the gap is right.

    gap = r_chosen - r_rejected, shape (N,); equal-width bins over confidence 0.5..1.
    """
    confidence = 1 / (1 + np.exp(-np.abs(gap)))
    right = np.where(gap == 0, 0.5, gap > 0)
    which = np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)
    total = sum(abs(confidence[which == b].sum() - right[which == b].sum()) for b in range(bins))
    return float(total / len(gap))
