"""Do two objectives, or two tasks, pull the same weights in different directions? Gradients, their cosine, a remedy."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from datasets import Dataset
from torch import Tensor

from alignkit.errors import AlignkitError
from alignkit.optimize.advantages import leave_one_out
from alignkit.optimize.inference import judged_samples
from alignkit.policy import Policy
from alignkit.rewards.base import Reward


def reward_gradient(
    policy: Policy, prompts: list | Dataset, reward: Reward | Callable, n: int = 8, seed: int = 0,
    max_new_tokens: int = 48, batch_size: int = 256,
) -> Tensor:  # fmt: skip
    """An unbiased estimate of the gradient of E[reward] with respect to all weights, one flat vector.

    From n completions of each prompt with the leave-one-out baseline (RLOO 2402.14740), no KL.
    """
    said, judgement = judged_samples("reward_gradient", policy, prompts, reward, n, seed, max_new_tokens=max_new_tokens)
    scores = torch.from_numpy(judgement.all_scores("reward_gradient")).float()
    advantage = leave_one_out(scores.view(-1, n)).flatten().to(policy.device)
    weights = [p for p in policy.model.parameters() if p.requires_grad]
    total = 0
    for rows in torch.arange(len(advantage)).split(batch_size):
        gain = (policy.token_logprobs(said.batch.rows(rows)).sum(1) * advantage[rows]).sum() / len(advantage)
        total = total + torch.cat([part.flatten() for part in torch.autograd.grad(gain, weights)])
    return total


def cosine(a: Tensor, b: Tensor) -> float:
    """Of the angle between two gradients: below 0, a step for one objective is a step against the other."""
    return float(torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0))


def unshrunk_cosine(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """The cosine of two true gradients from two independent estimates of each.

    Noise makes any two estimates look unrelated. As in Spearman's correction for attenuation, the inner product of
    estimates from different samples is divided by what two estimates of the *same* gradient have in common. May leave
    [-1, 1]; NaN if an estimate does not even agree with its own repetition.
    """
    (a, a2), (b, b2) = ([g.double() for g in pair] for pair in (first, second))
    if not (a @ a2 > 0 and b @ b2 > 0):
        return float("nan")
    return float((a @ b2 + a2 @ b + a @ b + a2 @ b2) / 4 / ((a @ a2) * (b @ b2)).sqrt())


def project_conflicts(gradients: Sequence[Tensor]) -> list[Tensor]:
    """PCGrad (2001.06782): from each gradient, what points against another is taken away.

    g_i <- g_i - (g_i . g_j / |g_j|^2) g_j wherever g_i . g_j < 0, for the others in turn (the paper draws their order).
    """
    if len(gradients) < 2:
        raise AlignkitError(f"project_conflicts compares gradients; {len(gradients)} given, at least 2 are needed")
    out = []
    for i, g in enumerate(gradients):
        for j, other in enumerate(gradients):
            along = g @ other
            if i != j and along < 0:
                g = g - along / (other @ other) * other
        out.append(g)
    return out
