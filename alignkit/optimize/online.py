"""Online DPO: at every step, two fresh samples of the policy itself, judged on the spot."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from alignkit.errors import AlignkitError
from alignkit.optimize.checkpoint import digest
from alignkit.optimize.labelers import Labeler, preference
from alignkit.optimize.pair_losses import dpo_loss
from alignkit.optimize.training import summed_logprobs, train
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
    if not prompts or steps < 1:
        raise AlignkitError(f"online_dpo: there must be prompts and at least one step, not {len(prompts)}, {steps}")
    reference = policy if reference is None else reference
    check_same_vocabulary(policy, reference)
    treated = policy.copy(f"{policy.name} + online dpo")

    # One row for each time that a prompt is asked, so that a minibatch's rows tell it from all others: they seed its
    # samples, and training that was interrupted draws the same.
    rows = steps * batch_size

    def loss_of(index: Tensor) -> tuple[Tensor, dict]:
        asked = [prompts[i % len(prompts)] for i in index]
        said = treated.sample(asked, 2, seed=int(digest(index, seed), 16) % 2**63)
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

    lengths = torch.tensor([len(treated.prompt_ids(p)) for p in prompts]).repeat(-(-rows // len(prompts)))[:rows]
    told = {"prompts": digest(prompts), "reference": digest(reference.model), "beta": beta, "loss": loss.__name__}
    options = {"seed": seed, "told": told, **options}
    train(treated, loss_of, lengths, 1, batch_size, learning_rate, **options)
    treated.spent |= {"completions_sampled": 2 * rows, "judgments": rows}
    return treated
