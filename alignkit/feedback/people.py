"""Many people: a population that differs, groups that want different things; and one who agrees with gold as asked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from datasets import Dataset
from scipy.optimize import brentq

from alignkit.errors import AlignkitError, check_at_least, check_positive
from alignkit.feedback.annotator import Annotator
from alignkit.feedback.answers import further
from alignkit.feedback.compare import PAIR
from alignkit.worlds.base import World, judge_rows


def population(world: World, n: int, seed: int = 0, values: float = 0.0, temperature: tuple[float, float] = (0.3, 1.0),
               error: tuple[float, float] = (0.0, 0.2), position: float = 0.0, length: float = 0.0, shift: float = 0.0,
               stretch: float = 0.0) -> list[Annotator]:  # fmt: skip
    """n people called p0, p1, ...

    `temperature` and `error`: ranges to draw from evenly. The others are standard deviations around a person without
    that habit: of the logarithm of each aspect's weight (`values`), of the position bias (logits) and length bias
    (logits a word), of `shift` (points) and of the logarithm of `stretch` in ratings.
    """
    check_at_least("population", 1, n=n)
    rng = np.random.default_rng([seed, 10])
    people = []
    for number in range(n):
        weights = {name: world.weights[name] * float(np.exp(values * rng.normal())) for name in world.aspects}
        drawn = {
            "temperature": rng.uniform(*temperature),
            "error": rng.uniform(*error),
            "position_bias": position * rng.normal(),
            "length_bias": length * rng.normal(),
            "shift": shift * rng.normal(),
            "stretch": np.exp(stretch * rng.normal()),
        }
        people.append(Annotator(weights=weights, name=f"p{number}", **{name: float(x) for name, x in drawn.items()}))
    return people


def with_agreement(world: World, pairs: Dataset, agreement: float, annotator: Annotator | None = None) -> Annotator:
    """The annotator with the temperature at which they are expected to side with gold on this share of the pairs
    `prompt/first/second` (ties: one half).

    AlignkitError if no temperature does that: it lies between one half and what they reach without noise.
    """
    person = annotator or Annotator()
    prompts, first, second = (pairs[name][:] for name in PAIR)
    along = further(pairs, PAIR)
    gap = np.subtract(*(judge_rows(world.gold, prompts, side, along) for side in (first, second)))

    def expected(log_t: float) -> float:
        p = person.but(temperature=float(np.exp(log_t))).prefers_first(world, prompts, first, second, **along)
        return float(np.where(gap > 0, p, np.where(gap < 0, 1 - p, 0.5)).mean())

    low, high = np.log(1e-3), np.log(1e3)
    best, worst = expected(low), expected(high)
    if not worst < agreement < best:
        raise AlignkitError(f"{person.name} can't agree with gold on a share of {agreement:.3f} of these pairs at any "
                            f"temperature; it must lie between {worst:.3f} and {best:.3f}")  # fmt: skip
    found = brentq(lambda log_t: expected(log_t) - agreement, low, high, xtol=1e-3)
    return person.but(temperature=float(np.exp(found)))


def crowd(groups: Sequence[tuple[Annotator, float]], n: int, seed: int = 0) -> list[Annotator]:
    """n people in groups of (person, share): each wants what the `person` wants, has a name such as "brisk-3" and that
    person's as `group`; in a random order.

    Numbers follow the shares (which need not sum to 1) as nearly as whole people can: the largest remainders are
    rounded up. AlignkitError if a group would get nobody.
    """
    names = [person.name for person, _ in groups]
    if not groups or len({*names}) < len(names):
        raise AlignkitError(f"crowd: groups need names that differ, at least one group; got {names}")
    check_positive("crowd, share of each group", **{person.name: share for person, share in groups})
    shares = np.array([share for _, share in groups], dtype=float)
    exact = n * shares / shares.sum()
    counts = np.floor(exact).astype(int)
    for k in np.argsort(counts - exact, kind="stable")[: n - counts.sum()]:
        counts[k] += 1
    if counts.min() < 1:
        raise AlignkitError(f"crowd: with n={n} nobody is left for group {names[counts.argmin()]!r}; ask more people")
    members = [person.but(name=f"{person.name}-{i}", group=person.name)
               for (person, _), k in zip(groups, counts, strict=True) for i in range(k)]  # fmt: skip
    return [members[i] for i in np.random.default_rng([seed, 20]).permutation(n)]
