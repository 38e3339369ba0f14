"""The loop behind everything that learns from rows: treated policies (`alignkit.optimize`) and reward models.

Minibatches are shuffled, of rows of similar length, and read in parts that fit in memory, whose gradients add up to
that of the whole.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from tqdm.auto import tqdm

from alignkit.errors import AlignkitError, check_positive
from alignkit.policy import Policy
from alignkit.tokens import Batch, micro_batches, shuffled_batches

#: Learning rates by what is learned: for the worlds' small models, and for real ones of which every weight is trained.
RATES = {"sft": (1e-3, 2e-5), "preference": (3e-4, 1e-6), "reward": (1e-3, 1e-5), "policy gradient": (5e-4, 1e-6)}
SMALL = 10_000_000  # weights
EVERY = 10  # steps from one checkpoint to the next

#: loss_of(part, batch), both indices of rows: what the rows of `part` add to the loss of their minibatch `batch`, and
#: by name a value for each of them (or for all), of which the history notes the mean over the minibatch, NaN left out.
LossOf = Callable[[Tensor, Tensor], tuple[Tensor, Mapping[str, Tensor | float]]]
Callback = Callable[[int, Any, dict], Any]


def default_rate(model: nn.Module, kind: str) -> float:
    """The learning rate for a model of this size and a `kind` of `RATES`: from `SMALL` weights on that of TRL's
    trainers, and ten times as much where most weights are frozen, as adapters want it (2405.09673)."""
    small, real = RATES[kind]
    total = sum(p.numel() for p in model.parameters())
    if total < SMALL:
        return small
    return 10 * real if sum(p.numel() for p in model.parameters() if p.requires_grad) < total / 2 else real


def linear_decay(optimizer: Optimizer, steps: int) -> LRScheduler:
    """The full rate at the first step, and in equal parts down to 0 after the last."""
    return LambdaLR(optimizer, lambda step: 1 - step / steps)


def fit(
    learner: Any, loss_of: LossOf, lengths: Tensor, *, name: str, kind: str = "preference", epochs: float = 2,
    batch_size: int = 32, learning_rate: float | None = None, weight_decay: float = 0.0,
    schedule: Callable[[Optimizer, int], LRScheduler] = linear_decay, extra: Iterable[Tensor] = (), seed: int = 0,
    progress: bool = True, micro_batch_tokens: float | None = None, sides: int = 1, callback: Callback | None = None,
    checkpoint: str | Path | None = None,
) -> Any:  # fmt: skip
    """Minibatches, AdamW, gradient norm at most 1; changes and returns `learner` (whatever has a `model`), with a
    `history` (a DataFrame, one row a step) and what was `spent`. Weights that don't require gradients stay as they are.

    `lengths` (N,): tokens of each row. `learning_rate`: `default_rate` of this `kind`. `extra`: what is learned beside
    the model's weights. `micro_batch_tokens`: parts have at most so many tokens, padding counted (`tokens_at_once`);
    the result is the same up to rounding. `sides`: texts that belong to a row, each of them counted.
    `callback(step, learner, row)` gets each row of the history, to evaluate or to log; if it returns True, training
    ends. `checkpoint`: a file from which the same call goes on after an interruption, with the same result; it holds
    only what is trained. Another run is told by these settings, and by its first loss and gradient.
    """
    learning_rate = default_rate(learner.model, kind) if learning_rate is None else learning_rate
    check_positive(name, epochs=epochs, batch_size=batch_size, learning_rate=learning_rate)
    learned = [p for p in [*learner.model.parameters(), *extra] if p.requires_grad]
    if not learned:
        raise AlignkitError(f"{name}: all weights are frozen; set requires_grad of some, or add adapters (with_lora)")
    steps = max(1, round(epochs * len(lengths) / batch_size))
    optimizer = AdamW(learned, lr=learning_rate, weight_decay=weight_decay)
    rates = schedule(optimizer, steps)
    budget = (tokens_at_once(learner.model) if micro_batch_tokens is None else micro_batch_tokens) / sides
    lengths = lengths.cpu()  # rows are drawn there
    order, rows, seconds, kept = shuffled_batches(lengths, batch_size, steps, seed), [], 0.0, None

    def backward(step: int) -> dict[str, float]:
        """Sets the gradients of a step; its row of the history."""
        optimizer.zero_grad()
        total, notes = 0.0, defaultdict(list)
        for part in in_parts(order[step], lengths, budget):
            loss, noted = loss_of(part, order[step])
            if not torch.isfinite(loss):
                raise AlignkitError(
                    f"{name}, step {step}: the loss is {loss.item()}; lower learning_rate, or check that the "
                    f"log-probabilities are finite (data rows {part[:3].tolist()} ...)"
                )
            loss.backward()
            total += loss.item()
            for key, value in noted.items():
                notes[key].append(torch.as_tensor(value).detach().float().expand(len(part)))
        means = {key: torch.cat(values).nanmean().item() for key, values in notes.items()}
        norm = torch.nn.utils.clip_grad_norm_(learned, 1.0)
        return {"step": step, "loss": total, **means, "grad_norm": norm.item()}

    if checkpoint is not None:
        first = backward(0)
        settings = {"name": name, "steps": steps, "batch_size": batch_size, "learning_rate": learning_rate,
                    "seed": seed, "loss": first["loss"], "gradient": first["grad_norm"]}  # fmt: skip
        kept = Checkpoint(checkpoint, settings)
        if state := kept.load():
            for weight, value in zip(learned, state["weights"], strict=True):
                weight.data.copy_(value)
            optimizer.load_state_dict(state["optimizer"])
            rows, seconds, rates.last_epoch = state["rows"], state["seconds"], len(state["rows"])
    for step in tqdm(range(len(rows), steps), desc=name, initial=len(rows), total=steps, disable=not progress,
                     leave=False):  # fmt: skip
        start = perf_counter()
        rows.append(backward(step))
        optimizer.step()
        rates.step()
        seconds += perf_counter() - start
        stop = callback is not None and callback(step, learner, rows[-1]) is True
        if kept:
            kept.save(step + 1, stop or step + 1 == steps, weights=learned, rows=rows, seconds=seconds,
                      optimizer=optimizer.state_dict())  # fmt: skip
        if stop:
            break
    optimizer.zero_grad()  # a gradient is as large as the weights
    learner.history = pd.DataFrame(rows)
    learner.spent = {"rows_read": float(sum(map(len, order[: len(rows)]))), "updates": len(rows), "seconds": seconds}
    return learner


# --- policies


def train(
    treated: Policy, loss_of: LossOf, lengths: Tensor, prompts: Sequence | None = None,
    callback: Callback | None = None, sides: int = 1, beside: int = 0, reference_rows: int = 0, **options,
) -> Policy:  # fmt: skip
    """`fit` of a policy; changes and returns `treated`, whose dropout stays off (as in TRL's DPO), so that policy and
    reference agree before the first update. Options: epochs, batch_size, learning_rate, seed, progress,
    micro_batch_tokens, checkpoint.

    Training of a real model (of `SMALL` weights or more) is watched by `language_watch` on its `prompts`. `spent`
    counts completions that were read: `backward_rows`, `sides` for each row of the data, and `forward_rows`, these and
    those read `beside` them without a gradient, and the `reference_rows` that the reference has read before.
    """
    if prompts is not None and sum(p.numel() for p in treated.model.parameters()) >= SMALL:
        callback = language_watch(treated, prompts, callback)
    fit(treated, loss_of, lengths, name=treated.name, sides=sides, callback=callback, **options)
    read = treated.spent["rows_read"]
    treated.spent |= {"forward_rows": (sides + beside) * read + reference_rows, "backward_rows": sides * read}
    return treated


def language_watch(policy: Policy, prompts: Sequence, callback: Callback | None = None) -> Callback:
    """A callback that ends training, with a warning, where the policy has lost its language; `callback` comes first.

    That is: the mean token of some `prompts`, which are text of the same kind but nothing that is trained on, costs 2
    nats more than before training. It is looked at after every tenth step.
    """
    ids = [policy.prompt_ids(prompt) for prompt in prompts[:16]]
    batch = policy.pad([row[:1] for row in ids], [row[1:] for row in ids])

    @torch.no_grad()
    def cost(now: Policy) -> float:
        return -(now.token_logprobs(batch).sum() / batch.mask.sum().clamp(min=1)).item()

    before = cost(policy)

    def watch(step: int, now: Policy, row: dict) -> bool:
        if callback is not None and callback(step, now, row) is True:
            return True
        if (step + 1) % 10 or (nats := cost(now)) < before + 2:
            return False
        warnings.warn(
            f"{now.name}: training ended after step {step}, since the policy has lost its language: a token of its "
            f"prompts costs {nats:.1f} nats, and cost {before:.1f} before; lower learning_rate, or raise beta",
            stacklevel=2,
        )
        return True

    return watch


@torch.no_grad()
def summed_logprobs(policy: Policy, batch: Batch, batch_size: int = 512) -> Tensor:
    """log pi(completion | prompt) for each row, shape (N,); in parts of at most `batch_size` rows."""
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


# --- memory


def in_parts(index: Tensor, lengths: Tensor, tokens: float) -> list[Tensor]:
    """The rows `index` in parts of at most so many tokens with their padding, or of one row; whole if that fits."""
    wide = lengths[index]
    if len(index) * int(wide.max()) <= tokens:
        return [index]
    order = wide.argsort(stable=True)
    return [index[order[part]] for part in micro_batches(wide[order], 1, len(index), tokens)]


def tokens_at_once(model: nn.Module, learning: bool = True) -> int:
    """How many tokens a model can learn from, or read, at once in about one gigabyte beside its weights.

    Counted for each token: logits, their softmax, its gradient and a copy, and what the layers keep (all of them if
    `learning`, else one at a time), in float32.
    """
    config = model.config.get_text_config()
    words = config.vocab_size if model.get_output_embeddings() is not None else 0
    inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    layers = config.num_hidden_layers if learning else 1
    return max(1, int(2**28 / (4 * words + layers * (16 * config.hidden_size + 4 * inner))))


# --- interruption


class Checkpoint:
    """State of a loop in one file, written every `EVERY` steps and read again by the same call.

    `config` is what must be the same for the state to fit: another learning rate, other data or another policy is
    another run, and an error. Numbers may differ by rounding.
    """

    def __init__(self, path: str | Path, config: Mapping[str, Any]):
        self.path = Path(path)
        self.config = {k: v if isinstance(v, str | int | float) else digest(v) for k, v in config.items()}

    def load(self) -> dict[str, Any] | None:
        """The state to go on from, or None if there is none yet."""
        if not self.path.exists():
            return None
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)  # tensors and plain values, no code
            config = state.pop("config")
        except Exception as error:  # whatever torch makes of a damaged file
            raise AlignkitError(f"{self.path} is not a checkpoint that can be read; delete it to start anew") from error
        differ = sorted(k for k in {*config, *self.config} if not _same(config.get(k), self.config.get(k)))
        if differ:
            raise AlignkitError(
                f"{self.path} is the checkpoint of another run: {', '.join(differ)} differ; name another file, or "
                "delete it to start anew"
            )
        return state

    def save(self, step: int, last: bool, **state: Any) -> None:
        """Write the state after `step` steps if it is time to, at once or not at all."""
        if step % EVERY and not last:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_name(f".{self.path.name}.part")
        torch.save({"config": self.config, **state}, part)
        os.replace(part, self.path)


def _same(a: Any, b: Any) -> bool:
    return math.isclose(a, b, rel_tol=1e-4) if isinstance(a, float) and isinstance(b, float) else a == b


def digest(*parts: Any) -> str:
    """A short hash of texts, numbers and tensors, to tell one data set from another."""
    h = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            part = part.detach().cpu()
            h.update((part.float() if part.is_floating_point() else part).numpy().tobytes())
        else:
            h.update(json.dumps(part, default=str).encode())
    return h.hexdigest()[:16]
