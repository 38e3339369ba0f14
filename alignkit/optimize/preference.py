"""Learning from fixed data: demonstrations, pairs, single answers that were found good or bad, rankings.

A method on pairs is its loss: `dpo = on_pairs(dpo_loss, beta=0.2, smoothing=0.0)`. A new one is a function in `losses`
and such a row here.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from alignkit.errors import AlignkitError, DataError, check_at_least, check_positive
from alignkit.optimize import losses
from alignkit.optimize.losses import kto_loss, margin_of, nll_loss, rrhf_loss
from alignkit.optimize.training import summed_logprobs, train
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
        options = {"prompts": data["prompt"][:16], **options}
    tokens = batch.mask.sum(1)

    def loss_of(part: Tensor, minibatch: Tensor) -> tuple[Tensor, dict]:
        return -treated.token_logprobs(batch.rows(part)).sum() / tokens[minibatch].sum(), {}

    return train(treated, loss_of, batch.attention.sum(1), epochs, kind="sft", **options)


# --- pairs


def from_pairs(
    policy: Policy,
    pairs: Dataset | Batch,
    loss: Callable[..., Tensor],
    name: str,
    reference: Policy | None = None,
    nll: float = 0.0,
    extra: Mapping[str, Tensor | Batch] | None = None,
    settings: Mapping[str, Any] | None = None,
    **options,
) -> Policy:
    """Minimize the mean of `loss` over `prompt/chosen/rejected`; returns a new policy.

    The loss gets by name what its arguments ask for, each of shape (n,): `chosen` and `rejected`, log pi of whole
    completions; `ref_chosen`, `ref_rejected`, the same under `reference` (default: `policy` itself, read once, before
    training); `chosen_length`, `chosen_mean` and so on, their tokens and log pi / length; a column of numbers of the
    pairs; what else `extra` holds, a tensor of N rows, or a batch of N rows that is read as a further side. Its
    `settings`, such as beta, are the same for all pairs. `nll` weighs the chosen sides' likelihood, added to any loss
    (the mean over their tokens; RPO 2404.19733).

    The history notes accuracy and margin (in units of beta, where there is one) of the implicit reward, and both
    log-ratios. Pairs with equal sides are counted in a warning: they teach nothing. `pairs` may also be tokens, such as
    samples: all chosen, then all rejected rows. Further options: see `train`.
    """
    check_at_least(name, 0, nll=nll)
    settings = dict(settings or {})
    reference = policy if reference is None else reference
    check_same_vocabulary(policy, reference)
    treated, both, columns = policy.copy(f"{policy.name} + {name}"), pairs, []
    if not isinstance(pairs, Batch):
        pairs = check_pairs(pairs)
        equal = sum(a == b for a, b in zip(pairs["chosen"], pairs["rejected"], strict=True))
        if equal:
            warnings.warn(f"{name}: {equal} of {len(pairs)} pairs have equal sides; they teach nothing", stacklevel=3)
        both, columns = encode_pairs(treated, pairs), pairs.column_names
        options = {"prompts": pairs["prompt"][:16], **options}
    n = len(both) // 2
    sides = {key: value for key, value in (extra or {}).items() if isinstance(value, Batch)}
    fixed = {key: value.to(treated.device) for key, value in (extra or {}).items() if key not in sides}
    for key, batch in {"both": both, **sides}.items():
        fixed |= {f"ref_{key}": summed_logprobs(reference, batch), f"{key}_length": batch.mask.sum(1)}
    for key in ("ref_both", "both_length"):  # the chosen sides, then the rejected ones
        chosen, rejected = fixed.pop(key).chunk(2)
        fixed |= {key.replace("both", "chosen"): chosen, key.replace("both", "rejected"): rejected}
    wanted = [key for key in inspect.signature(loss).parameters if key not in settings]
    known = {*fixed, *(key for side in ("chosen", "rejected", *sides) for key in (side, f"{side}_mean"))}
    for key in {*wanted} - known:
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


def on_pairs(loss: Callable[..., Tensor], nll: float = 0.0, **defaults) -> Callable[..., Policy]:
    """The method of a loss, with defaults for its settings; noted in `PAIR_METHODS` under the loss's name.

    It is called as method(policy, pairs, *settings, reference=None, nll=..., **options), options as in `from_pairs`,
    and returns a new policy. It needs a reference if the loss asks for one (`ref_chosen`).
    """
    name = loss.__name__.removesuffix("_loss")

    def method(policy: Policy, pairs: Dataset, *values, nll: float = nll, **options) -> Policy:
        if len(values) > len(defaults):
            raise TypeError(f"{name} takes {', '.join(defaults)} by position and all else by name")
        settings = {**defaults, **dict(zip(defaults, values, strict=False))}
        settings |= {key: options.pop(key) for key in defaults if key in options}
        for key in {"beta", "delta", "weight"} & {*settings}:
            check_positive(name, **{key: settings[key]})
        return from_pairs(policy, pairs, loss, name.replace("_", " "), nll=nll, settings=settings, **options)

    here, free = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    named = [inspect.Parameter(key, here, default=value) for key, value in defaults.items()]
    first = [inspect.Parameter(key, here) for key in ("policy", "pairs")]
    last = [inspect.Parameter("nll", free, default=nll), inspect.Parameter("options", inspect.Parameter.VAR_KEYWORD)]
    method.__signature__ = inspect.Signature([*first, *named, *last])
    method.__name__ = method.__qualname__ = name
    learns = "Learns from `prompt/chosen/rejected`; returns a new policy. Options: see `from_pairs`."
    method.__doc__ = f"{inspect.getdoc(loss)}\n\n{learns}"
    method.loss, PAIR_METHODS[name] = loss, method
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
    policy: Policy,
    data: Dataset,
    beta: float = 0.2,
    weights: tuple[float, float] = (1.0, 1.0),
    reference: Policy | None = None,
    seed: int = 0,
    **options,
) -> Policy:
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
    point: dict[int, Tensor] = {}

    def loss_of(part: Tensor, minibatch: Tensor) -> tuple[Tensor, dict]:
        if id(minibatch) not in point:  # once for all its parts
            point.clear()
            with torch.no_grad():
                drift = treated.token_logprobs(other.rows(minibatch)).sum(1) - ref_other[minibatch]
            point[id(minibatch)] = drift.mean().clamp(min=0)
        z, up = point[id(minibatch)], good[part]
        log_ratio = treated.token_logprobs(own.rows(part)).sum(1) - ref[part]
        return kto_loss(log_ratio, up, z, beta, weights).sum() / len(minibatch), {
            "kl": z,
            "desirable_log_ratio": torch.where(up, log_ratio, torch.nan),
            "undesirable_log_ratio": torch.where(up, torch.nan, log_ratio),
        }

    lengths = torch.maximum(own.attention.sum(1), other.attention.sum(1))
    return train(treated, loss_of, lengths, seed=seed, beside=1, reference_rows=len(own) + len(other),
                 prompts=prompts[:16], **options)  # fmt: skip


def mismatched(prompts: list, seed: int) -> np.ndarray:
    """For each row another one with a different prompt (any other row if there is but one prompt), shape (N,)."""
    keys = [str(p) for p in prompts]
    if len(keys) < 2:
        raise DataError("kto needs at least two rows: a completion of another row is its reference point")
    rng = np.random.default_rng([seed, 8])
    everyone = np.arange(len(keys))
    of = {key: np.flatnonzero([k == key for k in keys]) for key in dict.fromkeys(keys)}
    others = {key: np.setdiff1d(everyone, rows) for key, rows in of.items()}
    return np.array([rng.choice(others[k] if len(others[k]) else np.delete(everyone, i)) for i, k in enumerate(keys)])


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
        return ranked.sum() / len(minibatch) + nll * (likely.sum() / len(minibatch)), {
            "ranking": ranked,
            "nll": likely,
            "accuracy": torch.stack([each.argmax() == 0 for each in means]),
        }

    lengths = torch.stack([rows.max() for rows in width.split(size.tolist())])
    return train(treated, loss_of, lengths, batch_size=batch_size, sides=int(size.max()),
                 prompts=rankings["prompt"][:16], **options)  # fmt: skip


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
        states = policy.model.base_model(
            input_ids=rows.ids,
            attention_mask=rows.attention,
            position_ids=positions(rows.attention),
            use_cache=False,
        ).last_hidden_state[:, -rows.mask.shape[1] - 1 : -1]  # the state before a token predicts it
        means.append((states.double() * rows.mask[..., None]).sum(1) / rows.mask.sum(1, keepdim=True))
    chosen, rejected = torch.cat(means).chunk(2)
    return ((chosen * rejected).sum(1) - (chosen * chosen).sum(1)).cpu().numpy()
