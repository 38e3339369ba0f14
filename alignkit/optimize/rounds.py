"""The loop that methods in rounds share: sample from the current policy, judge, train on what was found, and again."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset

from alignkit.errors import AlignkitError
from alignkit.optimize.labelers import Labeler, preference
from alignkit.policy import Policy
from alignkit.rewards.base import Reward

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
        file = None if checkpoint is None else Path(checkpoint) / f"round-{k}.safetensors"
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
    said = preference(labeler, *map(list, zip(*differ, strict=True)))
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
