"""Learning from rankings of several answers: RRHF and PRO."""

from __future__ import annotations

from collections.abc import Callable

import torch
from datasets import Dataset
from torch import Tensor

from alignkit.errors import AlignkitError, DataError
from alignkit.optimize.pair_losses import nll_loss, pro_loss, rrhf_loss
from alignkit.optimize.training import train
from alignkit.policy import Policy
from alignkit.rewards.data import check_columns, check_texts


def rrhf(policy: Policy, rankings: Dataset, weight: float = 1.0, **options) -> Policy:
    """Rank responses to align: a hinge on mean token log-probabilities of each two places of a ranking, plus `weight`
    times the likelihood of the best (2304.05302); no reference. Options: see `from_rankings`."""
    return from_rankings(policy, rankings, rrhf_loss, "rrhf", weight, **options)


def pro(policy: Policy, rankings: Dataset, beta: float = 1.0, weight: float = 0.05, **options) -> Policy:
    """Preference ranking optimization: the Plackett-Luce likelihood of a ranking with mean token log-probabilities as
    rewards, plus `weight` times the likelihood of the best (2306.17492; its temperature by reward gaps is left out);
    no reference. Options: see `from_rankings`."""
    if not 0 < beta < float("inf"):
        raise AlignkitError(f"pro: beta must be > 0, not {beta}; at 0 the ranking says nothing about the policy")
    return from_rankings(policy, rankings, lambda means: pro_loss(means, beta), "pro", weight, **options)


def from_rankings(
    policy: Policy,
    rankings: Dataset,
    loss: Callable[[Tensor], Tensor],
    name: str,
    weight: float,
    epochs: float = 2,
    batch_size: int = 16,
    learning_rate: float | None = None,
    **options,
) -> Policy:
    """Minimize `loss(means)`, means of shape (1, K), best first, on `prompt/ranked` (as of `feedback.rank`); returns a
    new policy. `batch_size` counts rankings, which may differ in K. Further options: see `train`."""
    if not 0 <= weight < float("inf"):
        raise AlignkitError(f"{name}: weight must be at least 0, not {weight}")
    check_rankings(rankings)
    size = torch.tensor([len(ranked) for ranked in rankings["ranked"]])
    start = size.cumsum(0) - size
    prompts = [p for p, k in zip(rankings["prompt"], size.tolist(), strict=True) for _ in range(k)]
    treated = policy.copy(f"{policy.name} + {name}")
    batch = treated.encode(prompts, [text for ranked in rankings["ranked"] for text in ranked])
    length, width = batch.mask.sum(1), batch.attention.sum(1)

    def loss_of(part: Tensor, minibatch: Tensor) -> tuple[Tensor, dict]:
        rows = torch.cat([torch.arange(start[i], start[i] + size[i]) for i in part])
        logp = treated.token_logprobs(batch.rows(rows)).sum(1)
        sizes = size[part].tolist()
        means = (logp / length[rows]).split(sizes)
        best = torch.tensor([0, *sizes[:-1]]).cumsum(0)
        ranked = torch.stack([loss(each[None])[0] for each in means])
        likely = nll_loss(logp[best], length[start[minibatch]])
        return ranked.sum() / len(minibatch) + weight * (likely.sum() / len(minibatch)), {
            "ranking": ranked,
            "nll": likely,
            "accuracy": torch.stack([each.argmax() == 0 for each in means]),
        }

    lengths = torch.stack([rows.max() for rows in width.split(size.tolist())])
    return train(treated, loss_of, lengths, epochs, batch_size, learning_rate, **options)


def check_rankings(rankings: Dataset) -> None:
    """DataError naming the row if a ranking does not list at least two texts."""
    check_columns(rankings, ["prompt", "ranked"], "rankings")
    check_texts(rankings)
    for row, ranked in enumerate(rankings["ranked"]):
        if not isinstance(ranked, list) or len(ranked) < 2 or not all(isinstance(text, str) for text in ranked):
            raise DataError(f"row {row}: 'ranked' must list at least two texts, best first; it is {ranked!r:.80}")
