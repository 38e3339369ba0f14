"""What people are shown: completions drawn from a policy, in groups or one by one, and who looks at which."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from datasets import Dataset

from alignkit.errors import AlignkitError, DataError
from alignkit.feedback.annotator import Annotator
from alignkit.policy import Policy
from alignkit.worlds.base import World

People = Annotator | Sequence[Annotator]


def draw_groups(
    world: World,
    policy: Policy,
    n: int,
    k: int = 4,
    seed: int = 0,
    split: str = "feedback",
    prompts: list[str] | None = None,
) -> Dataset:
    """n rows `prompt/completions` with k samples of `policy` each; prompts in turn, shuffled.

    Samples of a group differ: repeated ones are drawn again up to 50 times, and a group that still repeats is left out.
    """
    prompts = list(prompts if prompts is not None else world.prompts(split))
    if n < 1 or k < 1 or not prompts:
        raise AlignkitError(f"draw_groups: n and k must be at least 1 and prompts must not be empty (n={n}, k={k})")
    rng = np.random.default_rng(seed)
    order = np.concatenate([rng.permutation(len(prompts)) for _ in range(-(-n // len(prompts)))])[:n]
    asked = [prompts[i] for i in order]
    groups = [list(dict.fromkeys(texts)) for texts in policy.sample(asked, n=k, seed=seed)]
    for attempt in range(1, 51):
        short = [i for i in range(n) if len(groups[i]) < k]
        if not short:
            break
        again = policy.sample([asked[i] for i in short], n=1, seed=seed + 7919 * attempt)
        for i, (text,) in zip(short, again, strict=True):
            groups[i] = list(dict.fromkeys([*groups[i], text]))
    keep = [i for i in range(n) if len(groups[i]) == k]
    return Dataset.from_dict({"prompt": [asked[i] for i in keep], "completions": [groups[i] for i in keep]})


def one_by_one(answers: Dataset) -> Dataset:
    """`prompt/completion`, one row a completion, from groups (`prompt/completions`) or from such rows themselves."""
    if {"prompt", "completion"} <= set(answers.column_names):
        return answers
    if not {"prompt", "completions"} <= set(answers.column_names):
        raise DataError(f"need the columns prompt and completion (or completions); found {answers.column_names}")
    rows = [(p, text) for p, texts in zip(answers["prompt"], answers["completions"], strict=True) for text in texts]
    return Dataset.from_dict({"prompt": [p for p, _ in rows], "completion": [text for _, text in rows]})


def assign(people: People, n: int, everyone: bool = False) -> tuple[list[Annotator], np.ndarray, np.ndarray]:
    """Who looks at what: the people, the row of each answer and the number of the person who gives it.

    In turn, one person a row; or `everyone` looks at every row.
    """
    people = [people] if isinstance(people, Annotator) else list(people)
    if not people:
        raise AlignkitError("give at least one annotator")
    if everyone:
        return people, np.tile(np.arange(n), len(people)), np.repeat(np.arange(len(people)), n)
    return people, np.arange(n), np.arange(n) % len(people)
