"""Reward models of one number, by what people said: pairs, graded pairs, rankings, ratings, thumbs; and how well the
differences of their scores are calibrated."""

from __future__ import annotations

import copy

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset, concatenate_datasets
from scipy.optimize import minimize_scalar
from torch import Tensor

from alignkit.errors import AlignkitError, DataError, check_at_least
from alignkit.policy import Policy
from alignkit.rewards.base import Reward, columns_of
from alignkit.rewards.data import check_labels, check_numbers, check_pairs, check_rankings, check_ratings
from alignkit.rewards.losses import bradley_terry_loss, ordinal_loss, plackett_luce_loss
from alignkit.rewards.model import RewardModel, squared


class BradleyTerry(RewardModel):
    """Fit to pairs. Scores are log-odds: sigmoid(r(x, y1) - r(x, y2)) is the modeled probability that y1 is preferred;
    they are identified only up to a constant for each prompt.
    """

    kind = {"name": "bradley-terry", "source": "2203.02155"}

    @classmethod
    def fit(
        cls, pairs: Dataset, backbone: Policy | str, margin: str | None = None, confidence: str | None = None,
        pooling: str = "mean", seed: int = 0, **options,
    ) -> BradleyTerry:  # fmt: skip
        """Fit to `prompt/chosen/rejected`. `margin` names a column of margins (larger = clearer preference);
        `confidence` one of probabilities that the label is right, say from an aggregation of several labelers: the loss
        is then the expected one.
        """
        pairs = check_pairs(pairs, margin, confidence)
        reward = cls.new(backbone, seed, pooling)
        margins = check_numbers(pairs, margin) if margin else np.zeros(len(pairs))
        right = check_numbers(pairs, confidence, 0, 1) if confidence else np.ones(len(pairs))
        margins, right = torch.tensor(np.stack([margins, right]), device=reward.model.device).float()

        def loss(chosen: Tensor, rejected: Tensor, index: Tensor) -> Tensor:
            as_told = bradley_terry_loss(chosen[:, 0], rejected[:, 0], margins[index])
            turned = bradley_terry_loss(rejected[:, 0], chosen[:, 0], margins[index])
            return right[index] * as_told + (1 - right[index]) * turned

        return reward.fit_pairs(pairs, loss, seed=seed, **options)


class SameHead(BradleyTerry):
    """Bradley-Terry fits whose heads all start alike, as WARM's do: `seed` then sets the order of the data only."""

    @classmethod
    def new(cls, backbone: Policy | str, seed: int = 0, pooling: str = "mean", outputs: int = 1):
        return super().new(backbone, 0, pooling, outputs)


def refresh(
    reward: BradleyTerry, new: Dataset, old: Dataset | None = None, weight: float = 0.25, epochs: float = 4,
    seed: int = 0, **options,
) -> BradleyTerry:  # fmt: skip
    """A copy of `reward`, trained further on the `new` pairs; the reward itself stays as it is.

    With `old` pairs this is experience replay: as many of them as there are new ones (drawn at random, each at most
    once) are read beside them, each counting `weight` in the loss. They keep alive what has not changed, and repeat
    what has; `epochs` count passes over the new pairs either way.
    """
    check_at_least("refresh", 0, weight=weight)
    columns = ["prompt", "chosen", "rejected"]
    rows = check_pairs(new).select_columns(columns)
    weights = np.ones(len(rows))
    if old is not None:
        old = check_pairs(old).select_columns(columns)
        some = np.random.default_rng([seed, 23]).permutation(len(old))[: len(rows)]
        rows = concatenate_datasets([rows, old.select(some.tolist())])
        weights = np.concatenate([weights, np.full(len(some), weight)])
    counts = torch.tensor(weights, device=reward.model.device).float()

    def loss(chosen: Tensor, rejected: Tensor, _) -> Tensor:
        return bradley_terry_loss(chosen, rejected)[:, 0]

    fresh = reward.but(model=copy.deepcopy(reward.model))
    return fresh.fit_pairs(rows, loss, counts, epochs=epochs, seed=seed, **options)


class Ordinal(RewardModel):
    """Cumulative-logit model of preferences with a strength ("slightly better" ... "much better").

    Scores are log-odds as with `BradleyTerry`, whose model this is when there is only one strength. (McCullagh 1980;
    labels with strengths: HelpSteer2-Preference, 2410.01257.)
    """

    kind = {"name": "ordinal", "source": "2410.01257"}

    @classmethod
    def fit(
        cls, pairs: Dataset, backbone: Policy | str, strengths: int = 3, pooling: str = "mean", seed: int = 0, **options
    ) -> Ordinal:
        """Fit to `prompt/chosen/rejected/strength`; strength is a whole number from 1 (slight) to `strengths`. The
        thresholds between strengths are learned, and the same for both directions."""
        pairs = check_pairs(pairs, "strength")
        values = check_numbers(pairs, "strength", 1, strengths)
        reward = cls.new(backbone, seed, pooling)
        device = reward.model.device
        grade = torch.tensor(values + strengths - 1, device=device).long()  # chosen comes first
        steps = torch.zeros(strengths - 1, device=device, requires_grad=True)

        def loss(chosen: Tensor, rejected: Tensor, index: Tensor) -> Tensor:
            above = F.softplus(steps).cumsum(0)
            thresholds = torch.cat([-above.flip(0), above.new_zeros(1), above])
            return ordinal_loss(chosen[:, 0] - rejected[:, 0], grade[index], thresholds)

        return reward.fit_pairs(pairs, loss, seed=seed, extra=(steps,) if strengths > 1 else (), **options)


class PlackettLuce(RewardModel):
    """Fit to whole rankings; scores are the log-worths of the Plackett-Luce model, up to a constant for each prompt."""

    kind = {"name": "plackett-luce", "source": "2301.11270"}

    @classmethod
    def fit(
        cls, rankings: Dataset, backbone: Policy | str, top: int | None = None, pooling: str = "mean", seed: int = 0,
        batch_size: int = 16, **options,
    ) -> PlackettLuce:  # fmt: skip
        """Fit to `prompt/ranked`; `ranked` lists the completions best first, at least two a row. Only the first `top`
        places count (1: which one is best, the rest in no order). `batch_size` counts rankings."""
        check_rankings(rankings)
        reward = cls.new(backbone, seed, pooling)
        sizes = [len(ranked) for ranked in rankings["ranked"]]
        prompts = [prompt for prompt, k in zip(rankings["prompt"], sizes, strict=True) for _ in range(k)]
        rows = reward.encode(prompts, [text for ranked in rankings["ranked"] for text in ranked])
        members = torch.arange(len(rows)).split(sizes)
        lengths = max(sizes) * torch.stack([width.max() for width in rows.attention.sum(1).split(sizes)])

        def loss(part: Tensor, batch: Tensor) -> tuple[Tensor, dict]:
            scores = reward.forward(rows.rows(torch.cat([members[i] for i in part])))
            by_ranking = scores.split([sizes[i] for i in part])
            losses = torch.stack([plackett_luce_loss(s[None], top)[0] for s in by_ranking])
            first = torch.tensor([float(s.argmax() == 0) for s in by_ranking])
            return losses.sum() / len(batch), {"accuracy": first}

        return reward.train(loss, lengths, batch_size=batch_size, seed=seed, **options)


class Regression(RewardModel):
    """Least squares on ratings. Scores are in standard deviations of the ratings; 0 is their mean."""

    kind = {"name": "regression", "source": "2310.01377"}

    @classmethod
    def fit(
        cls, ratings: Dataset, backbone: Policy | str, scale: tuple[float, float] = (-np.inf, np.inf),
        pooling: str = "mean", seed: int = 0, **options,
    ) -> Regression:  # fmt: skip
        """Fit to `prompt/completion/rating`; a rating off `scale` is an error."""
        values, _, _ = check_ratings(ratings, ["rating"], *scale)
        return cls.new(backbone, seed, pooling).fit_rows(ratings, values, squared, seed=seed, **options)


class Binary(RewardModel):
    """Logistic regression on thumbs up and down. Scores are log-odds, 0 where the data have as many ups as downs."""

    kind = {"name": "binary", "source": "2110.14168"}

    @classmethod
    def fit(
        cls, labels: Dataset, backbone: Policy | str, pooling: str = "mean", seed: int = 0, **options
    ) -> Binary:
        """Fit to `prompt/completion/label` (TRL's unpaired preferences; label true or false)."""
        check_labels(labels)
        reward = cls.new(backbone, seed, pooling)
        liked = np.array(labels["label"][:])
        if liked.all() or not liked.any():
            raise DataError(f"all {len(liked)} labels are {liked[0]}: there is nothing to learn from them")
        # how common thumbs up are is a fact about the data, not about a completion: it stays out of the score
        common = torch.logit(torch.tensor(liked, device=reward.model.device).float().mean()).requires_grad_()

        def loss(out: Tensor, goal: Tensor) -> tuple[Tensor, dict]:
            logit = out[:, 0] + common
            losses = F.binary_cross_entropy_with_logits(logit, goal, reduction="none")
            return losses, {"accuracy": (logit > 0) == goal.bool()}

        return reward.fit_rows(labels, liked, loss, seed=seed, extra=(common,), **options)


# -- calibration of differences --------------------------------------------------------------------------------------


def score_pairs(reward: Reward, pairs: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the chosen and of the rejected sides, each of shape (N,); other columns are handed to the reward."""
    prompts, columns = columns_of(pairs.remove_columns(["chosen", "rejected"]))
    chosen, rejected = (reward(prompts, pairs[side][:], **columns) for side in ("chosen", "rejected"))
    return chosen.all_scores("score_pairs"), rejected.all_scores("score_pairs")


def temperature_of(gap: np.ndarray, low: float, high: float) -> float:
    """The T in [low, high] under which sigmoid(gap / T) fits best, where all gaps (N,) should be positive."""
    fit = minimize_scalar(lambda log_t: np.logaddexp(0, -gap / np.exp(log_t)).mean(),
                          bounds=(np.log(low), np.log(high)), method="bounded")  # fmt: skip
    return float(np.exp(fit.x))


def fit_temperature(reward: Reward, pairs: Dataset) -> float:
    """The T that makes sigmoid(gap / T) fit these held-out labels best (temperature scaling; Guo et al. 2017)."""
    gap = np.subtract(*score_pairs(reward, pairs))
    if np.all(gap == 0):
        raise AlignkitError(f"reward {reward.card.name!r} gives equal scores to every pair: there is nothing to scale")
    return temperature_of(gap, np.exp(-5), np.exp(5))


def calibration_error(gap: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error of sigmoid(|gap|) as the probability that the sign of the gap is right; gaps (N,) are
    chosen minus rejected scores, bins of equal width over confidence 0.5..1."""
    confidence = 1 / (1 + np.exp(-np.abs(gap)))
    right = np.where(gap == 0, 0.5, gap > 0)
    which = np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)
    total = sum(abs(confidence[which == b].sum() - right[which == b].sum()) for b in range(bins))
    return float(total / len(gap))
