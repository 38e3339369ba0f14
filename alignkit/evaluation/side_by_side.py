"""Several rewards on one task: the same patient, prompts, optimizer and steps, one row a reward."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

from alignkit.errors import AlignkitError
from alignkit.evaluation.chart import measure
from alignkit.evaluation.core import frontier, sequence_kl
from alignkit.optimize.methods import rloo
from alignkit.policy import Policy
from alignkit.rewards.base import Judgement, Reward, as_reward
from alignkit.worlds.base import World

#: Equal treatment for all that is compared, by profile: what a run may cost. The same in every notebook, so that their
#: tables can be put together. `answers`: how many labeled answers each reward should have been told about.
BUDGETS = {
    "smoke": dict(answers=30, steps=1, prompts_per_step=2, group_size=4, samples=60, prompts=2, measured=2),
    "standard": dict(answers=320, steps=6, prompts_per_step=4, group_size=16, samples=192, prompts=4, measured=6),
    "thorough": dict(answers=1000, steps=16, prompts_per_step=8, group_size=16, samples=768, prompts=6, measured=16),
}


class Scaled(Reward):
    """A reward divided by `unit`, its finer credit too; the card stays the reward's own."""

    reads = "as given"

    def __init__(self, reward: Reward | Callable, unit: float):
        self.reward, self.unit = as_reward(reward), unit
        self.card = self.reward.card

    def made_of(self) -> Mapping[str, Reward]:
        return {"reward": self.reward}

    def judge(self, prompts: list, completions: list, **columns) -> Judgement:
        said = self.reward(prompts, completions, **columns)
        fine = {name: values and [np.asarray(v) / self.unit for v in values]
                for name, values in (("steps", said.steps), ("tokens", said.tokens))}  # fmt: skip
        return Judgement(said.scores / self.unit, ends=said.ends, present=said.present, parts={"reward": said}, **fine)


def spread(reward: Reward | Callable, prompts: list, completions: list[str], n: int) -> float:
    """Mean within-prompt standard deviation of the reward, n completions a prompt; 1 if it never differs."""
    scores = as_reward(reward)(prompts, completions).scores.reshape(-1, n)
    return float(scores.std(1).mean()) or 1.0


def side_by_side(
    world: World,
    patient: Policy,
    rewards: Mapping[str, Reward | Callable],
    told: Mapping[str, Mapping[str, float]] | None = None,
    profile: str = "standard",
    at_kl: float = 0.5,
    beta: float = 0.1,
    learning_rate: float = 1e-3,
    seed: int = 0,
    split: str = "test",
    progress: bool = True,
    **changes,
) -> pd.DataFrame:
    """One row for each reward, in units of gold's within-prompt standard deviation where it says sd.

    - *gold gained (sd)*, *KL (nats)*, symptom rates: of the patient treated with RLOO at equal beta and steps, each
      reward divided by its own spread, on `measured` samples of each prompt of `split`;
    - *gold at N nats (sd)*: gold of the exact optimum of this reward at that distance, from `samples` of the patient
      for each of `prompts` prompts of `split` (NaN where the reward can't carry a policy that far): equal distance, no
      training;
    - `told` (say decisions and items read, for each reward) and seconds of treatment: what it cost.

    `profile` names one of `BUDGETS`; `changes` to it, and further options of `rloo`, by name.
    """
    if profile not in BUDGETS:
        raise AlignkitError(f"side_by_side: profile must be one of {', '.join(BUDGETS)}, not {profile!r}")
    options = {**BUDGETS[profile], **changes}
    options.pop("answers")
    samples, prompts, measured = (options.pop(name) for name in ("samples", "prompts", "measured"))
    asked = world.prompts(split)
    some = asked[:: max(1, len(asked) // prompts)][:prompts]
    pool = patient.rollout(some, samples, seed=seed + 1)
    gold = world.gold(pool.prompts, pool.completions).reshape(len(some), samples)
    sd = gold.std(1).mean()
    before, _ = measure(world, patient, asked, measured, seed + 2)
    rows = {"untreated": {"gold gained (sd)": 0.0, "KL (nats)": 0.0, f"gold at {at_kl:g} nats (sd)": np.nan,
                          **_symptoms(before)}}  # fmt: skip
    for name, reward in rewards.items():
        scaled = Scaled(reward, spread(reward, pool.prompts, pool.completions, samples))
        if hasattr(reward, "reset"):  # one that changes as it is used, such as `Stages`, must not start ahead
            reward.reset()
        start = time.perf_counter()
        treated = rloo(patient, world.prompts("treatment"), scaled, beta=beta, learning_rate=learning_rate, seed=seed,
                       progress=progress, **options)  # fmt: skip
        seconds = time.perf_counter() - start
        after, _ = measure(world, treated, asked, measured, seed + 2)
        scores = scaled(pool.prompts, pool.completions).scores.reshape(gold.shape)
        equal = frontier(scores, betas=np.geomspace(50, 0.02, 60), values=(gold - gold.mean()) / sd).at(at_kl)
        rows[name] = {
            "gold gained (sd)": (after - before)[("gold", "gold")].mean() / sd,
            "KL (nats)": sequence_kl(treated, patient, asked, n=-(-measured // 2), seed=seed + 3).mean(),
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
