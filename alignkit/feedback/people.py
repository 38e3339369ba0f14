"""Many simulated people who differ, and one who agrees with gold exactly as often as asked."""

from __future__ import annotations

import numpy as np
from datasets import Dataset
from scipy.optimize import brentq

from alignkit.errors import AlignkitError
from alignkit.feedback.annotator import Annotator
from alignkit.worlds.base import World


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
    prompts, first, second = pairs["prompt"][:], pairs["first"][:], pairs["second"][:]
    gap = world.gold(prompts, first) - world.gold(prompts, second)
    p = annotator.prefers_first(world, prompts, first, second)
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
