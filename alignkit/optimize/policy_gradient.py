"""Learning from rewards of fresh samples: RLOO and GRPO, one loop for both."""

from __future__ import annotations

import time
from collections.abc import Callable

import pandas as pd
import torch
from torch import Tensor
from torch.optim import AdamW
from tqdm.auto import trange

from alignkit.errors import AlignkitError
from alignkit.optimize.advantages import (
    dense_group_normalized,
    dense_leave_one_out,
    group_normalized,
    leave_one_out,
)
from alignkit.optimize.credit import CREDITS, token_rewards
from alignkit.optimize.losses import clipped_surrogate, kl_estimate
from alignkit.policy import Batch, Policy, Rollout
from alignkit.rewards.base import Reward, as_reward


def rloo(policy: Policy, prompts: list, reward: Reward | Callable, beta: float = 0.2, **options) -> Policy:
    """REINFORCE with the leave-one-out baseline (2402.14740).

    The KL to `policy` is part of the reward: r - beta * log(pi / ref) of the whole completion (k1). The completion is
    one action: its loss is -A * sum of log pi over its tokens. With dense rewards each token is an action, and its
    advantage is the reward-to-go against that of the others. Options as in `policy_gradient`.
    """
    clip = options.get("clip", 0.2)

    def losses(logp: Tensor, old: Tensor, ref: Tensor, mask: Tensor, advantage: Tensor) -> Tensor:
        if advantage.ndim == 2:
            return -(clipped_surrogate(logp, old, advantage, clip) * mask).sum(1)
        return -clipped_surrogate(logp.sum(1), old.sum(1), advantage, clip)

    advantages = (leave_one_out, dense_leave_one_out)
    return policy_gradient(policy, prompts, reward, advantages, losses, kl_in_reward=beta, name="rloo", **options)


def grpo(policy: Policy, prompts: list, reward: Reward | Callable, beta: float = 0.2, **options) -> Policy:
    """Group relative policy optimization (2402.03300, eq. 3).

    Advantages are normalized by the group's standard deviation; the KL to `policy` is part of the loss (k3 at each
    token); each completion's token losses are averaged over its length, as in the paper. Dense rewards make it the
    paper's variant with process supervision.
    """
    clip = options.get("clip", 0.2)

    def losses(logp: Tensor, old: Tensor, ref: Tensor, mask: Tensor, advantage: Tensor) -> Tensor:
        gain = clipped_surrogate(logp, old, advantage.view(len(advantage), -1), clip)
        return -((gain - beta * kl_estimate(logp, ref, "k3")) * mask).sum(1) / mask.sum(1).clamp(min=1)

    advantages = (group_normalized, dense_group_normalized)
    return policy_gradient(policy, prompts, reward, advantages, losses, kl_in_reward=0.0, name="grpo", **options)


def policy_gradient(
    policy: Policy,
    prompts: list,
    reward: Reward | Callable,
    advantages_of: tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]],
    losses_of: Callable[..., Tensor],
    kl_in_reward: float,
    name: str,
    steps: int = 40,
    prompts_per_step: int = 8,
    group_size: int = 16,
    epochs: int = 1,
    minibatches: int = 1,
    clip: float = 0.2,
    learning_rate: float = 5e-4,
    max_new_tokens: int = 48,
    max_kl: float | None = None,
    credit: str = "finest",
    seed: int = 0,
    progress: bool = True,
) -> Policy:
    """Sample a batch, score it, update on it; returns a new policy, `policy` itself is the reference.

    Each step samples `group_size` completions for each of `prompts_per_step` prompts, then makes `epochs` passes over
    them in `minibatches` parts (clipping acts only from the second update on the same samples on). `max_kl` (nats) ends
    the treatment early, before the update of the first batch whose KL exceeds it. The history has one row a step:
    reward, k1 estimate of the sequence KL, length in tokens, clip fraction, share of zero-variance groups.

    `advantages_of`: from scores (prompts, group), and from token rewards and mask (prompts, group, T). `credit`
    "finest" uses rewards of tokens, steps or segments where the reward gives them, "response" its scores only.
    """
    if credit not in CREDITS:
        raise AlignkitError(f"{name}: credit must be one of {', '.join(CREDITS)}, not {credit!r}")
    if not prompts or steps < 1:
        raise AlignkitError(f"{name}: prompts must not be empty and steps must be at least 1 (steps={steps})")
    reward = as_reward(reward)
    treated = policy.copy(f"{policy.name} + {name}")
    optimizer = AdamW(treated.model.parameters(), lr=learning_rate, weight_decay=0.0)
    generator = torch.Generator().manual_seed(seed)
    order = torch.cat(
        [torch.randperm(len(prompts), generator=generator) for _ in range(-(-steps * prompts_per_step // len(prompts)))]
    )
    rows, updates, start = [], 0, time.perf_counter()
    for step in trange(steps, desc=treated.name, disable=not progress, leave=False):
        asked = [prompts[i] for i in order[step * prompts_per_step : (step + 1) * prompts_per_step]]
        sample_seed = int(torch.randint(2**31, (1,), generator=generator))
        rollout = treated.rollout(asked, group_size, seed=sample_seed, max_new_tokens=max_new_tokens)
        judgement = reward(rollout.prompts, rollout.completions)
        scores = torch.from_numpy(judgement.scores).float()
        with torch.no_grad():
            old, ref = treated.token_logprobs(rollout.batch), policy.token_logprobs(rollout.batch)
        moved = (old - ref).sum(1)
        if max_kl is not None and moved.mean() > max_kl:
            break
        dense = token_rewards(judgement, treated, rollout) if credit == "finest" else None
        if dense is None:
            shaped = (scores.to(moved.device) - kl_in_reward * moved).view(len(asked), group_size)
            advantage = advantages_of[0](shaped).flatten()
        else:
            shape = (len(asked), group_size)
            mask = rollout.batch.mask.unflatten(0, shape)
            advantage = advantages_of[1](dense.unflatten(0, shape), mask).flatten(0, 1)
            if kl_in_reward:  # a reward of its own, at every token
                penalty = (kl_in_reward * (old - ref)).unflatten(0, shape)
                advantage = advantage - advantages_of[1](penalty, mask).flatten(0, 1)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * (1 - step / steps)
        clipped = []
        for _ in range(epochs):
            for index in torch.randperm(len(advantage), generator=generator).chunk(minibatches):
                clipped.append(_update(treated, optimizer, rollout.batch, old, ref, advantage, index, losses_of, clip))
        updates += len(clipped)
        rows.append(_measure(step, rollout, scores, moved, group_size, clipped))
    treated.model.eval()
    treated.history = pd.DataFrame(rows)
    sampled = len(rows) * prompts_per_step * group_size
    treated.spent = {
        "completions_sampled": sampled,
        "forward_rows": sampled * (2 + epochs),
        "backward_rows": sampled * epochs,
        "updates": updates,
        "seconds": time.perf_counter() - start,
    }
    return treated


def _update(
    policy: Policy,
    optimizer,
    batch: Batch,
    old: Tensor,
    ref: Tensor,
    advantage: Tensor,
    index: Tensor,
    losses_of: Callable[..., Tensor],
    clip: float,
) -> float:
    """One optimizer step on some rows; returns the share of their tokens whose ratio lies outside the clip range."""
    rows = batch.rows(index)
    width = rows.mask.shape[1]
    logp = policy.token_logprobs(rows)
    old, ref = old[index, :width], ref[index, :width]
    advantage = advantage[index] if advantage.ndim == 1 else advantage[index, :width]
    loss = losses_of(logp, old, ref, rows.mask, advantage).mean()
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(policy.model.parameters(), 1.0)
    optimizer.step()
    outside = ((logp - old).exp() - 1).abs() > clip
    return ((outside * rows.mask).sum() / rows.mask.sum().clamp(min=1)).item()


def _measure(step: int, rollout: Rollout, scores: Tensor, moved: Tensor, group_size: int, clipped: list) -> dict:
    groups = scores.view(-1, group_size)
    return {
        "step": step,
        "reward": scores.mean().item(),
        "kl": moved.mean().item(),
        "tokens": rollout.batch.mask.sum(1).float().mean().item(),
        "clip_fraction": sum(clipped) / len(clipped),
        "zero_variance": (groups.amax(1) == groups.amin(1)).float().mean().item(),
    }
