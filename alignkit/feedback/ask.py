"""Which question to ask next: the pairs a reward is least sure about."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from datasets import Dataset

from alignkit.errors import AlignkitError
from alignkit.feedback.models import Scorer, scores_of

BY = ("disagreement", "closeness")


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
    prompts, first, second = pairs["prompt"][:], pairs["first"][:], pairs["second"][:]
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
