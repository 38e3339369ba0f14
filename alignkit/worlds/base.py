"""What every world offers: prompts in splits, a known gold reward with named aspects, and text to pretrain on."""

from __future__ import annotations

from typing import Protocol

import numpy as np


class World(Protocol):
    """A small task whose true reward is known because we wrote it."""

    name: str
    version: str  # recorded with every result; a changed world voids recorded evidence
    aspects: tuple[str, ...]
    weights: dict[str, float]  # gold = sum of weight * aspect

    def prompts(self, split: str = "treatment") -> list[str]:
        """The prompts of one split; splits are disjoint."""

    def gold(self, prompts: list[str], completions: list[str]) -> np.ndarray:
        """The true reward, shape (N,), float64."""

    def gold_aspects(self, prompts: list[str], completions: list[str]) -> dict[str, np.ndarray]:
        """The named parts of gold, each of shape (N,)."""

    def symptoms(self, prompts: list[str], completions: list[str]) -> dict[str, np.ndarray]:
        """Visible faults, 1 where present, 0 where absent, NaN where the question does not arise; shape (N,)."""


def gold_by_step(world: World, prompt: str, completion: str, ends: list[int]) -> np.ndarray:
    """What each step adds to gold: gold up to its end minus gold up to the step before, shape (steps,).

    `ends`: where each step ends in the completion, in characters. The numbers telescope: they sum to gold of the whole
    minus gold of the empty completion, so as a reward they have the same optimum (a shaping by potentials, Ng et al.
    1999).
    """
    parts = [completion[:end] for end in [0, *ends]]
    return np.diff(world.gold([prompt] * len(parts), parts))
