"""Losses on fresh samples: at every step, prompts in turn are asked anew of the policy as it is now."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from alignkit.errors import AlignkitError
from alignkit.optimize.checkpoint import digest
from alignkit.optimize.training import train
from alignkit.policy import Policy


def train_on_fresh(
    treated: Policy,
    prompts: list,
    loss_of: Callable[[list, int], tuple[Tensor, dict]],
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int = 0,
    told: dict | None = None,
    **options,
) -> Policy:
    """`train` without data: `loss_of(asked, seed)` samples completions of the prompts `asked` with that seed, and
    returns the loss and what to note; changes and returns `treated`.

    The data are rows, one for each time that a prompt is asked. A minibatch's rows tell it from all others and seed its
    samples, so that training that was interrupted draws the same. Options: see `train`.
    """
    if not prompts or min(steps, batch_size) < 1:
        raise AlignkitError(
            f"{treated.name}: there must be prompts, and steps and prompts a step at least 1; not {len(prompts)}, "
            f"{steps}, {batch_size}"
        )
    rows = steps * batch_size

    def loss(index: Tensor) -> tuple[Tensor, dict]:
        return loss_of([prompts[i % len(prompts)] for i in index], int(digest(index, seed), 16) % 2**63)

    lengths = torch.tensor([len(treated.prompt_ids(p)) for p in prompts]).repeat(-(-rows // len(prompts)))[:rows]
    told = {"prompts": digest(prompts), **(told or {})}
    return train(treated, loss, lengths, 1, batch_size, learning_rate, seed=seed, told=told, **options)
