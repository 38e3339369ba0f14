"""Online DPO: at every step, two fresh samples of the policy itself, judged on the spot."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from alignkit.errors import AlignkitError
from alignkit.optimize.checkpoint import digest
from alignkit.optimize.fresh import train_on_fresh
from alignkit.optimize.labelers import Labeler, preference
from alignkit.optimize.pair_losses import dpo_loss
from alignkit.optimize.training import summed_logprobs
from alignkit.policy import Policy, check_same_vocabulary
from alignkit.rewards.base import Reward

PairLoss = Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]


def online_dpo(
    policy: Policy,
    prompts: list,
    labeler: Labeler | Reward,
    beta: float = 0.2,
    steps: int = 60,
    batch_size: int = 32,
    learning_rate: float = 3e-4,
    loss: PairLoss = dpo_loss,
    reference: Policy | None = None,
    seed: int = 0,
    **options,
) -> Policy:
    """Each of `steps` updates samples two completions for each of `batch_size` prompts from the policy as it is now,
    has them labeled, and takes one step of DPO (or of another `loss` of pairs) with a fixed reference (OAIF
    2402.04792); returns a new policy. Ties and equal samples count 0. Options: see `train`."""
    if not 0 < beta < float("inf"):
        raise AlignkitError(f"online_dpo: beta must be > 0, not {beta}; at 0 the loss says nothing about the policy")
    reference = policy if reference is None else reference
    check_same_vocabulary(policy, reference)
    treated = policy.copy(f"{policy.name} + online dpo")

    def loss_of(asked: list, seed: int) -> tuple[Tensor, dict]:
        said = treated.sample(asked, 2, seed=seed)
        a, b = [texts[0] for texts in said], [texts[1] for texts in said]
        better = preference(labeler, asked, a, b)
        better = np.where([x == y for x, y in zip(a, b, strict=True)], 0.5, better)
        wins = torch.tensor(better > 0.5, device=treated.device)
        batch = treated.encode(asked * 2, a + b)
        logp, ref = treated.token_logprobs(batch).sum(1).chunk(2), summed_logprobs(reference, batch).chunk(2)
        chosen, rejected = torch.where(wins, *logp), torch.where(wins, *reversed(logp))
        ref_chosen, ref_rejected = torch.where(wins, *ref), torch.where(wins, *reversed(ref))
        told = torch.tensor(better != 0.5, device=treated.device)
        each = loss(chosen, rejected, ref_chosen, ref_rejected, beta)
        margin = (chosen - ref_chosen) - (rejected - ref_rejected)
        return torch.where(told, each, 0.0 * each).sum() / told.sum().clamp(min=1), {
            "margin": beta * margin.mean().item(),
            "kl": torch.cat([now.detach() - then for now, then in zip(logp, ref, strict=True)]).mean().item(),
            "different": told.float().mean().item(),
        }

    told = {"reference": digest(reference.model), "beta": beta, "loss": loss.__name__}
    train_on_fresh(treated, prompts, loss_of, steps, batch_size, learning_rate, seed, told, **options)
    treated.spent |= {"completions_sampled": 2 * steps * batch_size, "judgments": steps * batch_size}
    return treated
