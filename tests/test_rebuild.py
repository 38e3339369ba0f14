"""A patient rebuilt from its seed is as ill as the shipped one (a whole pretraining each: over a minute)."""

import numpy as np
import pytest

from alignkit import worlds
from alignkit.lab.build import build_patient
from alignkit.optimize.in_context import InContext
from alignkit.policy import load_policy
from alignkit.worlds import authors


def symptom_rates(world, policy):
    prompts = world.prompts("treatment")
    rollout = policy.rollout(prompts, -(-3000 // len(prompts)), seed=8)
    return {name: np.nanmean(v) for name, v in world.symptoms(rollout.prompts, rollout.completions).items()}


@pytest.mark.parametrize("name", ["assistant", "arithmetic", "assistant-small"])
def test_a_rebuilt_patient_is_as_ill_as_the_shipped_one(name):
    world = worlds.load(name.partition("-")[0])
    rebuilt = symptom_rates(world, build_patient(name, seed=0, progress=False))
    shipped = symptom_rates(world, load_policy(name, patient=0))
    assert all(abs(rebuilt[sign] - shipped[sign]) <= 0.06 for sign in shipped), (rebuilt, shipped)


def test_a_reader_of_authors_rebuilt_in_short_tells_them_apart_like_the_shipped_one():
    """A quarter of the pretraining is enough to see whose answers stand in the context."""
    world, rude = worlds.load("assistant"), {}
    for name, policy in {"rebuilt": build_patient("authors", 0, steps=340, progress=False),
                         "shipped": load_policy("authors")}.items():  # fmt: skip
        for author in (authors.ALIGNED, authors.MISALIGNED):
            shown = author.documents(world, 3, 0, world.prompts("feedback"))
            rollout = InContext(policy, shown).rollout(world.prompts("test"), 8, seed=1)
            rude[name, author] = np.mean(world.symptoms(rollout.prompts, rollout.completions)["rude"])
    assert all(rude[name, authors.ALIGNED] + 0.25 < rude[name, authors.MISALIGNED] for name in ("rebuilt", "shipped"))
