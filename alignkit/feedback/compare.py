"""Pairwise comparison: from a world, a policy and people to a `datasets.Dataset` with TRL's columns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from datasets import Dataset

from alignkit.errors import AlignkitError
from alignkit.feedback.annotator import Annotator
from alignkit.policy import Policy
from alignkit.worlds.base import World


def draw_pairs(
    world: World, policy: Policy, n: int, seed: int = 0, split: str = "feedback", prompts: list[str] | None = None
) -> Dataset:
    """n unlabeled pairs of different completions, columns `prompt/first/second`; prompts in turn, shuffled.

    Two equal samples teach nothing, so they are drawn again (up to 50 times).
    """
    prompts = list(prompts if prompts is not None else world.prompts(split))
    if n < 1 or not prompts:
        raise AlignkitError(f"draw_pairs: n must be at least 1 and prompts must not be empty (n={n})")
    rng = np.random.default_rng(seed)
    order = np.concatenate([rng.permutation(len(prompts)) for _ in range(-(-n // len(prompts)))])[:n]
    asked = [prompts[i] for i in order]
    texts = policy.sample(asked, n=2, seed=seed)
    first, second = [t[0] for t in texts], [t[1] for t in texts]
    for attempt in range(1, 51):
        same = [i for i in range(n) if first[i] == second[i]]
        if not same:
            break
        again = policy.sample([asked[i] for i in same], n=1, seed=seed + 7919 * attempt)
        for i, text in zip(same, again, strict=True):
            second[i] = text[0]
    keep = [i for i in range(n) if first[i] != second[i]]
    columns = {"prompt": asked, "first": first, "second": second}
    return Dataset.from_dict({name: [values[i] for i in keep] for name, values in columns.items()})


def label(world: World, pairs: Dataset, annotator: Annotator | Sequence[Annotator], seed: int = 0) -> Dataset:
    """Ask one annotator, or several in turn, about each pair of `prompt/first/second`.

    Returns columns `prompt/chosen/rejected` (TRL) and `position` (which side was chosen: "first" or "second"),
    `p_chosen` (the probability that this annotator would choose so, in this order) and `annotator`.
    """
    people = [annotator] if isinstance(annotator, Annotator) else list(annotator)
    if not people:
        raise AlignkitError("label: give at least one annotator")
    prompts, first, second = pairs["prompt"][:], pairs["first"][:], pairs["second"][:]
    who = np.arange(len(pairs)) % len(people)
    p_first = np.zeros(len(pairs))
    for k, person in enumerate(people):
        rows = np.flatnonzero(who == k)
        part = ([column[i] for i in rows] for column in (prompts, first, second))
        p_first[rows] = person.prefers_first(world, *part)
    takes_first = np.random.default_rng([seed, 2]).random(len(pairs)) < p_first
    sides = list(zip(first, second, takes_first, strict=True))
    return Dataset.from_dict(
        {
            "prompt": prompts,
            "chosen": [a if took else b for a, b, took in sides],
            "rejected": [b if took else a for a, b, took in sides],
            "position": ["first" if took else "second" for took in takes_first],
            "p_chosen": np.where(takes_first, p_first, 1 - p_first),
            "annotator": [people[k].name for k in who],
        }
    )


def compare(
    world: World,
    policy: Policy,
    annotator: Annotator | Sequence[Annotator] = Annotator(),  # noqa: B008 (frozen)
    n: int = 1000,
    seed: int = 0,
    split: str = "feedback",
    prompts: list[str] | None = None,
) -> Dataset:
    """Draw n pairs of completions from `policy` and have them compared; columns as in `label`."""
    return label(world, draw_pairs(world, policy, n, seed, split, prompts), annotator, seed)


def shuffle_labels(pairs: Dataset, seed: int = 0) -> Dataset:
    """The null control: each pair's sides swapped by a fair coin, so that the labels say nothing."""
    swap = np.random.default_rng([seed, 3]).random(len(pairs)) < 0.5
    sides = list(zip(pairs["chosen"], pairs["rejected"], swap, strict=True))
    return Dataset.from_dict(
        {
            "prompt": pairs["prompt"][:],
            "chosen": [r if s else c for c, r, s in sides],
            "rejected": [c if s else r for c, r, s in sides],
        }
    )
