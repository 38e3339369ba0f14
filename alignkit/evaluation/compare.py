"""Follow-up: the vital signs of a policy before and after treatment, and several rewards side by side on one task."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from datasets import Dataset

from alignkit.errors import check_positive
from alignkit.evaluation.core import frontier, sequence_kl
from alignkit.intervals import t_half_width
from alignkit.optimize.methods import rloo
from alignkit.policy import Policy
from alignkit.rewards.base import Combined, Judgement, Reward, as_reward, columns_of, repeated
from alignkit.worlds.base import World, judge_rows


@dataclass
class Chart:
    """`table`: one row for gold, each aspect, each symptom and the length; before, after and their difference, with
    95 % intervals over prompts. `samples`: some completions of each policy, for reading."""

    table: pd.DataFrame
    samples: pd.DataFrame

    def plot(self):
        """Before and after, aspects on the left and symptoms on the right."""
        from alignkit import plots  # draws with what only notebooks need

        return plots.chart(self.table)

    def _repr_html_(self) -> str:
        columns = ["before", "after", "change", "change_low", "change_high"]
        shown = self.table[[name for name in columns if name in self.table]]
        return shown.to_html(float_format="{:+.2f}".format, na_rep="")


def measure(world: World, policy: Policy, prompts: Sequence | Dataset, n: int, seed: int, max_new_tokens: int = 48
            ) -> tuple[pd.DataFrame, pd.DataFrame]:  # fmt: skip
    """Per-prompt means of gold, aspects, symptoms and length (words) from n samples a prompt, and these samples.

    `prompts`: a list, or a Dataset with a column `prompt` whose other columns reach the world's gold.
    """
    prompts, columns = columns_of(prompts)
    rollout = policy.rollout(prompts, n, seed=seed, max_new_tokens=max_new_tokens)
    p, c = rollout.prompts, rollout.completions
    known = repeated(columns, n)
    rows = pd.DataFrame({
        ("gold", "gold"): judge_rows(world.gold, p, c, known),
        **{("aspect", k): v for k, v in judge_rows(world.gold_aspects, p, c, known).items()},
        **{("symptom", k): v for k, v in judge_rows(world.symptoms, p, c, known).items()},
        ("length", "words"): np.array([len(text.split()) for text in c], dtype=float),
    })  # fmt: skip
    means = rows.groupby(np.repeat(np.arange(len(prompts)), n)).mean()
    return means, pd.DataFrame({"prompt": p, "completion": c, "gold": rows[("gold", "gold")]})


def chart(world: World, before: Policy, after: Policy | None = None, n: int = 32, seed: int = 0,
          prompts: Sequence | Dataset | None = None, max_new_tokens: int = 48) -> Chart:  # fmt: skip
    """Vital signs on the test prompts (or `prompts`) from n samples each: gold, aspects, symptom rates, length.

    Intervals are t-intervals over prompts; the change is paired by prompt.
    """
    prompts = world.prompts("test") if prompts is None else prompts
    old, old_samples = measure(world, before, prompts, n, seed, max_new_tokens)
    table = _with_interval(old, "before")
    if after is None:
        return Chart(table, old_samples)
    new, new_samples = measure(world, after, prompts, n, seed, max_new_tokens)
    table = table.join(_with_interval(new, "after")).join(_with_interval(new - old, "change"))
    samples = old_samples.merge(new_samples, left_index=True, right_index=True, suffixes=("_before", "_after"))
    return Chart(table, samples)


def _with_interval(per_prompt: pd.DataFrame, name: str) -> pd.DataFrame:
    mean, half = per_prompt.mean(), t_half_width(per_prompt.std(ddof=1), per_prompt.notna().sum())
    return pd.DataFrame({name: mean, f"{name}_low": mean - half, f"{name}_high": mean + half})


# -- side by side ------------------------------------------------------------------------------------------------------


class Scaled(Combined):
    """A reward divided by `unit`, its finer credit too; the card stays the reward's own."""

    def __init__(self, reward: Reward | Callable, unit: float):
        reward = as_reward(reward)
        super().__init__({"reward": reward}, name=reward.card.name)
        self.unit, self.card = unit, reward.card

    def combine(self, parts: dict[str, Judgement], prompts: list, completions: list) -> Judgement:
        said = parts["reward"]
        fine = {name: values and [np.asarray(v) / self.unit for v in values]
                for name, values in (("steps", said.steps), ("tokens", said.tokens))}  # fmt: skip
        return Judgement(said.scores / self.unit, ends=said.ends, **fine)


def spread(reward: Reward | Callable, prompts: list, completions: list[str], n: int) -> float:
    """Mean within-prompt standard deviation of the reward, n completions a prompt; 1 if it never differs."""
    scores = as_reward(reward)(prompts, completions).all_scores("side_by_side").reshape(-1, n)
    return float(scores.std(1).mean()) or 1.0


def side_by_side(world: World, patient: Policy, rewards: Mapping[str, Reward | Callable],
                 told: Mapping[str, Mapping[str, float]] | None = None, *, n: int, n_reference: int, prompts: int,
                 treat: Callable[..., Policy] = rloo, seed: int = 0, max_new_tokens: int = 48,
                 **options) -> pd.DataFrame:  # fmt: skip
    """Equal treatment of one patient by several rewards, a row each; sd: of gold within prompts.

    Every reward is divided by its own `spread` over the reference samples, so that one beta and one learning rate mean
    the same to all. Two comparisons:

    - *gold gained (sd)*, *KL (nats)* and symptom rates of the patient treated by `treat` (a method of
      `alignkit.optimize`) with these `options` (beta 0.1 and learning_rate 1e-3 if they say nothing else); from n
      samples of each test prompt (half as many for the KL);
    - *gold at 0.5 nats (sd)* of the exact optimum of this reward at that distance, which needs no training: from
      `n_reference` samples of the patient for each of some `prompts` of them. NaN where they don't reach that far.

    `told` (decisions and items read, say, for each reward) and the seconds of treatment are what it cost.
    """
    check_positive("side_by_side", n=n, n_reference=n_reference, prompts=prompts)
    options = {"beta": 0.1, "learning_rate": 1e-3, "seed": seed, "max_new_tokens": max_new_tokens, **options}
    asked = world.prompts("test")
    some = asked[:: max(1, len(asked) // prompts)][:prompts]
    pool = patient.rollout(some, n_reference, seed=seed + 1, max_new_tokens=max_new_tokens)
    gold = world.gold(pool.prompts, pool.completions).reshape(len(some), n_reference)
    sd, untrained = gold.std(1).mean(), "gold at 0.5 nats (sd)"
    before, _ = measure(world, patient, asked, n, seed + 2, max_new_tokens)
    rows = {"untreated": {"gold gained (sd)": 0.0, "KL (nats)": 0.0, untrained: np.nan, **_symptoms(before)}}
    for name, reward in rewards.items():
        scaled = Scaled(reward, spread(reward, pool.prompts, pool.completions, n_reference))
        start = time.perf_counter()
        treated = treat(patient, world.prompts("treatment"), scaled, **options)
        seconds = time.perf_counter() - start
        after, _ = measure(world, treated, asked, n, seed + 2, max_new_tokens)
        scores = scaled(pool.prompts, pool.completions).scores.reshape(gold.shape)
        best = frontier(scores, betas=np.geomspace(50, 0.02, 60), values=(gold - gold.mean()) / sd)
        rows[name] = {
            "gold gained (sd)": (after - before)[("gold", "gold")].mean() / sd,
            "KL (nats)": sequence_kl(treated, patient, asked, -(-n // 2), seed + 3, max_new_tokens).mean(),
            untrained: best.at(0.5),
            **(told or {}).get(name, {}),
            "seconds": seconds,
            **_symptoms(after),
        }
    table = pd.DataFrame(rows).T
    symptoms = list(_symptoms(before))
    return table[[*(c for c in table.columns if c not in symptoms), *symptoms]]


def _symptoms(per_prompt: pd.DataFrame) -> dict[str, float]:
    return {name: per_prompt[(kind, name)].mean() for kind, name in per_prompt.columns if kind == "symptom"}
