"""Preference optimization that sees more than the pair: rewards for other objectives (MODPO), a picture (mDPO)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from alignkit.errors import AlignkitError, check_at_least, check_positive
from alignkit.optimize.losses import mdpo_loss, modpo_loss
from alignkit.optimize.preference import from_pairs
from alignkit.pictures import PicturePolicy
from alignkit.policy import Policy
from alignkit.rewards.base import Reward, as_reward
from alignkit.rewards.data import check_pairs, encode_pairs
from alignkit.rewards.scalar import score_pairs


def modpo(
    policy: Policy,
    pairs: Dataset,
    others: Sequence[tuple[float, Reward | Callable]],
    weight: float,
    beta: float = 0.2,
    **options,
) -> Policy:
    """DPO on pairs that speak of one objective, steered by rewards for the others (2310.03708); returns a new policy.

    `weight`: of the labels' objective; `others`: [(weight, reward), ...], rewards in the labels' units (log-odds: those
    of a Bradley-Terry model, or the implicit reward of a policy from DPO, as in the authors' code). Options: see
    `from_pairs`.
    """
    check_positive("modpo", beta=beta, weight=weight)
    pairs = check_pairs(pairs)
    gap = np.zeros(len(pairs))  # what the other objectives say for the chosen side
    for share, reward in others:
        chosen, rejected = score_pairs(as_reward(reward), pairs)
        gap += share * (chosen - rejected)
    extra = {"gap": torch.from_numpy(gap).float()}
    return from_pairs(policy, pairs, modpo_loss, "modpo", extra=extra, beta=beta, weight=weight, **options)


def crop(pixels: Tensor, keep: float = 0.2, seed: int = 0) -> Tensor:
    """A small window of each picture, enlarged to its full size; pixels (N, side, side, 3), square.

    The window's share of the area is uniform in (0, keep], its place anywhere: most of what there was is gone.
    """
    if not 0 < keep <= 1:
        raise AlignkitError(f"crop: keep must be above 0 and at most 1, not {keep}")
    n, side = pixels.shape[:2]
    draw = torch.rand(3, n, generator=torch.Generator().manual_seed(seed))
    window = ((1 - draw[0]) * keep).sqrt() * side
    corner = draw[1:] * (side - window)  # (2, N)
    along = (torch.arange(side) + 0.5) / side
    rows, columns = ((c[:, None] + window[:, None] * along).long().clamp(max=side - 1) for c in corner)
    return pixels[torch.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]


def mdpo(
    policy: PicturePolicy,
    pairs: Dataset,
    beta: float = 0.2,
    delta: float = 0.0,
    conditional: float = 1.0,
    anchor: float = 1.0,
    keep: float = 0.2,
    seed: int = 0,
    **options,
) -> PicturePolicy:
    """Minimize `mdpo_loss` on `prompt/chosen/rejected`, where prompts name pictures (2406.11839); returns a new policy.

    Corrupted pictures are `crop`s, drawn once. Options: see `from_pairs`.
    """
    if not isinstance(policy, PicturePolicy):
        raise AlignkitError(f"mdpo needs a policy that sees, not {type(policy).__name__}; see load_picture_policy")
    check_positive("mdpo", beta=beta)
    check_at_least("mdpo", 0, conditional=conditional, anchor=anchor)
    pairs = check_pairs(pairs)
    chosen = encode_pairs(policy, pairs).rows(torch.arange(len(pairs)))
    zeros = torch.zeros(len(pairs))
    extra = {"corrupted": zeros, "ref_corrupted": zeros}  # without the pictures' term this is DPO, at its price
    if conditional:
        extra = {"corrupted": replace(chosen, pixels=crop(chosen.pixels, keep, seed))}
    return from_pairs(policy, pairs, mdpo_loss, "mdpo", extra=extra, beta=beta, delta=delta, conditional=conditional,
                      anchor=anchor, seed=seed, **options)  # fmt: skip
