"""The texts a reward is tried on: a policy's answers in a world, or the two sides of a user's pairs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from alignkit import worlds
from alignkit.checkup.diagnosis.pairs import PairSet, read_pairs
from alignkit.errors import AlignkitError
from alignkit.policy import Policy, load_policy
from alignkit.worlds.base import World

PROMPTS, SAMPLES = 24, 16  # of a world: enough that a share near one half is known to +-0.1
MOST_PAIRS = 200  # of the user's: accuracy is then known to +-7 points
CLEAR_GAP = 0.1  # of gold, in sd: pairs of a world nearer than that have no better side


@dataclass
class Material:
    """`completions[i]` answers `prompts[i]`; `group[i]` numbers the prompt. `first`: rows to be perturbed."""

    source: str
    prompts: list[str]
    completions: list[str]
    group: np.ndarray
    first: np.ndarray
    chosen: np.ndarray  # rows; the pair's other side is in `rejected`
    rejected: np.ndarray
    world: World | None = None

    def gold(self, prompts: list[str], completions: list[str]) -> np.ndarray | None:
        return None if self.world is None else self.world.gold(prompts, completions)


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
    few = min(4, samples)
    first = np.flatnonzero(np.arange(len(group)) % samples < few)
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
    n = len(frame)
    prompts = frame["prompt"].repeat(2).tolist()
    completions = [text for sides in zip(frame["chosen"], frame["rejected"], strict=True) for text in sides]
    rows = np.arange(0, 2 * n, 2)
    _, group = np.unique(prompts, return_inverse=True)
    first = np.arange(min(2 * n, 4 * PROMPTS))
    return Material(pairs.source, prompts, completions, group, first, rows, rows + 1)


def open_material(data, world: str | World | None, policy: Policy | None, seed: int) -> Material:
    """The user's pairs if there are any; else a world's answers (default: assistant)."""
    if data is not None:
        material = from_pairs(data, seed)
        if world is not None:
            material.world = worlds.load(world) if isinstance(world, str) else world
            material.gold(material.prompts, material.completions)  # raises where a prompt is not of that world
        return material
    world = world or "assistant"
    return from_world(worlds.load(world) if isinstance(world, str) else world, policy, seed)


def within_sd(values: np.ndarray, group: np.ndarray) -> float:
    """Root of the mean variance within prompts; NaN where no prompt has two finite values."""
    kept = np.isfinite(values)
    values, group = values[kept], np.unique(group[kept], return_inverse=True)[1]
    sizes = np.bincount(group) if len(group) else np.empty(0)
    if not len(sizes) or sizes.max() < 2:
        return float("nan")
    centered = values - (np.bincount(group, values) / sizes)[group]
    return float(np.sqrt((centered**2).sum() / (sizes - 1).sum()))


def tamed(values: np.ndarray, group: np.ndarray, far: float = 5.0) -> np.ndarray:
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


