"""What one step of a policy gradient has seen: samples, their rewards, and their likelihoods."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from alignkit.policy import Batch, Rollout


@dataclass
class Experience:
    """N = prompts x group completions of up to T tokens.

    `scores` (N,): one number a completion. `rewards` (N, T): what is paid at each token, NaN where nothing is. `dense`:
    whether the reward gave finer credit than one number a completion, which is otherwise paid at its last token.
    `old`, `ref` (N, T): log-probabilities when sampled, and under the reference. `greedy` (prompts,): scores of the
    greedy completions, if asked for. `values` (N, T): the critic's, if there is one.
    """

    rollout: Rollout
    scores: Tensor
    rewards: Tensor
    dense: bool
    old: Tensor
    ref: Tensor
    group: int
    greedy: Tensor | None = None
    values: Tensor | None = None

    @property
    def mask(self) -> Tensor:
        return self.rollout.batch.mask

    @property
    def kl(self) -> Tensor:
        """k1 at each token, shape (N, T)."""
        return self.old - self.ref

    @property
    def penalty(self) -> Tensor:
        """The KL as a reward to be subtracted, paid as the reward is: at each token, or all of it at the last one."""
        return self.kl if self.dense else at_last_token(self.kl.sum(1), self.mask)

    def paid(self, beta: float) -> Tensor:
        """The rewards with beta times the penalty taken off; (N, T), NaN where nothing is paid."""
        if not beta:
            return self.rewards
        return (self.rewards.nan_to_num() if self.dense else self.rewards) - beta * self.penalty

    def grouped(self, values: Tensor) -> Tensor:
        """(N, T) to (prompts, group, T)."""
        return values.unflatten(0, (-1, self.group))


def at_last_token(values: Tensor, mask: Tensor) -> Tensor:
    """One number a completion, shape (N,), as a reward paid at its last token, shape (N, T); NaN elsewhere."""
    last = (mask.cumsum(1) == mask.sum(1, keepdim=True)) & (mask > 0)
    return torch.where(last, values[:, None], torch.nan)


def some_rows(rollout: Rollout, index: Tensor) -> Rollout:
    """Some of a rollout's rows, in the given order."""
    rows = index.tolist()
    return Rollout([rollout.prompts[i] for i in rows], [rollout.completions[i] for i in rows],
                   rollout.batch.rows(index), rollout.ended[index])  # fmt: skip


def joined(rollouts: list[Rollout]) -> Rollout:
    """Rollouts one below the other, padded to the widest."""
    batches = [r.batch for r in rollouts]
    right = max(b.mask.shape[1] for b in batches)
    left = max(b.ids.shape[1] - b.mask.shape[1] for b in batches)

    def pad(values: Tensor, b: Batch) -> Tensor:
        grow = right - b.mask.shape[1]
        before = left - (b.ids.shape[1] - b.mask.shape[1]) if values.shape[1] == b.ids.shape[1] else 0
        return F.pad(values, (before, grow))

    batch = Batch(
        *(torch.cat([pad(getattr(b, name), b) for b in batches]) for name in ("ids", "attention", "completion", "mask"))
    )
    return Rollout(
        [p for r in rollouts for p in r.prompts],
        [c for r in rollouts for c in r.completions],
        batch,
        torch.cat([r.ended for r in rollouts]),
    )
