"""Learning from single answers that were found desirable or not: KTO."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from alignkit.errors import AlignkitError, DataError
from alignkit.optimize.pair_losses import kto_loss
from alignkit.optimize.training import summed_logprobs, train
from alignkit.policy import Policy, check_same_vocabulary
from alignkit.rewards.data import check_columns, check_texts


def kto(
    policy: Policy,
    data: Dataset,
    beta: float = 0.2,
    weights: tuple[float, float] = (1.0, 1.0),
    reference: Policy | None = None,
    epochs: float = 2,
    batch_size: int = 32,
    learning_rate: float | None = None,
    seed: int = 0,
    **options,
) -> Policy:
    """Kahneman-Tversky optimization on `prompt/completion/label` (TRL's unpaired preferences); returns a new policy.

    `weights`: of desirable and of undesirable rows; the authors advise weights that about balance the counts. The
    reference point z is the policy's log-ratio on completions of *other* prompts, averaged over the minibatch, at least
    0 and without gradient (2402.01306); which row lends its completion is drawn once, as in TRL. Options: see `train`.
    """
    if not 0 < beta < float("inf"):
        raise AlignkitError(f"kto: beta must be > 0, not {beta}; at 0 the loss says nothing about the policy")
    if len(weights) != 2 or min(weights) < 0 or not 0 < sum(weights) < float("inf"):
        raise AlignkitError(f"kto: weights must be two numbers, at least 0 and not both 0; not {weights}")
    desirable = check_labels(data)
    reference = policy if reference is None else reference
    check_same_vocabulary(policy, reference)
    treated = policy.copy(f"{policy.name} + kto")
    own = treated.encode(data["prompt"][:], data["completion"][:])
    texts = [data["completion"][i] for i in _mismatched(data["prompt"][:], seed)]
    other = treated.encode(data["prompt"][:], texts)
    ref, ref_other = summed_logprobs(reference, own), summed_logprobs(reference, other)  # cached: it does not change
    good = torch.tensor(desirable, device=treated.device)

    def loss(part: Tensor, minibatch: Tensor) -> tuple[Tensor, dict]:
        with torch.no_grad():
            drift = treated.token_logprobs(other.rows(minibatch)).sum(1) - ref_other[minibatch]
            z = drift.mean().clamp(min=0)
        log_ratio = treated.token_logprobs(own.rows(part)).sum(1) - ref[part]
        up = good[part]
        return kto_loss(log_ratio, up, z, beta, weights).sum() / len(minibatch), {
            "kl": z,
            "desirable_log_ratio": torch.where(up, log_ratio, torch.nan),
            "undesirable_log_ratio": torch.where(up, torch.nan, log_ratio),
        }

    lengths = torch.maximum(own.attention.sum(1), other.attention.sum(1))
    return train(treated, loss, lengths, epochs, batch_size, learning_rate, seed=seed, **options)


def check_labels(data: Dataset) -> np.ndarray:
    """The labels of `prompt/completion/label`, shape (N,), bool. DataError naming the row if one is not a bool; a
    warning if they are all the same."""
    check_columns(data, ["prompt", "completion", "label"], "unpaired preferences")
    check_texts(data, "completion")
    for row, label in enumerate(data["label"]):
        if not isinstance(label, bool):
            raise DataError(
                f"row {row}: 'label' is {label!r}, not true or false (desirable or not); turn ratings into labels by a "
                "threshold, or drop that row"
            )
    labels = np.array(data["label"][:], dtype=bool)
    if labels.all() or not labels.any():
        kind = "desirable" if labels.all() else "undesirable"
        warnings.warn(f"all {len(labels)} rows are {kind}: nothing says what to prefer to what", stacklevel=3)
    return labels


def _mismatched(prompts: list, seed: int) -> np.ndarray:
    """For each row another one with a different prompt (any other row if there is but one prompt), shape (N,)."""
    keys = [str(p) for p in prompts]
    if len(keys) < 2:
        raise DataError("kto needs at least two rows: a completion of another row is its reference point")
    rng = np.random.default_rng([seed, 8])
    everyone = np.arange(len(keys))
    of = {key: np.flatnonzero([k == key for k in keys]) for key in dict.fromkeys(keys)}
    others = {key: np.setdiff1d(everyone, rows) for key, rows in of.items()}
    return np.array([rng.choice(others[k] if len(others[k]) else np.delete(everyone, i)) for i, k in enumerate(keys)])
