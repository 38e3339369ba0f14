"""A patient rebuilt from its seed is as ill as the shipped one (a whole pretraining: two minutes)."""

import numpy as np

from alignkit.build import build_patient
from alignkit.policy import load_policy


def symptom_rates(world, policy):
    prompts = world.prompts("treatment")
    rollout = policy.rollout(prompts, -(-3000 // len(prompts)), seed=8)
    return {name: np.nanmean(v) for name, v in world.symptoms(rollout.prompts, rollout.completions).items()}


def test_a_rebuilt_patient_is_as_ill_as_the_shipped_one(world):
    rebuilt = symptom_rates(world, build_patient("assistant", seed=0, progress=False))
    shipped = symptom_rates(world, load_policy("assistant", patient=0))
    assert all(abs(rebuilt[name] - shipped[name]) <= 0.06 for name in shipped), (rebuilt, shipped)
