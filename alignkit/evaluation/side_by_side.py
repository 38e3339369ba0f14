"""Several rewards on one task: the same patient, prompts, optimizer and steps, one row a reward."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

from alignkit.evaluation.chart import measure
from alignkit.evaluation.core import frontier, sequence_kl
from alignkit.optimize.policy_gradient import rloo
from alignkit.policy import Policy
from alignkit.rewards.base import Judgement, Reward, as_reward
from alignkit.worlds.base import World


class Scaled(Reward):
    """A reward divided by `unit`, its finer credit too; the card stays the reward's own."""

    def __init__(self, reward: Reward | Callable, unit: float):
        self.reward, self.unit = as_reward(reward), unit
        self.card = self.reward.card

    def judge(self, prompts: list, completions: list[str]) -> Judgement:
        said = self.reward(prompts, completions)
        fine = {name: values and [np.asarray(v) / self.unit for v in values]
                for name, values in (("steps", said.steps), ("tokens", said.tokens))}  # fmt: skip
        return Judgement(said.scores / self.unit, ends=said.ends, **fine)


def spread(reward: Reward | Callable, prompts: list, completions: list[str], n: int) -> float:
    """Mean within-prompt standard deviation of the reward, n completions a prompt; 1 if it never differs."""
    scores = as_reward(reward)(prompts, completions).scores.reshape(-1, n)
    return float(scores.std(1).mean()) or 1.0


def side_by_side(
    world: World,
    patient: Policy,
    rewards: Mapping[str, Reward | Callable],
    told: Mapping[str, Mapping[str, float]] | None = None,
    at_kl: float = 1.0,
    beta: float = 0.2,
    steps: int = 20,
    samples: int = 768,
    prompts: int = 6,
    seed: int = 0,
    split: str = "test",
    progress: bool = True,
    **options,
) -> pd.DataFrame:
    """One row for each reward, in units of gold's within-prompt standard deviation where it says sd.

    - *gold gained (sd)*, *KL (nats)*, symptom rates: of the patient treated with RLOO at equal beta and steps, each
      reward divided by its own spread, on all prompts of `split`;
    - *gold at N nats (sd)*: gold of the exact optimum of this reward at that distance, from `samples` of the patient for
      each of `prompts` prompts of `split` (NaN where the reward can't carry a policy that far): equal distance, no
      training;
    - `told` (say decisions and items read, for each reward) and seconds of treatment: what it cost.

    Further options go to `rloo`.
    """
    asked = world.prompts(split)
    some = asked[:: max(1, len(asked) // prompts)][:prompts]
    pool = patient.rollout(some, samples, seed=seed + 1)
    gold = world.gold(pool.prompts, pool.completions).reshape(len(some), samples)
    sd = gold.std(1).mean()
    before, _ = measure(world, patient, asked, 16, seed + 2)
    rows = {"untreated": {"gold gained (sd)": 0.0, "KL (nats)": 0.0, f"gold at {at_kl:g} nats (sd)": np.nan,
                          **_symptoms(before)}}  # fmt: skip
    for name, reward in rewards.items():
        scaled = Scaled(reward, spread(reward, pool.prompts, pool.completions, samples))
        start = time.perf_counter()
        treated = rloo(patient, world.prompts("treatment"), scaled, beta=beta, steps=steps, seed=seed,
                       progress=progress, **options)  # fmt: skip
        seconds = time.perf_counter() - start
        after, _ = measure(world, treated, asked, 16, seed + 2)
        scores = scaled(pool.prompts, pool.completions).scores.reshape(gold.shape)
        equal = frontier(scores, betas=np.geomspace(50, 0.02, 60), values=(gold - gold.mean()) / sd).at(at_kl)
        rows[name] = {
            "gold gained (sd)": (after - before)[("gold", "gold")].mean() / sd,
            "KL (nats)": sequence_kl(treated, patient, asked, n=8, seed=seed + 3).mean(),
            f"gold at {at_kl:g} nats (sd)": equal,
            **(told or {}).get(name, {}),
            "seconds": seconds,
            **_symptoms(after),
        }
    table = pd.DataFrame(rows).T
    symptoms = list(_symptoms(before))
    return table[[*(c for c in table.columns if c not in symptoms), *symptoms]]


def _symptoms(per_prompt: pd.DataFrame) -> dict[str, float]:
    return {name: per_prompt[(kind, name)].mean() for kind, name in per_prompt.columns if kind == "symptom"}
