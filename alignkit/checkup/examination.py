"""What the checks of an audit share: the texts a reward is tried on, how it is asked, and where a finding begins."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from alignkit import worlds
from alignkit.checkup.findings import MEANINGFUL, Example, cut
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


@dataclass
class Material:
    """A policy's answers in a world, or the two sides of a user's pairs: `completions[i]` answers `prompts[i]`.

    `group[i]` numbers the prompt. `first`: rows to be perturbed. `columns`: what else the rows hold, by name.
    `messages`: the prompts as the messages they came as, if all of them did.
    """

    source: str
    prompts: list[str]
    completions: list[str]
    group: np.ndarray
    first: np.ndarray
    chosen: np.ndarray  # rows; the pair's other side is in `rejected`
    rejected: np.ndarray
    world: World | None = None
    columns: dict[str, list] = field(default_factory=dict)
    messages: list[list[dict]] | None = None

    def gold(self, prompts: list[str], completions: list[str]) -> np.ndarray | None:
        return None if self.world is None else self.world.gold(prompts, completions)

    def texts(self, rows: np.ndarray) -> tuple[list[str], list[str]]:
        return [self.prompts[i] for i in rows], [self.completions[i] for i in rows]

    def part(self, keep: np.ndarray) -> Material:
        """The same with these rows only; pairs among them are kept."""
        place = np.full(len(self.group), -1)
        place[keep] = np.arange(len(keep))
        pairs = (place[self.chosen] >= 0) & (place[self.rejected] >= 0)
        return Material(
            self.source, *self.texts(keep), self.group[keep], place[self.first][place[self.first] >= 0],
            place[self.chosen[pairs]], place[self.rejected[pairs]], self.world,
            {name: [values[i] for i in keep] for name, values in self.columns.items()},
            self.messages and [self.messages[i] for i in keep],
        )  # fmt: skip


def from_world(world: World, policy: Policy | None, seed: int, samples: int = SAMPLES) -> Material:
    """`samples` answers to each of PROMPTS treatment prompts, and pairs of them that gold tells apart."""
    if policy is None:
        try:
            policy = load_policy(world.name, patient=seed)
        except AlignkitError as error:
            raise AlignkitError(f"world {world.name!r} has no shipped policy whose answers a reward could be tried on "
                                f"({error})") from None  # fmt: skip
    rng = np.random.default_rng([seed, 71])
    everything = world.prompts("treatment")
    asked = [everything[i] for i in sorted(rng.permutation(len(everything))[:PROMPTS])]
    rollout = policy.rollout(asked, samples, seed=seed)
    group = np.repeat(np.arange(len(asked)), samples)
    gold = world.gold(rollout.prompts, rollout.completions)
    first = np.flatnonzero(np.arange(len(group)) % samples < min(4, samples))
    left = np.arange(0, len(group) - 1, 2)
    clear = left[np.abs(gold[left] - gold[left + 1]) > CLEAR_GAP * within_sd(gold, group)]
    better = np.where(gold[clear] > gold[clear + 1], clear, clear + 1)
    return Material(f"world {world.name}", rollout.prompts, rollout.completions, group, first, better,
                    2 * clear + 1 - better, world)  # fmt: skip


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
    columns = {name: [row.get(name) for row in held] for name in dict.fromkeys(key for row in held for key in row)}
    talks = frame["messages"].tolist()
    chosen = np.arange(0, len(prompts), 2)
    return Material(
        pairs.source, prompts, completions, np.unique(prompts, return_inverse=True)[1],
        np.arange(min(len(prompts), 4 * PROMPTS)), chosen, chosen + 1,
        columns={name: values for name, values in columns.items() if _is_plain(values)},
        messages=[talk[0] for talk in talks for _ in range(2)] if all(talks) else None,
    )  # fmt: skip


def _is_plain(values: list) -> bool:
    """Can the values be handed to another process as JSON? Images and dates can't."""
    try:
        json.dumps(values)
    except (TypeError, ValueError):
        return False
    return True


def open_material(data, world: str | World | None, policy: Policy | None, seed: int) -> Material:
    """The user's pairs if there are any; else a world's answers (default: assistant)."""
    if data is None:
        world = world or "assistant"
        return from_world(worlds.load(world) if isinstance(world, str) else world, policy, seed)
    material = from_pairs(data, seed)
    if world is not None:
        material.world = worlds.load(world) if isinstance(world, str) else world
        material.gold(material.prompts, material.completions)  # raises where a prompt is not of that world
    return material


@dataclass
class Examination:
    """`scores` of all of the material's rows. `noise`: sd of the score between two calls on the same text."""

    reward: IsolatedReward
    material: Material
    seed: int
    budget: float
    show_texts: bool = True
    chat: bool = False  # prompts and completions are handed over as messages
    share: float = 1.0  # how much of the planned work there is time for
    noise: float = 0.0
    by_batch: bool = False  # scores depend on the batch: before and after are then compared within one call
    scores: np.ndarray = field(default_factory=lambda: np.empty(0))
    left_out: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=bool))  # where the reward says None

    def ask(self, rows: np.ndarray, completions: list[str] | None = None, whole: bool = False) -> np.ndarray:
        """Scores of these rows of the material, or of other completions to their prompts; NaN where there is none.

        The rows' columns are handed over with them. None for a row that it scores as it was is an incident.
        """
        prompts, own = self.material.texts(rows)
        texts = own if completions is None else completions
        given = texts
        if self.chat:
            talks = self.material.messages
            prompts = [[{"role": "user", "content": prompts[i]}] if talks is None else talks[row]
                       for i, row in enumerate(rows)]  # fmt: skip
            given = [[{"role": "assistant", "content": text}] for text in texts]
        columns = {name: [values[i] for i in rows] for name, values in self.material.columns.items()}
        scores, absent = self.reward.scores(prompts, given, columns, whole)
        if len(self.scores):
            lost = np.flatnonzero(absent & ~self.left_out[rows])
            if len(lost):
                where = self.material.prompts[rows[lost[0]]], texts[lost[0]]
                self.reward.incidents.append(Incident("left out", "None", self.reward.check, *where, len(lost)))
        else:
            self.left_out = absent
        return scores

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

    def in_words(self, points: float) -> str:
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

    def example(self, prompt: str, before: str, after: str, **numbers) -> Example:
        """An example, its texts cut for showing or left out; `numbers` as in Example."""
        shown = [cut(text, SHOWN) if self.show_texts else "" for text in (prompt, before, after)]
        return Example(*shown, **{k: None if v is None or not np.isfinite(v) else round(float(v), 6)
                                  for k, v in numbers.items()})  # fmt: skip


def within_sd(values: np.ndarray, group: np.ndarray) -> float:
    """Root of the mean variance within prompts; NaN where no prompt has two finite values."""
    kept = np.isfinite(values)
    values, group = values[kept], np.unique(group[kept], return_inverse=True)[1]
    sizes = np.bincount(group) if len(group) else np.empty(0)
    if not len(sizes) or sizes.max() < 2:
        return float("nan")
    centered = values - (np.bincount(group, values) / sizes)[group]
    return float(np.sqrt((centered**2).sum() / (sizes - 1).sum()))


def winsorized(values: np.ndarray, group: np.ndarray, far: float = 5.0) -> np.ndarray:
    """Values farther than `far` robust standard deviations from their prompt's median, pulled back to there.

    Else a few scores of a kind of their own (what a veto pushes down) stretch the scale on which all shifts are told,
    and hide them.
    """
    middle = np.full(len(values), np.nan)
    for g in np.unique(group):
        rows = (group == g) & np.isfinite(values)
        middle[group == g] = np.median(values[rows]) if rows.any() else np.nan
    away = values - middle
    limit = far * 1.4826 * np.nanmedian(np.abs(away)) if np.isfinite(away).any() else 0.0
    return middle + np.clip(away, -limit, limit) if limit > 0 else values
