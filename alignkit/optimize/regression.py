"""Log-ratios are regressed on rewards: a loss on pairs, as DPO's is, that hears by how much and not only which.

After REBEL (Gao et al. 2024), whose authors count it as RL; here the reference stays fixed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from alignkit.errors import AlignkitError
from alignkit.optimize.checkpoint import digest
from alignkit.optimize.fresh import train_on_fresh
from alignkit.optimize.training import summed_logprobs
from alignkit.policy import Batch, Policy, check_same_vocabulary
from alignkit.rewards.base import Reward, as_reward


def regression_loss(logp: Tensor, ref: Tensor, reward: Tensor, beta: float) -> Tensor:
    """The variance of beta log pi/ref - r within groups, (prompts, group) each; one number a prompt.

    Half the mean squared error of beta (difference of log-ratios) against (difference of rewards) over all pairs of a
    group. It is 0 exactly where pi is pi_ref exp(r / beta) / Z. On fresh samples its gradient is that of RLOO with the
    KL in the reward, times 2 beta (group - 1) / group.
    """
    if logp.ndim != 2 or logp.shape[1] < 2:
        raise AlignkitError(f"regression_loss needs groups of at least 2 completions, got shape {tuple(logp.shape)}")
    return (beta * (logp - ref) - reward).var(1, correction=0)


def reward_regression(
    policy: Policy,
    prompts: list,
    reward: Reward | Callable,
    beta: float = 0.2,
    steps: int = 60,
    prompts_per_step: int = 32,
    group_size: int = 4,
    learning_rate: float = 1e-3,
    reference: Policy | None = None,
    seed: int = 0,
    **options,
) -> Policy:
    """Each of `steps` updates samples `group_size` completions for each of `prompts_per_step` prompts from the policy
    as it is now and takes one step on `regression_loss`; returns a new policy. Options: see `train`.

    (REBEL, Gao et al. 2024, moves its reference and makes many updates a batch. The loss is divided by beta, so that
    its gradient is RLOO's up to a constant.)
    """
    if not 0 < beta < float("inf"):
        raise AlignkitError(f"reward_regression: beta must be > 0, not {beta}; at 0 no policy fits the rewards")
    if group_size < 2:
        raise AlignkitError(
            f"reward_regression compares completions of a prompt: group_size must be at least 2, not {group_size}"
        )
    reward = as_reward(reward)
    reference = policy if reference is None else reference
    check_same_vocabulary(policy, reference)
    treated = policy.copy(f"{policy.name} + regression")

    def loss_of(asked: list, seed: int) -> tuple[Tensor, dict]:
        said = treated.rollout(asked, group_size, seed=seed)
        scores = torch.from_numpy(reward(said.prompts, said.completions).scores).float().to(treated.device)
        logp, ref = _summed(treated, said.batch), summed_logprobs(reference, said.batch, len(said.batch) // 4 + 1)
        groups = [values.view(-1, group_size) for values in (logp, ref, scores)]
        return regression_loss(*groups, beta).mean() / beta, {
            "reward": scores.mean().item(), "kl": (logp.detach() - ref).mean().item()
        }  # fmt: skip

    told = {"reference": digest(reference.model), "beta": beta, "group": group_size}
    train_on_fresh(treated, prompts, loss_of, steps, prompts_per_step, learning_rate, seed, told, **options)
    sampled = steps * prompts_per_step * group_size
    treated.spent |= {"completions_sampled": sampled, "forward_rows": 2 * sampled, "backward_rows": sampled}
    return treated


def _summed(policy: Policy, batch: Batch, parts: int = 4) -> Tensor:
    """log pi of each completion, differentiable; read in parts of similar length, to spare padding."""
    order = batch.attention.sum(1).argsort()
    logp = torch.cat([policy.token_logprobs(batch.rows(rows)).sum(1) for rows in order.chunk(parts)])
    return logp[order.argsort()]
