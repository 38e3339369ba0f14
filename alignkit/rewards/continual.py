"""Keeping a reward up to date: go on from what it knows, with new labels, and with old ones beside them if wanted."""

from __future__ import annotations

import copy

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from torch import Tensor

from alignkit.errors import AlignkitError
from alignkit.rewards.bradley_terry import BradleyTerry
from alignkit.rewards.data import check_pairs, encode_pairs, pair_lengths
from alignkit.rewards.losses import bradley_terry_loss


def refresh(
    reward: BradleyTerry,
    new: Dataset,
    old: Dataset | None = None,
    weight: float = 0.25,
    epochs: float = 4,
    learning_rate: float = 1e-3,
    seed: int = 0,
    **options,
) -> BradleyTerry:
    """A copy of `reward`, trained further on the `new` pairs; the reward itself stays as it is.

    With `old` pairs this is experience replay: as many of them as there are new ones (drawn at random, each at most
    once) are read beside them, each counting `weight` in the loss. They keep alive what has not changed, and repeat
    what has; `epochs` count passes over the new pairs either way. Further options as in `RewardModel.train`.
    """
    check_pairs(new)
    if not 0 <= weight:
        raise AlignkitError(f"refresh: weight must be at least 0, not {weight}; 1 counts an old pair like a new one")
    columns = ["prompt", "chosen", "rejected"]
    rows, weights = new.select_columns(columns), np.ones(len(new))
    if old is not None:
        check_pairs(old)
        some = np.random.default_rng([seed, 23]).permutation(len(old))[: len(new)]
        rows = concatenate_datasets([rows, old.select(some.tolist()).select_columns(columns)])
        weights = np.concatenate([weights, np.full(len(some), weight)])
    fresh = type(reward)(copy.deepcopy(reward.model), reward.codec, reward.pooling, reward.card.name)
    both, counts = encode_pairs(fresh.codec, rows), torch.tensor(weights, device=reward.model.device).float()

    def loss(index: Tensor) -> tuple[Tensor, dict]:
        chosen, rejected = fresh.forward(both.rows(torch.cat([index, index + len(rows)]))).chunk(2)
        return (counts[index] * bradley_terry_loss(chosen, rejected)).sum() / counts[index].sum().clamp(min=1e-9), {}

    return fresh.train(loss, pair_lengths(both), epochs=epochs, learning_rate=learning_rate, seed=seed, **options)
