"""Learning from fixed data: what supervised fine-tuning and all preference losses do to a policy."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from alignkit.errors import AlignkitError
from alignkit.policy import Policy
from alignkit.tokens import Batch
from alignkit.training import SMALL, Callback, LossOf, fit


def train(
    treated: Policy, loss_of: LossOf, lengths: Tensor, prompts: Sequence | None = None,
    callback: Callback | None = None, sides: int = 1, beside: int = 0, reference_rows: int = 0, **options,
) -> Policy:  # fmt: skip
    """`alignkit.training.fit` of a policy; changes and returns `treated`, whose dropout stays off (as in TRL's DPO), so
    that policy and reference agree before the first update. Options: epochs, batch_size, learning_rate, seed, progress,
    micro_batch_tokens, checkpoint.

    Training of a real model (of `SMALL` weights or more) is watched by `language_watch` on its `prompts`. `spent`
    counts completions that were read: `backward_rows`, `sides` for each row of the data, and `forward_rows`, these and
    those read `beside` them without a gradient, and the `reference_rows` that the reference has read before.
    """
    if prompts is not None and sum(p.numel() for p in treated.model.parameters()) >= SMALL:
        callback = language_watch(treated, prompts, callback)
    fit(treated, loss_of, lengths, name=treated.name, sides=sides, callback=callback, **options)
    read = treated.spent["rows_read"]
    treated.spent |= {"forward_rows": (sides + beside) * read + reference_rows, "backward_rows": sides * read}
    return treated


def language_watch(policy: Policy, prompts: Sequence, callback: Callback | None = None) -> Callback:
    """A callback that ends training, with a warning, where the policy has lost its language; `callback` comes first.

    That is: the mean token of some `prompts`, which are text of the same kind but nothing that is trained on, costs 2
    nats more than before training. It is looked at after every tenth step.
    """
    ids = [policy.prompt_ids(prompt) for prompt in prompts[:16]]
    batch = policy.pad([row[:1] for row in ids], [row[1:] for row in ids])

    @torch.no_grad()
    def cost(now: Policy) -> float:
        return -(now.token_logprobs(batch).sum() / batch.mask.sum().clamp(min=1)).item()

    before = cost(policy)

    def watch(step: int, now: Policy, row: dict) -> bool:
        if callback is not None and callback(step, now, row) is True:
            return True
        if (step + 1) % 10 or (nats := cost(now)) < before + 2:
            return False
        warnings.warn(
            f"{now.name}: training ended after step {step}, since the policy has lost its language: a token of its "
            f"prompts costs {nats:.1f} nats, and cost {before:.1f} before; lower learning_rate, or raise beta",
            stacklevel=2,
        )
        return True

    return watch


@torch.no_grad()
def summed_logprobs(policy: Policy, batch: Batch, batch_size: int = 512) -> Tensor:
    """log pi(completion | prompt) for each row, shape (N,); in parts of at most `batch_size` rows."""
    out = torch.empty(len(batch), device=policy.device)
    for part in batch.attention.sum(1).argsort().split(batch_size):  # by length: little padding in each part
        out[part] = policy.token_logprobs(batch.rows(part)).sum(1)
    bad = (~out.isfinite()).nonzero().flatten().tolist()
    if bad:
        raise AlignkitError(
            f"{policy.name!r} gives row {bad[0]} a log-probability that is not finite ({len(bad)} rows in all); check "
            "the model's weights, or drop those rows"
        )
    return out
