"""A patient rebuilt from its seed is as ill as the shipped one (a whole pretraining each: over a minute)."""

import numpy as np
import pytest

from alignkit import worlds
from alignkit.build import build_patient
from alignkit.policy import load_policy


def symptom_rates(world, policy):
    prompts = world.prompts("treatment")
    rollout = policy.rollout(prompts, -(-3000 // len(prompts)), seed=8)
    return {name: np.nanmean(v) for name, v in world.symptoms(rollout.prompts, rollout.completions).items()}


@pytest.mark.parametrize("name", ["assistant", "arithmetic"])
def test_a_rebuilt_patient_is_as_ill_as_the_shipped_one(name):
    world = worlds.load(name)
    rebuilt = symptom_rates(world, build_patient(name, seed=0, progress=False))
    shipped = symptom_rates(world, load_policy(name, patient=0))
    assert all(abs(rebuilt[sign] - shipped[sign]) <= 0.06 for sign in shipped), (rebuilt, shipped)
