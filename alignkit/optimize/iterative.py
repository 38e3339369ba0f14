"""Rounds that use a reward or a labeler: RAFT, RSO, iterative DPO."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from datasets import Dataset

from alignkit.errors import AlignkitError
from alignkit.optimize.labelers import Labeler
from alignkit.optimize.preference import dpo, hinge, sft
from alignkit.optimize.rounds import Spent, at_least, in_rounds, pairs_of
from alignkit.policy import Policy
from alignkit.rewards.base import Reward, as_reward


def raft(
    policy: Policy, prompts: list, reward: Reward | Callable, k: int = 8, epochs: float = 1, batch_size: int = 32,
    learning_rate: float = 3e-4, **options,
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
    batch_size: int = 32, learning_rate: float = 3e-4, rounds: int = 1, **options,
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
    batch_size: int = 32, learning_rate: float = 3e-4, **options,
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
