"""Methods in rounds: sample from the current policy, judge, train on what was found, and again."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from torch import Tensor

from alignkit.errors import AlignkitError
from alignkit.optimize.fresh_samples import Labeler, win_probability
from alignkit.optimize.losses import sppo_loss
from alignkit.optimize.preference import dpo, hinge, sft
from alignkit.optimize.training import summed_logprobs, train
from alignkit.policy import Policy
from alignkit.rewards.base import Reward, as_reward
from alignkit.rewards.data import check_columns, check_texts

Spent = dict[str, float]
#: One round: (current policy, its prompts, seed, options of the training) to the next policy and what was spent on
#: samples and judgments.
OneRound = Callable[[Policy, list, int, dict], tuple[Policy, Spent]]


def in_rounds(
    policy: Policy,
    prompts: list,
    one_round: OneRound,
    name: str,
    rounds: int = 3,
    prompts_per_round: int = 256,
    seed: int = 0,
    progress: bool = True,
    checkpoint: str | Path | None = None,
) -> Policy:
    """The loop of rounds; returns a new policy.

    Prompts are taken in turn from shuffled passes. `history` is that of the trainings with a column `round`; `spent`
    adds up rows_read, updates, seconds, completions_sampled, answers_scored (by a reward) and judgments (of two
    answers). `checkpoint`: a folder, one file a round; the same call goes on after an interruption with the same result
    (rounds that were finished are sampled again but not trained).
    """
    if not prompts or rounds < 1 or prompts_per_round < 1:
        raise AlignkitError(
            f"{name}: there must be prompts, and rounds and prompts_per_round at least 1; not {len(prompts)}, "
            f"{rounds}, {prompts_per_round}"
        )
    rng = np.random.default_rng([seed, 9])
    passes = -(-rounds * prompts_per_round // len(prompts))
    order = np.concatenate([rng.permutation(len(prompts)) for _ in range(passes)])
    current, histories, spent = policy, [], {}
    for k in range(rounds):
        start = time.perf_counter()
        asked = [prompts[i] for i in order[k * prompts_per_round : (k + 1) * prompts_per_round]]
        file = None if checkpoint is None else Path(checkpoint) / f"round-{k}.pt"
        options = {"seed": seed * 1000 + k, "progress": progress, "checkpoint": file}
        current, paid = one_round(current, asked, seed * 1000 + k, options)
        current.name = f"{policy.name} + {name}"
        histories.append(current.history.assign(round=k))
        paid = {**current.spent, **paid, "seconds": time.perf_counter() - start}
        spent = {key: spent.get(key, 0) + paid.get(key, 0) for key in {**spent, **paid}}
    current.history, current.spent = pd.concat(histories, ignore_index=True), spent
    return current


def pairs_of(prompts: list, first: list[str], second: list[str], labeler: Labeler | Reward) -> Dataset:
    """`prompt/chosen/rejected` from two answers each; equal texts and ties teach nothing and are left out."""
    differ = [row for row in zip(prompts, first, second, strict=True) if row[1] != row[2]]
    if not differ:
        raise AlignkitError("all pairs of samples are equal: the policy no longer varies; stop earlier, or raise beta")
    said = win_probability(labeler, *map(list, zip(*differ, strict=True)))
    sides = [(p, a, b) if better > 0.5 else (p, b, a)
             for (p, a, b), better in zip(differ, said, strict=True) if better != 0.5]  # fmt: skip
    return as_pairs(sides, "labeling")


def as_pairs(sides: list[tuple], what: str) -> Dataset:
    """(prompt, chosen, rejected) rows as a data set."""
    if not sides:
        raise AlignkitError(f"{what}: no pair has two different sides, one better than the other: nothing to learn")
    columns = map(list, zip(*sides, strict=True))
    return Dataset.from_dict(dict(zip(("prompt", "chosen", "rejected"), columns, strict=True)))


def at_least(method: str, **values: tuple[int, int]) -> None:
    for name, (value, least) in values.items():
        if value < least:
            raise AlignkitError(f"{method}: {name} must be at least {least}, not {value}")


def raft(
    policy: Policy, prompts: list, reward: Reward | Callable, k: int = 8, epochs: float = 1, batch_size: int = 32,
    learning_rate: float | None = None, **options,
) -> Policy:  # fmt: skip
    """Reward-ranked fine-tuning: each round, the best of `k` samples a prompt by `reward` becomes a demonstration, and
    the current policy is fine-tuned on them (2304.06767). Options: see `in_rounds`."""
    reward = as_reward(_given(reward))
    at_least("raft", k=(k, 2))

    def one_round(current: Policy, asked: list, seed: int, rest: dict) -> tuple[Policy, Spent]:
        said = current.rollout(asked, k, seed=seed)
        scores = reward(said.prompts, said.completions).scores.reshape(len(asked), k)
        best = [said.completions[k * row + int(j)] for row, j in enumerate(scores.argmax(1))]
        data = Dataset.from_dict({"prompt": asked, "completion": best})
        after = sft(current, data, epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, **rest)
        return after, {"completions_sampled": scores.size, "answers_scored": scores.size}

    return in_rounds(policy, prompts, one_round, "raft", **options)


def rejection_sample(scores: np.ndarray, keep: int, beta: float, rng: np.random.Generator) -> np.ndarray:
    """Indices of `keep` of the candidates, accepted with probability exp((r - r_max) / beta), r_max over those not yet
    accepted; passes over them until there are enough (RSO 2309.06657, algorithm 1).

    With many candidates of pi_ref, accepted ones are samples of pi_ref exp(r / beta) / Z. `scores`: shape (N,).
    """
    if not (beta > 0 and 0 <= keep <= len(scores)):
        raise AlignkitError(f"rejection_sample: beta must be > 0 and keep at most {len(scores)}, not {beta}, {keep}")
    left, taken = rng.permutation(len(scores)), []
    while len(taken) < keep:
        accept = rng.random(len(left)) < np.exp((scores[left] - scores[left].max()) / beta)
        taken += left[accept].tolist()
        left = left[~accept]
    return np.array(taken[:keep])


def rso(
    policy: Policy, prompts: list, reward: Reward | Callable, beta: float = 0.2, candidates: int = 32, keep: int = 8,
    labeler: Labeler | Reward | None = None, loss: str = "hinge", sample_beta: float = 0.5, epochs: float = 1,
    batch_size: int = 32, learning_rate: float | None = None, rounds: int = 1, **options,
) -> Policy:  # fmt: skip
    """Statistical rejection sampling: of `candidates` samples a prompt, `keep` are accepted as samples of the optimum
    at `sample_beta` (in units of the reward), paired at random and labeled by `labeler` (default: the reward); ties are
    dropped; then the "hinge" or "dpo" loss at `beta` (2309.06657). Reference: `policy`. Options: see `in_rounds`."""
    reward = as_reward(_given(reward))
    losses = {"hinge": hinge, "dpo": dpo}
    if loss not in losses:
        raise AlignkitError(f"rso: loss must be one of {', '.join(losses)}, not {loss!r}")
    at_least("rso", keep=(keep, 2), candidates=(candidates, keep))
    if not sample_beta > 0:
        raise AlignkitError(f"rso: sample_beta must be > 0, not {sample_beta}")

    def one_round(current: Policy, asked: list, seed: int, rest: dict) -> tuple[Policy, Spent]:
        rng = np.random.default_rng([seed, 10])
        said = current.sample(asked, candidates, seed=seed)
        texts = [text for group in said for text in group]
        scores = reward([p for p in asked for _ in range(candidates)], texts).scores.reshape(len(asked), candidates)
        accepted = [rejection_sample(row, keep - keep % 2, sample_beta, rng) for row in scores]
        first = [said[row][i] for row, those in enumerate(accepted) for i in those[::2]]
        second = [said[row][i] for row, those in enumerate(accepted) for i in those[1::2]]
        pairs = pairs_of([p for p in asked for _ in range(keep // 2)], first, second, labeler or reward)
        after = losses[loss](current, pairs, beta=beta, reference=policy, epochs=epochs, batch_size=batch_size,
                             learning_rate=learning_rate, **rest)  # fmt: skip
        asked_too = len(first) if labeler else 0
        return after, {"completions_sampled": scores.size, "answers_scored": scores.size, "judgments": asked_too}

    return in_rounds(policy, prompts, one_round, "rso", rounds=rounds, **options)


def iterative_dpo(
    policy: Policy, prompts: list, labeler: Labeler | Reward, beta: float = 0.2, epochs: float = 1,
    batch_size: int = 32, learning_rate: float | None = None, **options,
) -> Policy:  # fmt: skip
    """DPO in rounds: two samples of the current policy a prompt, labeled, and DPO on them from the current weights; the
    reference stays `policy` (Xiong et al. 2023). Options: see `in_rounds`; for a label at every step: `online_dpo`."""

    def one_round(current: Policy, asked: list, seed: int, rest: dict) -> tuple[Policy, Spent]:
        said = current.sample(asked, 2, seed=seed)
        pairs = pairs_of(asked, [texts[0] for texts in said], [texts[1] for texts in said], labeler)
        after = dpo(current, pairs, beta=beta, reference=policy, epochs=epochs, batch_size=batch_size,
                    learning_rate=learning_rate, **rest)  # fmt: skip
        return after, {"completions_sampled": 2 * len(asked), "judgments": len(asked)}

    return in_rounds(policy, prompts, one_round, "iterative dpo", **options)


def _given(reward: Reward | Callable | None) -> Reward | Callable:
    if reward is None:
        raise AlignkitError("no reward was given: pass a Reward, or a function of (prompts, completions)")
    return reward


def spin(
    policy: Policy, data: Dataset, beta: float = 0.2, epochs: float = 1, batch_size: int = 32,
    learning_rate: float | None = None, **options,
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
    batch_size: int = 32, learning_rate: float | None = None, **options,
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

        def loss(part: Tensor, minibatch: Tensor) -> tuple[Tensor, dict]:
            log_ratio = treated.token_logprobs(batch.rows(part)).sum(1) - ref[part]
            return sppo_loss(log_ratio, rate[part], eta).sum() / len(minibatch), {"log_ratio": log_ratio}

        after = train(treated, loss, batch.attention.sum(1), epochs, batch_size, learning_rate,
                      reference_rows=len(batch), **rest)  # fmt: skip
        return after, {"completions_sampled": rates.size, "judgments": rates.size * (k - 1) // 2}

    return in_rounds(policy, prompts, one_round, "sppo", **options)


def win_rates(labeler: Labeler | Reward, prompts: list, completions: list[str], k: int) -> np.ndarray:
    """Share of the k samples of its prompt that each completion beats (itself and equal ones by 1/2), shape (prompts,
    k). Each two are compared once."""
    i, j = np.triu_indices(k, 1)
    rows = [(p, completions[k * row + a], completions[k * row + b])
            for row, p in enumerate(prompts) for a, b in zip(i, j, strict=True)]  # fmt: skip
    said = win_probability(labeler, *map(list, zip(*rows, strict=True)))
    said = np.where([a == b for _, a, b in rows], 0.5, said).reshape(len(prompts), -1)
    won = np.full((len(prompts), k, k), 0.5)
    won[:, i, j], won[:, j, i] = said, 1 - said
    return won.mean(2)
