"""What one step of a policy gradient has seen: samples, their rewards token by token, their likelihoods and values."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from alignkit.errors import RewardError
from alignkit.policy import Batch, Policy, Rollout, positions
from alignkit.rewards.base import Judgement
from alignkit.rewards.process import step_tokens


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


CREDITS = ("finest", "response")


def token_rewards(judgement: Judgement, policy: Policy, rollout: Rollout) -> Tensor | None:
    """The finest credit the judgement holds, laid on the rollout's tokens, shape (N, T); None if it has only scores.

    The reward of a step (or segment) goes to its last token; NaN where there is none. RewardError if the numbers don't
    match the completions.
    """
    finest = judgement.tokens or judgement.steps
    if finest is None:
        return None
    if len(finest) != len(rollout.completions):
        raise RewardError(f"finer rewards for {len(finest)} completions, but there are {len(rollout.completions)}")
    rewards = torch.full(rollout.batch.mask.shape, torch.nan)
    length = rollout.batch.mask.sum(1).tolist()
    if judgement.tokens:  # a reward that reads text closes what was cut off, but no end of sequence was sampled there
        cut_off = [not e and len(v) == n + 1 for v, n, e in zip(finest, length, rollout.ended.tolist(), strict=True)]
        finest = [values[:-1] if cut else values for values, cut in zip(finest, cut_off, strict=True)]
    places = [range(len(values)) for values in finest]
    if not judgement.tokens:
        if judgement.ends is None:
            raise RewardError("a judgement with steps must say where they end: set `ends`, in characters")
        places = step_tokens(policy, rollout.completions, judgement.ends)
    for row, (values, where) in enumerate(zip(finest, places, strict=True)):
        if len(where) != len(values) or (len(where) and max(where) >= length[row]):
            what, room = ("token", length[row]) if judgement.tokens else ("step", len(where))
            raise RewardError(
                f"row {row}: {len(values)} {what} rewards do not fit the completion's {room} places; give one for each"
            )
        for place, value in zip(where, values, strict=True):
            rewards[row, place] = float(value)
    return rewards.to(rollout.batch.ids.device)


class Critic(torch.nn.Module):
    """A copy of the policy's network with a linear head on the state before each token; starts at 0 everywhere."""

    def __init__(self, policy: Policy):
        super().__init__()
        self.model = copy.deepcopy(policy.model)
        self.head = torch.nn.Linear(policy.model.config.hidden_size, 1).to(policy.device)
        torch.nn.init.zeros_(self.head.weight)
        torch.nn.init.zeros_(self.head.bias)

    def forward(self, batch: Batch) -> Tensor:
        """V before each completion token, shape (N, T), 0 where masked; differentiable."""
        states = self.model(
            input_ids=batch.ids,
            attention_mask=batch.attention,
            position_ids=positions(batch.attention),
            output_hidden_states=True,
            logits_to_keep=1,
            use_cache=False,
        ).hidden_states[-1]
        width = batch.mask.shape[1]
        return self.head(states[:, -width - 1 : -1]).squeeze(-1) * batch.mask
