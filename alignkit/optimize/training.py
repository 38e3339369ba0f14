"""Learning from fixed data: one loop for supervised fine-tuning and all preference losses."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from torch.optim import AdamW
from tqdm.auto import tqdm

from alignkit.errors import AlignkitError
from alignkit.optimize.checkpoint import Checkpoint, digest
from alignkit.policy import Batch, Policy, shuffled_batches


def train(
    treated: Policy,
    loss_of: Callable[[Tensor], tuple[Tensor, dict]],
    lengths: Tensor,
    epochs: float = 2,
    batch_size: int = 32,
    learning_rate: float = 3e-4,
    seed: int = 0,
    progress: bool = True,
    checkpoint: str | Path | None = None,
    told: dict | None = None,
) -> Policy:
    """Shuffled minibatches, AdamW, linear decay of the learning rate, gradient norm at most 1; changes and returns
    `treated`.

    `loss_of(index)`: loss of a minibatch of rows, and what to note in the history; `lengths`: tokens of each row.
    Dropout stays off (as in TRL's DPO), so that policy and reference agree before the first update. `checkpoint`: a
    file from which the same call goes on after an interruption, with the same result; `told`: what else must be the
    same for that (data, loss).
    """
    if not (epochs > 0 and batch_size >= 1 and learning_rate > 0):
        raise AlignkitError(
            f"{treated.name}: epochs, batch_size and learning_rate must be above 0, not {epochs}, {batch_size}, "
            f"{learning_rate}"
        )
    steps = max(1, round(epochs * len(lengths) / batch_size))
    learned = [p for p in treated.model.parameters() if p.requires_grad]
    optimizer = AdamW(learned, lr=learning_rate, weight_decay=0.0)
    order, rows, first, seconds = shuffled_batches(lengths, batch_size, steps, seed), [], 0, 0.0
    kept = None
    if checkpoint is not None:
        settings = {"name": treated.name, "steps": steps, "batch_size": batch_size, "learning_rate": learning_rate,
                    "seed": seed, "policy": digest(treated.model), "rows": digest(lengths), **(told or {})}  # fmt: skip
        kept = Checkpoint(checkpoint, settings)
        state = kept.load()
        if state:
            treated.model.load_state_dict(state["weights"])
            optimizer.load_state_dict(state["optimizer"])
            first, rows, seconds = state["step"], state["rows"], state["seconds"]
    for step in tqdm(range(first, steps), desc=treated.name, initial=first, total=steps, disable=not progress,
                     leave=False):  # fmt: skip
        start = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * (1 - step / steps)
        loss, noted = loss_of(order[step])
        if not torch.isfinite(loss):
            raise AlignkitError(
                f"{treated.name}, step {step}: the loss is {loss.item()}; lower learning_rate, or check that the "
                f"log-probabilities are finite (data rows {order[step][:3].tolist()} ...)"
            )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        rows.append({"step": step, "loss": loss.item(), **noted})
        seconds += time.perf_counter() - start
        if kept:
            kept.save(step + 1, step + 1 == steps, weights=treated.model.state_dict(), seconds=seconds, rows=rows,
                      optimizer=optimizer.state_dict())  # fmt: skip
    treated.history = pd.DataFrame(rows)
    treated.spent = {"rows_read": float(sum(map(len, order))), "updates": steps, "seconds": seconds}
    return treated


@torch.no_grad()
def summed_logprobs(policy: Policy, batch: Batch, batch_size: int = 512) -> Tensor:
    """log pi(completion | prompt) for each row, shape (N,)."""
    out = torch.empty(len(batch), device=policy.device)
    for part in batch.attention.sum(1).argsort().split(batch_size):  # by length: little padding in each part
        out[part] = policy.token_logprobs(batch.rows(part)).sum(1)
    bad = (~out.isfinite()).nonzero().flatten().tolist()
    if bad:
        raise AlignkitError(
            f"{policy.name!r} gives row {bad[0]} a log-probability that is not finite ({len(bad)} rows in all); check "
            "the model's weights, or drop those rows"
        )
    return out
