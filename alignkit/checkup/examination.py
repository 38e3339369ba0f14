"""What the checks of an audit share: the texts a reward is tried on, how it is asked, and where a finding begins."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain

import numpy as np
import pandas as pd

from alignkit import worlds
from alignkit.checkup.findings import MEANINGFUL, SERIOUS, WARN, Example, cut
from alignkit.checkup.isolation import Incident, IsolatedReward
from alignkit.checkup.pairs import PairSet, read_pairs
from alignkit.errors import AlignkitError
from alignkit.policy import Policy, load_policy
from alignkit.worlds.base import World

PROMPTS, SAMPLES = 24, 16  # of a world: enough that a share near one half is known to +-0.1
MOST_PAIRS = 200  # of the user's: accuracy is then known to +-7 points
CLEAR_GAP = 0.1  # of gold, in sd: pairs of a world nearer than that have no better side
ROUNDING = 1e-6  # relative: float32 sums in another order differ by less
SHOWN = 240  # characters of a text in an example
FAR = 5.0  # robust standard deviations from a prompt's median: a score of a kind of its own


@dataclass
class Material:
    """A policy's answers in a world, or the two sides of a user's pairs: `completions[i]` answers `prompts[i]`.

    `group[i]` numbers the prompt, `messages[i]` is the prompt as messages (`chat`: all came as such), `columns[i]` what
    else the row holds, by name. `first`: rows to be perturbed; `chosen`: rows whose pair's other side is in `rejected`.
    """

    source: str
    prompts: list[str]
    completions: list[str]
    group: np.ndarray
    first: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray
    world: World | None = None
    messages: list[list[dict]] | None = None
    columns: list[dict] | None = None
    samples: int = 0  # of a world: answers to each prompt, one after another

    def __post_init__(self):
        self.chat = self.messages is not None
        self.messages = self.messages or [as_message("user", prompt) for prompt in self.prompts]
        self.columns = self.columns or [{} for _ in self.prompts]

    def gold(self, prompts: list[str], completions: list[str]) -> np.ndarray | None:
        return None if self.world is None else self.world.gold(prompts, completions)

    def texts(self, rows: np.ndarray) -> tuple[list[str], list[str]]:
        return [self.prompts[i] for i in rows], [self.completions[i] for i in rows]

    def prompts_first(self, rows: np.ndarray) -> np.ndarray:
        """The rows, one of each prompt first."""
        _, place = np.unique(self.group[rows], return_index=True)
        return np.concatenate([rows[np.sort(place)], np.delete(rows, place)])


def from_world(world: World, policy: Policy | None, seed: int, samples: int = SAMPLES) -> Material:
    """`samples` answers to each of PROMPTS treatment prompts, and pairs of them that gold tells apart."""
    policy = load_policy(world.name, patient=seed) if policy is None else policy
    rng = np.random.default_rng([seed, 71])
    everything = world.prompts("treatment")
    asked = [everything[i] for i in sorted(rng.permutation(len(everything))[:PROMPTS])]
    rollout = policy.rollout(asked, samples, seed=seed)
    return _answered(world, rollout.prompts, rollout.completions, samples)


def _answered(world: World, prompts: list[str], completions: list[str], samples: int) -> Material:
    rows = np.arange(len(prompts))
    group, first = rows // samples, rows[rows % samples < 4]
    gold, left = world.gold(prompts, completions), rows[:-1:2]
    clear = left[np.abs(gold[left] - gold[left + 1]) > CLEAR_GAP * within_sd(gold, group)]
    better = np.where(gold[clear] > gold[clear + 1], clear, clear + 1)
    return Material(f"world {world.name}", prompts, completions, group, first, better, 2 * clear + 1 - better, world,
                    samples=samples)  # fmt: skip


def smaller(material: Material, share: float) -> Material:
    """Fewer answers to each prompt of a world, for a slow reward."""
    per = max(4, round(share * material.samples))
    if per >= material.samples:
        return material
    rows = np.arange(len(material.prompts))
    return _answered(material.world, *material.texts(rows[rows % material.samples < per]), per)


def from_pairs(source, seed: int) -> Material:
    """Up to MOST_PAIRS of the user's pairs whose sides answer one prompt and differ."""
    pairs = source if isinstance(source, PairSet) else read_pairs(source)
    frame = pairs.frame
    frame = frame[(frame["chosen"] != frame["rejected"]) & (frame["prompt_match"] != "different")]
    if frame.empty:
        raise AlignkitError(f"{pairs.source} has no pair of two different answers to one prompt")
    if len(frame) > MOST_PAIRS:
        frame = frame.sample(MOST_PAIRS, random_state=seed)
    prompts = frame["prompt"].repeat(2).tolist()
    completions = [text for sides in zip(frame["chosen"], frame["rejected"], strict=True) for text in sides]
    held = [pairs.columns[i] for i in frame.index for _ in range(2)]
    names = []
    for name in dict.fromkeys(chain(*held)):
        with suppress(TypeError, ValueError):  # images and dates can't be handed to another process, as JSON
            json.dumps([row.get(name) for row in held])
            names.append(name)
    talks = frame["messages"].tolist()
    chosen = np.arange(0, len(prompts), 2)
    return Material(
        pairs.source, prompts, completions, np.unique(prompts, return_inverse=True)[1],
        np.arange(min(len(prompts), 4 * PROMPTS)), chosen, chosen + 1,
        messages=[talk[0] for talk in talks for _ in range(2)] if all(talks) else None,
        columns=[{name: row.get(name) for name in names} for row in held],
    )  # fmt: skip


def open_material(data, world: str | World | None, policy: Policy | None, seed: int) -> Material:
    """The user's pairs if there are any; else a world's answers (default: assistant)."""
    world = worlds.load(world or "assistant") if isinstance(world, str) or data is world is None else world
    if data is None:
        return from_world(world, policy, seed)
    material = from_pairs(data, seed)
    material.world = world
    material.gold(material.prompts, material.completions)  # raises where a prompt is not of that world
    return material


@dataclass
class Examination:
    """What the checks know of a reward on the material; they add to it as they go."""

    reward: IsolatedReward
    material: Material
    seed: int
    budget: float
    time_limit: float
    show_texts: bool
    share: float = 1.0  # how much of the planned work there is time for
    noise: float = 0.0  # sd of the score between two calls on the same text
    by_batch: bool = False  # scores depend on the batch: before and after are then compared within one call
    scores: np.ndarray = field(default_factory=lambda: np.empty(0))  # of all of the material's rows
    left_out: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=bool))  # where the reward says None
    effects: list = field(default_factory=list)  # of the perturbations, see `sensitivity.Effect`

    def __post_init__(self):
        self.chat = self.material.chat  # prompts and completions are handed over as messages

    def ask(self, rows: np.ndarray, completions: list[str] | None = None, whole: bool = False) -> np.ndarray:
        """Scores of these rows of the material, or of other completions to their prompts; NaN where there is none.

        The rows' columns are handed over with them. None for a row that it scores as it was is an incident.
        """
        texts = self.material.texts(rows)[1] if completions is None else completions
        asked = self.material.messages if self.chat else self.material.prompts
        said = [as_message("assistant", text) for text in texts] if self.chat else texts
        handed = [(asked[row], one, self.material.columns[row]) for row, one in zip(rows, said, strict=True)]
        found = self.reward.scores(handed, whole)
        absent = np.array([score is None for score in found], dtype=bool)
        if len(self.scores):
            lost = np.flatnonzero(absent & ~self.left_out[rows])
            if len(lost):
                first = self.material.prompts[rows[lost[0]]], texts[lost[0]], {}
                self.reward.note(Incident("left_out", "None"), first, len(lost))
        else:
            self.left_out = absent
        return np.array(found, dtype=float)

    @cached_property
    def unit(self) -> float:
        """One sd. A reward that is constant within prompts takes the sd over all, and one that is constant has none."""
        scores = winsorized(self.scores, self.material.group)
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

    def severity(self, points: float, strong: float) -> str:
        """SERIOUS for shifts above `strong` sd, and for all that a constant reward shows."""
        return SERIOUS if self.in_sd(points) > strong or not self.unit else WARN

    def in_words(self, points: float) -> str:
        return f"{self.in_sd(points):+.2f} {'sd' if self.unit else 'points'}"

    @cached_property
    def gold(self) -> np.ndarray | None:
        return self.material.gold(self.material.prompts, self.material.completions)

    @cached_property
    def gold_unit(self) -> float:
        return 1.0 if self.gold is None else within_sd(self.gold, self.material.group) or 1.0

    @cached_property
    def perturbed_rows(self) -> np.ndarray:
        """The rows that perturbations are tried on: fewer where the reward is slow, one of each prompt first."""
        first = self.material.first
        return np.sort(self.material.prompts_first(first)[: max(16, round(self.share * len(first)))])

    def example(self, row: int, after: str | None = None, score_after=None, gold_after=None, score_before=None):
        """A row of the material as an example: its text, and what became of it. By default the text stays as it is, and
        scores as in `scores`. Texts are cut, or left out."""
        before = self.material.completions[row]
        texts = self.material.prompts[row], before, before if after is None else after
        numbers = (self.scores[row] if score_before is None else score_before, score_after,
                   None if gold_after is None else self.gold[row], gold_after)  # fmt: skip
        return Example(*(cut(text, SHOWN) if self.show_texts else "" for text in texts),
                       *map(rounded, numbers))  # fmt: skip


def within_sd(values: np.ndarray, group: np.ndarray) -> float:
    """Root of the mean variance within prompts; NaN where no prompt has two finite values."""
    by_prompt = pd.Series(values).groupby(group)
    spare = by_prompt.count() - 1
    return float(np.sqrt((by_prompt.var() * spare).sum() / spare[spare > 0].sum())) if (spare > 0).any() else np.nan


def winsorized(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Values farther than FAR robust standard deviations from their prompt's median, pulled back to there.

    Else a few scores of a kind of their own (what a veto pushes down) stretch the scale on which all shifts are told,
    and hide them.
    """
    middle = pd.Series(values).groupby(group).transform("median").to_numpy()
    away = values - middle
    limit = FAR * 1.4826 * np.nanmedian(np.abs(away)) if np.isfinite(away).any() else 0.0
    return middle + np.clip(away, -limit, limit) if limit > 0 else values


def spread(rows: np.ndarray, n: int) -> np.ndarray:
    """n of the rows, or all if there are fewer, evenly from the first to the last."""
    return rows[np.linspace(0, len(rows) - 1, min(n, len(rows))).round().astype(int)]


def as_message(role: str, text: str) -> list[dict]:
    return [{"role": role, "content": text}]


def rounded(value: float | None, digits: int = 6) -> float | None:
    return None if value is None or not np.isfinite(value) else round(float(value), digits)
