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
