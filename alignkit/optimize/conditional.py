"""Preference optimization that must use the picture: mDPO (2406.11839)."""

from __future__ import annotations

import torch
from datasets import Dataset
from torch import Tensor

from alignkit.errors import AlignkitError, check_at_least, check_positive
from alignkit.optimize.losses import mdpo_loss
from alignkit.optimize.preference import from_pairs
from alignkit.pictures import PicturePolicy
from alignkit.rewards.data import check_pairs, encode_pairs


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
    which = torch.arange(n)[:, None, None]
    return pixels[which, rows[:, :, None], columns[:, None, :]]


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
    """Minimize `mdpo_loss` on `prompt/chosen/rejected`, where prompts name pictures; returns a new policy.

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
        extra = {"corrupted": chosen.seeing(crop(chosen.pixels, keep, seed))}
    return from_pairs(policy, pairs, mdpo_loss, "mdpo", extra=extra, beta=beta, delta=delta, conditional=conditional,
                      anchor=anchor, seed=seed, **options)  # fmt: skip
