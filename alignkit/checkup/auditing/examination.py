"""What the checks share: the reward in its process, the texts, their scores, and the scale on which shifts are told."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from alignkit.checkup.auditing.findings import MEANINGFUL, Example
from alignkit.checkup.auditing.material import Material, tamed, within_sd
from alignkit.checkup.isolation.process import IsolatedReward

ROUNDING = 1e-6  # relative: float32 sums in another order differ by less
SHOWN = 240  # characters of a text in an example


@dataclass
class Examination:
    """`scores` of all of the material's rows. `noise`: sd of the score between two calls on the same text."""

    reward: IsolatedReward
    material: Material
    seed: int
    budget: float
    show_texts: bool = True
    share: float = 1.0  # how much of the planned work there is time for
    noise: float = 0.0
    by_batch: bool = False  # scores depend on the batch: before and after are then compared within one call
    scores: np.ndarray = field(default_factory=lambda: np.empty(0))

    @cached_property
    def unit(self) -> float:
        """One sd. A reward that is constant within prompts takes the sd over all, and one that is constant has none."""
        scores = tamed(self.scores, self.material.group)
        for sd in (within_sd(scores, self.material.group), np.nanstd(self.scores)):
            if np.isfinite(sd) and sd > ROUNDING * self.size:
                return float(sd)
        return 0.0

    @cached_property
    def size(self) -> float:
        """How large scores are, for rounding."""
        return max(1e-12, float(np.nanmax(np.abs(self.scores)))) if np.isfinite(self.scores).any() else 1.0

    @property
    def least(self) -> float:
        """The smallest shift that counts, in points of the score: meaningful, and no noise."""
        return max(MEANINGFUL * self.unit, 3 * np.sqrt(2) * self.noise, ROUNDING * self.size)

    def in_sd(self, points: np.ndarray | float):
        """Shifts in sd; of a constant reward in points, as there is no scale."""
        return points / self.unit if self.unit else points

    def told(self, points: float) -> str:
        return f"{self.in_sd(points):+.2f} {'sd' if self.unit else 'points'}"

    @cached_property
    def gold(self) -> np.ndarray | None:
        return self.material.gold(self.material.prompts, self.material.completions)

    @cached_property
    def gold_unit(self) -> float:
        return within_sd(self.gold, self.material.group) or 1.0

    @cached_property
    def perturbed_rows(self) -> np.ndarray:
        """The rows that perturbations are tried on: fewer where the reward is slow, one of each prompt first."""
        first = self.material.first
        _, place = np.unique(self.material.group[first], return_index=True)
        order = np.concatenate([np.sort(place), np.setdiff1d(np.arange(len(first)), place)])
        return np.sort(first[order[: max(16, round(self.share * len(first)))]])

    def texts(self, rows: np.ndarray) -> tuple[list[str], list[str]]:
        return [self.material.prompts[i] for i in rows], [self.material.completions[i] for i in rows]

    def example(self, prompt: str, before: str, after: str, **numbers) -> Example:
        """An example, its texts cut for showing or left out; `numbers` as in Example."""
        shown = [_cut(text) if self.show_texts else "" for text in (prompt, before, after)]
        return Example(*shown, **{k: None if v is None or not np.isfinite(v) else round(float(v), 6)
                                  for k, v in numbers.items()})  # fmt: skip


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"
