"""What one step of a policy gradient has seen: samples, their rewards token by token, their likelihoods and values."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from alignkit.errors import RewardError
from alignkit.policy import Batch, Policy, Rollout, positions
from alignkit.rewards.base import Judgement
from alignkit.rewards.texts import step_tokens, token_ends


@dataclass
class Experience:
    """N = prompts x group_size completions of up to T tokens.

    `scores` (N,): one number a completion. `rewards` (N, T): what is paid at each token, NaN where nothing is. `dense`:
    whether the reward gave finer credit than one number a completion, which is otherwise paid at its last token.
    `columns`: what else the data set holds, one value a completion. A completion that the reward left out (None) has an
    empty mask: it is in no group, no mean and no loss.

    `old`, `ref` (N, T): log-probabilities when sampled, and under the reference. `greedy` (prompts,): scores of the
    greedy completions, if asked for. `values` (N, T): the critic's, if there is one.
    """

    rollout: Rollout
    scores: Tensor
    rewards: Tensor
    dense: bool
    group_size: int
    columns: dict[str, list]
    old: Tensor | None = None
    ref: Tensor | None = None
    greedy: Tensor | None = None
    values: Tensor | None = None

    @property
    def mask(self) -> Tensor:
        """1 for tokens of completions that the reward judged, shape (N, T)."""
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

    def in_groups(self, advantages_of: Callable[[Tensor, Tensor], Tensor], rewards: Tensor) -> Tensor:
        """What a function of rewards and mask, each (prompts, group_size, T), makes of these rewards; (N, T)."""
        values, mask = (each.unflatten(0, (-1, self.group_size)) for each in (rewards, self.mask))
        return advantages_of(values, mask).flatten(0, 1)

    def rows(self, index: Tensor) -> Experience:
        """Samples of some of the rows, in the given order, trimmed to the widest."""
        batch, kept, said = self.rollout.batch.rows(index), index.tolist(), self.rollout
        prompts, completions = ([texts[i] for i in kept] for texts in (said.prompts, said.completions))
        columns = {name: [values[i] for i in kept] for name, values in self.columns.items()}
        return replace(self, rollout=Rollout(prompts, completions, batch, said.ended[index]), columns=columns,
                       scores=self.scores[index], rewards=self.rewards[index][:, : batch.mask.shape[1]])  # fmt: skip


def judged(mask: Tensor) -> Tensor:
    """Which completions the reward judged, shape (N,), bool."""
    return mask.any(1)


def at_last_token(values: Tensor, mask: Tensor) -> Tensor:
    """One number a completion, shape (N,), as a reward paid at its last token, shape (N, T); NaN elsewhere."""
    last = (mask.cumsum(1) == mask.sum(1, keepdim=True)) & (mask > 0)
    return torch.where(last, values[:, None], torch.nan)


def all_samples(policy: Policy, parts: list[Experience]) -> Experience:
    """Samples of a policy one below the other."""
    if len(parts) == 1:
        return parts[0]
    said = [(part.rollout.prompts, part.rollout.completions, part.rollout.batch.tails) for part in parts]
    prompts, completions, tails = (sum(texts, []) for texts in zip(*said, strict=True))
    batch = policy.encode(prompts, tails)
    wide = [F.pad(p.rewards, (0, batch.mask.shape[1] - p.rewards.shape[1]), value=torch.nan) for p in parts]
    columns = {name: sum([part.columns[name] for part in parts], []) for name in parts[0].columns}
    rollout = Rollout(prompts, completions, batch, torch.cat([part.rollout.ended for part in parts]))
    return replace(parts[0], rollout=rollout, scores=torch.cat([part.scores for part in parts]),
                   rewards=torch.cat(wide), columns=columns)  # fmt: skip


# --- finer credit


def token_rewards(judgement: Judgement, policy: Policy, rollout: Rollout) -> Tensor | None:
    """The finest credit the judgement holds, laid on the tokens that were sampled, shape (N, T), NaN where nothing is
    paid; None if it has only scores.

    The reward of a step (or segment) goes to the token that holds its last character, white space aside. As many
    rewards of tokens as were sampled are theirs. Else they are of the text, tokenized again: where that gives other
    tokens, each goes to the sampled token that holds its last character (those that meet there are added up), and that
    of the end of sequence to the last one. RewardError if the numbers don't match the completions.
    """
    finest = judgement.tokens or judgement.steps
    if finest is None:
        return None
    if len(finest) != len(rollout.completions):
        raise RewardError(f"finer rewards for {len(finest)} completions, but there are {len(rollout.completions)}")
    if judgement.tokens is None and judgement.ends is None:
        raise RewardError("a judgement with steps must say where they end: set `ends`, in characters")
    rewards = torch.full(rollout.batch.mask.shape, torch.nan)
    read = None if judgement.tokens is None else policy.tokenize(rollout.prompts, rollout.completions)[1]
    sampled = zip(finest, rollout.batch.tails, rollout.completions, rollout.ended.tolist(), strict=True)
    for row, (values, ids, text, ended) in enumerate(sampled):
        if judgement.tokens is None:
            ends, what, room = judgement.ends[row], "step", len(judgement.ends[row])
            places = step_tokens(policy, ids[: len(ids) - ended], text, ends)
            fits = room == len(values) and all(1 <= end <= len(text) for end in ends)
        else:
            places = _places_of_tokens(len(values), policy, read[row], ids, text, ended)
            fits, what, room = bool(places) or not len(values), "token", len(ids)
        if not fits:
            raise RewardError(
                f"row {row}: {len(values)} {what} rewards do not fit the completion's {room} places; give one for each"
            )
        for place, value in zip(places, values, strict=False):  # of a cut-off completion, none for an end not sampled
            rewards[row, place] = float(value) + rewards[row, place].nan_to_num().item()
    return rewards.to(rollout.batch.ids.device)


def _places_of_tokens(n: int, policy: Policy, read: list[int], ids: list[int], text: str, ended: bool) -> list[int]:
    """The sampled token to which each of n rewards of tokens belongs; none if their number does not fit.

    `read`: the text tokenized again, as a reward reads it, with an end of sequence, sampled or not.
    """
    if n != len(ids) and read[: len(ids)] != ids and n in (len(read), len(read) - 1):
        own = ids[: len(ids) - ended]
        ends = np.maximum(token_ends(policy, read[:-1], text), 1)
        places = np.searchsorted(token_ends(policy, own, text), ends).clip(max=len(own) - 1)
        return places.tolist() + [len(ids) - 1] * ended
    return list(range(len(ids))) if n in (len(ids), len(ids) + (not ended)) else []


# --- values


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
