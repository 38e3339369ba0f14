"""Methods in rounds: sample from the current policy, judge, train on the tokens that were sampled, and again."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from torch import Tensor

from alignkit.errors import AlignkitError, check_at_least, check_choice, check_positive
from alignkit.optimize.experience import joined
from alignkit.optimize.fresh_samples import Labeler, win_probability
from alignkit.optimize.losses import sppo_loss
from alignkit.optimize.preference import dpo, hinge, sft
from alignkit.optimize.training import summed_logprobs, train
from alignkit.policy import Batch, Policy, Rollout
from alignkit.rewards.base import Reward, as_reward, columns_of, repeated
from alignkit.rewards.data import check_columns, check_texts
from alignkit.training import default_rate

Spent = dict[str, float]
#: One round: (current policy, its prompts, their columns, seed, options of the training) to the next policy and what
#: was spent on samples and judgments.
OneRound = Callable[[Policy, list, dict[str, list], int, dict], tuple[Policy, Spent]]


def in_rounds(
    policy: Policy,
    prompts: list | Dataset,
    one_round: OneRound,
    name: str,
    rounds: int = 3,
    prompts_per_round: int = 256,
    seed: int = 0,
    progress: bool = True,
    callback: Callable | None = None,
    checkpoint: str | Path | None = None,
) -> Policy:
    """The loop of rounds; returns a new policy.

    `prompts`: a list, or a Dataset with a column `prompt`, whose other columns are handed to a reward by name. They are
    taken in turn from shuffled passes. `history` is that of the trainings with a column `round`; `spent` adds up
    rows_read, updates, seconds, completions_sampled, answers_scored (by a reward) and judgments (of two answers).
    `callback`: see `train`. `checkpoint`: a folder, one file a round; the same call goes on after an interruption with
    the same result (rounds that were finished are sampled again but not trained).
    """
    everyone, columns = columns_of(prompts)
    if not everyone or rounds < 1 or prompts_per_round < 1:
        raise AlignkitError(
            f"{name}: there must be prompts, and rounds and prompts_per_round at least 1; not {len(everyone)}, "
            f"{rounds}, {prompts_per_round}"
        )
    rng = np.random.default_rng([seed, 9])
    passes = -(-rounds * prompts_per_round // len(everyone))
    order = np.concatenate([rng.permutation(len(everyone)) for _ in range(passes)])
    current, histories, spent = policy, [], {}
    for k in range(rounds):
        start = time.perf_counter()
        rows = order[k * prompts_per_round : (k + 1) * prompts_per_round].tolist()
        theirs = {column: [values[i] for i in rows] for column, values in columns.items()}
        file = None if checkpoint is None else Path(checkpoint) / f"round-{k}.pt"
        asked = [everyone[i] for i in rows]
        options = {"seed": seed * 1000 + k, "progress": progress, "callback": callback, "checkpoint": file,
                   "prompts": asked[:16]}  # fmt: skip
        current, paid = one_round(current, asked, theirs, seed * 1000 + k, options)
        current.name = f"{policy.name} + {name}"
        histories.append(current.history.assign(round=k))
        paid = {**current.spent, **paid, "seconds": time.perf_counter() - start}
        spent = {key: spent.get(key, 0) + paid.get(key, 0) for key in {**spent, **paid}}
    current.history, current.spent = pd.concat(histories, ignore_index=True), spent
    return current


# --- pairs


def better_sides(
    prompts: list, first: list[str], second: list[str], labeler: Labeler | Reward,
    columns: dict[str, list] | None = None,
) -> list[tuple[int, bool]]:  # fmt: skip
    """For each pair whose texts differ and whose label is no tie: its row, and whether the first side is chosen."""
    rows = [i for i, (a, b) in enumerate(zip(first, second, strict=True)) if a != b]
    if not rows:
        raise AlignkitError("all pairs of samples are equal: the policy no longer varies; stop earlier, or raise beta")
    some = {name: [values[i] for i in rows] for name, values in (columns or {}).items()}
    sides = ([column[i] for i in rows] for column in (prompts, first, second))
    said = win_probability(labeler, *sides, some)
    chosen = [(i, bool(better > 0.5)) for i, better in zip(rows, said, strict=True) if better != 0.5]
    if not chosen:
        raise AlignkitError("labeling: no pair has two different sides, one better than the other: nothing to learn")
    return chosen


def pairs_of(prompts: list, first: list[str], second: list[str], labeler: Labeler | Reward) -> Dataset:
    """`prompt/chosen/rejected` from two answers each; equal texts and ties teach nothing and are left out."""
    rows = [(prompts[i], *((first[i], second[i]) if wins else (second[i], first[i])))
            for i, wins in better_sides(prompts, first, second, labeler)]  # fmt: skip
    columns = map(list, zip(*rows, strict=True))
    return Dataset.from_dict(dict(zip(("prompt", "chosen", "rejected"), columns, strict=True)))


def sampled_pairs(
    said: Rollout, first: list[int], second: list[int], labeler: Labeler | Reward, columns: dict[str, list]
) -> Batch:
    """Pairs of a rollout's rows, labeled; all chosen, then all rejected rows, as they were sampled. `columns`: one
    value a row of the rollout."""
    texts = ([said.completions[i] for i in side] for side in (first, second))
    theirs = {name: [values[i] for i in first] for name, values in columns.items()}
    sides = better_sides([said.prompts[i] for i in first], *texts, labeler, theirs)
    rows = [(first[i], second[i]) if wins else (second[i], first[i]) for i, wins in sides]
    return said.batch.rows(torch.tensor(rows).T.flatten())


# --- methods


def raft(
    policy: Policy, prompts: list | Dataset, reward: Reward | Callable, n: int = 8, epochs: float = 1,
    batch_size: int = 32, learning_rate: float | None = None, max_new_tokens: int = 48, **options,
) -> Policy:  # fmt: skip
    """Reward-ranked fine-tuning: each round, the best of `n` samples a prompt by `reward` becomes a demonstration, and
    the current policy is fine-tuned on them (2304.06767). Options: see `in_rounds`."""
    reward = as_reward(_given(reward))
    check_at_least("raft", 2, n=n)
    rate = learning_rate or default_rate(policy.model, "preference")

    def one_round(current: Policy, asked: list, columns: dict, seed: int, rest: dict) -> tuple[Policy, Spent]:
        said = current.rollout(asked, n, seed=seed, max_new_tokens=max_new_tokens)
        scores = _scores(reward, said, columns, n)
        best = torch.from_numpy(scores.argmax(1)) + n * torch.arange(len(asked))
        after = sft(current, said.batch.rows(best), epochs=epochs, batch_size=batch_size, learning_rate=rate, **rest)
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
    policy: Policy, prompts: list | Dataset, reward: Reward | Callable, beta: float = 0.2, n: int = 32, keep: int = 8,
    labeler: Labeler | Reward | None = None, loss: str = "hinge", sample_beta: float = 0.5, epochs: float = 1,
    batch_size: int = 32, learning_rate: float | None = None, max_new_tokens: int = 48, rounds: int = 1, **options,
) -> Policy:  # fmt: skip
    """Statistical rejection sampling: of `n` samples a prompt, `keep` are accepted as samples of the optimum at
    `sample_beta` (in units of the reward), paired at random and labeled by `labeler` (default: the reward); ties are
    dropped; then the "hinge" or "dpo" loss at `beta` (2309.06657). Reference: `policy`. Options: see `in_rounds`.

    The paper has one round. In later ones, here, the candidates come from the current policy, so that what is accepted
    is its optimum and no longer that of `policy`.
    """
    reward = as_reward(_given(reward))
    losses = {"hinge": hinge, "dpo": dpo}
    check_choice("rso", "loss", loss, losses)
    check_at_least("rso", 2, keep=keep)
    check_at_least("rso", keep, n=n)
    check_positive("rso", sample_beta=sample_beta)

    def one_round(current: Policy, asked: list, columns: dict, seed: int, rest: dict) -> tuple[Policy, Spent]:
        rng = np.random.default_rng([seed, 10])
        said = current.rollout(asked, n, seed=seed, max_new_tokens=max_new_tokens)
        scores = _scores(reward, said, columns, n)
        accepted = [n * row + rejection_sample(each, keep - keep % 2, sample_beta, rng)
                    for row, each in enumerate(scores)]  # fmt: skip
        first, second = (np.concatenate([those[side::2] for those in accepted]).tolist() for side in (0, 1))
        pairs = sampled_pairs(said, first, second, labeler or reward, repeated(columns, n))
        after = losses[loss](current, pairs, beta=beta, reference=policy, epochs=epochs, batch_size=batch_size,
                             learning_rate=learning_rate, **rest)  # fmt: skip
        judgments = len(first) if labeler else 0
        return after, {"completions_sampled": scores.size, "answers_scored": scores.size, "judgments": judgments}

    return in_rounds(policy, prompts, one_round, "rso", rounds=rounds, **options)


def iterative_dpo(
    policy: Policy, prompts: list | Dataset, labeler: Labeler | Reward, beta: float = 0.2, epochs: float = 1,
    batch_size: int = 32, learning_rate: float | None = None, max_new_tokens: int = 48, **options,
) -> Policy:  # fmt: skip
    """DPO in rounds: two samples of the current policy a prompt, labeled, and DPO on them from the current weights; the
    reference stays `policy` (Xiong et al. 2023). Options: see `in_rounds`; for a label at every step: `online_dpo`."""

    def one_round(current: Policy, asked: list, columns: dict, seed: int, rest: dict) -> tuple[Policy, Spent]:
        said = current.rollout(asked, 2, seed=seed, max_new_tokens=max_new_tokens)
        sides = [list(range(side, 2 * len(asked), 2)) for side in (0, 1)]
        pairs = sampled_pairs(said, *sides, labeler, repeated(columns, 2))
        after = dpo(current, pairs, beta=beta, reference=policy, epochs=epochs, batch_size=batch_size,
                    learning_rate=learning_rate, **rest)  # fmt: skip
        return after, {"completions_sampled": 2 * len(asked), "judgments": len(asked)}

    return in_rounds(policy, prompts, one_round, "iterative dpo", **options)


def spin(
    policy: Policy, data: Dataset, beta: float = 0.2, epochs: float = 1, batch_size: int = 32,
    learning_rate: float | None = None, max_new_tokens: int = 48, **options,
) -> Policy:  # fmt: skip
    """Self-play fine-tuning: each round, demonstrations (`prompt/completion`) are chosen over the current policy's own
    samples by DPO's loss, with the current policy as reference (2401.01335). Nobody judges; it can stop only where own
    samples look like demonstrations. Options: see `in_rounds`."""
    check_columns(data, ["prompt", "completion"], "demonstrations")
    check_texts(data, "completion")
    prompts, demonstrations = data["prompt"][:], data["completion"][:]

    def one_round(current: Policy, rows: list[int], _: dict, seed: int, rest: dict) -> tuple[Policy, Spent]:
        own = current.rollout([prompts[i] for i in rows], 1, seed=seed, max_new_tokens=max_new_tokens)
        differ = [k for k, i in enumerate(rows) if demonstrations[i] != own.completions[k]]
        if not differ:
            raise AlignkitError("spin: every sample is its demonstration: nothing is left to learn")
        good = current.encode([prompts[rows[k]] for k in differ], [demonstrations[rows[k]] for k in differ])
        pairs, rest = joined([good, own.batch.rows(torch.tensor(differ))]), {**rest, "prompts": own.prompts[:16]}
        after = dpo(current, pairs, beta=beta, epochs=epochs, batch_size=batch_size, learning_rate=learning_rate,
                    **rest)  # fmt: skip
        return after, {"completions_sampled": len(rows), "judgments": 0}

    return in_rounds(policy, list(range(len(prompts))), one_round, "spin", **options)


def sppo(
    policy: Policy, prompts: list | Dataset, labeler: Labeler | Reward, eta: float = 5.0, group_size: int = 5,
    epochs: float = 1, batch_size: int = 32, learning_rate: float | None = None, max_new_tokens: int = 48, **options,
) -> Policy:  # fmt: skip
    """Self-play preference optimization: `group_size` samples a prompt of the current policy; the squared loss takes
    log pi / pi_current of each to eta (win rate - 1/2), win rates among them by `labeler` (2405.00675).

    That is one multiplicative-weights step toward a policy that no other beats, whether or not preferences have a
    reward behind them. The step is exact with eta win rate - log Z; as in the paper, log Z is taken to be eta / 2,
    which is right for small eta only (at eta = 20 and win rates spread evenly over [0, 1] log Z is 17.0, not 10). The
    paper trains on each prompt's best and worst sample only. Options: see `in_rounds`.
    """
    check_at_least("sppo", 2, group_size=group_size)
    check_positive("sppo", eta=eta)  # at 0 the policy stays where it is

    def one_round(current: Policy, asked: list, columns: dict, seed: int, rest: dict) -> tuple[Policy, Spent]:
        said = current.rollout(asked, group_size, seed=seed, max_new_tokens=max_new_tokens)
        rates = win_rates(labeler, asked, said.completions, group_size, columns)
        treated, batch = current.copy(), said.batch
        ref = summed_logprobs(current, batch)
        rate = torch.tensor(rates.ravel(), dtype=ref.dtype, device=ref.device)

        def loss(part: Tensor, minibatch: Tensor) -> tuple[Tensor, dict]:
            log_ratio = treated.token_logprobs(batch.rows(part)).sum(1) - ref[part]
            return sppo_loss(log_ratio, rate[part], eta).sum() / len(minibatch), {"log_ratio": log_ratio}

        after = train(treated, loss, batch.attention.sum(1), epochs, batch_size, learning_rate,
                      reference_rows=len(batch), **rest)  # fmt: skip
        return after, {"completions_sampled": rates.size, "judgments": rates.size * (group_size - 1) // 2}

    return in_rounds(policy, prompts, one_round, "sppo", **options)


def win_rates(
    labeler: Labeler | Reward, prompts: list, completions: list[str], group_size: int,
    columns: dict[str, list] | None = None,
) -> np.ndarray:  # fmt: skip
    """Share of the completions of its prompt that each completion beats (itself and equal ones by 1/2), shape (prompts,
    group_size). Each two are compared once. `columns`: one value a prompt."""
    i, j = np.triu_indices(group_size, 1)
    rows = [(p, completions[group_size * row + a], completions[group_size * row + b])
            for row, p in enumerate(prompts) for a, b in zip(i, j, strict=True)]  # fmt: skip
    said = win_probability(labeler, *map(list, zip(*rows, strict=True)), repeated(columns or {}, len(i)))
    said = np.where([a == b for _, a, b in rows], 0.5, said).reshape(len(prompts), -1)
    won = np.full((len(prompts), group_size, group_size), 0.5)
    won[:, i, j], won[:, j, i] = said, 1 - said
    return won.mean(2)


def _given(reward: Reward | Callable | None) -> Reward | Callable:
    if reward is None:
        raise AlignkitError("no reward was given: pass a Reward, or a function of (prompts, completions)")
    return reward


def _scores(reward: Reward, said: Rollout, columns: dict[str, list], n: int) -> np.ndarray:
    """Of n samples a prompt, shape (prompts, n); minus infinity where the reward leaves out a row."""
    judgement = reward(said.prompts, said.completions, **repeated(columns, n))
    reward.update(judgement)
    return judgement.ranked().reshape(-1, n)
