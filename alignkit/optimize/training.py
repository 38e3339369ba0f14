"""Learning from fixed data: what supervised fine-tuning and all preference losses do to a policy."""

from __future__ import annotations

import torch
from torch import Tensor

from alignkit.errors import AlignkitError
from alignkit.policy import Batch, Policy
from alignkit.training import LossOf, default_rate, fit, in_parts, tokens_at_once


def train(
    treated: Policy,
    loss_of: LossOf,
    lengths: Tensor,
    epochs: float = 2,
    batch_size: int = 32,
    learning_rate: float | None = None,
    kind: str = "preference",
    **options,
) -> Policy:
    """`alignkit.training.fit` with a linear decay of the learning rate; changes and returns `treated`, whose dropout
    stays off (as in TRL's DPO), so that policy and reference agree before the first update.

    `learning_rate` None: `default_rate` of this `kind`. Options: seed, progress, micro_batch_tokens, callback,
    checkpoint.
    """
    rate = default_rate(treated.model, kind) if learning_rate is None else learning_rate
    return fit(treated, loss_of, lengths, name=treated.name, epochs=epochs, batch_size=batch_size, learning_rate=rate,
               **options)  # fmt: skip


@torch.no_grad()
def summed_logprobs(policy: Policy, batch: Batch, batch_size: int = 512) -> Tensor:
    """log pi(completion | prompt) for each row, shape (N,); in parts of at most `batch_size` rows."""
    out = torch.empty(len(batch), device=policy.device)
    lengths, tokens = batch.attention.sum(1), tokens_at_once(policy.model, learning=False)
    for rows in lengths.argsort().split(batch_size):  # by length: little padding in each part
        for part in in_parts(rows, lengths, tokens):
            out[part] = policy.token_logprobs(batch.rows(part)).sum(1)
    bad = (~out.isfinite()).nonzero().flatten().tolist()
    if bad:
        raise AlignkitError(
            f"{policy.name!r} gives row {bad[0]} a log-probability that is not finite ({len(bad)} rows in all); check "
            "the model's weights, or drop those rows"
        )
    return out
