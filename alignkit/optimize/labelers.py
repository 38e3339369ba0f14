"""Who says which of two fresh answers is better, while a policy is being treated."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from alignkit.errors import AlignkitError
from alignkit.feedback.annotator import Annotator
from alignkit.optimize.checkpoint import digest
from alignkit.rewards.base import Reward
from alignkit.worlds.base import World

#: label(prompts, a, b): for each row, is `a` the better one? True or False, or a probability in [0, 1].
Labeler = Callable[[list, list[str], list[str]], np.ndarray]


def asks(world: World, annotator: Annotator, seed: int = 0, answers: bool = True) -> Labeler:
    """The annotator as a labeler: one sampled answer a row, or (`answers=False`) the probability of it.

    The coin depends on `seed` and the two texts alone, so that an interrupted treatment hears the same answers again.
    """

    def label(prompts: list, a: list[str], b: list[str]) -> np.ndarray:
        p = annotator.prefers_first(world, prompts, a, b)
        return np.random.default_rng([seed, int(digest(prompts, a, b), 16)]).random(len(p)) < p if answers else p

    return label


def preference(labeler: Labeler | Reward, prompts: list, a: list[str], b: list[str]) -> np.ndarray:
    """P(a is better), shape (N,), in [0, 1]; a reward prefers the larger score and gives 1/2 to ties."""
    if labeler is None:
        raise AlignkitError("no reward and no labeler was given: pass a Reward, or a function label(prompts, a, b)")
    if isinstance(labeler, Reward):
        both = labeler(list(prompts) * 2, list(a) + list(b)).scores
        return 0.5 + 0.5 * np.sign(both[: len(a)] - both[len(a) :])
    if not callable(labeler):
        raise AlignkitError(
            f"a labeler must be a Reward or a function label(prompts, a, b), not {type(labeler).__name__}; for an "
            "Annotator: asks(world, annotator)"
        )
    said = np.asarray(labeler(prompts, a, b), dtype=float)
    if said.shape != (len(a),) or not np.all((said >= 0) & (said <= 1)):
        raise AlignkitError(
            f"the labeler must return True or False, or a probability, for each of {len(a)} rows; it returned shape "
            f"{said.shape}, {said.ravel()[:3]} ..."
        )
    return said
