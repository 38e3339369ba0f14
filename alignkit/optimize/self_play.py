"""Rounds in which the policy plays against itself: SPIN and SPPO."""

from __future__ import annotations

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from alignkit.errors import AlignkitError
from alignkit.optimize.checkpoint import digest
from alignkit.optimize.labelers import Labeler, preference
from alignkit.optimize.pair_losses import sppo_loss
from alignkit.optimize.preference import dpo
from alignkit.optimize.rounds import Spent, as_pairs, at_least, in_rounds
from alignkit.optimize.training import summed_logprobs, train
from alignkit.policy import Policy
from alignkit.rewards.base import Reward
from alignkit.rewards.data import check_columns, check_texts


def spin(
    policy: Policy, data: Dataset, beta: float = 0.2, epochs: float = 1, batch_size: int = 32,
    learning_rate: float = 3e-4, **options,
) -> Policy:  # fmt: skip
    """Self-play fine-tuning: each round, demonstrations (`prompt/completion`) are chosen over the current policy's own
    samples by DPO's loss, with the current policy as reference (2401.01335). Nobody judges; it can stop only where own
    samples look like demonstrations. Options: see `in_rounds`."""
    check_columns(data, ["prompt", "completion"], "demonstrations")
    check_texts(data, "completion")
    rows = list(zip(data["prompt"][:], data["completion"][:], strict=True))

    def one_round(current: Policy, asked: list, seed: int, rest: dict) -> tuple[Policy, Spent]:
        own = [texts[0] for texts in current.sample([p for p, _ in asked], 1, seed=seed)]
        sides = [(p, good, mine) for (p, good), mine in zip(asked, own, strict=True) if good != mine]
        after = dpo(current, as_pairs(sides, "spin"), beta=beta, epochs=epochs, batch_size=batch_size,
                    learning_rate=learning_rate, **rest)  # fmt: skip
        return after, {"completions_sampled": len(asked), "judgments": 0}

    return in_rounds(policy, rows, one_round, "spin", **options)


def sppo(
    policy: Policy, prompts: list, labeler: Labeler | Reward, eta: float = 5.0, k: int = 5, epochs: float = 1,
    batch_size: int = 32, learning_rate: float = 3e-4, **options,
) -> Policy:  # fmt: skip
    """Self-play preference optimization: `k` samples a prompt of the current policy; the squared loss takes
    log pi / pi_current of each to eta (win rate - 1/2), win rates among the k by `labeler` (2405.00675).

    That is one multiplicative-weights step toward a policy that no other beats, whether or not preferences have a
    reward behind them. The paper trains on each prompt's best and worst sample only. Options: see `in_rounds`.
    """
    at_least("sppo", k=(k, 2))
    if not 0 < eta < float("inf"):
        raise AlignkitError(f"sppo: eta must be > 0, not {eta}; at 0 the policy stays where it is")

    def one_round(current: Policy, asked: list, seed: int, rest: dict) -> tuple[Policy, Spent]:
        said = current.rollout(asked, k, seed=seed)
        rates = win_rates(labeler, asked, said.completions, k)
        treated = current.copy()
        batch = treated.encode(said.prompts, said.completions)
        ref = summed_logprobs(current, batch)
        rate = torch.tensor(rates.ravel(), dtype=ref.dtype, device=ref.device)

        def loss(index: Tensor) -> tuple[Tensor, dict]:
            moved = treated.token_logprobs(batch.rows(index)).sum(1) - ref[index]
            return sppo_loss(moved, rate[index], eta).mean(), {"moved": moved.mean().item()}

        told = {"data": digest(batch.ids, rate), "eta": eta}
        after = train(treated, loss, batch.attention.sum(1), epochs, batch_size, learning_rate, told=told, **rest)
        return after, {"completions_sampled": rates.size, "judgments": rates.size * (k - 1) // 2}

    return in_rounds(policy, prompts, one_round, "sppo", **options)


def win_rates(labeler: Labeler | Reward, prompts: list, completions: list[str], k: int) -> np.ndarray:
    """Share of the k samples of its prompt that each completion beats (itself and equal ones by 1/2), shape (prompts,
    k). Each two are compared once."""
    i, j = np.triu_indices(k, 1)
    rows = [(p, completions[k * row + a], completions[k * row + b])
            for row, p in enumerate(prompts) for a, b in zip(i, j, strict=True)]  # fmt: skip
    said = preference(labeler, *map(list, zip(*rows, strict=True)))
    said = np.where([a == b for _, a, b in rows], 0.5, said).reshape(len(prompts), -1)
    won = np.full((len(prompts), k, k), 0.5)
    won[:, i, j], won[:, j, i] = said, 1 - said
    return won.mean(2)
