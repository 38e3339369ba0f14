"""Comparison: from a world, a policy and people to a `datasets.Dataset` with TRL's columns; and which pairs to ask."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from datasets import Dataset

from alignkit.errors import AlignkitError
from alignkit.feedback.annotator import Annotator, Scorer, scores_of
from alignkit.feedback.answers import People, asked_of, assign, further
from alignkit.policy import Policy
from alignkit.worlds.base import World

PAIR = ("prompt", "first", "second")
SIDES = ("first", "second")
VERDICT = ("position", "p_chosen", "confidence")  # what a labeling says beside which side was chosen
BY = ("disagreement", "closeness")


def draw_groups(
    world: World,
    policy: Policy,
    n: int,
    group_size: int = 4,
    seed: int = 0,
    split: str = "feedback",
    prompts: Sequence | Dataset | None = None,
    max_new_tokens: int = 48,
) -> Dataset:
    """n rows `prompt/completions` with `group_size` samples of `policy` each; prompts in turn, shuffled.

    `prompts`: a list, or a Dataset with a column `prompt`, whose other columns go along; default: the world's `split`.
    Samples of a group differ: repeated ones are drawn again up to 50 times, and a group that still repeats is left out.
    """
    prompts, columns = asked_of(world.prompts(split) if prompts is None else prompts)
    if n < 1 or group_size < 1 or not prompts:
        raise AlignkitError(f"n and group_size must be at least 1 and prompts must not be empty (n={n}, "
                            f"group_size={group_size})")  # fmt: skip
    rng = np.random.default_rng(seed)
    order = np.concatenate([rng.permutation(len(prompts)) for _ in range(-(-n // len(prompts)))])[:n]
    asked = [prompts[i] for i in order]
    drawn = policy.sample(asked, n=group_size, seed=seed, max_new_tokens=max_new_tokens)
    groups = [list(dict.fromkeys(texts)) for texts in drawn]
    for attempt in range(1, 51):
        short = [i for i in range(n) if len(groups[i]) < group_size]
        if not short:
            break
        again = policy.sample([asked[i] for i in short], n=1, seed=seed + 7919 * attempt, max_new_tokens=max_new_tokens)
        for i, (text,) in zip(short, again, strict=True):
            groups[i] = list(dict.fromkeys([*groups[i], text]))
    keep = [i for i in range(n) if len(groups[i]) == group_size]
    along = {name: [values[i] for i in order[keep]] for name, values in columns.items()}
    return Dataset.from_dict({**along, "prompt": [asked[i] for i in keep], "completions": [groups[i] for i in keep]})


def draw_pairs(
    world: World,
    policy: Policy,
    n: int,
    seed: int = 0,
    split: str = "feedback",
    prompts: Sequence | Dataset | None = None,
    max_new_tokens: int = 48,
) -> Dataset:
    """n unlabeled pairs of different completions, columns `prompt/first/second`: groups of two (see `draw_groups`)."""
    groups = draw_groups(world, policy, n, 2, seed, split, prompts, max_new_tokens)
    first, second = ([texts[side] for texts in groups["completions"]] for side in (0, 1))
    return Dataset.from_dict({"prompt": groups["prompt"][:], "first": first, "second": second,
                              **further(groups, ("prompt", "completions", *PAIR))})  # fmt: skip


def label(world: World, pairs: Dataset, annotator: People, seed: int = 0) -> Dataset:
    """Ask one annotator, or several in turn, about each pair of `prompt/first/second`.

    Returns columns `prompt/chosen/rejected` (TRL) and `position` (which side was chosen: "first" or "second"),
    `p_chosen` (the probability that this annotator would choose so, in this order), `annotator`, and the pairs' further
    columns.
    """
    people, _, who = assign(annotator, len(pairs))
    prompts, first, second = (pairs[name][:] for name in PAIR)
    along = further(pairs, PAIR)
    p_first = np.zeros(len(pairs))
    for k, person in enumerate(people):
        rows = np.flatnonzero(who == k)
        part = ([column[i] for i in rows] for column in (prompts, first, second))
        known = {name: [values[i] for i in rows] for name, values in along.items()}
        p_first[rows] = person.prefers_first(world, *part, **known)
    takes_first = np.random.default_rng([seed, 2]).random(len(pairs)) < p_first
    p_chosen = np.where(takes_first, p_first, 1 - p_first)
    return _labeled(pairs, range(len(pairs)), takes_first, p_chosen, [people[k].name for k in who])


def label_by_rule(pairs: Dataset, rule: Scorer, name: str = "rule") -> Dataset:
    """Labels where a rule has something to say: of `prompt/first/second`, the side that scores higher.

    Pairs on which it scores both sides the same are left out. Columns as `label` gives them, and `task`: the row of the
    pair.
    """
    prompts, first, second = (pairs[name][:] for name in PAIR)
    gap = scores_of(rule, prompts, first) - scores_of(rule, prompts, second)
    rows = np.flatnonzero(gap).tolist()
    labels = _labeled(pairs, rows, gap[rows] > 0, np.ones(len(rows)), [name] * len(rows))
    if "task" in labels.column_names:
        labels = labels.remove_columns("task")
    return labels.add_column("task", rows)


def label_as(pairs: Dataset, sides: Sequence[str], name: str) -> Dataset:
    """Labels that are known already ("first" or "second" for each pair), in the columns of `label`."""
    takes_first = np.array([side == "first" for side in sides], dtype=bool)
    return _labeled(pairs, range(len(pairs)), takes_first, np.ones(len(pairs)), [name] * len(pairs))


def _labeled(
    pairs: Dataset, rows: Sequence[int], takes_first: np.ndarray, p_chosen: np.ndarray, names: list[str]
) -> Dataset:
    """Labels of these rows, by which side was chosen."""
    prompts, first, second = ([column[i] for i in rows] for column in (pairs[name][:] for name in PAIR))
    sides = [(a, b) if took else (b, a) for a, b, took in zip(first, second, takes_first, strict=True)]
    columns = {
        "prompt": prompts,
        "chosen": [chosen for chosen, _ in sides],
        "rejected": [rejected for _, rejected in sides],
        "position": ["first" if took else "second" for took in takes_first],
        "p_chosen": p_chosen,
        "annotator": names,
    }
    return Dataset.from_dict({**columns, **further(pairs, (*PAIR, *columns), rows)})


def compare(
    world: World,
    policy: Policy,
    annotator: People = Annotator(),  # noqa: B008 (frozen)
    n: int = 1000,
    seed: int = 0,
    split: str = "feedback",
    prompts: Sequence | Dataset | None = None,
    max_new_tokens: int = 48,
) -> Dataset:
    """Draw n pairs of completions from `policy` and have them compared; columns as in `label`."""
    return label(world, draw_pairs(world, policy, n, seed, split, prompts, max_new_tokens), annotator, seed)


def shuffle_labels(pairs: Dataset, seed: int = 0) -> Dataset:
    """The null control: each pair's sides swapped by a fair coin, so that the labels say nothing.

    Further columns go along, but those that tell which side was chosen and how surely.
    """
    swapped = np.random.default_rng([seed, 3]).random(len(pairs)) < 0.5
    sides = list(zip(pairs["chosen"], pairs["rejected"], swapped, strict=True))
    columns = {
        "prompt": pairs["prompt"][:],
        "chosen": [r if s else c for c, r, s in sides],
        "rejected": [c if s else r for c, r, s in sides],
    }
    return Dataset.from_dict({**columns, **further(pairs, (*columns, *VERDICT))})


# -- which question to ask next -----------------------------------------------------------------------------------


def uncertainty(pairs: Dataset, scorers: Scorer | Sequence[Scorer], by: str = "disagreement") -> np.ndarray:
    """How unsure the scorers are about each pair of `prompt/first/second`, shape (N,); larger is less sure.

    "disagreement": standard deviation over an ensemble of the probability that the first side wins: what is not known
    yet. "closeness": minus the distance of the mean probability from one half: that, and true ties as well.
    """
    scorers = [scorers] if callable(scorers) else list(scorers)
    if by not in BY or not scorers or (by == "disagreement" and len(scorers) < 2):
        raise AlignkitError(
            f"uncertainty by {by!r} from {len(scorers)} scorers: by must be one of {', '.join(BY)}, and disagreement "
            "needs at least two"
        )
    prompts, first, second = (pairs[name][:] for name in PAIR)
    gaps = np.array([scores_of(s, prompts, first) - scores_of(s, prompts, second) for s in scorers])
    p = 0.5 * (1 + np.tanh(gaps / 2))
    return p.std(0) if by == "disagreement" else -np.abs(p.mean(0) - 0.5)


def choose_pairs(
    pairs: Dataset, n: int, scorers: Scorer | Sequence[Scorer] | None = None, by: str = "disagreement", seed: int = 0
) -> Dataset:
    """The n pairs the scorers are least sure about, ties in random order; without scorers, n at random."""
    if not 1 <= n <= len(pairs):
        raise AlignkitError(f"choose_pairs: n must be between 1 and the {len(pairs)} pairs there are, not {n}")
    order = np.random.default_rng([seed, 12]).permutation(len(pairs))
    if scorers is not None:
        order = order[np.argsort(-uncertainty(pairs, scorers, by)[order], kind="stable")]
    return pairs.select(order[:n])
