"""Learning from fixed data: supervised fine-tuning and DPO, one loop for both."""

from __future__ import annotations

import time
from collections.abc import Callable

import pandas as pd
import torch
from datasets import Dataset
from torch import Tensor
from torch.optim import AdamW
from tqdm.auto import trange

from alignkit.errors import AlignkitError, DataError
from alignkit.optimize.losses import dpo_loss
from alignkit.policy import Batch, Policy, shuffled_batches
from alignkit.rewards.data import check_pairs, check_texts, encode_pairs, pair_lengths


def sft(
    policy: Policy,
    data: Dataset,
    epochs: float = 1,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    seed: int = 0,
    progress: bool = True,
) -> Policy:
    """Maximize the likelihood of `completion` given `prompt` (TRL's prompt-completion format); returns a new policy.

    Loss: mean over completion tokens of -log pi, end-of-sequence included.
    """
    missing = {"prompt", "completion"} - set(data.column_names)
    if missing or not len(data):
        raise DataError(f"sft needs rows with prompt and completion; missing {sorted(missing)}, {len(data)} rows")
    check_texts(data, "completion")
    treated = policy.copy(f"{policy.name} + sft")
    batch = treated.encode(data["prompt"][:], data["completion"][:])

    def loss(index: Tensor) -> tuple[Tensor, dict]:
        rows = batch.rows(index)
        logp = treated.token_logprobs(rows)
        return -logp.sum() / rows.mask.sum(), {}

    return _train(treated, loss, batch.attention.sum(1), epochs, batch_size, learning_rate, seed, progress)


def dpo(
    policy: Policy,
    pairs: Dataset,
    beta: float = 0.2,
    epochs: float = 2,
    batch_size: int = 32,
    learning_rate: float = 3e-4,
    seed: int = 0,
    progress: bool = True,
) -> Policy:
    """Direct preference optimization on `prompt/chosen/rejected` with `policy` as the reference (2305.18290).

    beta is the strength of the KL penalty of the objective that DPO solves implicitly: smaller moves farther. Returns a
    new policy; its history holds loss, accuracy and margin of the implicit reward, and how both log-probs moved.
    """
    check_pairs(pairs)
    if not beta > 0:
        raise AlignkitError(f"dpo: beta must be > 0, not {beta}; at 0 the loss says nothing about the policy")
    treated = policy.copy(f"{policy.name} + dpo")
    both = encode_pairs(treated, pairs)
    reference = summed_logprobs(policy, both)  # cached: the reference does not change

    def loss(index: Tensor) -> tuple[Tensor, dict]:
        rows = torch.cat([index, index + len(pairs)])  # both sides in one forward pass
        chosen, rejected = treated.token_logprobs(both.rows(rows)).sum(1).chunk(2)
        ref_chosen, ref_rejected = reference[rows].chunk(2)
        moved_chosen, moved_rejected = chosen - ref_chosen, rejected - ref_rejected
        value = dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta).mean()
        return value, {
            "accuracy": (moved_chosen > moved_rejected).float().mean().item(),
            "margin": beta * (moved_chosen - moved_rejected).mean().item(),
            "chosen_moved": moved_chosen.mean().item(),
            "rejected_moved": moved_rejected.mean().item(),
        }

    return _train(treated, loss, pair_lengths(both), epochs, batch_size, learning_rate, seed, progress)


@torch.no_grad()
def summed_logprobs(policy: Policy, batch: Batch, batch_size: int = 512) -> Tensor:
    """log pi(completion | prompt) for each row, shape (N,)."""
    rows = torch.arange(len(batch)).split(batch_size)
    return torch.cat([policy.token_logprobs(batch.rows(part)).sum(1) for part in rows])


def _train(
    policy: Policy,
    loss_of: Callable[[Tensor], tuple[Tensor, dict]],
    lengths: Tensor,
    epochs: float,
    batch_size: int,
    learning_rate: float,
    seed: int,
    progress: bool,
) -> Policy:
    """The loop: shuffled minibatches, AdamW, linear decay of the learning rate, gradient norm at most 1.

    Dropout stays off (as in TRL's DPO), so that policy and reference agree before the first update.
    """
    steps = max(1, round(epochs * len(lengths) / batch_size))
    optimizer = AdamW(policy.model.parameters(), lr=learning_rate, weight_decay=0.0)
    order, rows, start = shuffled_batches(lengths, batch_size, steps, seed), [], time.perf_counter()
    for step in trange(steps, desc=policy.name, disable=not progress, leave=False):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * (1 - step / steps)
        loss, measured = loss_of(order[step])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.model.parameters(), 1.0)
        optimizer.step()
        rows.append({"step": step, "loss": loss.item(), **measured})
    policy.history = pd.DataFrame(rows)
    policy.spent = {"rows_read": float(sum(map(len, order))), "updates": steps, "seconds": time.perf_counter() - start}
    return policy
