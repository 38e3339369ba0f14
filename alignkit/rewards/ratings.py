"""Reward models fit to single completions: ratings, thumbs; and to preferences with a strength."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor

from alignkit.errors import DataError
from alignkit.policy import Policy
from alignkit.rewards.data import check_columns, check_numbers, check_pairs, check_texts, encode_pairs, pair_lengths
from alignkit.rewards.losses import ordinal_loss
from alignkit.rewards.model import RewardModel


class Regression(RewardModel):
    """Least squares on ratings. Scores are in standard deviations of the ratings; 0 is their mean."""

    kind = {"name": "regression", "format": "scalar", "granularity": "response", "source": "2310.01377"}

    @classmethod
    def fit(
        cls,
        ratings: Dataset,
        backbone: Policy | str,
        scale: tuple[float, float] = (-np.inf, np.inf),
        pooling: str = "mean",
        seed: int = 0,
        **options,
    ) -> Regression:
        """Fit to `prompt/completion/rating`; a rating off `scale` is an error. Options as in `RewardModel.train`."""
        check_columns(ratings, ["prompt", "completion", "rating"], "ratings")
        check_texts(ratings, "completion")
        values = check_numbers(ratings, "rating", *scale)
        if values.std() == 0:
            raise DataError(f"all {len(values)} ratings are {values[0]:g}: there is nothing to learn from them")
        reward = cls.new(backbone, seed, pooling)
        batch = reward.codec.encode(ratings["prompt"][:], ratings["completion"][:])
        target = torch.tensor((values - values.mean()) / values.std(), device=batch.ids.device).float()

        def loss(index: Tensor) -> tuple[Tensor, dict]:
            error = reward.forward(batch.rows(index)) - target[index]
            return error.pow(2).mean(), {}

        return reward.train(loss, batch.attention.sum(1), seed=seed, **options)


class Binary(RewardModel):
    """Logistic regression on thumbs up and down. Scores are log-odds, 0 where the data have as many ups as downs."""

    kind = {"name": "binary", "format": "scalar", "granularity": "response", "source": "2110.14168"}

    @classmethod
    def fit(
        cls, labels: Dataset, backbone: Policy | str, pooling: str = "mean", seed: int = 0, **options
    ) -> Binary:
        """Fit to `prompt/completion/label` (TRL's unpaired preferences; label true or false)."""
        check_columns(labels, ["prompt", "completion", "label"], "labels")
        check_texts(labels, "completion")
        for row, label in enumerate(labels["label"]):
            if not isinstance(label, bool):
                raise DataError(f"row {row}: 'label' is {label!r}; it must be true or false")
        reward = cls.new(backbone, seed, pooling)
        batch = reward.codec.encode(labels["prompt"][:], labels["completion"][:])
        target = torch.tensor(labels["label"][:], device=batch.ids.device).float()
        if target.min() == target.max():
            raise DataError(f"all {len(target)} labels are {bool(target[0])}: there is nothing to learn from them")
        # how common thumbs up are is a fact about the data, not about a completion: it stays out of the score
        common = torch.logit(target.mean()).requires_grad_()

        def loss(index: Tensor) -> tuple[Tensor, dict]:
            logit = reward.forward(batch.rows(index)) + common
            right = ((logit > 0) == target[index].bool()).float().mean().item()
            return F.binary_cross_entropy_with_logits(logit, target[index]), {"accuracy": right}

        return reward.train(loss, batch.attention.sum(1), seed=seed, extra=(common,), **options)


class Ordinal(RewardModel):
    """Cumulative-logit model of preferences with a strength ("slightly better" ... "much better").

    Scores are log-odds as with `BradleyTerry`, whose model this is when there is only one strength.
    """

    kind = {"name": "ordinal", "format": "scalar", "granularity": "response", "source": "2406.08673"}

    @classmethod
    def fit(
        cls,
        pairs: Dataset,
        backbone: Policy | str,
        strengths: int = 3,
        pooling: str = "mean",
        seed: int = 0,
        **options,
    ) -> Ordinal:
        """Fit to `prompt/chosen/rejected/strength`; strength is a whole number from 1 (slight) to `strengths`.

        The thresholds between strengths are learned, and the same for both directions.
        """
        check_pairs(pairs)
        check_columns(pairs, ["strength"], "pairs")
        values = check_numbers(pairs, "strength", 1, strengths)
        reward = cls.new(backbone, seed, pooling)
        both = encode_pairs(reward.codec, pairs)
        grade = torch.tensor(values + strengths - 1, device=both.ids.device).long()  # chosen comes first
        steps = torch.zeros(strengths - 1, device=both.ids.device, requires_grad=True)

        def loss(index: Tensor) -> tuple[Tensor, dict]:
            chosen, rejected = reward.forward(both.rows(torch.cat([index, index + len(pairs)]))).chunk(2)
            above = F.softplus(steps).cumsum(0)
            thresholds = torch.cat([-above.flip(0), above.new_zeros(1), above])
            losses = ordinal_loss(chosen - rejected, grade[index], thresholds)
            return losses.mean(), {"accuracy": (chosen > rejected).float().mean().item()}

        return reward.train(loss, pair_lengths(both), seed=seed, extra=(steps,) if strengths > 1 else (), **options)
