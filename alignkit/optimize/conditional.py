"""Preference optimization that must use the picture: mDPO (2406.11839)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor

from alignkit.errors import AlignkitError
from alignkit.optimize.pair_losses import dpo_loss
from alignkit.optimize.training import summed_logprobs, train
from alignkit.pictures import PicturePolicy
from alignkit.policy import check_same_vocabulary
from alignkit.rewards.data import check_pairs, encode_pairs, pair_lengths


def conditional_loss(chosen: Tensor, ref: Tensor, corrupted: Tensor, ref_corrupted: Tensor, beta: float) -> Tensor:
    """-log sigmoid(beta (log pi/ref (y_w | m) - log pi/ref (y_w | m'))): the chosen answer should be preferred
    *because* of the picture m, and not beside a corrupted m' (2406.11839, L_CoPO). All of shape (N,)."""
    return dpo_loss(chosen, corrupted, ref, ref_corrupted, beta)


def anchor_loss(chosen: Tensor, ref: Tensor, beta: float, delta: float = 0.0) -> Tensor:
    """-log sigmoid(beta log pi/ref (y_w | m) - delta): the chosen answer's reward should exceed delta (2406.11839,
    L_AncPO). All of shape (N,)."""
    return -F.logsigmoid(beta * (chosen - ref) - delta)


def mdpo_loss(
    chosen: Tensor,
    rejected: Tensor,
    corrupted: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    ref_corrupted: Tensor,
    beta: float,
    delta: float = 0.0,
    conditional: float = 1.0,
    anchor: float = 1.0,
) -> Tensor:
    """DPO on the pair + `conditional` * L_CoPO + `anchor` * L_AncPO (2406.11839); all (N,), `corrupted` is the chosen
    answer beside a corrupted picture. In the paper both weights are 1; with both 0 this is DPO."""
    return (
        dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta)
        + conditional * conditional_loss(chosen, ref_chosen, corrupted, ref_corrupted, beta)
        + anchor * anchor_loss(chosen, ref_chosen, beta, delta)
    )


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
    reference: PicturePolicy | None = None,
    epochs: float = 2,
    batch_size: int = 32,
    learning_rate: float | None = None,
    seed: int = 0,
    **options,
) -> PicturePolicy:
    """Minimize `mdpo_loss` on `prompt/chosen/rejected`, where prompts name pictures; returns a new policy.

    Corrupted pictures are `crop`s, drawn once. `reference`: default `policy`. Options: see `training.train`.
    """
    if not isinstance(policy, PicturePolicy):
        raise AlignkitError(f"mdpo needs a policy that sees, not {type(policy).__name__}; see load_picture_policy")
    if not (0 < beta < float("inf") and conditional >= 0 and anchor >= 0):
        raise AlignkitError(
            f"mdpo: beta must be > 0, conditional and anchor 0 or more, not {beta}, {conditional}, {anchor}"
        )
    check_pairs(pairs)
    reference = policy if reference is None else reference
    check_same_vocabulary(policy, reference)
    treated, n = policy.copy(f"{policy.name} + mdpo"), len(pairs)
    both = encode_pairs(treated, pairs)
    chosen = both.rows(torch.arange(n))
    corrupted = chosen.seeing(crop(chosen.pixels, keep, seed))
    ref, ref_corrupted = summed_logprobs(reference, both), summed_logprobs(reference, corrupted)

    def loss_of(index: Tensor, minibatch: Tensor) -> tuple[Tensor, dict]:
        rows = torch.cat([index, index + n])
        won, lost = treated.token_logprobs(both.rows(rows)).sum(1).chunk(2)
        # without the picture's two terms this is DPO, at its price
        unseen = treated.token_logprobs(corrupted.rows(index)).sum(1) if conditional else ref_corrupted[index]
        ref_won, ref_lost = ref[rows].chunk(2)
        loss = mdpo_loss(won, lost, unseen, ref_won, ref_lost, ref_corrupted[index], beta, delta, conditional, anchor)
        margin, by_picture = (won - ref_won) - (lost - ref_lost), (won - ref_won) - (unseen - ref_corrupted[index])
        return loss.sum() / len(minibatch), {
            "accuracy": margin > 0,
            "margin": beta * margin,
            "margin_by_picture": beta * by_picture,
            "chosen_log_ratio": won - ref_won,
        }

    return train(treated, loss_of, pair_lengths(both), epochs, batch_size, learning_rate, seed=seed,
                 **options)  # fmt: skip
