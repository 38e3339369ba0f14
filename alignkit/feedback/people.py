"""Many people: a population that differs, groups that want different things, values that change, and one person who
agrees with gold exactly as often as asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from datasets import Dataset
from scipy.optimize import brentq

from alignkit.errors import AlignkitError
from alignkit.feedback.annotator import Annotator
from alignkit.feedback.answers import further
from alignkit.feedback.compare import PAIR, label
from alignkit.worlds.base import World, judge_rows


def population(
    world: World,
    n: int,
    seed: int = 0,
    values: float = 0.0,
    temperature: tuple[float, float] = (0.3, 1.0),
    error: tuple[float, float] = (0.0, 0.2),
    position: float = 0.0,
    length: float = 0.0,
    shift: float = 0.0,
    stretch: float = 0.0,
) -> list[Annotator]:
    """n people called p0, p1, ...

    `temperature` and `error`: ranges to draw from evenly. The others are standard deviations around a person without
    that habit: of the logarithm of each aspect's weight (`values`), of the position bias (logits) and length bias
    (logits a word), of `shift` (points) and of the logarithm of `stretch` in ratings.
    """
    if n < 1:
        raise AlignkitError(f"population: n must be at least 1, not {n}")
    rng = np.random.default_rng([seed, 10])
    people = []
    for number in range(n):
        weights = {name: world.weights[name] * float(np.exp(values * rng.normal())) for name in world.aspects}
        people.append(
            Annotator(
                temperature=float(rng.uniform(*temperature)),
                error=float(rng.uniform(*error)),
                position_bias=float(position * rng.normal()),
                length_bias=float(length * rng.normal()),
                weights=weights,
                name=f"p{number}",
                shift=float(shift * rng.normal()),
                stretch=float(np.exp(stretch * rng.normal())),
            )
        )
    return people


def expected_agreement(world: World, pairs: Dataset, annotator: Annotator) -> float:
    """Expected share of the pairs `prompt/first/second` on which this annotator sides with gold (ties: one half)."""
    prompts, first, second = (pairs[name][:] for name in PAIR)
    along = further(pairs, PAIR)
    gap = np.subtract(*(judge_rows(world.gold, prompts, side, along) for side in (first, second)))
    p = annotator.prefers_first(world, prompts, first, second, **along)
    return float(np.where(gap > 0, p, np.where(gap < 0, 1 - p, 0.5)).mean())


def with_agreement(world: World, pairs: Dataset, agreement: float, annotator: Annotator | None = None) -> Annotator:
    """The annotator with the temperature at which their expected agreement with gold on these pairs is `agreement`.

    AlignkitError if no temperature does that: it lies between one half and what they reach without noise.
    """
    person = annotator or Annotator()
    low, high = 1e-3, 1e3

    def excess(log_t: float) -> float:
        return expected_agreement(world, pairs, person.but(temperature=float(np.exp(log_t)))) - agreement

    best, worst = (expected_agreement(world, pairs, person.but(temperature=t)) for t in (low, high))
    if not worst < agreement < best:
        raise AlignkitError(
            f"{person.name} can't agree with gold on a share of {agreement:.3f} of these pairs at any temperature; it "
            f"must lie between {worst:.3f} and {best:.3f}"
        )
    return person.but(temperature=float(np.exp(brentq(excess, np.log(low), np.log(high), xtol=1e-3))))


@dataclass(frozen=True)
class Group:
    """People who want the same: `person` stands for each of them, `share` is their part of the crowd."""

    person: Annotator
    share: float

    @property
    def name(self) -> str:
        return self.person.name

    def __post_init__(self):
        if not (np.isfinite(self.share) and self.share > 0):
            raise AlignkitError(f"Group {self.name!r}: share must be above 0, not {self.share}; leave that group out")


@dataclass(frozen=True)
class Crowd:
    """`people` with names of their own, and the name of the group that each belongs to (`groups`, same order)."""

    people: tuple[Annotator, ...]
    groups: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.people)

    def label(self, world: World, pairs: Dataset, seed: int = 0) -> Dataset:
        """As `feedback.label`, the people asked in turn; one more column, `group`."""
        labeled = label(world, pairs, self.people, seed)
        group_of = {person.name: group for person, group in zip(self.people, self.groups, strict=True)}
        return labeled.add_column("group", [group_of[name] for name in labeled["annotator"]])

    def of(self, group: str) -> Crowd:
        """The members of one group."""
        if group not in self.groups:
            raise AlignkitError(f"no group {group!r} in this crowd; it has {', '.join(dict.fromkeys(self.groups))}")
        some = [i for i, name in enumerate(self.groups) if name == group]
        return Crowd(tuple(self.people[i] for i in some), (group,) * len(some))


def crowd(groups: Sequence[Group], n: int, seed: int = 0) -> Crowd:
    """n people in these groups, each with a name such as "brisk-3", in a random order.

    Numbers follow the shares (which need not sum to 1) as nearly as whole people can: the largest remainders are
    rounded up. AlignkitError if a group would get nobody.
    """
    names = [group.name for group in groups]
    if not groups or len({*names}) < len(names):
        raise AlignkitError(f"crowd: groups need names that differ, at least one group; got {names}")
    shares = np.array([group.share for group in groups], dtype=float)
    exact = n * shares / shares.sum()
    counts = np.floor(exact).astype(int)
    for k in np.argsort(counts - exact, kind="stable")[: n - counts.sum()]:
        counts[k] += 1
    if counts.min() < 1:
        raise AlignkitError(f"crowd: with n={n} nobody is left for group {names[counts.argmin()]!r}; ask more people")
    members = [
        (g.person.but(name=f"{g.name}-{i}"), g.name) for g, k in zip(groups, counts, strict=True) for i in range(k)
    ]
    order = np.random.default_rng([seed, 20]).permutation(n)
    people, of = zip(*(members[i] for i in order), strict=True)
    return Crowd(people, of)


def label_over_time(
    world: World, pairs: Dataset, before: Annotator, after: Annotator, change: int, over: int = 0, seed: int = 0
) -> Dataset:
    """Labels of a stream of pairs, in order, while values change at row `change`; columns as in `label`, and `time`.

    Rows before `change` are labeled by `before`; over the next `over` rows a growing share is labeled by `after`, and
    every row behind them (over = 0: a sudden change). Each row draws the same random number whoever labels it.
    """
    if not 0 <= change <= len(pairs) or over < 0:
        raise AlignkitError(
            f"label_over_time: change must be between 0 and the {len(pairs)} pairs, and over at least 0; "
            f"got change={change}, over={over}"
        )
    rows = np.arange(len(pairs))
    share = np.where(rows < change, 0.0, np.clip((rows - change + 1) / (over + 1), 0, 1))
    changed = np.random.default_rng([seed, 21]).random(len(pairs)) < share
    old, new = (label(world, pairs, person, seed) for person in (before, after))
    columns = {}
    for name in old.column_names:
        one, other = old[name][:], new[name][:]
        columns[name] = [b if c else a for a, b, c in zip(one, other, changed, strict=True)]
    return Dataset.from_dict({**columns, "time": rows.tolist()})
