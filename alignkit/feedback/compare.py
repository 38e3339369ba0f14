"""Comparison: from a world, a policy and people to a `datasets.Dataset` with TRL's columns; and which pairs to ask."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from datasets import Dataset

from alignkit.errors import AlignkitError, DataError, check_at_least, check_choice
from alignkit.feedback.annotator import Annotator, Scorer, scores_of
from alignkit.feedback.answers import People, ask, further
from alignkit.policy import Policy
from alignkit.worlds.base import World

PAIR = ("prompt", "first", "second")
SIDES = ("first", "second")
VERDICT = ("position", "p_chosen", "confidence")  # what a labeling says beside which side was chosen


def draw_groups(world: World, policy: Policy, n: int, group_size: int = 4, seed: int = 0, split: str = "feedback",
                prompts: Sequence | Dataset | None = None, max_new_tokens: int = 48) -> Dataset:  # fmt: skip
    """n rows `prompt/completions` with `group_size` samples of `policy` each; prompts in turn, shuffled.

    `prompts`: a list, or a Dataset with a column `prompt`, whose other columns go along; default: the world's `split`.
    Samples of a group differ: repeated ones are drawn again up to 50 times, and a group that still repeats is left out.
    """
    prompts = world.prompts(split) if prompts is None else prompts
    columns: dict[str, list] = {}
    if isinstance(prompts, Dataset) and "prompt" in prompts.column_names:
        prompts, columns = prompts["prompt"][:], further(prompts, ("prompt",))
    elif isinstance(prompts, str | Dataset):
        raise DataError("prompts must be a list of prompts, or a Dataset with a column 'prompt'")
    check_at_least("draw_groups", 1, n=n, group_size=group_size, **{"number of prompts": len(prompts)})
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


def draw_pairs(world: World, policy: Policy, n: int, seed: int = 0, **options) -> Dataset:
    """n unlabeled pairs of different completions, columns `prompt/first/second`: groups of two; options as in
    `draw_groups`."""
    groups = draw_groups(world, policy, n, 2, seed, **options)
    first, second = ([texts[side] for texts in groups["completions"]] for side in (0, 1))
    return Dataset.from_dict({"prompt": groups["prompt"][:], "first": first, "second": second,
                              **further(groups, ("completions", *PAIR))})  # fmt: skip


def label(world: World, pairs: Dataset, annotator: People, seed: int = 0) -> Dataset:
    """Ask one annotator, or several in turn, about each pair of `prompt/first/second`.

    Returns columns `prompt/chosen/rejected` (TRL) and `position` (which side was chosen: "first" or "second"),
    `p_chosen` (the probability that this annotator would choose so, in this order), `annotator`, and the pairs' further
    columns.
    """
    asked = ask(pairs, PAIR, annotator)
    p_first = asked.numbers("prefers_first", world)
    takes_first = np.random.default_rng([seed, 2]).random(len(pairs)) < p_first
    return labeled(pairs, takes_first, p_chosen=np.where(takes_first, p_first, 1 - p_first), annotator=asked.of("name"))


def labeled(pairs: Dataset, takes_first: Sequence[bool], **columns: Sequence) -> Dataset:
    """Labels by which side was chosen: `prompt/chosen/rejected/position`, the new columns, the pairs' further ones."""
    shown = zip(pairs["first"], pairs["second"], takes_first, strict=True)
    sides = [(a, b) if took else (b, a) for a, b, took in shown]
    chosen, rejected = ([side[k] for side in sides] for k in (0, 1))
    position = [SIDES[not took] for took in takes_first]
    columns = {"prompt": pairs["prompt"][:], "chosen": chosen, "rejected": rejected, "position": position, **columns}
    return Dataset.from_dict({**columns, **further(pairs, (*PAIR, *columns))})


def label_by_rule(pairs: Dataset, rule: Scorer, name: str = "rule") -> Dataset:
    """Labels where a rule has something to say: of `prompt/first/second`, the side that scores higher.

    Pairs on which it scores both sides the same are left out. Columns as `label` gives them, and `task`: the row of the
    pair.
    """
    gap = _gaps(rule, pairs)
    rows = np.flatnonzero(gap).tolist()
    return labeled(pairs.select(rows), gap[rows] > 0, p_chosen=np.ones(len(rows)), annotator=[name] * len(rows),
                   task=rows)  # fmt: skip


def _gaps(scorer: Scorer, pairs: Dataset) -> np.ndarray:
    """Score of the first side minus score of the second, shape (N,)."""
    prompts, first, second = (pairs[name][:] for name in PAIR)
    return scores_of(scorer, prompts, first) - scores_of(scorer, prompts, second)


def compare(world: World, policy: Policy, annotator: People = Annotator(), n: int = 1000, seed: int = 0,  # noqa: B008
            **options) -> Dataset:  # fmt: skip
    """Draw n pairs of completions from `policy` and have them compared; options as in `draw_groups`, columns as in
    `label`."""
    return label(world, draw_pairs(world, policy, n, seed, **options), annotator, seed)


def shuffle_labels(pairs: Dataset, seed: int = 0) -> Dataset:
    """The null control: each pair's sides swapped by a fair coin, so that the labels say nothing.

    Further columns go along, but those that tell which side was chosen and how surely.
    """
    swapped = np.random.default_rng([seed, 3]).random(len(pairs)) < 0.5
    sides = [(b, a) if swap else (a, b) for a, b, swap in zip(pairs["chosen"], pairs["rejected"], swapped, strict=True)]
    chosen, rejected = ([side[k] for side in sides] for k in (0, 1))
    columns = {"prompt": pairs["prompt"][:], "chosen": chosen, "rejected": rejected}
    return Dataset.from_dict({**columns, **further(pairs, (*columns, *VERDICT))})


def choose_pairs(
    pairs: Dataset, n: int, scorers: Sequence[Scorer] | None = None, by: str = "disagreement", seed: int = 0
) -> Dataset:
    """The n pairs of `prompt/first/second` that the scorers are least sure about, ties in random order; without
    scorers, n at random: which question to ask next.

    "disagreement": standard deviation over an ensemble of the probability that the first side wins: what is not known
    yet. "closeness": minus the distance of the mean probability from one half: that, and true ties as well.
    """
    if not 1 <= n <= len(pairs):
        raise AlignkitError(f"choose_pairs: n must be between 1 and the {len(pairs)} pairs there are, not {n}")
    check_choice("choose_pairs", "by", by, ("disagreement", "closeness"))
    order = np.random.default_rng([seed, 12]).permutation(len(pairs))
    if scorers:
        if by == "disagreement" and len(scorers) < 2:
            raise AlignkitError("choose_pairs: disagreement needs at least two scorers")
        p = 0.5 * (1 + np.tanh(np.array([_gaps(scorer, pairs) for scorer in scorers]) / 2))
        unsure = p.std(0) if by == "disagreement" else -np.abs(p.mean(0) - 0.5)
        order = order[np.argsort(-unsure[order], kind="stable")]
    return pairs.select(order[:n])
