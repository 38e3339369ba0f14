"""Methods in rounds: sample from the current policy, judge, train on the tokens that were sampled, and again."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from torch import Tensor

from alignkit.errors import AlignkitError, check_at_least, check_positive
from alignkit.optimize.fresh_samples import Labeler, heard, win_probability
from alignkit.optimize.losses import sppo_loss
from alignkit.optimize.preference import dpo, hinge, sft
from alignkit.policy import Batch, Policy, Rollout
from alignkit.rewards.base import Reward, as_reward, columns_of, repeated
from alignkit.rewards.data import check_columns, check_texts
from alignkit.training import default_rate, summed_logprobs, train

#: What is made of one round's samples: (current policy, samples, columns with one value a sample, options of the
#: training) to the next policy and what was spent on judgments.
OneRound = Callable[[Policy, Rollout, dict[str, list], dict], tuple[Policy, dict[str, float]]]


def in_rounds(
    policy: Policy,
    prompts: list | Dataset,
    one_round: OneRound,
    name: str,
    group_size: int,
    rounds: int = 3,
    prompts_per_round: int = 256,
    epochs: float = 1,
    learning_rate: float | None = None,
    max_new_tokens: int = 48,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    **options,
) -> Policy:
    """The loop of rounds, each of which samples `group_size` completions a prompt; returns a new policy.

    `prompts`: a list, or a Dataset with a column `prompt`, whose other columns are handed to a reward by name. They are
    taken in turn from shuffled passes. `history` is that of the trainings with a column `round`; `spent` adds up
    rows_read, updates, seconds, completions_sampled, answers_scored (by a reward) and judgments (of two answers).
    `checkpoint`: a folder, one file a round; the same call goes on after an interruption with the same result (rounds
    that were finished are sampled again but not trained). Options: see `train`.
    """
    everyone, columns = columns_of(prompts)
    check_at_least(name, 1, rounds=rounds, prompts_per_round=prompts_per_round,
                   **{"the number of prompts": len(everyone)})  # fmt: skip
    rng = np.random.default_rng([seed, 9])
    passes = -(-rounds * prompts_per_round // len(everyone))
    order = np.concatenate([rng.permutation(len(everyone)) for _ in range(passes)])
    rate = default_rate(policy.model, "preference") if learning_rate is None else learning_rate
    current, histories, spent = policy, [], Counter()
    for k in range(rounds):
        start = time.perf_counter()
        rows = order[k * prompts_per_round : (k + 1) * prompts_per_round].tolist()
        theirs = repeated({column: [values[i] for i in rows] for column, values in columns.items()}, group_size)
        asked = [everyone[i] for i in rows]
        said = current.rollout(asked, group_size, seed=seed * 1000 + k, max_new_tokens=max_new_tokens)
        how = {**options, "epochs": epochs, "learning_rate": rate, "seed": seed * 1000 + k, "prompts": asked[:16],
               "checkpoint": None if checkpoint is None else Path(checkpoint) / f"round-{k}.pt"}  # fmt: skip
        current, judged = one_round(current, said, theirs, how)
        current.name = f"{policy.name} + {name}"
        histories.append(current.history.assign(round=k))
        spent.update({**current.spent, "completions_sampled": len(said.completions), **judged,
                      "seconds": time.perf_counter() - start})  # fmt: skip
    current.history, current.spent = pd.concat(histories, ignore_index=True), dict(spent)
    return current


# --- pairs


def better_sides(
    prompts: list, first: list[str], second: list[str], labeler: Labeler | Reward, columns: dict[str, list]
) -> list[tuple[int, bool]]:
    """For each pair whose texts differ and whose label is no tie: its row, and whether the first side is chosen."""
    rows = [i for i, (a, b) in enumerate(zip(first, second, strict=True)) if a != b]
    if not rows:
        raise AlignkitError("all pairs of samples are equal: the policy no longer varies; stop earlier, or raise beta")
    some = {name: [values[i] for i in rows] for name, values in columns.items()}
    sides = ([column[i] for i in rows] for column in (prompts, first, second))
    said = win_probability(labeler, *sides, some)
    chosen = [(i, bool(better > 0.5)) for i, better in zip(rows, said, strict=True) if better != 0.5]
    if not chosen:
        raise AlignkitError("labeling: no pair has two different sides, one better than the other: nothing to learn")
    return chosen


def pairs_of(prompts: list, first: list[str], second: list[str], labeler: Labeler | Reward) -> Dataset:
    """`prompt/chosen/rejected` from two answers each; equal texts and ties teach nothing and are left out."""
    rows = [(prompts[i], *((first[i], second[i]) if wins else (second[i], first[i])))
            for i, wins in better_sides(prompts, first, second, labeler, {})]  # fmt: skip
    columns = map(list, zip(*rows, strict=True))
    return Dataset.from_dict(dict(zip(("prompt", "chosen", "rejected"), columns, strict=True)))


def sampled_pairs(said: Rollout, rows: list[int], labeler: Labeler | Reward, columns: dict[str, list]) -> Batch:
    """Each two of these rows of a rollout as a pair, labeled; all chosen, then all rejected rows, as they were sampled.
    `columns`: one value a row of the rollout."""
    first, second = rows[::2], rows[1::2]
    texts = ([of[i] for i in side] for of, side in
             ((said.prompts, first), (said.completions, first), (said.completions, second)))  # fmt: skip
    sides = better_sides(*texts, labeler, {name: [values[i] for i in first] for name, values in columns.items()})
    pairs = [(first[i], second[i]) if wins else (second[i], first[i]) for i, wins in sides]
    return said.batch.rows(torch.tensor(pairs).T.flatten())


# --- methods


def raft(policy: Policy, prompts: list | Dataset, reward: Reward | Callable, n: int = 8, **options) -> Policy:
    """Reward-ranked fine-tuning: each round, the best of `n` samples a prompt by `reward` becomes a demonstration, and
    the current policy is fine-tuned on them (2304.06767). Options: see `in_rounds`."""
    reward = as_reward(reward)
    check_at_least("raft", 2, n=n)

    def one_round(current: Policy, said: Rollout, columns: dict, how: dict) -> tuple[Policy, dict]:
        scores = heard(reward, said, columns).ranked().reshape(-1, n)
        best = torch.from_numpy(scores.argmax(1)) + n * torch.arange(len(scores))
        return sft(current, said.batch.rows(best), **how), {"answers_scored": scores.size}

    return in_rounds(policy, prompts, one_round, "raft", n, **options)


def rejection_sample(scores: np.ndarray, keep: int, beta: float, rng: np.random.Generator) -> np.ndarray:
    """Indices of `keep` of the candidates, accepted with probability exp((r - r_max) / beta), r_max over those not yet
    accepted; passes over them until there are enough (RSO 2309.06657, algorithm 1).

    With many candidates of pi_ref, accepted ones are samples of pi_ref exp(r / beta) / Z. `scores`: shape (N,).
    """
    left, taken = rng.permutation(len(scores)), []
    while len(taken) < keep:
        accept = rng.random(len(left)) < np.exp((scores[left] - scores[left].max()) / beta)
        taken += left[accept].tolist()
        left = left[~accept]
    return np.array(taken[:keep])


def rso(
    policy: Policy, prompts: list | Dataset, reward: Reward | Callable, beta: float = 0.2, n: int = 32, keep: int = 8,
    sample_beta: float = 0.5, rounds: int = 1, **options,
) -> Policy:  # fmt: skip
    """Statistical rejection sampling: of `n` samples a prompt, `keep` are accepted as samples of the optimum at
    `sample_beta` (in units of the reward), paired at random and labeled by the reward; ties are dropped; then the hinge
    loss at `beta` (2309.06657). Reference: `policy`. Options: see `in_rounds`.

    The paper has one round, and a labeler that reads both answers. In later rounds, here, the candidates come from the
    current policy, so that what is accepted is its optimum and no longer that of `policy`.
    """
    reward = as_reward(reward)
    check_at_least("rso", 2, keep=keep)
    check_at_least("rso", keep, n=n)
    check_positive("rso", sample_beta=sample_beta)

    def one_round(current: Policy, said: Rollout, columns: dict, how: dict) -> tuple[Policy, dict]:
        rng = np.random.default_rng([how["seed"], 10])
        scores = heard(reward, said, columns).all_scores("rso").reshape(-1, n)
        accepted = [n * row + rejection_sample(each, keep - keep % 2, sample_beta, rng)
                    for row, each in enumerate(scores)]  # fmt: skip
        pairs = sampled_pairs(said, np.concatenate(accepted).tolist(), reward, columns)
        return hinge(current, pairs, beta=beta, reference=policy, **how), {"answers_scored": scores.size}

    return in_rounds(policy, prompts, one_round, "rso", n, rounds=rounds, **options)


def iterative_dpo(
    policy: Policy, prompts: list | Dataset, labeler: Labeler | Reward, beta: float = 0.2, **options
) -> Policy:
    """DPO in rounds: two samples of the current policy a prompt, labeled, and DPO on them from the current weights; the
    reference stays `policy` (Xiong et al. 2023). Options: see `in_rounds`; for a label at every step: `online_dpo`."""

    def one_round(current: Policy, said: Rollout, columns: dict, how: dict) -> tuple[Policy, dict]:
        pairs = sampled_pairs(said, list(range(len(said.completions))), labeler, columns)
        return dpo(current, pairs, beta=beta, reference=policy, **how), {"judgments": len(said.completions) // 2}

    return in_rounds(policy, prompts, one_round, "iterative dpo", 2, **options)


def spin(policy: Policy, data: Dataset, beta: float = 0.2, **options) -> Policy:
    """Self-play fine-tuning: each round, demonstrations (`prompt/completion`) are chosen over the current policy's own
    samples by DPO's loss, with the current policy as reference (2401.01335). Nobody judges; it can stop only where own
    samples look like demonstrations. Options: see `in_rounds`."""
    check_columns(data, ["prompt", "completion"], "demonstrations")
    check_texts(data, "completion")
    shown = data.select_columns(["prompt", "completion"]).rename_column("completion", "shown")

    def one_round(current: Policy, said: Rollout, columns: dict, how: dict) -> tuple[Policy, dict]:
        differ = [i for i, text in enumerate(said.completions) if text != columns["shown"][i]]
        if not differ:
            raise AlignkitError("spin: every sample is its demonstration: nothing is left to learn")
        asked, tails = [said.prompts[i] for i in differ], said.batch.tails
        both = current.encode(asked * 2, [columns["shown"][i] for i in differ] + [tails[i] for i in differ])
        return dpo(current, both, beta=beta, **how), {}

    return in_rounds(policy, shown, one_round, "spin", 1, **options)


def sppo(
    policy: Policy, prompts: list | Dataset, labeler: Labeler | Reward, eta: float = 5.0, group_size: int = 5, **options
) -> Policy:
    """Self-play preference optimization: `group_size` samples a prompt of the current policy; the squared loss takes
    log pi / pi_current of each to eta (win rate - 1/2), win rates among them by `labeler` (2405.00675).

    That is one multiplicative-weights step toward a policy that no other beats, whether or not preferences have a
    reward behind them. The step is exact with eta win rate - log Z; as in the paper, log Z is taken to be eta / 2,
    which is right for small eta only (at eta = 20 and win rates spread evenly over [0, 1] log Z is 17.0, not 10). The
    paper trains on each prompt's best and worst sample only. Options: see `in_rounds`.
    """
    check_at_least("sppo", 2, group_size=group_size)
    check_positive("sppo", eta=eta)  # at 0 the policy stays where it is

    def one_round(current: Policy, said: Rollout, columns: dict, how: dict) -> tuple[Policy, dict]:
        rates = win_rates(labeler, said.prompts, said.completions, group_size, columns)
        treated, batch = current.copy(), said.batch
        ref = summed_logprobs(current, batch)
        rate = torch.tensor(rates.ravel(), dtype=ref.dtype, device=ref.device)

        def loss(part: Tensor, minibatch: Tensor) -> tuple[Tensor, dict]:
            log_ratio = treated.token_logprobs(batch.rows(part)).sum(1) - ref[part]
            return sppo_loss(log_ratio, rate[part], eta).sum() / len(minibatch), {"log_ratio": log_ratio}

        after = train(treated, loss, batch.attention.sum(1), reference_rows=len(batch), **how)
        return after, {"judgments": rates.size * (group_size - 1) // 2}

    return in_rounds(policy, prompts, one_round, "sppo", group_size, **options)


def win_rates(
    labeler: Labeler | Reward, prompts: list, completions: list[str], group_size: int, columns: dict[str, list]
) -> np.ndarray:
    """Share of the completions of its prompt that each completion beats (itself and equal ones by 1/2), shape (prompts,
    group_size). Each two are compared once. Prompts and `columns`: one value a completion."""
    i, j = np.triu_indices(group_size, 1)
    first, second = ((np.arange(0, len(prompts), group_size)[:, None] + side).ravel().tolist() for side in (i, j))
    a, b = ([completions[row] for row in side] for side in (first, second))
    theirs = {name: [values[row] for row in first] for name, values in columns.items()}
    said = win_probability(labeler, [prompts[row] for row in first], a, b, theirs)
    won = np.full((len(prompts) // group_size, group_size, group_size), 0.5)
    won[:, i, j] = said.reshape(len(won), -1)
    won[:, j, i] = 1 - won[:, i, j]
    return won.mean(2)
