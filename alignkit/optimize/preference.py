"""Learning from fixed data: demonstrations, pairs, single answers that were found good or bad, rankings.

A method on pairs is its loss: `dpo = on_pairs(dpo_loss, beta=0.2, smoothing=0.0)`. A new one is a function in `losses`
and such a row here.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from functools import lru_cache

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from alignkit.errors import AlignkitError, DataError, check_at_least, check_positive
from alignkit.optimize import losses
from alignkit.optimize.losses import kto_loss, margin_of, nll_loss, rrhf_loss
from alignkit.policy import Policy, check_same_vocabulary, positions
from alignkit.rewards.data import (
    check_columns,
    check_labels,
    check_numbers,
    check_pairs,
    check_rankings,
    check_texts,
    encode_pairs,
    pair_lengths,
)
from alignkit.rewards.losses import plackett_luce_loss
from alignkit.tokens import Batch
from alignkit.training import summed_logprobs, train


def sft(policy: Policy, data: Dataset | Batch, epochs: float = 1, **options) -> Policy:
    """Maximize the likelihood of `completion` given `prompt` (TRL's prompt-completion format); returns a new policy.

    Loss: mean over the minibatch's completion tokens of -log pi, end-of-sequence included. `data` may also be tokens,
    such as samples, of which those that were cut off have no end. Options: see `train`.
    """
    treated, batch = policy.copy(f"{policy.name} + sft"), data
    if not isinstance(data, Batch):
        check_columns(data, ["prompt", "completion"], "demonstrations")
        check_texts(data, "completion")
        batch = treated.encode(data["prompt"][:], data["completion"][:])
        options = {"prompts": data["prompt"], **options}
    tokens = batch.mask.sum(1)

    def loss_of(part: Tensor, minibatch: Tensor) -> tuple[Tensor, dict]:
        return -treated.token_logprobs(batch.rows(part)).sum() / tokens[minibatch].sum(), {}

    return train(treated, loss_of, batch.attention.sum(1), epochs=epochs, kind="sft", **options)


# --- pairs


def from_pairs(
    policy: Policy, pairs: Dataset | Batch, loss: Callable[..., Tensor], name: str, reference: Policy | None = None,
    nll: float = 0.0, extra: Mapping[str, Tensor | Batch] | None = None, **options,
) -> Policy:  # fmt: skip
    """Minimize the mean of `loss` over `prompt/chosen/rejected`; returns a new policy.

    The loss gets by name what its arguments ask for. Of shape (n,) are `chosen` and `rejected`, log pi of whole
    completions; `ref_chosen`, `ref_rejected`, the same under `reference` (default: `policy` itself, read once, before
    training); `chosen_length`, `chosen_mean` and so on, their tokens and log pi / length; a column of numbers of the
    pairs; what else `extra` holds, a tensor of N rows, or a batch of N rows that is read as a further side. Its
    settings, such as beta, are the same for all pairs, and taken from the options. `nll` weighs the chosen sides'
    likelihood, added to any loss (the mean over their tokens; RPO 2404.19733).

    The history notes accuracy and margin (in units of beta, where there is one) of the implicit reward, and both
    log-ratios. Pairs with equal sides are counted in a warning: they teach nothing. `pairs` may also be tokens, such as
    samples: all chosen, then all rejected rows. Further options: see `train`.
    """
    check_at_least(name, 0, nll=nll)
    settings = {key: options.pop(key) for key in inspect.signature(loss).parameters if key in options}
    if "beta" in settings:
        check_positive(name, beta=settings["beta"])
    wanted = [key for key in inspect.signature(loss).parameters if key not in settings]
    reference = policy if reference is None else reference
    check_same_vocabulary(policy, reference)
    treated, both, columns = policy.copy(f"{policy.name} + {name}"), pairs, []
    if not isinstance(pairs, Batch):
        pairs = check_pairs(pairs)
        equal = sum(a == b for a, b in zip(pairs["chosen"], pairs["rejected"], strict=True))
        if equal:
            warnings.warn(f"{name}: {equal} of {len(pairs)} pairs have equal sides; they teach nothing", stacklevel=3)
        both, columns = encode_pairs(treated, pairs), pairs.column_names
        options = {"prompts": pairs["prompt"], **options}
    n, sides = len(both) // 2, {}
    halves = *summed_logprobs(reference, both).chunk(2), *both.mask.sum(1).chunk(2)
    fixed = dict(zip(("ref_chosen", "ref_rejected", "chosen_length", "rejected_length"), halves, strict=True))
    for key, value in (extra or {}).items():
        if isinstance(value, Batch):
            sides[key] = value
            fixed |= {f"ref_{key}": summed_logprobs(reference, value), f"{key}_length": value.mask.sum(1)}
        else:
            fixed[key] = value.to(treated.device)
    read = {f"{side}{suffix}" for side in ("chosen", "rejected", *sides) for suffix in ("", "_mean")}
    for key in {*wanted} - {*fixed} - read:
        if key not in columns:
            raise DataError(f"{name}: its loss asks for {key!r}, which is neither a setting nor a column of the pairs")
        fixed[key] = torch.tensor(check_numbers(pairs, key), device=treated.device).float()
    scale = settings.get("beta", 1.0) if "ref_chosen" in wanted else 1.0

    def loss_of(part: Tensor, minibatch: Tensor) -> tuple[Tensor, dict]:
        logp = treated.token_logprobs(both.rows(torch.cat([part, part + n]))).sum(1)  # both sides in one pass
        now = dict(zip(("chosen", "rejected"), logp.chunk(2), strict=True))
        now |= {key: treated.token_logprobs(batch.rows(part)).sum(1) for key, batch in sides.items()}
        given = {**{key: value[part] for key, value in fixed.items()}, **now}
        given |= {f"{key}_mean": value / given[f"{key}_length"] for key, value in now.items()}
        each = loss(**{key: given[key] for key in wanted}, **settings)
        if nll:
            each = each + nll * nll_loss(given["chosen"], fixed["chosen_length"][minibatch])
        margin = margin_of(*(given[key] for key in ("chosen", "rejected", "ref_chosen", "ref_rejected")))
        noted = {f"{key}_log_ratio": value - given[f"ref_{key}"] for key, value in now.items()}
        return each.sum() / len(minibatch), {"accuracy": margin > 0, "margin": scale * margin, **noted}

    texts = 2 + len(sides)
    return train(treated, loss_of, pair_lengths(both), sides=texts, reference_rows=texts * n, **options)


PAIR_METHODS: dict[str, Callable[..., Policy]] = {}


def on_pairs(loss: Callable[..., Tensor], **defaults) -> Callable[..., Policy]:
    """The method of a loss, with defaults for its settings and other options; noted in `PAIR_METHODS` under its name.

    It is called as method(policy, pairs, **options), options as in `from_pairs`, and returns a new policy.
    """
    name = loss.__name__.removesuffix("_loss")

    def method(policy: Policy, pairs: Dataset, **options) -> Policy:
        return from_pairs(policy, pairs, loss, name.replace("_", " "), **{**defaults, **options})

    own = ", ".join(f"{key}={value}" for key, value in defaults.items())
    learns = f"Learns from `prompt/chosen/rejected`; returns a new policy. Options: {own}, and those of `from_pairs`."
    method.__name__ = method.__qualname__ = name
    method.__doc__ = f"{inspect.getdoc(loss)}\n\n{learns}"
    PAIR_METHODS[name] = method
    return method


dpo = on_pairs(losses.dpo_loss, beta=0.2, smoothing=0.0)  # -log sigmoid(beta m)
robust_dpo = on_pairs(losses.robust_dpo_loss, beta=0.2, flip=0.1)  # DPO, unbiased where labels were flipped
ipo = on_pairs(losses.ipo_loss, beta=0.2)  # (m - 1 / (2 beta))^2
hinge = on_pairs(losses.hinge_loss, beta=0.2)  # max(0, 1 - beta m)
length_regularized_dpo = on_pairs(losses.length_regularized_dpo_loss, beta=0.2, alpha=0.02)
apo_zero = on_pairs(losses.apo_zero_loss, beta=0.2)  # chosen up, rejected down
apo_down = on_pairs(losses.apo_down_loss, beta=0.2)  # both down
slic_hf = on_pairs(losses.slic_hf_loss, delta=1.0, nll=0.1)  # max(0, delta - log pi(chosen) + log pi(rejected))
simpo = on_pairs(losses.simpo_loss, beta=2.0, gamma=1.0)  # -log sigmoid(beta (difference of means) - gamma)
cpo = on_pairs(losses.cpo_loss, beta=0.2, nll=1.0)  # DPO without a reference
orpo = on_pairs(losses.orpo_loss, weight=0.1, nll=1.0)  # likelihood and odds ratio


# --- single answers


def kto(
    policy: Policy, data: Dataset, beta: float = 0.2, weights: tuple[float, float] = (1.0, 1.0),
    reference: Policy | None = None, seed: int = 0, **options,
) -> Policy:  # fmt: skip
    """Kahneman-Tversky optimization on `prompt/completion/label` (TRL's unpaired preferences); returns a new policy.

    `weights`: of desirable and of undesirable rows; the authors advise weights that about balance the counts. The
    reference point z is the policy's log-ratio on completions of *other* prompts, averaged over the minibatch, at least
    0 and without gradient (2402.01306). Which row lends its completion is drawn once, from all with another prompt;
    TRL takes the neighbor in the batch instead, whatever its prompt. Options: see `train`.
    """
    check_positive("kto", beta=beta)
    if len(weights) != 2 or min(weights) < 0 or not 0 < sum(weights) < float("inf"):
        raise AlignkitError(f"kto: weights must be two numbers, at least 0 and not both 0; not {weights}")
    check_labels(data, "unpaired preferences")
    labels = data["label"][:]
    if len({*labels}) == 1:
        kind = "desirable" if labels[0] else "undesirable"
        warnings.warn(f"all {len(labels)} rows are {kind}: nothing says what to prefer to what", stacklevel=2)
    reference = policy if reference is None else reference
    check_same_vocabulary(policy, reference)
    treated = policy.copy(f"{policy.name} + kto")
    prompts, completions = data["prompt"][:], data["completion"][:]
    own = treated.encode(prompts, completions)
    other = treated.encode(prompts, [completions[i] for i in mismatched(prompts, seed)])
    ref, ref_other = summed_logprobs(reference, own), summed_logprobs(reference, other)  # cached: it does not change
    good = torch.tensor(labels, device=treated.device)

    @lru_cache(maxsize=1)  # once for all parts of a minibatch
    @torch.no_grad()
    def reference_point(minibatch: Tensor) -> Tensor:
        drift = treated.token_logprobs(other.rows(minibatch)).sum(1) - ref_other[minibatch]
        return drift.mean().clamp(min=0)

    def loss_of(part: Tensor, minibatch: Tensor) -> tuple[Tensor, dict]:
        z, up = reference_point(minibatch), good[part]
        log_ratio = treated.token_logprobs(own.rows(part)).sum(1) - ref[part]
        return kto_loss(log_ratio, up, z, beta, weights).sum() / len(minibatch), {
            "kl": z,
            "desirable_log_ratio": torch.where(up, log_ratio, torch.nan),
            "undesirable_log_ratio": torch.where(up, torch.nan, log_ratio),
        }

    lengths = torch.maximum(own.attention.sum(1), other.attention.sum(1))
    return train(treated, loss_of, lengths, seed=seed, beside=1, reference_rows=len(own) + len(other),
                 prompts=prompts, **options)  # fmt: skip


def mismatched(prompts: list, seed: int) -> np.ndarray:
    """For each row another one with a different prompt (any other row if there is but one prompt), shape (N,)."""
    if len(prompts) < 2:
        raise DataError("kto needs at least two rows: a completion of another row is its reference point")
    rng, rows = np.random.default_rng([seed, 8]), np.arange(len(prompts))
    number: dict[str, int] = {}
    which = np.array([number.setdefault(str(prompt), len(number)) for prompt in prompts])
    own = which if which.any() else rows
    return np.array([rng.choice(rows[own != mine]) for mine in own])


# --- rankings


def rrhf(policy: Policy, rankings: Dataset, nll: float = 1.0, **options) -> Policy:
    """Rank responses to align: a hinge on mean token log-probabilities of each two places of a ranking, plus `nll`
    times the likelihood of the best (2304.05302); no reference. Options: see `from_rankings`."""
    return from_rankings(policy, rankings, rrhf_loss, "rrhf", nll, **options)


def pro(policy: Policy, rankings: Dataset, beta: float = 1.0, nll: float = 0.05, **options) -> Policy:
    """Preference ranking optimization: the Plackett-Luce likelihood of a ranking, with beta times mean token
    log-probabilities as rewards, plus `nll` times the likelihood of the best; no reference. Options: see
    `from_rankings`.

    (2306.17492, whose temperature by reward gaps is left out, and whose likelihood is a sum over tokens: a mean here.)
    """
    check_positive("pro", beta=beta)
    return from_rankings(policy, rankings, lambda means: plackett_luce_loss(beta * means), "pro", nll, **options)


def from_rankings(
    policy: Policy, rankings: Dataset, loss: Callable[[Tensor], Tensor], name: str, nll: float, batch_size: int = 16,
    **options,
) -> Policy:  # fmt: skip
    """Minimize `loss(means)`, means of shape (1, K), best first, on `prompt/ranked` (as of `feedback.rank`); returns a
    new policy. `batch_size` counts rankings, which may differ in K. Further options: see `train`."""
    check_at_least(name, 0, nll=nll)
    check_rankings(rankings)
    counts = [len(ranked) for ranked in rankings["ranked"]]
    rows_of = torch.arange(sum(counts)).split(counts)
    prompts = [p for p, k in zip(rankings["prompt"], counts, strict=True) for _ in range(k)]
    treated = policy.copy(f"{policy.name} + {name}")
    batch = treated.encode(prompts, [text for ranked in rankings["ranked"] for text in ranked])
    length, width = batch.mask.sum(1), batch.attention.sum(1)

    def loss_of(part: Tensor, minibatch: Tensor) -> tuple[Tensor, dict]:
        rows, sizes = torch.cat([rows_of[i] for i in part]), [counts[i] for i in part]
        logp = treated.token_logprobs(batch.rows(rows)).sum(1)
        means = (logp / length[rows]).split(sizes)
        ranked = torch.stack([loss(each[None])[0] for each in means])
        best = torch.stack([each[0] for each in logp.split(sizes)])
        likely = nll_loss(best, torch.stack([length[rows_of[i][0]] for i in minibatch]))
        return ranked.sum() / len(minibatch) + nll * (likely.sum() / len(minibatch)), {
            "ranking": ranked,
            "nll": likely,
            "accuracy": torch.stack([each.argmax() == 0 for each in means]),
        }

    lengths = torch.stack([rows.max() for rows in width.split(counts)])
    return train(treated, loss_of, lengths, batch_size=batch_size, sides=max(counts),
                 prompts=rankings["prompt"], **options)  # fmt: skip


# --- which pairs push the chosen side down


@torch.no_grad()
def ches(policy: Policy, pairs: Dataset, batch_size: int = 512) -> np.ndarray:
    """Centered hidden embedding similarity of each pair of `prompt/chosen/rejected`, length-normalized; shape (N,).

    <h+, h-> - <h+, h+>, where h is the mean of the hidden states that predict the tokens of a side, end-of-sequence
    included. Larger (closer to 0 from below) is said to displace the chosen side more (Razin, Malladi, Bhaskar, Chen,
    Arora & Hanin 2024, definition 2). 0 for equal sides.
    """
    both = encode_pairs(policy, check_pairs(pairs))
    means = []
    for index in torch.arange(len(both)).split(batch_size):
        rows = both.rows(index)
        states = policy.model.base_model(input_ids=rows.ids, attention_mask=rows.attention, use_cache=False,
                                         position_ids=positions(rows.attention)).last_hidden_state  # fmt: skip
        states = states[:, -rows.mask.shape[1] - 1 : -1]  # the state before a token predicts it
        means.append((states.double() * rows.mask[..., None]).sum(1) / rows.mask.sum(1, keepdim=True))
    chosen, rejected = torch.cat(means).chunk(2)
    return ((chosen * rejected).sum(1) - (chosen * chosen).sum(1)).cpu().numpy()
