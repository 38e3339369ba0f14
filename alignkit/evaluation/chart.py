"""The chart: vital signs of a policy before and after treatment."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from alignkit import plots
from alignkit.policy import Policy
from alignkit.worlds.base import World


@dataclass
class Chart:
    """`table`: one row for gold, each aspect, each symptom and the length; before, after and their difference, with
    95 % intervals over prompts. `samples`: some completions of each policy, for reading."""

    table: pd.DataFrame
    samples: pd.DataFrame

    def plot(self):
        """Before and after, aspects on the left and symptoms on the right."""
        return plots.chart(self.table)

    def _repr_html_(self) -> str:
        columns = ["before", "after", "change", "change_low", "change_high"]
        shown = self.table[[name for name in columns if name in self.table]]
        return shown.to_html(float_format="{:+.2f}".format, na_rep="")


def measure(world: World, policy: Policy, prompts: list[str], n: int, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Per-prompt means of gold, aspects, symptoms and length (words), and the samples they come from."""
    rollout = policy.rollout(prompts, n, seed=seed)
    p, c = rollout.prompts, rollout.completions
    columns = {
        ("gold", "gold"): world.gold(p, c),
        **{("aspect", k): v for k, v in world.gold_aspects(p, c).items()},
        **{("symptom", k): v for k, v in world.symptoms(p, c).items()},
        ("length", "words"): np.array([len(text.split()) for text in c], dtype=float),
    }
    rows = pd.DataFrame(columns)
    means = rows.groupby(np.repeat(np.arange(len(prompts)), n)).mean()
    samples = pd.DataFrame({"prompt": p, "completion": c, "gold": rows[("gold", "gold")]})
    return means, samples


def chart(
    world: World,
    before: Policy,
    after: Policy | None = None,
    split: str = "test",
    n: int = 32,
    seed: int = 0,
) -> Chart:
    """Vital signs on a split's prompts from n samples each: gold, aspects, symptom rates, length, with intervals.

    Intervals are t-intervals over prompts; the change is paired by prompt.
    """
    prompts = world.prompts(split)
    old, old_samples = measure(world, before, prompts, n, seed)
    table = _with_interval(old, "before")
    if after is None:
        return Chart(table, old_samples)
    new, new_samples = measure(world, after, prompts, n, seed)
    table = table.join(_with_interval(new, "after")).join(_with_interval(new - old, "change"))
    samples = old_samples.merge(new_samples, left_index=True, right_index=True, suffixes=("_before", "_after"))
    return Chart(table, samples)


def _with_interval(per_prompt: pd.DataFrame, name: str) -> pd.DataFrame:
    mean, n = per_prompt.mean(), per_prompt.notna().sum()
    half = stats.t.ppf(0.975, (n - 1).clip(lower=1)) * per_prompt.std(ddof=1) / np.sqrt(n)
    return pd.DataFrame({name: mean, f"{name}_low": mean - half, f"{name}_high": mean + half})
