"""Learning from fixed answers and pairs: supervised fine-tuning, DPO and its kin. A method is its loss."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from datasets import Dataset
from torch import Tensor

from alignkit.errors import AlignkitError, DataError
from alignkit.optimize import pair_losses as losses
from alignkit.optimize.training import summed_logprobs, train
from alignkit.policy import Policy, check_same_vocabulary
from alignkit.rewards.data import check_pairs, check_texts, encode_pairs, pair_lengths


@dataclass
class Side:
    """One side of a minibatch of pairs: log-probabilities of whole completions, and their tokens; each (N,)."""

    logp: Tensor
    ref: Tensor
    length: Tensor

    @property
    def log_ratio(self) -> Tensor:
        """log pi / ref."""
        return self.logp - self.ref

    @property
    def mean(self) -> Tensor:
        """Mean log-probability of a token."""
        return self.logp / self.length


def sft(
    policy: Policy, data: Dataset, epochs: float = 1, batch_size: int = 32, learning_rate: float | None = None,
    **options,
) -> Policy:  # fmt: skip
    """Maximize the likelihood of `completion` given `prompt` (TRL's prompt-completion format); returns a new policy.

    Loss: mean over completion tokens of -log pi, end-of-sequence included. Options (seed, progress, checkpoint): see
    `train`.
    """
    missing = {"prompt", "completion"} - set(data.column_names)
    if missing or not len(data):
        raise DataError(f"sft needs rows with prompt and completion; missing {sorted(missing)}, {len(data)} rows")
    check_texts(data, "completion")
    treated = policy.copy(f"{policy.name} + sft")
    batch = treated.encode(data["prompt"][:], data["completion"][:])

    tokens = batch.mask.sum(1)

    def loss_of(part: Tensor, minibatch: Tensor) -> tuple[Tensor, dict]:
        return -treated.token_logprobs(batch.rows(part)).sum() / tokens[minibatch].sum(), {}

    return train(treated, loss_of, batch.attention.sum(1), epochs, batch_size, learning_rate, "sft", **options)


def from_pairs(
    policy: Policy,
    pairs: Dataset,
    loss: Callable[[Side, Side], Tensor],
    name: str,
    reference: Policy | None = None,
    scale: float = 1.0,
    epochs: float = 2,
    batch_size: int = 32,
    learning_rate: float | None = None,
    **options,
) -> Policy:
    """Minimize `loss(chosen, rejected)`, one number a pair, on `prompt/chosen/rejected`; returns a new policy.

    `reference` (default: `policy` itself) is read once, before training. The history holds loss, accuracy and margin
    (times `scale`) of the implicit reward, and how both log-probabilities moved. Pairs whose sides are equal are
    counted in a warning: a margin of 0 teaches nothing. Further options: see `train`.
    """
    check_pairs(pairs)
    reference = policy if reference is None else reference
    check_same_vocabulary(policy, reference)
    equal = sum(a == b for a, b in zip(pairs["chosen"], pairs["rejected"], strict=True))
    if equal:
        warnings.warn(
            f"{name}: {equal} of {len(pairs)} pairs have equal sides; they teach nothing about preference", stacklevel=3
        )
    treated = policy.copy(f"{policy.name} + {name}")
    both = encode_pairs(treated, pairs)
    ref = summed_logprobs(reference, both)  # cached: the reference does not change
    length = both.mask.sum(1)

    def loss_of(part: Tensor, minibatch: Tensor) -> tuple[Tensor, dict]:
        rows = torch.cat([part, part + len(pairs)])  # both sides in one forward pass
        logp = treated.token_logprobs(both.rows(rows)).sum(1)
        chosen, rejected = map(Side, logp.chunk(2), ref[rows].chunk(2), length[rows].chunk(2))
        margin = chosen.log_ratio - rejected.log_ratio
        return loss(chosen, rejected).sum() / len(minibatch), {
            "accuracy": margin > 0,
            "margin": scale * margin,
            "chosen_log_ratio": chosen.log_ratio,
            "rejected_log_ratio": rejected.log_ratio,
        }

    return train(treated, loss_of, pair_lengths(both), epochs, batch_size, learning_rate, **options)


def _four(chosen: Side, rejected: Side) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return chosen.logp, rejected.logp, chosen.ref, rejected.ref


def _positive(method: str, **values: float) -> None:
    for name, value in values.items():
        if not 0 < value < float("inf"):
            raise AlignkitError(
                f"{method}: {name} must be > 0, not {value}; at 0 the loss says nothing about the policy"
            )


def dpo(policy: Policy, pairs: Dataset, beta: float = 0.2, smoothing: float = 0.0, **options) -> Policy:
    """Direct preference optimization with `policy` as the reference (2305.18290).

    beta is the strength of the KL penalty of the objective that DPO solves implicitly: smaller moves farther.
    `smoothing` > 0 is conservative DPO, for labels of which that share is wrong. Options of this and of all methods on
    pairs: see `from_pairs`.
    """
    _positive("dpo", beta=beta)
    if not 0 <= smoothing < 0.5:
        raise AlignkitError(f"dpo: smoothing must be in [0, 0.5), not {smoothing}")

    def loss(chosen: Side, rejected: Side) -> Tensor:
        return losses.dpo_loss(*_four(chosen, rejected), beta, smoothing)

    name = "cdpo" if smoothing else "dpo"
    return from_pairs(policy, pairs, loss, name, scale=beta, **options)


def robust_dpo(policy: Policy, pairs: Dataset, beta: float = 0.2, flip: float = 0.1, **options) -> Policy:
    """DPO with a loss that is unbiased for clean labels when a share `flip` of them was flipped (2403.00409)."""
    _positive("robust_dpo", beta=beta)

    def loss(chosen: Side, rejected: Side) -> Tensor:
        return losses.robust_dpo_loss(*_four(chosen, rejected), beta, flip)

    return from_pairs(policy, pairs, loss, "robust dpo", scale=beta, **options)


def ipo(policy: Policy, pairs: Dataset, beta: float = 0.2, **options) -> Policy:
    """Identity preference optimization: squared distance of the margin from 1 / (2 beta) (2310.12036)."""
    _positive("ipo", beta=beta)

    def loss(chosen: Side, rejected: Side) -> Tensor:
        return losses.ipo_loss(*_four(chosen, rejected), beta)

    return from_pairs(policy, pairs, loss, "ipo", scale=beta, **options)


def hinge(policy: Policy, pairs: Dataset, beta: float = 0.2, **options) -> Policy:
    """The hinge loss of RSO on the margin against the reference (2309.06657)."""
    _positive("hinge", beta=beta)

    def loss(chosen: Side, rejected: Side) -> Tensor:
        return losses.hinge_loss(*_four(chosen, rejected), beta)

    return from_pairs(policy, pairs, loss, "hinge", scale=beta, **options)


def slic_hf(policy: Policy, pairs: Dataset, delta: float = 1.0, weight: float = 0.1, **options) -> Policy:
    """max(0, delta - log pi(chosen) + log pi(rejected)) + weight * (-log pi(chosen)) (SLiC-HF 2305.10425).

    The paper's regularizer is the likelihood of a target of the supervised data; here it is that of the chosen side.
    """
    _positive("slic_hf", delta=delta)

    def loss(chosen: Side, rejected: Side) -> Tensor:
        zero = torch.zeros_like(chosen.logp)
        rank = losses.hinge_loss(chosen.logp, rejected.logp, zero, zero, 1 / delta) * delta
        return rank + weight * losses.nll_loss(chosen.logp, chosen.length)

    return from_pairs(policy, pairs, loss, "slic-hf", **options)


def length_regularized_dpo(
    policy: Policy, pairs: Dataset, beta: float = 0.2, alpha: float = 0.02, **options
) -> Policy:
    """DPO with a margin for the difference in length, so that length is not what is learned (R-DPO, 2403.19159)."""
    _positive("length_regularized_dpo", beta=beta)

    def loss(chosen: Side, rejected: Side) -> Tensor:
        lengths = chosen.length, rejected.length
        return losses.length_regularized_dpo_loss(*_four(chosen, rejected), beta, *lengths, alpha)

    return from_pairs(policy, pairs, loss, "r-dpo", scale=beta, **options)


def simpo(policy: Policy, pairs: Dataset, beta: float = 2.0, gamma: float = 1.0, **options) -> Policy:
    """Mean log-probabilities as rewards, no reference, a target margin gamma (SimPO 2405.14734)."""
    _positive("simpo", beta=beta)

    def loss(chosen: Side, rejected: Side) -> Tensor:
        return losses.simpo_loss(chosen.mean, rejected.mean, beta, gamma)

    return from_pairs(policy, pairs, loss, "simpo", **options)


def cpo(policy: Policy, pairs: Dataset, beta: float = 0.2, weight: float = 1.0, **options) -> Policy:
    """Contrastive preference optimization: DPO with a uniform reference, plus the likelihood of the chosen side
    (2401.08417)."""
    _positive("cpo", beta=beta)

    def loss(chosen: Side, rejected: Side) -> Tensor:
        return losses.cpo_loss(chosen.logp, rejected.logp, beta) + weight * losses.nll_loss(chosen.logp, chosen.length)

    return from_pairs(policy, pairs, loss, "cpo", **options)


def orpo(policy: Policy, pairs: Dataset, weight: float = 0.1, **options) -> Policy:
    """The likelihood of the chosen side, plus `weight` times the odds-ratio loss; no reference (2403.07691, eq. 6)."""
    _positive("orpo", weight=weight)

    def loss(chosen: Side, rejected: Side) -> Tensor:
        odds = losses.orpo_loss(chosen.mean, rejected.mean)
        return losses.nll_loss(chosen.logp, chosen.length) + weight * odds

    return from_pairs(policy, pairs, loss, "orpo", **options)


def apo(policy: Policy, pairs: Dataset, beta: float = 0.2, kind: str = "zero", **options) -> Policy:
    """Anchored preference optimization: "zero" raises the chosen side, "down" lowers both (2408.06266)."""
    _positive("apo", beta=beta)
    kinds = {"zero": losses.apo_zero_loss, "down": losses.apo_down_loss}
    if kind not in kinds:
        raise AlignkitError(f"apo: kind must be one of {', '.join(kinds)}, not {kind!r}")

    def loss(chosen: Side, rejected: Side) -> Tensor:
        return kinds[kind](*_four(chosen, rejected), beta)

    return from_pairs(policy, pairs, loss, f"apo {kind}", scale=beta, **options)
